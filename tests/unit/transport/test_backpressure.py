"""A slow consumer slows its own stream's sender and nobody else (rule 3.5)."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from typing import Any

import pytest

import openline

from ..clock import elapse
from .conftest import Make, Open
from .helpers import Box, again, eventually, port_of, serve, task, tasks, within
from .rawsocket import RawServer
from .wire import TEXT, frame, plain

Plain = Callable[..., Any]
MB = 1024 * 1024

# A small inbox, so that it fills at once.
SMALL = {"inbox_messages": 16, "inbox_bytes": 64 * 1024}


class Slow:
    """An async handler of one stream that holds every message until ``gate`` opens."""

    def __init__(self, transport: openline.Transport, **scope: Any) -> None:
        self.gate = asyncio.Event()
        self.done: list[Any] = []
        self.begun = 0
        transport.on_message(**scope)(self._handle)

    async def _handle(self, peer: openline.Peer, message: openline.Message) -> None:
        self.begun += 1
        await self.gate.wait()
        self.done.append(message.payload)


# Openline peers -----------------------------------------------------------------------------------


async def test_a_slow_stream_does_not_delay_another_stream_of_the_same_peer(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    slow, fast = Slow(a, stream_id="slow"), Box(a, stream_id="fast")
    address = await serve(a)
    flooding = asyncio.ensure_future(b.send_batch(address, tasks(5000, stream_id="slow")))
    await eventually(lambda: slow.begun)
    for number in range(200):
        await within(b.send(address, task(number, stream_id="fast")), 1.0)
    await eventually(lambda: fast.payloads == list(range(200)), 1.0)
    assert not flooding.done()
    slow.gate.set()
    await within(flooding)
    await eventually(lambda: slow.done == list(range(5000)))


async def test_a_slow_handler_holds_back_its_own_sender(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    slow = Slow(a)
    address = await serve(a)
    with pytest.raises(TimeoutError):
        await again(20_000, lambda number: b.send(address, task(number), timeout=0.2))
    assert a.stats().messages_received < 5000
    slow.gate.set()
    assert (await b.send(address, task("goes again"), timeout=2.0)).attempts == 1
    await eventually(lambda: slow.done and slow.done[-1] == "goes again")


async def test_a_send_that_timed_out_for_want_of_room_has_sent_nothing(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    slow = Slow(a)
    address = await serve(a)
    sent = []

    async def send(number: int) -> None:
        await b.send(address, task(number), timeout=0.1)
        sent.append(number)

    with pytest.raises(TimeoutError):
        await again(20_000, send)
    slow.gate.set()
    await b.send(address, task("last"))
    await eventually(lambda: slow.done and slow.done[-1] == "last")
    assert slow.done == [*sent, "last"]


async def test_a_held_back_request_times_out_too(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    Slow(a)
    address = await serve(a)
    with pytest.raises(TimeoutError):
        await b.send_batch(address, tasks(20_000), timeout=0.1)
    with pytest.raises(TimeoutError):
        await within(b.request(address, task(), timeout=0.1), 1.0)


async def test_a_slow_handler_of_one_peer_does_not_delay_another_peer(make: Make) -> None:
    a, b, c = await make(**SMALL), await make(), await make()
    gate = asyncio.Event()
    got = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        if peer.node_id == b.node_id:
            await gate.wait()
        got.append(message.payload)

    address = await serve(a)
    flooding = asyncio.ensure_future(b.send_batch(address, tasks(5000)))
    await eventually(lambda: a.stats().messages_received >= 16)
    for number in range(100):
        await within(c.send(address, task(f"c{number}")), 1.0)
    await eventually(lambda: got == [f"c{number}" for number in range(100)], 1.0)
    gate.set()
    await within(flooding)


async def test_all_messages_arrive_once_and_in_order_through_many_stops_and_starts(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    got = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        if message.payload % 50 == 0:
            await asyncio.sleep(0.001)
        got.append(message.payload)

    await within(b.send_batch(await serve(a), tasks(10_000)))
    await eventually(lambda: len(got) == 10_000)
    assert got == list(range(10_000))


async def test_a_stream_that_was_stopped_starts_again_after_a_reconnect(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    slow = Slow(a)
    address = await serve(a)
    peer = await b.connect(address)
    assert peer is not None
    with pytest.raises(TimeoutError):
        await b.send_batch(address, tasks(20_000), timeout=0.1)
    for connection in list(peer._remote.connections):
        connection.link.abort()
    await eventually(lambda: b.stats().active == 0)
    sending = asyncio.ensure_future(b.send(address, task("after"), timeout=4.0))
    slow.gate.set()
    await within(sending)
    await eventually(lambda: slow.done and slow.done[-1] == "after")


async def test_a_consumer_that_never_reads_stalls_its_sender_within_bounds(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    address = await serve(a)
    with pytest.raises(TimeoutError):
        await b.send_batch(address, tasks(50_000), timeout=0.2)
    assert a.stats().messages_received < 5000
    assert a.stats().closed == b.stats().closed == 0


async def test_a_consumer_that_never_reads_holds_few_bytes(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    address = await serve(a)
    with pytest.raises(TimeoutError):
        await again(1000, lambda _: b.send(address, task("x" * 60_000), timeout=0.2))
    # Its inbox, and what was on the way: the kernel's buffers of one connection.
    assert a.stats().bytes_received < 16 * MB


async def test_a_message_each_on_very_many_streams_stalls_the_sender_too(make: Make) -> None:
    """No single stream is full, but the peer is: it is not read, so nothing is acknowledged."""
    a, b = await make(**SMALL, max_streams=64), await make()
    address = await serve(a)
    with pytest.raises(openline.NotConfirmed):
        await again(5000, lambda number: b.send(address, task("x" * 10_000, stream_id=number), timeout=0.2))
    assert a.stats().messages_received < 2500


async def test_very_many_streams_that_are_read_leave_nothing_behind(make: Make) -> None:
    a, b = await make(max_streams=64), await make()
    got = []
    a.on_message(lambda peer, message: got.append(message.payload))
    address = await serve(a)
    objects = []
    for part in range(2):
        await b.send_batch(address, [task(n, stream_id=part * 5000 + n) for n in range(5000)])
        await eventually(lambda: len(got) == 5000)
        got.clear()
        gc.collect()
        objects.append(len(gc.get_objects()))
    assert objects[1] - objects[0] < 1000


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
async def test_order_and_one_at_a_time_hold_with_more_streams_than_the_limit(make: Make, limit: int) -> None:
    """Streams are forgotten when they are idle, never while something of them is under way."""
    a, b = await make(max_streams=limit), await make()
    running: set[int] = set()
    got: dict[int, list[int]] = {}

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        stream, number = message.payload
        assert stream not in running, "two at a time"
        running.add(stream)
        await asyncio.sleep(0.001 * (number % 3))
        running.discard(stream)
        got.setdefault(stream, []).append(number)

    sent = [task([n % 10, n // 10], stream_id=n % 10) for n in range(300)]
    await within(b.send_batch(await serve(a), sent))
    await eventually(lambda: sum(map(len, got.values())) == 300)
    assert a.stats().handler_errors == 0
    assert got == {stream: list(range(30)) for stream in range(10)}


async def test_receive_takes_what_a_full_stream_held_back_in_order(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    home, address = await serve(b), await serve(a)
    sending = asyncio.ensure_future(b.send_batch(address, tasks(1000)))
    got = [(await a.receive(home, timeout=2.0)).payload for _ in range(1000)]
    assert got == list(range(1000))
    await within(sending)


async def test_a_receiver_on_one_stream_and_no_reader_on_another(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    home, address = await serve(b), await serve(a)
    stalled = asyncio.ensure_future(b.send_batch(address, tasks(5000, stream_id="nobody")))
    await eventually(lambda: a.stats().messages_received >= 16)
    for number in range(100):
        await within(b.send(address, task(number, stream_id="read")), 1.0)
        assert (await a.receive(home, "read", timeout=1.0)).payload == number
    stalled.cancel()


# Plain peers --------------------------------------------------------------------------------------


async def test_a_plain_peer_that_floods_a_slow_handler_is_slowed_by_tcp_and_not_cut(
    make: Make, plain_client: Plain
) -> None:
    """Silence is our own doing while we do not read: no verdict, and nothing is dropped."""
    a = await make(**SMALL, max_idle_timeout=0.6)
    slow = Slow(a)
    client = await plain_client(port_of(await serve(a)))
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for number in range(20_000):
            await client.send(plain(number).decode() + " " * 1000)
            sent += 1

    flooding = asyncio.ensure_future(flood())
    await eventually(lambda: sent > 16)
    await elapse(1.0)  # three intervals of 0.1 s, three times over
    assert a.stats().messages_received < 2000
    assert sent < 20_000
    assert (a.stats().closed, a.stats().active) == (0, 1)
    slow.gate.set()
    await within(flooding, 10.0)
    await eventually(lambda: len(slow.done) == 20_000, 10.0)
    assert slow.done == list(range(20_000))


async def test_the_pings_of_a_plain_peer_that_floods_change_nothing(make: Make, raw: Open) -> None:
    a = await make(**SMALL, max_idle_timeout=0.6)
    slow = Slow(a)
    client = await raw(port_of(await serve(a)))

    async def flood() -> None:
        for number in range(4000):
            await client.send(frame(TEXT, plain(number) + b" " * 1000) + frame(9, b"ping"))

    flooding = asyncio.ensure_future(flood())
    await eventually(lambda: slow.begun)
    await elapse(0.7)
    assert a.stats().messages_received < 2000
    assert a.stats().closed == 0
    slow.gate.set()
    await within(flooding, 10.0)
    await eventually(lambda: slow.done == list(range(4000)), 10.0)


async def test_a_plain_peer_that_floods_a_slow_handler_does_not_delay_others(make: Make, raw: Open) -> None:
    a = await make(**SMALL)
    gate = asyncio.Event()
    got = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        if message.payload == "flood":
            await gate.wait()
        else:
            got.append(message.payload)

    port = port_of(await serve(a))
    flooder, other = await raw(port), await raw(port)
    flooding = asyncio.ensure_future(flooder.send(frame(TEXT, plain("flood")) * 100_000))
    await eventually(lambda: a.stats().messages_received >= 16)
    for number in range(50):
        await other.say(number)
    await eventually(lambda: got == list(range(50)), 1.0)
    flooding.cancel()


async def test_a_handler_of_one_stream_gets_its_messages_when_a_plain_peer_fills_a_stream_for_nobody(
    make: Make, raw: Open
) -> None:
    """A push-only program wants "rpc"; what comes on other streams matches no handler, and receive()
    is not in use: that must not fill up and stop the one connection of a plain peer for ever."""
    a = await make(**SMALL)
    rpc = Box(a, stream_id="rpc")
    client = await raw(port_of(await serve(a)))
    for number in range(200):
        await client.say(number, type="heartbeat")
    await client.say("work", streamId="rpc")
    await eventually(lambda: rpc.payloads == ["work"], 2.0)


async def test_a_plain_peer_that_stops_reading_stalls_its_sender_within_bounds(make: Make, raw: Open) -> None:
    a = await make(write_high_water=64 * 1024)
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(TimeoutError):
        await again(2000, lambda _: a.send(client.address, task("x" * 10_000), timeout=0.2))
    # What the kernel's buffers take, and little more.
    assert a.stats().bytes_sent < 16 * MB


async def send_all_the_time(t: openline.Transport, address: str, count: int, payload: str) -> None:
    """Sends that begin one after the other, none waiting for the one before."""
    sends = []
    for number in range(count):
        sends.append(asyncio.ensure_future(t.send(address, task([number, payload]), timeout=20.0)))
        if number % 10 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*sends)


async def test_concurrent_sends_to_a_congested_peer_leave_in_the_order_they_began(
    make: Make, raw_server: RawServer
) -> None:
    t = await make(write_high_water=32 * 1024)
    raw_server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    server = await raw_server.accept()
    await within(connecting)
    sending = asyncio.ensure_future(send_all_the_time(t, raw_server.address, 2000, "x" * 2000))
    got = [(await server.message())["payload"][0] for _ in range(2000)]
    await within(sending)
    assert got == list(range(2000))


async def test_concurrent_sends_to_a_full_inbox_arrive_in_the_order_they_began(make: Make) -> None:
    a, b = await make(**SMALL), await make()
    got = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        if message.payload[0] % 20 == 0:
            await asyncio.sleep(0.001)
        got.append(message.payload[0])

    address = await serve(a)
    await b.connect(address)
    await within(send_all_the_time(b, address, 3000, "x"), 10.0)
    await eventually(lambda: len(got) == 3000)
    assert got == list(range(3000))


async def test_a_stalled_plain_peer_does_not_delay_sends_to_others(make: Make, raw: Open) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await a.connect(home)
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 2)
    stalled = asyncio.ensure_future(a.send_batch(client.address, [task("x" * 10_000)] * 5000))
    await eventually(lambda: a.stats().bytes_sent > 2 * MB)
    for number in range(100):
        await within(a.send(home, task(number)), 1.0)
    await eventually(lambda: box.payloads == list(range(100)))
    assert not stalled.done()
    stalled.cancel()
