"""Which connection carries a message (rule 3.1), over real sockets."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

import openline
from openline.connection.connection import State

from .conftest import Make, Open
from .helpers import (
    NODE,
    Actor,
    Box,
    Dials,
    Raw,
    RawServer,
    closed_port,
    eventually,
    port_of,
    serve,
    task,
    tasks,
    two_identities,
    within,
)

Plain = Callable[..., Any]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# Outbound, inbound, dial --------------------------------------------------------------------------


async def test_a_reply_to_the_listening_address_rides_the_inbound_socket(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(home, task("back"))
    assert (receipt.attempts, receipt.direction) == (1, "inbound")
    await eventually(lambda: box.payloads == ["back"])
    assert (a.stats().created, a.stats().dials, b.stats().accepted) == (0, 0, 0)


async def test_20_replies_on_the_inbound_socket_create_nothing(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    receipts = [await a.send(home, message) for message in tasks(20)]
    assert {(receipt.attempts, receipt.direction) for receipt in receipts} == {(1, "inbound")}
    await eventually(lambda: box.payloads == list(range(20)))
    assert (a.stats().created, a.stats().reuses) == (0, 20)


async def test_a_batch_and_a_request_ride_the_inbound_socket_too(make: Make) -> None:
    a, b = await make(), await make()
    b.on_message(lambda peer, message: peer.reply(message, message.payload))
    home = await serve(b)
    await b.connect(await serve(a))
    assert {receipt.direction for receipt in await a.send_batch(home, tasks(50))} == {"inbound"}
    assert (await a.request(home, task("echo"), timeout=5.0)).payload == "echo"
    assert a.stats().created == 0


async def test_without_an_inbound_connection_it_dials(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipt = await a.send(await serve(b), task("first"))
    assert (receipt.attempts, receipt.direction) == (1, "outbound")
    await eventually(lambda: box.payloads == ["first"])
    assert (a.stats().created, a.stats().dials) == (1, 1)


async def test_the_second_message_rides_the_first_ones_connection(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    await a.send(address, task())
    await a.send(address, task())
    assert (a.stats().created, a.stats().reuses, b.stats().accepted) == (1, 1, 1)


async def test_what_was_dialed_goes_before_another_nodes_claim_and_is_dialed_again(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a, node = await make(), Actor(raw_server.port)
    dialing = asyncio.ensure_future(a.connect(raw_server.address))
    server = await raw_server.accept(node)
    await within(dialing)
    client = await raw(port_of(await serve(a)), Actor(raw_server.port))
    assert a.stats().active == 2
    assert (await server.takes(a.send(raw_server.address, task(1)))).direction == "outbound"
    server.close()
    await eventually(lambda: a.stats().active == 1)
    sending = asyncio.ensure_future(a.send(raw_server.address, task(2)))
    again = await raw_server.accept(node)
    assert (await again.takes(sending)).direction == "outbound"
    assert (server.payloads, again.payloads, client.payloads) == ([1], [2], [])


async def test_a_peer_that_is_not_there_is_unreachable_and_the_error_says_why(make: Make) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED") as caught:
        await (await make()).send(address, task())
    assert address in str(caught.value)


async def test_a_name_that_does_not_resolve_is_unreachable(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(openline.Unreachable, match=r"agent\.test"):
        await (await make()).send("agent.test:8770", task())


@pytest.mark.parametrize("name", ["x" * 64 + ".test", "x" * 63 + ".x." + "y" * 63])
async def test_a_name_that_cannot_be_looked_up_is_an_openline_error(make: Make, name: str) -> None:
    """Labels of more than 63 letters cannot be encoded; the resolver says so with a UnicodeError."""
    t = await make()
    with pytest.raises(openline.Error, match=name[:20]):
        await t.send(f"{name}:8770", task())
    with pytest.raises(TimeoutError):
        await t.receive("x" * 63 + ".test:8770", timeout=0.01)


async def test_every_path_to_a_name_is_tried_and_the_error_says_how_each_failed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    with pytest.raises(openline.Unreachable) as caught:
        await (await make(opener=dials)).send("agent.test:8770", task())
    text = str(caught.value)
    assert text.count("EHOSTUNREACH") == 2
    assert "127.0.0.2:8770" in text
    assert "127.0.0.3:8770" in text


async def test_a_dead_first_address_of_a_name_does_not_hide_the_second(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    assert (await a.send(f"agent.test:{port_of(home)}", task())).attempts == 1


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ips: str) -> list[str]:
    """Make every name resolve to ``ips``; the list may change later."""
    found = list(ips)

    async def look_up(host: str, port: int, **kwargs: Any) -> Any:
        here = [host] if host[0].isdigit() else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in here]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    return found


# One dial -----------------------------------------------------------------------------------------


async def test_a_batch_of_50_to_a_new_peer_opens_one_connection(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipts = await a.send_batch(await serve(b), tasks(50))
    assert len(receipts) == 50
    await eventually(lambda: box.payloads == list(range(50)))
    assert (a.stats().created, a.stats().dials, b.stats().accepted) == (1, 1, 1)


async def test_50_concurrent_sends_to_a_new_peer_share_one_dial(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    box = Box(b)
    address = await serve(b)
    receipts = await asyncio.gather(*(a.send(address, message) for message in tasks(50)))
    assert {receipt.attempts for receipt in receipts} == {1}
    await eventually(lambda: len(box) == 50)
    assert sorted(box.payloads) == list(range(50))
    assert (len(dials.made), a.stats().created, b.stats().accepted) == (1, 1, 1)


@pytest.mark.parametrize("form", ["ws://127.0.0.1:{}", "ws://127.0.0.1:{}/", "127.0.0.1:{}"])
async def test_spellings_of_one_address_share_one_dial(make: Make, form: str) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    other = form.format(port_of(address))
    await asyncio.gather(a.send(address, task()), a.send(other, task()), a.connect(other))
    assert (a.stats().dials, b.stats().accepted) == (1, 1)


async def test_a_name_and_its_address_share_one_connection(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    await a.send(f"localhost:{port_of(address)}", task())
    await a.send(address, task())
    assert (a.stats().created, b.stats().accepted) == (1, 1)


async def test_all_waiters_get_the_failure_of_a_shared_dial(make: Make) -> None:
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    dials.gate.clear()
    a = await make(opener=dials)
    sends = [asyncio.ensure_future(a.send("127.0.0.1:9", message)) for message in tasks(50)]
    await eventually(lambda: dials.made)
    dials.gate.set()
    results = await within(asyncio.gather(*sends, return_exceptions=True))
    assert {type(result) for result in results} == {openline.Unreachable}
    assert all("EHOSTUNREACH" in str(result) for result in results)
    assert (len(dials.made), a.stats().dials, a.stats().dial_failures) == (1, 1, 1)


async def test_after_a_failed_dial_the_next_send_dials_again(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    address = await serve(b)
    dials.error = OSError(errno.ENETDOWN, "down")
    with pytest.raises(openline.Unreachable):
        await a.send(address, task())
    dials.error = None
    assert (await a.send(address, task())).attempts == 1


async def test_every_dial_has_a_time_out(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials, dial_timeout=0.1)
    with pytest.raises(openline.Unreachable, match=r"127\.0\.0\.1:9"):
        await within(a.send("127.0.0.1:9", task()), 2.0)


async def test_a_server_that_never_answers_the_upgrade_is_unreachable(
    make: Make, raw_server: RawServer
) -> None:
    a = await make(dial_timeout=0.1)
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(a.send(raw_server.address, task()), 2.0)
    assert a.stats().active == 0


async def test_one_waiter_that_gives_up_does_not_take_the_dial_from_the_others(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    a, b = await make(opener=dials), await make()
    address = await serve(b)
    impatient = asyncio.ensure_future(a.send(address, task(), timeout=0.05))
    patient = asyncio.ensure_future(a.send(address, task()))
    with pytest.raises(TimeoutError):
        await impatient
    dials.gate.set()
    assert (await within(patient)).attempts == 1
    assert len(dials.made) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_that_comes_in_while_a_dial_hangs_releases_the_waiters(
    make: Make, host: str
) -> None:
    dials = Dials()
    dials.gate.clear()
    a, b = await make(opener=dials), await make()
    box = Box(b)
    home = f"{host}:{port_of(await serve(b))}"
    sends = [asyncio.ensure_future(a.send(home, message)) for message in tasks(3)]
    await eventually(lambda: dials.made)
    await b.connect(await serve(a))
    receipts = await within(asyncio.gather(*sends), 1.0)
    assert {receipt.direction for receipt in receipts} == {"inbound"}
    await eventually(lambda: sorted(box.payloads) == [0, 1, 2])
    assert a.stats().created == 0


async def test_a_plain_connection_that_comes_in_while_a_dial_hangs_releases_the_waiters(
    make: Make, raw: Open
) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials)
    sending = asyncio.ensure_future(a.send("127.0.0.1:9", task("hi")))
    await eventually(lambda: dials.made)
    client = await raw(port_of(await serve(a)))
    assert (await within(sending, 1.0)).direction == "inbound"
    assert (await client.message())["payload"] == "hi"


async def test_a_stranger_that_comes_in_while_a_dial_hangs_gets_nothing(make: Make, raw: Open) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials, dial_timeout=0.3)
    sending = asyncio.ensure_future(a.send("127.0.0.1:9", task("secret")))
    await eventually(lambda: dials.made)
    stranger = await raw(port_of(await serve(a)), Actor(10))
    with pytest.raises(openline.Unreachable):
        await within(sending)
    await a.close()
    assert b"secret" not in await stranger.gone()


# Churn --------------------------------------------------------------------------------------------


async def test_of_an_old_and_a_new_inbound_connection_the_newest_live_one_wins(make: Make, raw: Open) -> None:
    """Here the other node is the one to close what is one too many, and does not (yet)."""
    lesser, greater = two_identities()
    a, actor = await make(identity=lesser), Actor(9, identity=greater)
    port = port_of(await serve(a))
    old, new = await raw(port, actor), await raw(port, actor)
    receipts = [await new.takes(a.send("127.0.0.1:9", task("one")))]
    new.close()
    await eventually(lambda: a.stats().active == 1)
    receipts.append(await old.takes(a.send("127.0.0.1:9", task("two"))))
    newest = await raw(port, actor)
    receipts.append(await newest.takes(a.send("127.0.0.1:9", task("three"))))
    old.close()
    await eventually(lambda: a.stats().active == 1)
    receipts.append(await newest.takes(a.send("127.0.0.1:9", task("four"))))
    assert (new.payloads, old.payloads, newest.payloads) == (["one"], ["two"], ["three", "four"])
    assert {(r.attempts, r.direction) for r in receipts} == {(1, "inbound")}
    assert a.stats().created == 0


async def test_the_older_of_two_connections_is_read_for_a_while_and_then_told_not_to_redial(
    make: Make, raw: Open
) -> None:
    lesser, greater = two_identities()
    a, actor = await make(identity=greater), Actor(9, identity=lesser)
    box = Box(a)
    port = port_of(await serve(a))
    old = await raw(port, actor)
    await old.takes(a.send("127.0.0.1:9", task("one")))
    new = await raw(port, actor)
    await new.takes(a.send("127.0.0.1:9", task("two")))
    await old.post(task("was on its way"))
    await eventually(lambda: box.payloads == ["was on its way"])
    assert await within(old.closed()) == 4001
    await eventually(lambda: a.stats().active == 1)
    await new.takes(a.send("127.0.0.1:9", task("three")))
    assert (old.payloads, new.payloads) == (["one"], ["two", "three"])
    assert (a.stats().replaced, a.stats().resent) == (1, 0)


async def test_a_peer_that_reconnects_many_times_gets_every_message_once(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    address = await serve(a)
    for number in range(10):
        peer = await b.connect(address)
        assert peer is not None
        receipt = await a.send(home, task(number))
        assert receipt.direction == "inbound"
        await eventually(lambda: len(box) == number + 1)  # noqa: B023
        for connection in list(peer._remote.connections):
            connection.link.abort()
        await eventually(lambda: a.stats().active == 0)
    assert box.payloads == list(range(10))
    assert a.stats().created == 0


@pytest.mark.parametrize("listens", [True, False], ids=["that listens", "that does not listen"])
async def test_a_peer_in_hand_is_reached_over_its_new_connection_after_it_came_back(
    make: Make, listens: bool
) -> None:
    """A program may keep the peer that a handler once got, in a table of agents, say."""
    dials = Dials()
    a, b = await make(opener=dials), await make()
    at_a, at_b = Box(a), Box(b)
    address = await serve(a)
    if listens:
        await serve(b)
    await b.send(address, task("first"))
    await eventually(lambda: at_a)
    for connection in list(at_a.peers[0]._remote.connections):
        connection.link.abort()
    await eventually(lambda: a.stats().active == b.stats().active == 0)
    await b.send(address, task("again"))
    await eventually(lambda: len(at_a) == 2)
    assert (await at_a.peers[0].send(task("hello again"))).direction == "inbound"
    assert (await at_a.peers[0].reply(at_a[0], "late answer")).direction == "inbound"
    await eventually(lambda: at_b.payloads == ["hello again", "late answer"])
    assert dials.made == []


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


# Answering ip:ephemeral-port ----------------------------------------------------------------------


async def test_an_answer_to_a_clients_own_end_rides_its_socket(make: Make, raw: Open) -> None:
    dials = Dials()
    a = await make(opener=dials)
    port = port_of(await serve(a))
    one, two = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    await a.send(one.address, task("one"))
    await a.send(two.address, task("two"))
    assert (await one.message())["payload"] == "one"
    assert (await two.message())["payload"] == "two"
    assert dials.made == []


@pytest.mark.parametrize("form", ["{}", "ws://{}"])
async def test_a_clients_own_end_is_not_dialed_while_it_is_there_and_the_error_says_later_what_it_was(
    make: Make, raw: Open, form: str
) -> None:
    dials = Dials()
    a = await make(opener=dials)
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    address = form.format(client.address)
    next(iter(a._table.connections)).set_state(State.SUSPECT)
    await a.send(address, task("never dialed"))
    assert ((await client.message())["payload"], dials.made) == ("never dialed", [])
    client.close()
    await eventually(lambda: a.stats().active == 0)
    with pytest.raises(openline.Unreachable, match="far end of a connection that came in"):
        await a.send(address, task())


async def test_a_gone_clients_end_does_not_ride_another_clients_socket(make: Make, raw: Open) -> None:
    a = await make()
    port = port_of(await serve(a))
    gone, stays = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    address = gone.address
    gone.close()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await a.send(address, task("for the gone one"))
    await a.close()
    assert b"for the gone one" not in await stays.gone()


async def test_an_answer_to_a_client_that_died_is_unreachable_and_not_dialed(make: Make, raw: Open) -> None:
    dials = Dials()
    a = await make(opener=dials)
    box = Box(a)
    client = await raw(port_of(await serve(a)))
    await client.say("hello")
    await eventually(lambda: box)
    client.reset()
    with pytest.raises(openline.Unreachable):
        await box.peers[0].reply(box[0], "too late")
    assert dials.made == []


async def test_an_openline_client_that_does_not_listen_is_answered_on_its_socket(make: Make) -> None:
    a, b = await make(), await make()
    at_a, at_b = Box(a), Box(b)
    await b.send(await serve(a), task())
    await eventually(lambda: at_a)
    receipt = await a.send(at_a.peers[0].address, task("answer"))
    assert (receipt.direction, a.stats().created) == ("inbound", 0)
    await eventually(lambda: at_b.payloads == ["answer"])


# Never weaker than asked --------------------------------------------------------------------------


async def test_an_address_with_a_wrong_node_id_is_refused_with_nothing_sent(make: Make) -> None:
    """Also where a connection to that place is open."""
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    wrong = f"{NODE}@{home}"
    await b.connect(await serve(a))
    for send in (a.send, a.request):
        with pytest.raises(openline.Refused, match=b.node_id):
            await send(wrong, task())
    with pytest.raises(openline.Refused, match=b.node_id):
        await a.send_batch(wrong, tasks(3))
    with pytest.raises(openline.Refused, match=b.node_id):
        await a.connect(wrong)
    assert (a.stats().messages_sent, a.stats().created, a.stats().dial_failures) == (0, 0, 4)
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]


async def test_an_address_with_the_right_node_id_rides_any_connection_to_that_node(make: Make) -> None:
    a, b = await make(), await make()
    b.on_message(stream_id="rpc")(lambda peer, message: peer.reply(message, message.payload))
    box = Box(b)
    home = f"{b.node_id}@{await serve(b)}"
    await b.connect(await serve(a))
    for address in (home, b.node_id):
        assert (await a.send(address, task(1))).direction == "inbound"
        assert (await a.request(address, task(2, stream_id="rpc"))).payload == 2
        assert {receipt.acked for receipt in await a.send_batch(address, tasks(3))} == {True}
        assert await a.connect(address) is a.peers()[0]
    assert sorted(box.payloads) == sorted([1, 2, 0, 1, 2] * 2)
    assert [p for p in box.payloads if p != 2] == [1, 0, 1] * 2
    assert (a.stats().created, a.stats().dials) == (0, 0)


async def test_an_address_with_the_right_node_id_is_dialed(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipt = await a.send(f"{b.node_id}@{await serve(b)}", task())
    assert (receipt.direction, receipt.acked) == ("outbound", True)
    assert (box.payloads, a.stats().created) == ([None], 1)


async def test_a_plain_peer_answers_for_no_node_id(make: Make, raw: Open, raw_server: RawServer) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    sending = asyncio.ensure_future(a.send(f"{NODE}@{raw_server.address}", task("secret")))
    server = await raw_server.accept()
    with pytest.raises(openline.Refused, match="proves no node id"):
        await within(sending)
    with pytest.raises(openline.Unreachable):
        await a.send(NODE, task("secret"))
    await a.close()
    assert [b"secret" in await end.gone() for end in (client, server)] == [False, False]


async def test_a_wss_address_never_rides_a_plain_inbound_connection(make: Make, raw: Open) -> None:
    a, b = await make(dial_timeout=0.2), await make()
    home = await serve(b)
    address = await serve(a)
    await b.connect(address)
    box = Box(b)
    client = await raw(port_of(address))
    await eventually(lambda: a.stats().active == 2)
    for target in (f"wss://{home}", f"wss://127.0.0.1:{closed_port()}", f"wss://{client.address}"):
        with pytest.raises(openline.Error):
            await a.send(target, task("secret"))
    await a.send(home, task("last"))
    await eventually(lambda: "last" in box.payloads)
    assert box.payloads == ["last"]
    await a.close()
    assert b"secret" not in await client.gone()


async def test_a_wss_address_never_rides_a_plain_outbound_connection(make: Make) -> None:
    a, b = await make(dial_timeout=0.2), await make()
    home = await serve(b)
    box = Box(b)
    await a.send(home, task(1))
    with pytest.raises(openline.Error):
        await a.send(f"wss://{home}", task("secret"))
    await a.send(home, task(2))
    await eventually(lambda: len(box) >= 2)
    assert box.payloads == [1, 2]


async def test_a_quic_address_never_rides_a_websocket(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(f"ws://{await serve(a)}")
    assert (await a.send(home, task())).backend == "websocket"
    assert (await a.send(f"quic://{home}", task("secret"))).backend == "quic"


async def test_a_quic_address_is_no_use_where_quic_is_left_out(make: Make) -> None:
    a, b = await make(backends=("websocket",)), await make()
    home = await serve(b)
    box = Box(b)
    await b.connect(await serve(a))
    with pytest.raises(openline.Error, match="quic"):
        await a.send(f"quic://{home}", task("secret"))
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]


# Names, IPv6, several listeners -------------------------------------------------------------------


async def test_a_host_name_matches_an_inbound_connection_through_resolution(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(f"localhost:{port_of(home)}", task())
    assert (receipt.direction, a.stats().created) == ("inbound", 0)


async def test_a_name_of_another_ip_does_not_match(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    resolve_to(monkeypatch, "127.0.0.2")
    with pytest.raises(openline.Unreachable):
        await a.send(f"agent.test:{port_of(home)}", task("for another"))
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6_works_and_its_inbound_socket_is_reused(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b, "::1")
    assert (await b.send(await serve(a, "::1"), task())).attempts == 1
    receipt = await a.send(home, task("six"))
    assert (receipt.direction, a.stats().created) == ("inbound", 0)
    await eventually(lambda: box.payloads == ["six"])
    [peer] = a.peers()
    assert peer.address == home


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_listening_without_a_host_serves_ipv4_and_ipv6_on_one_port(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    listener = await a.listen(0)
    await b.send(f"127.0.0.1:{listener.port}", task("four"))
    await b.send(f"[::1]:{listener.port}", task("six"))
    await eventually(lambda: sorted(box.payloads) == ["four", "six"])


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_an_ipv4_mapped_address_is_the_ipv4_address(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(f"[::ffff:127.0.0.1]:{port_of(home)}", task())
    assert (receipt.direction, a.stats().created) == ("inbound", 0)


async def test_both_ports_of_a_peer_that_listens_twice_are_reached_on_one_socket(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    homes = [await serve(b), await serve(b)]
    await b.connect(await serve(a))
    for home in homes:
        assert (await a.send(home, task())).direction == "inbound"
    await eventually(lambda: len(box) == 2)
    assert a.stats().created == 0


async def test_both_listeners_of_a_transport_accept(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    box = Box(a)
    await b.send(await serve(a), task("b"))
    await c.send(await serve(a), task("c"))
    await eventually(lambda: sorted(box.payloads) == ["b", "c"])


async def test_a_peer_that_listens_after_it_connected_is_recognised_by_its_port(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    await b.connect(await serve(a))
    home = await serve(b)
    await eventually(lambda: a.explain(home).chosen)
    assert (await a.send(home, task("back"))).direction == "inbound"
    await eventually(lambda: box.payloads == ["back"])
    assert a.stats().created == 0


async def test_a_peer_that_no_longer_listens_is_no_longer_recognised_by_that_port(make: Make) -> None:
    a, b = await make(), await make()
    listener = await b.listen(0, host="127.0.0.1")
    home = f"127.0.0.1:{listener.port}"
    await b.connect(await serve(a))
    await eventually(lambda: a.explain(home).chosen)
    await listener.close()
    await eventually(lambda: not a.explain(home).chosen)
    with pytest.raises(openline.Unreachable):
        await a.send(home, task())


async def test_closing_a_listener_keeps_its_connections(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    listener = await a.listen(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.port}"
    await b.send(address, task(1))
    await listener.close()
    await b.send(address, task(2))
    await eventually(lambda: box.payloads == [1, 2])


async def test_a_peer_that_listens_on_very_many_ports_keeps_its_connection(make: Make) -> None:
    """More than a hello can name."""
    a, b = await make(), await make()
    box = Box(b)
    await b.connect(await serve(a))
    homes = [await serve(b) for _ in range(20)]
    await eventually(lambda: a.explain(homes[15]).chosen)
    assert (await a.send(homes[0], task("first"))).direction == "inbound"
    assert (await a.send(homes[19], task("last"))).attempts == 1
    await eventually(lambda: box.payloads == ["first", "last"])
    assert (a.stats().closed, a.stats().malformed) == (0, 0)


NAMES = ["", "a", "a; listen=1,2", "b=c, d", "ünïcödé", "🚀" * 128, "x" * 128, "line\r\nX-Evil: 1", "%41"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:12]))
async def test_any_name_travels_in_the_hello_and_breaks_nothing(make: Make, name: str) -> None:
    a, b = await make(name), await make(name)
    box = Box(a)
    peer = await b.connect(await serve(a))
    assert peer is not None
    await peer.send(task())
    await eventually(lambda: box)
    shown = "".join(letter for letter in name if letter.isprintable())
    assert peer.name == box.peers[0].name == shown
    assert a.stats().malformed == 0


async def test_a_transport_can_talk_to_itself(make: Make) -> None:
    a = await make()
    a.on_message(lambda peer, message: peer.reply(message, "me") if message.type == "ask" else None)
    assert (await a.request(await serve(a), task(type="ask"), timeout=2.0)).payload == "me"


# A socket that dies between choice and send -------------------------------------------------------


async def deliver_twice(a: openline.Transport, server: RawServer, first: Raw, how: str) -> None:
    """Kill ``first`` without a turn of the loop, send, and look for the message on the next one."""
    accepting = asyncio.ensure_future(server.accept())
    if how == "reset":
        first.reset()
    else:
        first.sock.shutdown(socket.SHUT_RDWR)
    try:
        receipt = await a.send(server.address, task("once"))
        assert (receipt.attempts, receipt.direction) == (2, "outbound")
        second = await accepting
    finally:
        accepting.cancel()
    assert (await second.message())["payload"] == "once"
    await a.send(server.address, task("next"))
    assert (await second.message())["payload"] == "next"
    assert a.stats().evictions == 1


@pytest.mark.parametrize("how", ["reset", "shutdown"])
async def test_a_socket_that_dies_between_choice_and_send_costs_one_more_attempt(
    make: Make, raw_server: RawServer, how: str
) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    assert (await first.message())["payload"] == "first"
    await deliver_twice(a, raw_server, first, how)


@pytest.mark.parametrize("how", ["reset", "shutdown"])
async def test_so_does_a_socket_that_has_just_brought_a_message(
    make: Make, raw_server: RawServer, how: str
) -> None:
    """What arrived a moment ago proves nothing about now."""
    a = await make()
    box = Box(a)
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    assert (await first.message())["payload"] == "first"
    await first.say("just now")
    await eventually(lambda: box)
    await deliver_twice(a, raw_server, first, how)


async def test_so_does_a_socket_that_dies_in_the_very_turn_of_the_loop_that_used_it(
    make: Make, raw_server: RawServer
) -> None:
    """A program that computes between two sends gives the loop no turn, and the socket time to die."""
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    await asyncio.sleep(0.01)
    await a.send(raw_server.address, task("second"))
    await deliver_twice(a, raw_server, first, "reset")


async def test_a_dead_inbound_socket_costs_one_more_attempt_and_a_dial(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a, actor = await make(), Actor(raw_server.port)
    client = await raw(port_of(await serve(a)), actor)
    assert (await client.takes(a.send(raw_server.address, task()))).direction == "inbound"
    client.reset()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("once")))
    server = await raw_server.accept(actor)
    receipt = await server.takes(sending)
    assert (receipt.attempts, receipt.direction) == (2, "outbound")
    assert server.payloads == ["once"]


async def test_a_dead_newest_socket_gives_way_to_the_older_one_without_a_dial(make: Make, raw: Open) -> None:
    dials = Dials()
    lesser, greater = two_identities()
    a, actor = await make(opener=dials, identity=lesser), Actor(9, identity=greater)
    port = port_of(await serve(a))
    old, new = await raw(port, actor), await raw(port, actor)
    await new.takes(a.send("127.0.0.1:9", task("warm")))
    new.reset()
    receipt = await old.takes(a.send("127.0.0.1:9", task("once")))
    assert (receipt.attempts, receipt.direction) == (2, "inbound")
    assert (new.payloads, old.payloads) == (["warm"], ["once"])
    assert dials.made == []


async def test_a_batch_over_a_dead_socket_goes_out_once_on_another(make: Make, raw_server: RawServer) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    first.reset()
    batching = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(20)))
    second = await raw_server.accept()
    receipts = await within(batching)
    assert receipts[0].attempts == 2
    assert len(receipts) == 20
    assert [(await second.message())["payload"] for _ in range(20)] == list(range(20))


async def test_a_request_over_a_dead_socket_is_answered_on_another(make: Make, raw_server: RawServer) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    first.reset()
    asking = asyncio.ensure_future(a.request(raw_server.address, task(id="q"), timeout=5.0))
    second = await raw_server.accept()
    assert (await second.message())["id"] == "q"
    await second.say("answer", id="q")
    assert (await within(asking)).payload == "answer"


async def test_a_reply_over_a_dead_socket_takes_the_peers_other_connection(make: Make, raw: Open) -> None:
    lesser, greater = two_identities()
    a, actor = await make(identity=lesser), Actor(9, identity=greater)
    box = Box(a)
    port = port_of(await serve(a))
    other, asker = await raw(port, actor), await raw(port, actor)
    await asker.post(task("question"))
    await eventually(lambda: box)
    asker.reset()
    receipt = await other.takes(box.peers[0].reply(box[0], "answer"))
    assert receipt.attempts == 2
    assert other.payloads == ["answer"]


async def test_a_dead_socket_with_nothing_else_is_unreachable_and_says_both_paths(
    make: Make, raw_server: RawServer
) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    raw_server.close()
    first.reset()
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED"):
        await a.send(raw_server.address, task())


async def test_a_socket_closed_by_another_thread_of_ours_hurts_nobody(make: Make) -> None:
    """A descriptor number is soon another socket's: nothing may be written to it by mistake."""
    a, b, c = await make(), await make(), await make()
    at_c = Box(c)
    home_b, home_c = await serve(b), await serve(c)
    await a.send(home_b, task())
    await a.send(home_c, task("c"))
    await b.close()
    await eventually(lambda: a.stats().active == 1)
    others = [os.dup(0) for _ in range(20)]
    try:
        with pytest.raises(openline.Unreachable):
            await a.send(home_b, task("b"))
        await a.send(home_c, task("c"))
        await eventually(lambda: at_c.payloads == ["c", "c"])
    finally:
        for number in others:
            os.close(number)


# explain() ----------------------------------------------------------------------------------------


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
