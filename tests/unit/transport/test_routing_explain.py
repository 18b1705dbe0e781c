"""``explain()`` says which connection a send would take, and why not the others (rule 3.1)."""

from __future__ import annotations

import asyncio

from .conftest import Make, Open
from .helpers import Dials, eventually, port_of, serve, task
from .rawsocket import NODE, Actor


async def test_explain_names_the_outbound_connection(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await a.send(home, task())
    found = a.explain(home)
    assert "outbound" in str(found.chosen)
    assert home in str(found)


async def test_explain_names_the_inbound_connection_of_an_openline_peer(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    found = a.explain(home)
    assert "inbound" in str(found.chosen)
    assert "port" in found.why


async def test_explain_says_that_a_send_would_dial(make: Make) -> None:
    found = (await make()).explain("127.0.0.1:9")
    assert found.chosen is None
    assert "dial" in found.why


async def test_explain_dials_and_sends_nothing(make: Make) -> None:
    dials = Dials()
    a = await make(opener=dials)
    a.explain("127.0.0.1:9")
    await asyncio.sleep(0)
    assert (dials.made, a.stats().dials) == ([], 0)


async def test_explain_says_why_not_the_two_plain_peers(make: Make, raw: Open) -> None:
    a = await make()
    port = port_of(await serve(a))
    clients = [await raw(port), await raw(port)]
    await eventually(lambda: a.stats().active == 2)
    found = a.explain("127.0.0.1:9")
    assert found.chosen is None
    assert all(client.address in str(found) for client in clients)
    assert "more than one plain peer" in str(found)


async def test_explain_says_that_one_plain_peer_stands_for_its_ip(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    found = a.explain("127.0.0.1:9")
    assert client.address in str(found.chosen)
    assert "plain" in found.why


async def test_explain_says_that_a_clients_end_is_the_socket_itself(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    assert client.address in str(a.explain(client.address).chosen)
    client.close()
    await eventually(lambda: a.stats().active == 0)
    found = a.explain(client.address)
    assert found.chosen is None
    assert "far end of a connection that came in and is gone" in found.why


async def test_explain_says_that_a_plain_connection_has_not_proven_what_wss_asks(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    found = a.explain(f"wss://{home}")
    assert found.chosen is None
    assert "proven" in str(found)


async def test_explain_says_where_the_node_of_a_node_id_is_reached(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    found = a.explain(f"{b.node_id}@{home}")
    assert (found.chosen, found.why) == (None, "would dial, by quic, then by websocket")
    assert "no address of it is known" in a.explain(b.node_id).why
    await b.connect(await serve(a))
    for address in (f"{b.node_id}@{home}", b.node_id):
        found = a.explain(address)
        assert "inbound" in str(found.chosen)
        assert "has proven the node id" in found.why


async def test_explain_says_why_a_connection_does_not_answer_for_a_node_id(make: Make, raw: Open) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    address = await serve(a)
    await b.connect(address)
    client = await raw(port_of(address))
    await eventually(lambda: a.stats().active == 2)
    found = a.explain(f"{NODE}@{home}")
    assert found.chosen is None
    reasons = dict(found.others)
    [of_b] = [reason for other, reason in reasons.items() if client.address not in other]
    [of_client] = [reason for other, reason in reasons.items() if client.address in other]
    assert "is not the node" in of_b
    assert "has not proven" in of_client


async def test_explain_says_why_the_older_of_two_connections_is_passed_over(make: Make, raw: Open) -> None:
    a, actor = await make(), Actor(9)
    port = port_of(await serve(a))
    old, new = await raw(port, actor), await raw(port, actor)
    found = a.explain("127.0.0.1:9")
    assert new.address in str(found.chosen)
    assert old.address in str(found.others)


async def test_explain_tells_what_a_send_then_does(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)), Actor(9))
    assert client.address in str(a.explain("127.0.0.1:9").chosen)
    assert (await client.takes(a.send("127.0.0.1:9", task()))).direction == "inbound"
