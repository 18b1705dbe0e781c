"""Peers behind one IP never get each other's messages (rule 3.1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, closed_port, eventually, port_of, serve, task, within
from .rawsocket import Actor, RawServer

Plain = Callable[..., Any]

# Several peers behind one IP ----------------------------------------------------------------------


async def test_two_openline_peers_behind_one_ip_never_get_each_others_messages(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    at_b, at_c = Box(b), Box(c)
    home_b, home_c = await serve(b), await serve(c)
    address = await serve(a)
    await b.connect(address)
    await c.connect(address)
    for number in range(20):
        await a.send(home_b, task(f"b{number}"))
        await a.send(home_c, task(f"c{number}"))
    await eventually(lambda: len(at_b) == len(at_c) == 20)
    assert at_b.payloads == [f"b{number}" for number in range(20)]
    assert at_c.payloads == [f"c{number}" for number in range(20)]
    assert a.stats().created == 0


async def test_a_message_for_an_openline_peer_that_left_does_not_go_to_its_neighbour(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    at_c = Box(c)
    home_b, home_c = await serve(b), await serve(c)
    address = await serve(a)
    await b.connect(address)
    await c.connect(address)
    await a.send(home_b, task())
    await b.close()
    with pytest.raises(openline.Unreachable):
        await a.send(home_b, task("for b"))
    await a.send(home_c, task("for c"))
    await eventually(lambda: "for c" in at_c.payloads)
    assert at_c.payloads == ["for c"]


async def test_two_plain_peers_behind_one_ip_get_their_own_answers(make: Make, plain_client: Plain) -> None:
    a = await make()
    a.on_message(lambda peer, message: peer.reply(message, message.payload))
    port = port_of(await serve(a))
    one, two = await plain_client(port), await plain_client(port)
    for number in range(10):
        await one.send(plain_text(f"one {number}"))
        await two.send(plain_text(f"two {number}"))
    assert [payload_of(await within(one.recv())) for _ in range(10)] == [f"one {n}" for n in range(10)]
    assert [payload_of(await within(two.recv())) for _ in range(10)] == [f"two {n}" for n in range(10)]


def plain_text(payload: Any, **fields: Any) -> str:
    return json.dumps({"id": "p", "type": "task", "payload": payload, **fields})


def payload_of(text: str) -> Any:
    return json.loads(text)["payload"]


async def test_a_message_that_could_be_for_either_of_two_plain_peers_goes_to_neither(
    make: Make, raw: Open
) -> None:
    a = await make()
    port = port_of(await serve(a))
    clients = [await raw(port), await raw(port)]
    await eventually(lambda: a.stats().active == 2)
    with pytest.raises(openline.Unreachable):
        await a.send(f"127.0.0.1:{closed_port()}", task("whose?"))
    await a.close()
    assert [b"whose?" in await client.gone() for client in clients] == [False, False]


async def test_openline_and_plain_peers_mixed_behind_one_ip_each_get_only_their_own(
    make: Make, raw: Open, plain_server: Callable[..., Any]
) -> None:
    a, b, c = await make(), await make(), await make()
    boxes = {"b": Box(b), "c": Box(c)}
    homes = {"b": await serve(b), "c": await serve(c)}
    address = await serve(a)
    await b.connect(address)
    await c.connect(address)
    clients = {"d": await raw(port_of(address)), "e": await raw(port_of(address))}
    server = await plain_server()
    await eventually(lambda: a.stats().active == 4)
    targets = {**homes, **{name: client.address for name, client in clients.items()}, "f": server.address}
    for number in range(10):
        for name, target in targets.items():
            await a.send(target, task(f"{name}{number}"))
    for name, box in boxes.items():
        await eventually(lambda: len(box) == 10)  # noqa: B023
        assert box.payloads == [f"{name}{number}" for number in range(10)]
    for name, client in clients.items():
        got = [(await client.message())["payload"] for _ in range(10)]
        assert got == [f"{name}{number}" for number in range(10)]
    await eventually(lambda: len(server.got) == 10)
    assert server.payloads == [f"f{number}" for number in range(10)]
    assert a.stats().created == 1
    assert a.stats().messages_sent == 50


async def test_a_message_for_an_openline_peer_never_goes_to_the_one_plain_peer_beside_it(
    make: Make, raw: Open
) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    address = await serve(a)
    await b.connect(address)
    client = await raw(port_of(address))
    await a.send(home, task())
    await b.close()
    with pytest.raises(openline.Unreachable):
        await a.send(home, task("for b"))
    await a.close()
    assert b"for b" not in await client.gone()


async def test_a_message_for_a_plain_peer_that_was_dialed_does_not_go_to_its_neighbour_when_it_left(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    """Two plain nodes at one IP, both connected; one has its own server, which was dialed."""
    a = await make()
    port = port_of(await serve(a))
    leaves, stays = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    sending = asyncio.ensure_future(a.send(raw_server.address, task()))
    server = await raw_server.accept()
    assert (await within(sending)).direction == "outbound"
    for end in (leaves, server, raw_server):
        end.close()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await a.send(raw_server.address, task("for the one that left"))
    await a.close()
    assert b"for the one that left" not in await stays.gone()


async def test_a_message_for_one_of_two_plain_peers_does_not_go_to_the_other_when_one_left(
    make: Make, raw: Open
) -> None:
    """Which of the two the address means was never known, and that only one is left says nothing."""
    a = await make()
    port = port_of(await serve(a))
    leaves, stays = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    home = f"127.0.0.1:{closed_port()}"
    with pytest.raises(openline.Unreachable):
        await a.send(home, task())
    leaves.close()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await a.send(home, task("for the one that left"))
    await a.close()
    assert b"for the one that left" not in await stays.gone()


async def test_a_message_never_goes_to_a_node_when_two_claim_the_port(make: Make, raw: Open) -> None:
    a = await make()
    port, claimed = port_of(await serve(a)), closed_port()
    claims = [await raw(port, Actor(claimed)), await raw(port, Actor(claimed))]
    assert a.stats().active == 2
    with pytest.raises(openline.Unreachable):
        await a.send(f"127.0.0.1:{claimed}", task("whose?"))
    await a.close()
    assert [b"whose?" in await claim.gone() for claim in claims] == [False, False]


async def test_a_forged_claim_does_not_take_messages_off_the_outbound_connection(
    make: Make, raw: Open
) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await a.send(home, task(1))
    await raw(port_of(await serve(a)), Actor(port_of(home)))
    assert a.stats().active == 2
    assert (await a.send(home, task(2))).direction == "outbound"
    await eventually(lambda: box.payloads == [1, 2])


# The one plain peer at an IP ----------------------------------------------------------------------


async def test_the_one_plain_peer_at_an_ip_is_reached_on_its_inbound_socket(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    receipt = await a.send(f"127.0.0.1:{closed_port()}", task("yours"))
    assert (receipt.attempts, receipt.direction) == (1, "inbound")
    assert (await client.message())["payload"] == "yours"


async def test_with_plain_reuse_never_the_one_plain_peer_gets_nothing_by_ip(make: Make, raw: Open) -> None:
    a = await make(plain_reuse="never")
    client = await raw(port_of(await serve(a)))
    with pytest.raises(openline.Unreachable):
        await a.send(f"127.0.0.1:{closed_port()}", task("yours?"))
    await a.send(client.address, task("exact"))
    assert (await client.message())["payload"] == "exact"


async def test_with_plain_reuse_newest_the_newest_plain_peer_gets_it(make: Make, raw: Open) -> None:
    a = await make(plain_reuse="newest")
    port = port_of(await serve(a))
    await raw(port)
    newest = await raw(port)
    await eventually(lambda: a.stats().active == 2)
    await a.send(f"127.0.0.1:{closed_port()}", task("yours"))
    assert (await newest.message())["payload"] == "yours"


async def test_one_plain_socket_does_not_stand_for_two_ports(
    make: Make, raw: Open, plain_server: Callable[..., Any]
) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    await a.send(f"127.0.0.1:{closed_port()}", task("one"))
    server = await plain_server()
    await a.send(server.address, task("other"))
    await eventually(lambda: server.payloads == ["other"])
    assert (await client.message())["payload"] == "one"


async def test_a_plain_peers_claimed_name_is_no_proof(make: Make, raw: Open) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    box = Box(b)
    seen = Box(a)
    await b.connect(await serve(a))
    client = await raw(port_of(await serve(a)))
    await client.say("I am b", metadata={"sourceNodeId": b.node_id})
    await eventually(lambda: seen)
    await a.send(home, task("for b"))
    await eventually(lambda: box.payloads == ["for b"])


async def test_a_path_is_part_of_the_address(make: Make, raw: Open, raw_server: RawServer) -> None:
    a = await make()
    await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    sending = asyncio.ensure_future(a.send(f"ws://{raw_server.address}/agents", task("x")))
    server = await raw_server.accept()
    assert server.request.startswith("GET /agents HTTP/1.1")
    assert (await within(sending)).direction == "outbound"
