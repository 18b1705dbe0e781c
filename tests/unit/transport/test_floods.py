"""Whoever sends and never reads, or sends what nobody asked for, costs itself (rules 3.5, 3.10)."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import msgspec
import pytest

import openline
from openline.connection.connection import Connection
from openline.core.frames import FLOW, LISTENING, WELCOME

from .conftest import Make, Open
from .floods import pour
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw
from .wire import BINARY, PING, PONG, TEXT, batch, frame, plain

MB = 1024 * 1024
# Names that take 4 kB each.
LONG = [chr(0x10000 + number) * 1024 for number in range(200)]


def packed(kind: int, body: Any) -> bytes:
    return bytes([kind]) + msgspec.msgpack.encode(body)


def only(transport: openline.Transport) -> Connection:
    [connection] = transport._node.table.connections
    return connection


def waiting(connection: Connection) -> int:
    """Bytes that wait to be written to it."""
    under: Any = connection.link._ws.underlying_transport  # type: ignore[attr-defined]
    return int(under.get_write_buffer_size())


async def openline_peer(raw: Open, address: str) -> Raw:
    return await raw(port_of(address), Actor(9))


# Reads nothing ------------------------------------------------------------------------------------


async def test_acknowledgements_that_are_not_read_do_not_pile_up(make: Make, raw: Open) -> None:
    t = await make()
    address = await serve(t)
    peer = await openline_peer(raw, address)
    await peer.frame(BINARY, batch([], opens=dict.fromkeys(LONG, 1)))
    one = frame(BINARY, batch([task(stream_id=name) for name in LONG]))
    assert await pour(peer, one, 60) == 60  # 50 MB, and as much in acknowledgements
    await eventually(lambda: t.stats().messages_received == 60 * len(LONG))
    connection = only(t)
    assert waiting(connection) < MB
    assert connection.writer.owed
    assert not connection.writer.acks
    # And once it reads, it learns of all of them.
    while not all(peer.acked.get(name) == 61 for name in LONG):
        found = await within(peer.decoded())
        peer.acked.update(found.acks)  # type: ignore[union-attr]
    await eventually(lambda: not connection.in_arrears)


async def test_whoever_never_reads_is_not_read_either_and_then_cut(make: Make, raw: Open) -> None:
    t = await make(max_idle_timeout=1.2, progress_cap=1.0)
    address = await serve(t)
    peer = await openline_peer(raw, address)
    await peer.frame(BINARY, batch([], opens=dict.fromkeys(LONG, 1)))
    one = frame(BINARY, batch([task(stream_id=name) for name in LONG]))
    paused: list[bool] = []

    async def watch() -> None:
        connection = only(t)
        while t.stats().active:
            paused.append(connection.reading_paused)
            await asyncio.sleep(0.01)

    watching = asyncio.ensure_future(watch())
    await pour(peer, one, 10_000)
    await within(watching, 10.0)
    assert True in paused


async def test_stops_that_are_not_read_do_not_pile_up(make: Make, raw: Open) -> None:
    t = await make(inbox_messages=1)
    gate = asyncio.Event()

    @t.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    address = await serve(t)
    peer = await openline_peer(raw, address)
    names = [f"{number:04}" + "n" * 1000 for number in range(1000)]
    for start in range(0, 1000, 50):
        some = names[start : start + 50]
        both = [task(stream_id=name) for name in some for _ in range(3)]
        await peer.send(frame(BINARY, batch(both, opens=dict.fromkeys(some, 1))))
    await eventually(lambda: t.stats().messages_received == 3000)
    gate.set()
    stopped: set[object] = set()
    await peer.post(task(stream_id="end"))
    while True:
        found = await within(peer.decoded())
        if hasattr(found, "paused"):
            (stopped.add if found.paused else stopped.discard)(found.stream_id)  # type: ignore[union-attr]
        elif getattr(found, "acks", None) and dict(found.acks).get("end"):  # type: ignore[union-attr]
            break
    await eventually(lambda: not only(t).in_arrears)


async def test_a_plain_peer_that_pings_and_never_reads_takes_no_memory(make: Make, raw: Open) -> None:
    t = await make()
    peer = await raw(port_of(await serve(t)))
    await pour(peer, frame(PING, b"p" * 125) * 1000, 200)
    if t.stats().active:
        assert waiting(only(t)) < MB


async def test_answers_to_a_plain_peer_that_never_reads_wait_for_it(make: Make, raw: Open) -> None:
    t = await make()

    @t.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await peer.reply(message, "x" * 10_000)

    peer = await raw(port_of(await serve(t)))
    await pour(peer, frame(TEXT, plain(1)) * 1000, 1000)
    assert waiting(only(t)) < MB
    assert only(t).reading_paused


async def test_two_that_both_send_as_much_as_they_can_do_not_wait_for_each_other(make: Make) -> None:
    """Full links both ways all the time, acknowledgements in front of and behind the messages."""
    small = {"write_high_water": 1024, "inbox_messages": 8, "window_bytes": 64 * 1024}
    a, b = await make(**small), await make(**small)
    address = await serve(a)
    got = Box(a), Box(b)
    await b.send(address, task("first"))
    [to_b] = a.peers()

    async def flood(send: Any, stream: int) -> None:
        for number in range(100):
            await send(task(number, stream_id=f"{stream}" + "n" * 1000))

    async def from_b(message: openline.Message) -> None:
        await b.send(address, message)

    work = [flood(to_b.send, n) for n in range(60)] + [flood(from_b, n) for n in range(60)]
    await within(asyncio.gather(*work), 60.0)
    assert [len(box) for box in got] == [6001, 6000]


# Sends what brings nothing ------------------------------------------------------------------------

FLOODS = {
    "listening": packed(LISTENING, [[7]]),
    "welcomes": packed(WELCOME, [[]]),
    "unknown kinds": b"\x63",
    "stops of nothing": packed(FLOW, ["s", True]),
    "nothing at all": batch([]),
    "old acknowledgements": batch([], {"s": 1}),
    "streams opened again": batch([], {}, dict.fromkeys(range(2000), 1)),
}


@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_control_frames_costs_its_connection(make: Make, raw: Open, content: bytes) -> None:
    t = await make()
    box = Box(t)
    address = await serve(t)
    good, bad = await make(), await openline_peer(raw, address)
    await good.send(address, task("before"))
    await pour(bad, frame(BINARY, content) * 100, 1000)
    await eventually(lambda: t.stats().active == 1)
    assert t.stats().malformed == 1
    await good.send(address, task("after"))
    assert box.payloads == ["before", "after"]


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_so_does_a_flood_of_pings_or_pongs(make: Make, raw: Open, opcode: int) -> None:
    t = await make()
    peer = await raw(port_of(await serve(t)))
    await pour(peer, frame(opcode, b"") * 1000, 1000)
    await eventually(lambda: t.stats().active == 0)
    assert t.stats().malformed == 1


async def test_so_does_a_flood_of_what_is_no_message(make: Make, raw: Open) -> None:
    t = await make()
    peer = await raw(port_of(await serve(t)))
    await pour(peer, frame(TEXT, b"x") * 1000, 1000)
    await eventually(lambda: t.stats().active == 0)


async def test_a_few_thousand_of_them_are_put_up_with(make: Make, raw: Open) -> None:
    """And of many pings at once the last one is answered."""
    t = await make()
    box = Box(t)
    peer = await openline_peer(raw, await serve(t))
    await peer.send(b"".join(frame(PING, b"%d" % number) for number in range(3000)))
    await peer.send(frame(BINARY, packed(LISTENING, [[7]])) * 1000)
    await peer.post(task("after"))
    await eventually(lambda: box.payloads == ["after"])
    pongs = []
    while pongs[-1:] != [b"2999"]:
        first, data = await within(peer.read())
        if first & 0x0F == PONG:
            pongs.append(data)


async def test_changes_that_come_too_fast_take_effect_together(make: Make, raw: Open) -> None:
    """A send has to look anew after each: a peer that alternates its ports must not slow down all others."""
    t = await make()
    peer = await openline_peer(raw, await serve(t))
    before = t._node.table.generation
    for number in range(1000):
        await peer.frame(BINARY, packed(LISTENING, [[1 + number]]))
    await eventually(lambda: only(t).endpoint.hello.ports == (1000,))  # type: ignore[union-attr]
    assert t._node.table.generation - before < 30


async def test_ports_that_are_the_same_as_before_change_nothing(make: Make, raw: Open) -> None:
    t = await make()
    box = Box(t)
    peer = await openline_peer(raw, await serve(t))
    before = t._node.table.generation
    for _ in range(10):
        await peer.frame(BINARY, packed(LISTENING, [[9]]))
    await peer.post(task("after"))
    await eventually(lambda: box.payloads)
    assert t._node.table.generation == before


# Sends more than its share ------------------------------------------------------------------------


async def test_a_busy_connection_lets_others_have_their_turn(make: Make, raw: Open) -> None:
    """What it sends at once is handled in portions, and not all of it before anybody else's."""
    t, good = await make(inbox_messages=1_000_000, inbox_bytes=1 << 30), await make()
    count, seen = 0, []

    @t.on_message(stream_id="flood")
    def flood(peer: openline.Peer, message: openline.Message) -> None:
        nonlocal count
        count += 1

    @t.on_message(stream_id="good")
    def other(peer: openline.Peer, message: openline.Message) -> None:
        seen.append(count)

    address = await serve(t)
    bad = await openline_peer(raw, address)
    await bad.post(task(stream_id="flood"))
    await good.send(address, task(stream_id="good"))
    one = frame(BINARY, batch([task(stream_id="flood")])) * 1000
    for _ in range(20):
        fill(bad, one)
        await good.send(address, task(stream_id="good"))
        await good.send(address, task(stream_id="good"))
    gaps = [after - before for before, after in itertools.pairwise(seen)]
    assert count > 1000
    assert max(gaps) < 10_000


# Of what was sent last.
left: dict[Raw, bytes] = {}


def fill(peer: Raw, data: bytes) -> None:
    """As much as the kernel takes now, without a turn of the loop."""
    with suppress(BlockingIOError):
        while True:
            rest = left.get(peer) or data
            left[peer] = rest[peer.sock.send(rest) :]


async def test_a_connection_that_was_busy_and_is_quiet_is_read_directly_again(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    await b.send_batch(address, tasks(20_000))
    for number in range(300):
        await b.send(address, task(number))
    assert len(box) == 20_300
