"""What a peer may make us hold with what it does not finish (rules 3.5, 3.10)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

import openline

from ..memory import Peak, needs_peak
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .rawsocket import Actor, Raw
from .wire import BINARY, CONTINUATION, TEXT, batch, frame, plain

MIB = 2**20
LIMIT = 4 * MIB


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, int]:
    settings = {"backends": ("websocket",), "stranger_buffer_bytes": LIMIT, "max_message_size": 2 * MIB}
    t = await make("server", **{**settings, **config})
    return t, Box(t), port_of(await serve(t))


async def half(peer: Raw, size: int, of: int = 2 * MIB, kind: int = TEXT) -> None:
    """The beginning of a frame; it may be cut meanwhile."""
    with contextlib.suppress(ConnectionError):
        await peer.send(frame(kind, b" " * size, size=of))


def links(t: openline.Transport) -> list[Any]:
    return [connection.link for connection in t._table.connections]


# Before the proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fragments", [False, True])
async def test_before_the_proof_a_frame_holds_4_kib(make: Make, raw: Open, fragments: bool) -> None:
    t, _, port = await serving(make, handshake_timeout=60.0)
    actor = Actor()
    strangers = []
    for _ in range(5):
        stranger = await Raw.tcp(port)
        await stranger.greet(actor)
        strangers.append(stranger)
    for stranger in strangers:
        with contextlib.suppress(ConnectionError):
            if fragments:
                await again(stranger, 1000, 6)
            else:
                await stranger.send(frame(BINARY, bytes(6000), size=16 * 1024))
        await within(stranger.gone())
    await eventually(lambda: t.stats().pending_handshakes == 0)
    assert t.stats().malformed == 5
    for stranger in strangers:
        stranger.close()
    assert await raw(port, Actor())


async def again(peer: Raw, size: int, times: int) -> None:
    """Fragments without an end."""
    for number in range(times):
        await peer.send(frame(CONTINUATION if number else BINARY, bytes(size), fin=False))


async def test_a_proof_in_pieces_and_messages_right_behind_it(make: Make, raw: Open) -> None:
    _, box, port = await serving(make)
    actor = Actor()
    client = await Raw.tcp(port)
    transcript = await client.greet(actor)
    proof = frame(BINARY, actor.prove(transcript))
    large = frame(BINARY, batch([task("x" * 500_000)], opens={"default": 1}))
    for piece in (proof[:1], proof[1:9], proof[9:40], proof[40:] + large):
        await client.send(piece)
        await asyncio.sleep(0.01)
    await eventually(lambda: [len(payload) for payload in box.payloads] == [500_000])
    client.close()


# Strangers together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("proven", [False, True])
async def test_strangers_share_one_limit(make: Make, raw: Open, proven: bool) -> None:
    """Whoever holds the most is cut; those who finish what they begin do not notice."""
    t, box, port = await serving(make)
    honest = await raw(port)
    strangers = [await raw(port, Actor() if proven else None) for _ in range(6)]
    for stranger in strangers:
        await half(stranger, 2 * MIB - 1, kind=BINARY if proven else TEXT)
    await eventually(lambda: t.stats().strangers_cut >= 4)
    assert t._node.door.unfinished.used <= LIMIT
    await honest.say("x" * MIB)
    await eventually(lambda: len(box) == 1)
    assert t.stats().active == 7 - t.stats().strangers_cut
    for stranger in strangers:
        stranger.close()
    await eventually(lambda: t._node.door.unfinished.used == 0)
    await honest.say("still here")
    await eventually(lambda: box.payloads[-1] == "still here")


async def test_fragments_count_as_half_frames_do(make: Make, raw: Open) -> None:
    t, box, port = await serving(make)
    strangers = [await raw(port) for _ in range(4)]
    unfinished = t._node.door.unfinished
    for count, stranger in enumerate(strangers, 1):
        with contextlib.suppress(ConnectionError):
            for number in range(300):  # of 5,000 bytes, none of which makes the buffer grow
                await stranger.send(frame(CONTINUATION if number else TEXT, b" " * 5000, fin=False))
        # What came first is cut, so this one has to be all there before the next.
        all_there = min(count, 2) * 1_500_000
        cut = max(0, count - 2)
        await eventually(lambda a=all_there, c=cut: unfinished.used >= a and unfinished.cut == c)  # type: ignore[misc]
    assert LIMIT // 2 < t._node.door.unfinished.used <= LIMIT
    survivor = strangers[-1]
    with contextlib.suppress(ConnectionError):
        await survivor.send(frame(CONTINUATION, plain("done"), fin=True))
    await eventually(lambda: box.payloads == ["done"])
    for stranger in strangers:
        stranger.close()
    await eventually(lambda: t._node.door.unfinished.used == 0)


async def test_a_peer_that_we_know_is_no_stranger(make: Make, raw: Open) -> None:
    t, _, port = await serving(make, stranger_buffer_bytes=MIB)
    friend, stranger = Actor(), await raw(port)
    known = await raw(port, friend)
    await known.takes(t.send(friend.node_id, task("hello")))
    await half(known, 2 * MIB - 1, kind=BINARY)
    await eventually(lambda: t.stats().active == 2)
    await half(stranger, 2 * MIB - 1)
    await eventually(lambda: t.stats().strangers_cut == 1)
    assert t.stats().active == 1
    assert t._node.door.unfinished.used == 0


async def test_the_reader_knows_to_the_byte_what_picows_holds(make: Make, raw: Open) -> None:
    """It follows how picows's buffer grows; if that changes, this fails."""
    t, box, port = await serving(make)
    chance = random.Random(5)
    client = await raw(port)
    await eventually(lambda: t.stats().active == 1)
    [link] = links(t)
    for sent, size in enumerate((3, 200, 1800, 5000, 40_000, 300_000, 1_500_000), 1):
        whole = frame(TEXT, plain("x" * size))
        burst = frame(TEXT, plain("y")) * chance.randrange(400)
        cut = chance.randrange(1, len(whole))
        await client.send(burst + whole[:cut])
        reader = link._ws.underlying_transport.get_protocol()
        reader = getattr(reader, "inner", reader)  # where the connection is busy
        await eventually(lambda cut=cut, reader=reader: taken(reader) == cut)  # type: ignore[misc]
        await client.send(whole[cut:])
        await eventually(lambda sent=sent: len([p for p in box.payloads if p != "y"]) == sent)  # type: ignore[misc]
        assert taken(reader) == 0
    await eventually(lambda: reader._filled <= 16 * 1024)  # its pages have been given back


def taken(reader: Any) -> int:
    """Of picows's buffer, as the reader has it."""
    return int(reader._size - len(reader._room(-1)))


@needs_peak
async def test_half_frames_of_many_strangers_take_no_more_memory_than_allowed(make: Make) -> None:
    t, _, port = await serving(make, max_message_size=16 * MIB, stranger_buffer_bytes=32 * MIB)
    with Peak() as peak:
        for _ in range(2):
            strangers = [await Raw.connect(port) for _ in range(20)]
            for stranger in strangers:
                await half(stranger, 8 * MIB, of=16 * MIB)
            for stranger in strangers:
                stranger.reset()
            await eventually(lambda: t.stats().active == 0)
    # What is sent takes memory here as well: two copies of one.
    assert peak.grown < (32 + 3 * 8 + 60) * MIB


async def test_the_limits_do_not_hold_up_one_message_of_full_size(make: Make, raw: Open) -> None:
    """At the default limit, beside three that hold nearly as much."""
    t, box, port = await serving(make, stranger_buffer_bytes=None)
    strangers = [await raw(port) for _ in range(3)]
    for stranger in strangers:
        await half(stranger, 2 * MIB - 1)
    honest = await raw(port)
    await honest.say("x" * (2 * MIB - 100))
    await eventually(lambda: len(box) == 1)
    assert t.stats().strangers_cut == 0


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\n"])
async def test_a_head_without_end_takes_16_kib(make: Make, head: bytes) -> None:
    t, _, port = await serving(make, handshake_timeout=60.0)
    client = await Raw.tcp(port)
    with contextlib.suppress(ConnectionError):
        await client.send(head + b"X" * 20_000)
    await within(client.gone())
    await eventually(lambda: t.stats().pending_handshakes == 0)
    client.close()
