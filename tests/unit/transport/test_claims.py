"""A claim never beats what is certain (rules 3.1 and 3.10), over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

import openline
from openline.connection.connection import Connection, State
from openline.core import port_memory as places
from openline.core.frames import Batched

from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, within
from .rawsocket import Actor, Raw, RawServer
from .wire import upgrade


def only(t: openline.Transport, direction: str) -> Connection:
    [found] = [c for c in t._table.connections if c.endpoint.direction == direction]
    return found


async def dialed(a: openline.Transport, server: RawServer, who: Actor | None = None) -> Raw:
    """``a`` has dialed ``server``, where ``who`` answers, or a plain peer."""
    dialing = asyncio.ensure_future(a.connect(server.address))
    end = await server.accept(who)
    await within(dialing)
    return end


async def got(end: Raw, sending: Any) -> openline.Receipt:
    """What is sent arrives at this plain end; its receipt."""
    sending = asyncio.ensure_future(sending)
    payload = (await end.message())["payload"]
    receipt: openline.Receipt = await within(sending)
    assert payload == "for the honest"
    return receipt


def honest() -> openline.Message:
    return task("for the honest")


# Live -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.LIVE, State.SUSPECT])
async def test_the_remote_end_of_a_plain_peer_is_not_who_claims_that_port(
    make: Make, raw: Open, state: State
) -> None:
    dials = Dials()
    a = await make(opener=dials)
    port = port_of(await serve(a))
    client = await raw(port)
    await eventually(lambda: a.stats().active == 1)
    only(a, "inbound").set_state(state)
    claimer = await raw(port, Actor(client.port))
    await got(client, a.send(client.address, honest()))
    assert (claimer.payloads, dials.made) == ([], [])
    client.close()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await claimer.takes(a.send(client.address, honest()))
    assert claimer.payloads == []


async def test_who_died_a_moment_ago_is_not_replaced_by_who_claims_its_port(make: Make, raw: Open) -> None:
    """Found out by the send itself: its second attempt has nothing to do with a claim either."""
    a = await make()
    port = port_of(await serve(a))
    client = await raw(port)
    await eventually(lambda: a.stats().active == 1)
    claimer = await raw(port, Actor(client.port))
    await got(client, a.send(client.address, honest()))
    client.reset()
    with pytest.raises(openline.Unreachable):
        await claimer.takes(a.send(client.address, honest()))
    assert claimer.payloads == []


@pytest.mark.parametrize("state", [State.LIVE, State.SUSPECT])
async def test_nor_is_that_of_a_node_that_does_not_listen(make: Make, raw: Open, state: State) -> None:
    a, b = await make(), await make()
    at_a, at_b = Box(a), Box(b)
    address = await serve(a)
    await b.send(f"ws://{address}", task("hi"))
    await eventually(lambda: at_a)
    [peer] = at_a.peers
    claimer = await raw(port_of(address), Actor(port_of(peer.address)))
    peer._remote.connections[0].set_state(state)
    receipt = await within(a.send(peer.address, honest()))
    assert (receipt.direction, receipt.matched) == ("inbound", "exact address")
    assert (at_b.payloads, claimer.payloads, a.stats().dials) == (["for the honest"], [], 0)


async def test_a_dialed_peer_that_is_congested_is_waited_for(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a = await make()
    server = await dialed(a, raw_server)
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    connection = only(a, "outbound")
    connection.link.congested = True
    sending = asyncio.ensure_future(claimer.takes(a.send(raw_server.address, honest())))
    await eventually(lambda: connection.writer._waiters)
    assert "outbound" in str(a.explain(raw_server.address).chosen)
    connection.link.congested = False
    connection.on_writable()
    await got(server, sending)
    assert claimer.payloads == []


@pytest.mark.parametrize("who", [Actor, lambda port: None], ids=["a node", "a plain peer"])
async def test_a_dialed_peer_that_is_suspect_is_dialed_again(
    make: Make, raw: Open, raw_server: RawServer, who: Callable[[int], Actor | None]
) -> None:
    a, node = await make(), who(raw_server.port)
    await dialed(a, raw_server, node)
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    only(a, "outbound").set_state(State.SUSPECT)
    sending = asyncio.ensure_future(a.send(raw_server.address, honest()))
    again = await raw_server.accept(node)
    receipt = await (again.takes(sending) if node else got(again, sending))
    assert (receipt.direction, claimer.payloads) == ("outbound", [])


# After it has gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [Actor, lambda port: None], ids=["a node", "a plain peer"])
async def test_after_a_reset_the_listener_is_dialed_again_however_long_the_claimer_stays(
    make: Make, raw: Open, raw_server: RawServer, who: Callable[[int], Actor | None]
) -> None:
    a, node = await make(), who(raw_server.port)
    end = await dialed(a, raw_server, node)
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    for _ in range(3):
        end.reset()
        await eventually(lambda: a.stats().active == 1)
        sending = asyncio.ensure_future(a.send(raw_server.address, honest()))
        end = await raw_server.accept(node)
        receipt = await (end.takes(sending) if node else got(end, sending))
        assert (receipt.direction, receipt.matched) == ("outbound", "exact address")
    assert claimer.payloads == []


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ETIMEDOUT])
async def test_where_it_cannot_be_dialed_any_more_the_claimer_gets_nothing_for_ten_minutes(
    make: Make, raw: Open, raw_server: RawServer, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = Dials()
    a = await make(opener=dials)
    server = await dialed(a, raw_server)
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    dials.error = OSError(error, "as the kernel says")
    server.reset()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await claimer.takes(a.send(raw_server.address, honest()))
    assert claimer.payloads == []
    # Later it may be somebody else: after a dial that found no way there, and not after a refusal.
    monkeypatch.setattr(places, "LATELY", 0.0)
    sending = a.send(raw_server.address, task("for whoever is there now"))
    if error == errno.ECONNREFUSED:
        with pytest.raises(openline.Unreachable):
            await claimer.takes(sending)
    else:
        receipt = await claimer.takes(sending)
        assert (receipt.direction, receipt.matched) == ("inbound", "claimed port")


async def test_the_node_that_was_dialed_there_is_believed_when_it_comes_in(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    """And another one that says the same changes nothing."""
    dials = Dials()
    a, node = await make(opener=dials), Actor(raw_server.port)
    end = await dialed(a, raw_server, node)
    port = port_of(await serve(a))
    claimer = await raw(port, Actor(raw_server.port))
    end.reset()
    await eventually(lambda: a.stats().active == 1)
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    back = await raw(port, node)
    receipt = await back.takes(a.send(raw_server.address, honest()))
    assert (receipt.direction, receipt.matched) == ("inbound", "exact address")
    assert (back.payloads, claimer.payloads) == (["for the honest"], [])


async def test_a_name_with_several_ips_is_not_whoever_claims_its_port_at_one_of_them(
    make: Make, raw: Open, raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(host: str, port: int, **kwargs: Any) -> Any:
        ips = [host] if host[0].isdigit() else ["127.0.0.2", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    a, name = await make(), f"svc.test:{raw_server.port}"
    far = RawServer("127.0.0.2", raw_server.port)
    try:
        dialing = asyncio.ensure_future(a.connect(name))
        end = await far.accept()
        await within(dialing)
        claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
        end.reset()
        await eventually(lambda: a.stats().active == 1)
        sending = asyncio.ensure_future(a.send(name, honest()))
        await got(await far.accept(), sending)
        assert claimer.payloads == []
    finally:
        far.close_all()


# What is under way ----------------------------------------------------------------------------------


async def under_way(a: openline.Transport, to: str, end: Raw) -> asyncio.Future[openline.Receipt]:
    """A message that ``end`` has, and does not acknowledge."""
    sending = asyncio.ensure_future(a.send(to, task("once")))
    while not isinstance(frame := await end.decoded(), Batched):
        pass
    assert [message.payload for message in frame.messages] == ["once"]
    return sending


QUICKLY = {"backoff_min": 0.01, "backoff_max": 0.02}


async def another(server: RawServer) -> Raw:
    """A new process there, with a key of its own. Who dials it by the old one's node id hangs up."""
    while True:
        with contextlib.suppress(EOFError):
            return await server.accept(Actor(server.port))


async def test_what_a_dialed_node_may_have_is_not_moved_to_who_claims_its_port(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    dials = Dials()
    a, node = await make(opener=dials, **QUICKLY), Actor(raw_server.port)
    end = await dialed(a, raw_server, node)
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    sending = await under_way(a, raw_server.address, end)
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    end.reset()
    taking = asyncio.ensure_future(claimer.takes(sending))
    await eventually(lambda: len(dials.made) > 5)
    assert (sending.done(), claimer.payloads) == (False, [])
    dials.error = None
    back = await another(raw_server)
    await back.takes(asyncio.shield(sending))
    await within(taking)
    assert (back.payloads, claimer.payloads) == (["once"], [])


async def test_nor_is_what_a_node_has_that_was_only_known_by_its_claim(make: Make, raw: Open) -> None:
    """It is gone, and the address is another one's who says so: new messages, not the old ones."""
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    a, home = await make(opener=dials, resume_timeout=1.0, **QUICKLY), "127.0.0.1:9"
    port = port_of(await serve(a))
    first = await raw(port, Actor(9))
    sending = await under_way(a, home, first)
    first.reset()
    await eventually(lambda: a.stats().active == 0)
    second = await raw(port, Actor(9))
    receipt = await second.takes(a.send(home, task("new")))
    assert receipt.matched == "claimed port"
    with pytest.raises(openline.NotConfirmed):
        await second.takes(sending)
    assert second.payloads == ["new"]


async def test_two_nodes_that_answer_in_turn_at_one_address_get_each_its_own(
    make: Make, raw_server: RawServer
) -> None:
    """As behind a load balancer. That it is one shows when the first one answers again."""
    a = await make(**QUICKLY)
    one, other = Actor(), Actor()
    for node in (one, other):
        end = await dialed(a, raw_server, node)
        await end.takes(a.send(raw_server.address, task(f"for {node.node_id}")))
        end.reset()
        await eventually(lambda: a.stats().active == 0)
    end = await dialed(a, raw_server, one)
    sending = await under_way(a, raw_server.address, end)
    end.reset()
    there = await raw_server.accept(other)  # as the address says
    nobody = await raw_server.tcp()  # NODEID@ in front of it
    nobody.request = await nobody.head()
    refused = asyncio.ensure_future(nobody.answer(other))
    await within(refused)
    back = await raw_server.accept(one)
    await back.takes(sending)
    assert (back.payloads, there.payloads) == (["once"], [])


# Ports of clients -----------------------------------------------------------------------------------


async def client_from(local: int, port: int) -> Raw:
    """A plain client whose own end has that port."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", local))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    client = Raw(sock, client=True)
    await client.send(upgrade())
    await client.head()
    return client


def quiet_port() -> int:
    """A free one that no system gives to clients by itself, so that it stays free."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def test_a_client_that_has_gone_bars_nobody_who_listens_on_its_port(make: Make) -> None:
    a = await make()
    client = await client_from(quiet_port(), port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    client.reset()
    await eventually(lambda: a.stats().active == 0)
    server = RawServer(port=client.port)
    try:
        sending = asyncio.ensure_future(a.send(client.address, honest()))
        receipt = await got(await server.accept(), sending)
        assert (receipt.direction, receipt.matched) == ("outbound", "exact address")
    finally:
        server.close_all()
