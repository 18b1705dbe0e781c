"""Malformed and oversized frames cost their own connection, are counted, and are logged once (rule 3.6)."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import zlib

import pytest

import openline
from openline.core.frames import FLOW, LISTENING, Batched
from openline.core.session import RECEIVER_STREAMS

from ..memory import Peak, needs_peak
from .attacks import BREACHES, LIMIT, NOT_FRAMES, Node, cut, packed, warnings_in
from .conftest import Make, Open, attacked
from .helpers import again, eventually, task, within
from .rawsocket import Actor, Raw, RawServer
from .wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, batch, frame, plain

# Messages of a plain peer -------------------------------------------------------------------------


NOT_MESSAGES = {
    "nothing": b"",
    "no json": b"hello",
    "cut json": b'{"id": "1", "type": ',
    "an array": b"[1, 2]",
    "a number": b"5",
    "null": b"null",
    "two objects": b'{"id":"1","type":"t","payload":1}{"id":"2","type":"t","payload":2}',
    "not utf-8": b'{"id": "1", "type": "task", "payload": "\xff\xfe"}',
    "a lone surrogate": b'{"id": "1", "type": "task", "payload": "\\ud800"}',
    "type is a number": plain(1, type=5),
    "id is an object": plain(1, id={}),
    "id is a truth value": plain(1, id=True),
    "metadata is a list": plain(1, metadata=[1]),
    "stream is an object": plain(1, streamId={"a": 1}),
    "stream is a fraction": plain(1, streamId=1.5),
    "stream is a truth value": plain(1, streamId=True),
    "deeply nested": b'{"id":"1","type":"t","payload":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "nan": b'{"id": "1", "type": "task", "payload": NaN}',
    "a huge exponent": b'{"id": 1e999, "type": "task", "payload": 1}',
}


@pytest.mark.parametrize("kind", [TEXT, BINARY], ids=["text", "binary"])
@pytest.mark.parametrize("name", [name for name in NOT_MESSAGES if name != "a lone surrogate"])
async def test_what_is_no_message_is_dropped_and_counted(node: Node, raw: Open, name: str, kind: int) -> None:
    client = await raw(node.port)
    await client.frame(kind, NOT_MESSAGES[name])
    await eventually(lambda: node.malformed == 1, 1.0)
    assert node.box == []


@pytest.mark.parametrize("name", sorted(NOT_MESSAGES))
async def test_what_is_no_message_stops_no_other_peer_and_raises_nothing_in_a_handler(
    node: Node, raw: Open, name: str
) -> None:
    client = await raw(node.port)
    await client.frame(TEXT, NOT_MESSAGES[name])
    await client.frame(TEXT, plain("after"))
    await asyncio.sleep(0.02)
    assert node.t.stats().handler_errors == 0


async def test_bad_messages_of_one_peer_are_logged_once_and_name_it(
    node: Node, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = await raw(node.port)
    for _ in range(100):
        await client.frame(TEXT, b"garbage")
    await eventually(lambda: node.malformed >= 100 or node.t.stats().active == 2)
    [line] = warnings_in(caplog)
    assert client.address in line


async def test_missing_harmless_fields_are_no_reason_to_drop_a_message(node: Node, raw: Open) -> None:
    client = await raw(node.port)
    await client.frame(TEXT, b'{"payload": "bare"}')
    await eventually(lambda: node.box.payloads == ["bare"])


async def test_random_text_never_raises(node: Node, raw: Open) -> None:
    rng = random.Random(1)
    good = plain({"a": [1, 2.5, None, True, "text"]}, metadata={"k": "v"}, streamId=7)
    client = await raw(node.port)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        await client.frame(TEXT, bytes(data))
    await client.frame(TEXT, plain("after"))
    await eventually(lambda: "after" in node.box.payloads)


# Frames of an openline peer -----------------------------------------------------------------------


async def openline_peer(raw: Open, node: Node) -> Raw:
    """It is in, and has sent one message."""
    peer = await raw(node.port, Actor(9))
    await peer.post(task("before"))
    await eventually(lambda: node.box)
    node.box.clear()
    return peer


@pytest.mark.parametrize("name", sorted(NOT_FRAMES))
async def test_a_broken_frame_costs_an_openline_peer_its_connection(
    node: Node, raw: Open, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await openline_peer(raw, node)
    await peer.frame(BINARY, NOT_FRAMES[name])
    await peer.gone()
    await eventually(lambda: node.malformed == 1, 1.0)
    assert node.box == []
    [line] = warnings_in(caplog)
    assert peer.address in line


async def test_a_kind_of_frame_that_is_not_known_yet_is_ignored(node: Node, raw: Open) -> None:
    peer = await openline_peer(raw, node)
    await peer.frame(BINARY, b"\x7fwhat a later version says")
    await peer.post(task("after"))
    await eventually(lambda: node.box.payloads == ["after"])


async def test_random_frames_never_take_more_than_their_connection(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(2)
    mixed = task({"a": [1, b"x", None]}, metadata={"k": 1}), task("b", stream_id=3)
    good = batch(mixed, acks={"default": 1}, opens={"default": 1, 3: 7})
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        peer = await Raw.connect(node.port, Actor(9))
        await peer.frame(BINARY, bytes(data[: rng.randint(0, len(data))]))
        peer.close()
    await eventually(lambda: node.t.stats().active == 2)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_flood_of_stops_for_streams_takes_bounded_memory(node: Node, raw: Open) -> None:
    """Those of streams on which nothing goes out are no use; of the others, as many as streams may be."""
    peer = await openline_peer(raw, node)
    attacker = actor_at(node)
    used = [task(stream_id=number) for number in range(1500)]
    await peer.takes(node.t.send_batch(peer.actor.node_id, used))
    for start in range(0, 20_000, 1000):
        frames = [frame(BINARY, packed(FLOW, [n, True])) for n in range(start, start + 1000)]
        await peer.send(b"".join(frames))
    await peer.post(task("after"))
    await eventually(lambda: node.box.payloads == ["after"])
    assert len(attacker._remote.outstanding.gates) == 1024
    assert [len(connection.halts or ()) for connection in attacker._remote.connections] == [1024]


def actor_at(node: Node) -> openline.Peer:
    [peer] = [found for found in node.t.peers() if found.name == "actor"]
    return peer


async def test_a_flood_of_opens_for_streams_takes_bounded_memory(node: Node, raw: Open) -> None:
    peer = await openline_peer(raw, node)
    for start in range(0, 20_000, 1000):
        opens: dict[str | int, int] = {f"{n} {'x' * 50}": 1 for n in range(start, start + 1000)}
        await peer.frame(BINARY, batch([], opens=opens))
    await peer.post(task("after", stream_id="new"))
    await eventually(lambda: node.box.payloads == ["after"])
    session = actor_at(node)._remote.outstanding.session
    assert session is not None
    [connection] = actor_at(node)._remote.connections
    kept = RECEIVER_STREAMS * 1.25
    assert RECEIVER_STREAMS / 2 < len(session.expected) <= kept
    assert RECEIVER_STREAMS / 2 < len(connection.positions or ()) <= kept


async def test_an_acknowledgement_of_what_was_never_sent_costs_its_connection(
    node: Node, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await openline_peer(raw, node)
    assert (await peer.takes(actor_at(node).send(task()))).acked
    await peer.frame(BINARY, batch([], acks={"default": 100}))
    await cut(node, peer, caplog)


async def test_an_acknowledgement_of_a_stream_that_nobody_uses_is_no_news(node: Node, raw: Open) -> None:
    peer = await openline_peer(raw, node)
    await peer.frame(BINARY, batch([], acks={"other": 100, 7: 0}))
    await peer.post(task("after"))
    await eventually(lambda: node.box.payloads == ["after"])
    assert node.malformed == 0


async def test_what_had_come_before_is_dropped_and_acknowledged_once_more(node: Node, raw: Open) -> None:
    peer = await openline_peer(raw, node)
    peer.actor.numbers["default"] = 1
    fresh = await raw(node.port, peer.actor)
    await fresh.post(task("before"), task("after"))
    assert await fresh.decoded() == Batched([], acks=(("default", 3),))
    assert node.box.payloads == ["after"]
    assert node.t.stats().duplicates_suppressed == 1


async def test_a_flood_of_port_changes_stops_nobody(node: Node, raw: Open) -> None:
    peer = await openline_peer(raw, node)
    for number in range(2000):
        await peer.frame(BINARY, packed(LISTENING, [[1 + number % 60_000]]))
    await peer.post(task("after"))
    await eventually(lambda: node.box.payloads == ["after"])


# Sizes --------------------------------------------------------------------------------------------


async def test_an_oversized_frame_is_refused_before_it_has_come(
    node: Node, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = await raw(node.port)
    await client.send(frame(TEXT, b"", size=LIMIT * 10))
    said = await cut(node, client, caplog)
    assert struct.pack("!H", 1009) in said


@pytest.mark.parametrize("size", [2**31, 2**32, 2**62, 2**63, 2**64 - 1])
async def test_a_frame_of_absurd_length_is_refused(
    node: Node, raw: Open, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    client = await raw(node.port)
    await client.send(frame(BINARY, b"x" * 100, size=size))
    await cut(node, client, caplog)


async def test_endless_fragments_are_refused_at_the_limit(
    node: Node, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = await raw(node.port)
    await client.frame(TEXT, b"x" * 10_000, fin=False)
    with pytest.raises(ConnectionError):
        await again(1000, lambda _: client.frame(CONTINUATION, b"x" * 10_000, fin=False), pause=0)
    await eventually(lambda: node.malformed == 1, 1.0)
    assert len(warnings_in(caplog)) == 1


async def test_endless_empty_fragments_do_not_gather(node: Node, raw: Open) -> None:
    """They never reach the limit of bytes, but each costs an entry."""
    client = await raw(node.port)
    await client.frame(TEXT, b"x", fin=False)
    with pytest.raises(ConnectionError):
        await again(100, lambda _: client.send(frame(CONTINUATION, fin=False) * 10_000), pause=0)


async def test_a_message_in_many_small_fragments_is_fine(node: Node, raw: Open) -> None:
    client = await raw(node.port)
    data = plain("x" * 1000)
    await client.frame(TEXT, data[:1], fin=False)
    for index in range(1, len(data) - 1):
        await client.frame(CONTINUATION, data[index : index + 1], fin=False)
    await client.frame(CONTINUATION, data[-1:])
    await eventually(lambda: node.box.payloads == ["x" * 1000])


async def test_pings_between_fragments_are_answered_and_do_no_harm(node: Node, raw: Open) -> None:
    client = await raw(node.port)
    data = plain("whole")
    await client.frame(TEXT, data[:5], fin=False)
    await client.frame(PING, b"between")
    assert await client.read() == (0x8A, b"between")
    await client.frame(CONTINUATION, data[5:])
    await eventually(lambda: node.box.payloads == ["whole"])


# Frames that break the protocol -------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BREACHES))
async def test_a_breach_of_the_protocol_costs_its_connection_and_delivers_nothing(
    node: Node, raw: Open, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await raw(node.port)
    await client.send(BREACHES[name])
    await client.gone()
    await eventually(lambda: node.t.stats().active == 2)
    assert node.box == []
    assert node.malformed == 1
    [line] = warnings_in(caplog)
    assert client.address in line


@pytest.mark.parametrize("name", sorted(BREACHES))
async def test_nothing_behind_a_breach_is_delivered(node: Node, raw: Open, name: str) -> None:
    client = await raw(node.port)
    await client.send(BREACHES[name] + frame(TEXT, plain("behind")))
    await client.gone()
    assert node.box == []


async def test_random_bytes_after_the_upgrade_cost_only_their_connection(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(3)
    for _ in range(100):
        client = await Raw.connect(node.port)
        await client.send(rng.randbytes(rng.randint(1, 3000)))
        client.close()
    await eventually(lambda: node.t.stats().active == 2)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_peer_that_is_cut_in_the_middle_of_a_frame_leaves_nothing(node: Node) -> None:
    for size in (1, 5, 50):
        client = await Raw.connect(node.port)
        await client.send(frame(TEXT, plain("cut"))[:size])
        client.reset()
    await eventually(lambda: node.t.stats().active == 2)
    assert node.box == []


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_proper_goodbye_is_no_bad_input(node: Node, raw: Open, code: int) -> None:
    client = await raw(node.port)
    await client.frame(CLOSE, struct.pack("!H", code) + b"bye")
    await client.gone()
    await eventually(lambda: node.t.stats().active == 2)
    assert node.malformed == 0


# Compression --------------------------------------------------------------------------------------


DEFLATE = {"Sec-WebSocket-Extensions": "permessage-deflate"}


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(b"0" * 1_000_000) for _ in range(size // 1_000_000)]
    return (b"".join(parts) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


@needs_peak
async def test_a_deflate_bomb_is_refused_and_takes_no_memory(
    make: Make, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    node = await attacked(make, raw, compression=True)
    client = await raw(node.port, DEFLATE)
    packed_bomb = bomb(90_000_000)
    assert len(packed_bomb) < LIMIT
    with Peak() as peak:
        await client.frame(TEXT, packed_bomb, rsv=4)
        await cut(node, client, caplog)
    assert peak.grown < 16 * 1024 * 1024
    await node.still_serves()


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"", b"\x00" * 100, deflated(b"x" * 1000)[:-5]])
async def test_broken_deflate_costs_at_most_its_connection(make: Make, raw: Open, data: bytes) -> None:
    node = await attacked(make, raw, compression=True)
    client = await raw(node.port, DEFLATE)
    await client.frame(TEXT, data, rsv=4)
    await eventually(lambda: node.malformed == 1, 1.0)
    assert node.box == []
    await node.still_serves()


async def test_a_compressed_frame_in_fragments_is_put_together(make: Make, raw: Open) -> None:
    node = await attacked(make, raw, compression=True)
    client = await raw(node.port, DEFLATE)
    data = deflated(plain("whole " * 500))
    await client.frame(TEXT, data[:10], fin=False, rsv=4)
    await client.frame(CONTINUATION, data[10:])
    await eventually(lambda: node.box.payloads == ["whole " * 500])


async def test_the_compression_bit_on_a_continuation_is_a_breach(
    make: Make, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    node = await attacked(make, raw, compression=True)
    client = await raw(node.port, DEFLATE)
    data = deflated(plain("no"))
    await client.frame(TEXT, data[:3], fin=False, rsv=4)
    await client.frame(CONTINUATION, data[3:], rsv=4)
    await cut(node, client, caplog)


async def test_a_server_that_compresses_without_having_been_asked_is_unreachable(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    await raw_server.accept(DEFLATE)
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(sending)
