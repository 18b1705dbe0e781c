"""Liveness over real sockets (rule 3.2): the silent are found in time, and the busy are left alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import openline

from ..clock import elapse, stall
from .conftest import Make, Open
from .helpers import Box, Dials, again, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw, RawServer, frozen_server
from .wire import PING, PONG, TEXT, frame, plain

Plain = Callable[..., Any]

# Where time is the subject it is the loop's own, and nobody waits for it.
hurried = pytest.mark.usefixtures("hurried")

IDLE = 1.2
INTERVAL = IDLE / 6


async def since(condition: Callable[[], object], begin: float, deadline: float = 5.0) -> float:
    """Seconds from ``begin`` until ``condition()`` holds."""
    loop = asyncio.get_running_loop()
    while not condition():
        assert loop.time() - begin < deadline, condition.__qualname__
        await asyncio.sleep(0.01)
    return loop.time() - begin


# Silence ------------------------------------------------------------------------------------------


@hurried
async def test_a_frozen_peer_is_suspect_within_two_intervals_and_dead_within_three(
    make: Make, raw_server: RawServer
) -> None:
    t = await make(max_idle_timeout=IDLE)
    begin = asyncio.get_running_loop().time()
    await frozen_server(t, raw_server)
    [peer] = t.peers()
    assert peer.state == "live"
    suspected = await since(lambda: peer.state == "suspect", begin)
    dead = await since(lambda: peer.state == "gone", begin)
    # Not before a ping has had its interval, and not later than promised, give or take a busy machine.
    assert 1.5 * INTERVAL <= suspected <= 2 * INTERVAL + 0.1
    assert 2.5 * INTERVAL <= dead <= 3 * INTERVAL + 0.1
    stats = t.stats()
    assert (stats.suspects, stats.evictions, stats.closed, stats.active) == (1, 1, 1, 0)


@hurried
async def test_a_frozen_inbound_peer_is_found_just_so(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=IDLE)
    await raw(port_of(await serve(t)))
    begin = asyncio.get_running_loop().time()
    await eventually(lambda: t.stats().active == 1)
    assert await since(lambda: t.stats().suspects == 1, begin) <= 2 * INTERVAL + 0.1
    assert await since(lambda: t.stats().active == 0, begin) <= 3 * INTERVAL + 0.1


@hurried
async def test_a_frozen_openline_peer_is_found_just_so(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=IDLE)
    await raw(port_of(await serve(t)), Actor(9))
    begin = asyncio.get_running_loop().time()
    await eventually(lambda: t.stats().active == 1)
    assert await since(lambda: t.stats().active == 0, begin) <= 3 * INTERVAL + 0.1


@hurried
async def test_one_ping_is_out_at_a_time(make: Make, raw: Open) -> None:
    """Silent from the start: one ping, and one more when it becomes suspect."""
    t = await make(max_idle_timeout=IDLE)
    client = await raw(port_of(await serve(t)))
    said = await within(client.gone())
    pings = said.count(b"\x89")
    assert pings == 2


@hurried
async def test_a_peer_that_answers_pings_lives(make: Make, plain_client: Plain) -> None:
    t = await make(max_idle_timeout=0.6)
    await plain_client(port_of(await serve(t)))
    await eventually(lambda: t.stats().active == 1)
    await elapse(0.7)
    stats = t.stats()
    assert (stats.active, stats.suspects) == (1, 0)


@hurried
async def test_two_idle_transports_keep_each_other_alive(make: Make) -> None:
    a, b = await make(max_idle_timeout=0.6), await make(max_idle_timeout=0.6)
    await b.connect(await serve(a))
    await elapse(0.7)
    assert [(t.stats().active, t.stats().suspects) for t in (a, b)] == [(1, 0), (1, 0)]


LIFE = {
    "data": frame(TEXT, plain("x")),
    "ping": frame(PING, b"x"),
    "unasked pong": frame(PONG, b"x"),
}


@hurried
@pytest.mark.parametrize("name", sorted(LIFE))
async def test_any_unit_is_life(make: Make, raw: Open, name: str) -> None:
    """It never answers a ping, but it says something else in time."""
    t = await make(max_idle_timeout=0.9)
    Box(t)
    client = await raw(port_of(await serve(t)))
    for _ in range(8):
        await client.send(LIFE[name])
        await elapse(0.1)
    stats = t.stats()
    assert (stats.active, stats.suspects) == (1, 0)


@hurried
async def test_a_message_that_trickles_in_is_life(make: Make, raw: Open) -> None:
    """A slow link that is still bringing a large message is not dead."""
    t = await make(max_idle_timeout=0.9)
    box = Box(t)
    client = await raw(port_of(await serve(t)))
    data = frame(TEXT, plain("x" * 2000))
    for start in range(0, len(data), 210):
        await client.send(data[start : start + 210])
        await asyncio.sleep(0.08)
    await eventually(lambda: box.payloads == ["x" * 2000])
    assert t.stats().closed == 0


@hurried
async def test_a_peer_that_trickles_for_ever_does_not_hold_on_beyond_the_cap(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=0.6, progress_cap=0.5)
    client = await raw(port_of(await serve(t)))
    begin = asyncio.get_running_loop().time()
    await client.send(frame(TEXT, b"", size=10_000))
    with pytest.raises(ConnectionError):
        await again(100, lambda _: client.send(b"x"), pause=0.03)
    assert asyncio.get_running_loop().time() - begin < 1.5


@hurried
async def test_a_suspect_peer_that_speaks_again_recovers(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=IDLE)
    box = Box(t)
    client = await raw(port_of(await serve(t)))
    await eventually(lambda: t.peers())
    [peer] = t.peers()
    await eventually(lambda: peer.state == "suspect")
    await client.say("awake")
    await eventually(lambda: peer.state == "live", 2 * INTERVAL)
    assert box.payloads == ["awake"]
    assert (t.stats().recoveries, t.stats().closed) == (1, 0)
    await t.send(client.address, task("hello again"))


# What was under way -------------------------------------------------------------------------------


@hurried
async def test_sends_that_wait_for_a_frozen_peer_move_on_when_it_is_dead(
    make: Make, raw_server: RawServer
) -> None:
    t = await make(max_idle_timeout=IDLE, write_high_water=64 * 1024)
    frozen = await frozen_server(t, raw_server)
    sent = 0

    async def fill() -> None:
        nonlocal sent
        for number in range(3000):
            await t.send(raw_server.address, task([number, "x" * 10_000]))
            sent += 1

    filling = asyncio.ensure_future(fill())
    await eventually(lambda: t.peers()[0].state == "congested")
    fresh = await within(raw_server.accept(), 4.0)
    first = (await fresh.message())["payload"][0]
    assert first <= sent
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    await eventually(lambda: t.stats().in_doubt > 0)
    frozen.close()


@hurried
async def test_a_send_to_a_suspect_peer_dials_and_does_not_wait(make: Make, raw_server: RawServer) -> None:
    t = await make(max_idle_timeout=IDLE)
    await frozen_server(t, raw_server)
    [peer] = t.peers()
    await eventually(lambda: peer.state == "suspect")
    sending = asyncio.ensure_future(t.send(raw_server.address, task("around it")))
    fresh = await within(raw_server.accept(), 0.5)
    assert (await within(sending)).attempts == 1
    assert (await fresh.message())["payload"] == "around it"


@hurried
async def test_a_suspect_connection_is_used_where_nothing_better_can_be_had(
    make: Make, raw_server: RawServer
) -> None:
    dials = Dials()
    t = await make(max_idle_timeout=IDLE, opener=dials)
    frozen = await frozen_server(t, raw_server)
    [peer] = t.peers()
    await eventually(lambda: peer.state == "suspect")
    dials.error = OSError(113, "No route to host")
    assert (await t.send(raw_server.address, task("by the thread"))).direction == "outbound"
    assert (await frozen.message())["payload"] == "by the thread"


@hurried
async def test_a_better_inbound_connection_goes_before_a_suspect_one(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=IDLE)
    port = port_of(await serve(t))
    actor = Actor(9)
    await raw(port, actor)
    await eventually(lambda: t.stats().suspects == 1)
    fresh = await raw(port, actor)
    assert (await fresh.takes(t.send("127.0.0.1:9", task("fresh")))).attempts == 1
    assert (fresh.payloads, t.stats().dials) == (["fresh"], 0)


@hurried
async def test_a_request_to_a_frozen_plain_peer_is_not_confirmed_when_it_is_dead(
    make: Make, raw_server: RawServer
) -> None:
    t = await make(max_idle_timeout=IDLE)
    await frozen_server(t, raw_server)
    with pytest.raises(openline.NotConfirmed, match=raw_server.address):
        await within(t.request(raw_server.address, task(), timeout=5.0), 2.0)


@hurried
async def test_messages_to_a_peer_that_froze_are_in_doubt_and_earlier_ones_are_not(
    make: Make, raw_server: RawServer
) -> None:
    t = await make(max_idle_timeout=IDLE)
    Box(t)
    peer = await frozen_server(t, raw_server)
    for message in tasks(5):
        await t.send(raw_server.address, message)
    await asyncio.sleep(0.05)
    await peer.say("I live")
    await eventually(lambda: t.stats().messages_received == 1)
    await asyncio.sleep(0.05)
    for message in tasks(3):
        await t.send(raw_server.address, message)
    await eventually(lambda: t.stats().active == 0)
    assert t.stats().in_doubt == 3


# Busy links ---------------------------------------------------------------------------------------


async def test_a_busy_link_is_never_declared_dead(make: Make) -> None:
    a, b = await make(max_idle_timeout=0.3), await make(max_idle_timeout=0.3)
    got = 0

    @a.on_message
    def count(peer: openline.Peer, message: openline.Message) -> None:
        nonlocal got
        got += 1

    address = await serve(a)
    for _ in range(4):
        await b.send_batch(address, [task("x" * 1000) for _ in range(5000)])
    await eventually(lambda: got == 20_000, 10.0)
    assert [(t.stats().closed, t.stats().evictions) for t in (a, b)] == [(0, 0), (0, 0)]
    assert b.stats().created == 1


class SlowReader:
    """A plain peer that takes about 2 MB/s, and answers a ping when it comes to it."""

    def __init__(self, raw: Raw, deep: int = 0) -> None:
        self._raw = raw
        self.read = 0
        if deep:
            # Something in between that takes ``deep`` chunks of 64 kB ahead: a proxy, a tunnel.
            self._chunks: asyncio.Queue[bytes] = asyncio.Queue(deep)
            raw._more = self._from_buffer  # type: ignore[method-assign]
            self._pump = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        with suppress(ConnectionError):
            while data := await asyncio.get_running_loop().sock_recv(self._raw.sock, 65536):
                await self._chunks.put(data)

    async def _from_buffer(self) -> None:
        self._raw._buffer += await self._chunks.get()

    async def run(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            first, data = await self._raw.read()
            if first & 0x0F == PING:
                await self._raw.frame(PONG, data)
            self.read += len(data)
            await asyncio.sleep(0.003)


@pytest.mark.parametrize("deep", [0, 32], ids=["directly", "behind a deep buffer"])
async def test_a_saturated_link_with_a_slow_reader_is_never_declared_dead(
    make: Make, raw_server: RawServer, deep: int
) -> None:
    """Bytes move all the time, though a pong comes long after three intervals."""
    t = await make(max_idle_timeout=0.9, send_timeout=20.0)
    # The kernel opens its window in steps of a part of the buffer: a small buffer, small steps.
    raw_server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    reader = SlowReader(await raw_server.accept(), deep)
    await within(connecting)
    sending = asyncio.ensure_future(t.send_batch(raw_server.address, [task("x" * 10_000)] * 5000))
    await reader.run(2.4 if deep else 1.2)
    assert (t.stats().evictions, t.stats().closed, t.stats().created) == (0, 0, 1)
    assert not sending.done()
    sending.cancel()
    if deep:
        reader._pump.cancel()


async def test_many_busy_links_at_once_live(make: Make) -> None:
    a = await make(max_idle_timeout=0.3)
    a.on_message(lambda peer, message: peer.reply(message))
    address = await serve(a)
    clients = [await make(max_idle_timeout=0.3) for _ in range(10)]

    async def chat(client: openline.Transport) -> None:
        for _ in range(40):
            await asyncio.gather(*(client.request(address, task("x" * 500), timeout=5.0) for _ in range(20)))

    await within(asyncio.gather(*(chat(client) for client in clients)), 60.0)
    assert a.stats().closed == 0
    assert {client.stats().closed for client in clients} == {0}


async def test_a_large_message_does_not_keep_control_frames_back(make: Make, raw: Open) -> None:
    """It goes in fragments, and a pong gets in between."""
    t = await make()
    client = await raw(port_of(await serve(t)))
    await eventually(lambda: t.stats().active == 1)
    sending = asyncio.ensure_future(t.send(client.address, task("x" * 15_000_000)))
    await asyncio.sleep(0.05)
    await client.frame(PING, b"now")
    kinds = []
    while True:
        first, data = await client.read()
        kinds.append(first)
        if first == 0x8A and data == b"now":
            break
    await within(sending)
    assert not any(first in (0x81, 0x80) for first in kinds)


# Our own stalls -----------------------------------------------------------------------------------


@hurried
@pytest.mark.parametrize("seconds", [0.15, 0.35, 0.6])
async def test_a_stall_of_our_own_loop_kills_nothing(
    make: Make, raw: Open, plain_client: Plain, seconds: float
) -> None:
    """Intervals of 0.1 s: nobody is to blame for what we did not read."""
    t, b = await make(max_idle_timeout=0.6), await make()
    address = await serve(t)
    await b.connect(address)
    await plain_client(port_of(address))
    await eventually(lambda: t.stats().active == 2)
    for _ in range(2):
        stall(seconds)
        await asyncio.sleep(0.05)
    await elapse(0.25)
    stats = t.stats()
    assert (stats.active, stats.evictions, stats.closed) == (2, 0, 0)


async def next_ping(client: Raw) -> bytes:
    while True:
        first, data = await client.read()
        if first & 0x0F == PING:
            return data


@hurried
async def test_after_a_stall_there_is_a_fresh_probe_before_any_verdict(make: Make, raw: Open) -> None:
    """A ping was out when the loop stalled: that it has no answer yet is nobody's fault but ours."""
    t = await make(max_idle_timeout=0.6)
    client = await raw(port_of(await serve(t)))
    await next_ping(client)
    stall(0.5)
    await client.frame(PONG, await next_ping(client))
    await asyncio.sleep(0.05)
    assert (t.stats().suspects, t.stats().closed) == (0, 0)


@hurried
async def test_a_loop_that_stalls_again_and_again_kills_nothing(make: Make) -> None:
    a, b = await make(max_idle_timeout=0.6), await make(max_idle_timeout=0.6)
    await b.connect(await serve(a))
    for _ in range(10):
        stall(0.09)
        await asyncio.sleep(0)
    await elapse(0.2)
    assert [(t.stats().active, t.stats().closed) for t in (a, b)] == [(1, 0), (1, 0)]


@hurried
async def test_a_frozen_peer_is_still_found_after_a_stall(make: Make, raw_server: RawServer) -> None:
    t = await make(max_idle_timeout=0.6)
    await frozen_server(t, raw_server)
    stall(0.5)
    begin = asyncio.get_running_loop().time()
    assert await since(lambda: t.stats().active == 0, begin) < 0.6
