"""Sends that are given up, and what is in doubt toward plain peers (rule 3.4)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline

from ..clock import Passed
from ..memory import MiB, Peak, needs_peak
from .conftest import Make, Open
from .floods import read_away
from .helpers import (
    Box,
    eventually,
    port_of,
    serve,
    task,
    tasks,
    within,
)
from .lines import Lay, heard
from .rawsocket import Actor, PlainServer, RawServer
from .wire import BINARY, PING, PONG, batch

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")

# Giving up ----------------------------------------------------------------------------------------


async def test_not_confirmed_in_time(make: Make, line: Lay) -> None:
    a, b = await make(send_timeout=0.3), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.send(way.address, task("before"))
    way.hold()
    with pytest.raises(openline.NotConfirmed, match=r"no acknowledgement within 0\.3 s") as caught:
        await within(a.send(way.address, task("late")))
    assert (caught.value.attempts, caught.value.acked) == (1, 0)
    way.let_go()
    await within(a.send(way.address, task("after")))
    assert box.payloads == ["before", "late", "after"]


async def test_a_send_timeout_of_its_own(make: Make, raw_server: RawServer, hurried: Passed) -> None:
    a, actor = await make(), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task(), timeout=0.2))
    await raw_server.accept(actor)
    with pytest.raises(openline.NotConfirmed):
        await within(sending)
    assert hurried() < 1.0


async def test_a_batch_that_is_confirmed_in_part(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(send_timeout=0.5), Actor()
    sending = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(20)))
    end = await raw_server.accept(actor)
    assert len(await heard(end)) == 20
    await end.frame(BINARY, batch([], {"default": 8}))
    with pytest.raises(openline.NotConfirmed) as caught:
        await within(sending)
    assert caught.value.acked == 7


async def test_a_cancelled_send_leaves_the_stream_in_order(make: Make, line: Lay) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.send(way.address, task("before"))
    way.hold()
    sending = [asyncio.ensure_future(a.send(way.address, task(number))) for number in range(5)]
    await asyncio.sleep(0.05)
    sending[2].cancel()
    await asyncio.sleep(0.05)
    way.cut()
    way.let_go()
    outcomes = await within(asyncio.gather(*sending, return_exceptions=True))
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [n == 2 for n in range(5)]
    await within(a.send(way.address, task("after")))
    assert box.payloads == ["before", 0, 1, 2, 3, 4, "after"]


# In doubt toward plain peers ----------------------------------------------------------------------


class Undelivered(list[tuple[Any, str]]):
    """What ``on_undelivered`` tells: payloads, and why."""

    def __init__(self, transport: openline.Transport) -> None:
        super().__init__()
        self.peers: list[openline.Peer] = []
        transport.on_undelivered(self._add)

    def _add(self, peer: openline.Peer, message: openline.Message, why: str) -> None:
        self.peers.append(peer)
        self.append((message.payload, why))

    @property
    def payloads(self) -> list[Any]:
        return [payload for payload, _ in self]


async def test_what_left_since_a_plain_peers_last_sign_of_life(make: Make, raw: Open) -> None:
    a = await make()
    doubt, box = Undelivered(a), Box(a)
    client = await raw(port_of(await serve(a)))
    await a.send(client.address, task("heard of"))
    await client.say("a sign of life")
    await eventually(lambda: box)
    for number in range(3):
        receipt = await a.send(client.address, task(number))
        assert not receipt.acked
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 3)
    assert doubt.payloads == [0, 1, 2]
    assert all("connection was lost" in why for _, why in doubt)
    assert {peer.plain for peer in doubt.peers} == {True}


@pytest.mark.parametrize("sign", ["message", "pong", "ping"])
async def test_every_frame_is_a_sign_of_life(make: Make, raw: Open, sign: str) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await a.send(client.address, task("heard of"))
    connection = a.peers()[0]._remote.connections[0]
    if sign == "message":
        await client.say("x")
    else:
        await client.frame(PING if sign == "ping" else PONG, b"x")
    await eventually(lambda: connection.tx_heard == 1)
    client.reset()
    await eventually(lambda: a.stats().closed == 1)
    assert (doubt, a.stats().in_doubt) == ([], 0)


async def test_a_plain_peer_that_says_goodbye_leaves_nothing_in_doubt(
    make: Make, plain_client: Callable[..., Awaitable[Any]]
) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await plain_client(port_of(await serve(a)))
    await eventually(lambda: a.peers())
    await a.peers()[0].send(task())
    await client.close()
    await eventually(lambda: a.stats().closed == 1)
    assert (doubt, a.stats().in_doubt) == ([], 0)


async def test_a_batch_to_a_plain_peer_that_dies(
    make: Make, plain_server: Callable[..., Awaitable[PlainServer]], line: Lay
) -> None:
    a, server = await make(), await plain_server()
    doubt = Undelivered(a)
    way = await line(server.address)
    await a.connect(way.address)
    way.hold()
    await a.send_batch(way.address, tasks(50))
    way.cut()
    await eventually(lambda: a.stats().closed == 1)
    assert doubt.payloads == list(range(50))
    assert a.stats().in_doubt == 50


async def test_only_the_last_thousand_are_reported_and_all_are_counted(make: Make, raw: Open) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await within(a.send_batch(client.address, tasks(3000)))
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 3000)
    assert doubt.payloads == list(range(3000 - 1024, 3000))


@needs_peak
async def test_large_messages_kept_to_be_reported_are_bounded_in_bytes(make: Make, raw: Open) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    client.sock.setblocking(True)
    done = threading.Event()
    reading = asyncio.ensure_future(asyncio.to_thread(read_away, client.sock, done))
    with Peak() as peak:
        for number in range(50):
            await within(a.send(client.address, task(f"{number} " + "x" * 3 * MiB)))
    done.set()
    await reading
    client.sock.setblocking(False)
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 50)
    assert peak.grown < 60 * MiB
    assert doubt.payloads[-1].startswith("49 ")


async def test_a_handler_of_undelivered_messages_that_fails_stops_no_other(make: Make, raw: Open) -> None:
    a = await make()

    @a.on_undelivered
    def fails(peer: openline.Peer, message: openline.Message, why: str) -> None:
        raise ValueError("handler")

    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await a.send_batch(client.address, tasks(3))
    client.reset()
    await eventually(lambda: len(doubt) == 3)
    assert a.stats().handler_errors == 3


async def test_what_was_given_up_toward_an_openline_peer(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(resume_timeout=0.4, max_idle_timeout=0.6, backoff_min=0.05), Actor()
    doubt = Undelivered(a)
    sending = asyncio.ensure_future(a.send(raw_server.address, task("x")))
    end = await raw_server.accept(actor)
    await heard(end)
    raw_server.close()
    end.reset()
    with pytest.raises(openline.NotConfirmed, match="resume_timeout"):
        await within(sending)
    assert doubt.payloads == ["x"]
    assert doubt.peers[0].node_id == actor.node_id
    assert a.stats().in_doubt == 1
