"""Malformed, oversized and hostile input costs its own connection, is counted, and is logged once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import socket
import struct
import zlib
from collections.abc import AsyncIterator

import msgspec
import pytest

import openline
from openline.core.frames import FLOW, LISTENING, MESSAGES, PROOF, WELCOME, Batched
from openline.core.handshake import HEADER, REFUSED_HEADER, with_proof
from openline.core.session import RECEIVER_STREAMS

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NODE,
    PING,
    TEXT,
    Actor,
    Box,
    Peak,
    Raw,
    RawServer,
    again,
    batch,
    can_measure_peak,
    eventually,
    frame,
    plain,
    port_of,
    serve,
    switching,
    task,
    upgrade,
    within,
)

LIMIT = 100_000


# Seconds that something may take beside an attack, on a machine that has more to do.
BUSY = 20.0


class Node:
    """A transport under attack, and an honest openline and an honest plain peer of it."""

    def __init__(self, t: openline.Transport, honest: openline.Transport, client: Raw, port: int) -> None:
        self.t = t
        self.port = port
        self.box = Box(t)
        self._honest = honest
        self._client = client
        self._said = 0

    async def still_serves(self) -> None:
        """The others do not notice: same connections, messages go through, and new ones can come."""
        self._said += 1
        expected = [f"openline {self._said}", f"plain {self._said}", f"new {self._said}"]
        await within(self._honest.send(f"127.0.0.1:{self.port}", task(expected[0])), BUSY)
        await self._client.say(expected[1])
        new = await within(Raw.connect(self.port), BUSY)
        try:
            await new.say(expected[2])
            await eventually(lambda: set(expected) <= {str(payload) for payload in self.box.payloads}, BUSY)
        finally:
            new.close()
        assert (self._honest.stats().created, self._honest.stats().closed) == (1, 0)

    @property
    def malformed(self) -> int:
        return self.t.stats().malformed


async def attacked(make: Make, raw: Open, **config: object) -> Node:
    settings = {"max_message_size": LIMIT, "handshake_timeout": 0.3, **config}
    t, honest = await make("node", **settings), await make("honest")
    port = port_of(await serve(t))
    await honest.connect(f"127.0.0.1:{port}")
    client = await raw(port)
    return Node(t, honest, client, port)


@pytest.fixture
async def node(make: Make, raw: Open) -> AsyncIterator[Node]:
    node = await attacked(make, raw)
    yield node
    await node.still_serves()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("openline") and record.levelno >= logging.WARNING
    ]


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


def packed(kind: int, body: object) -> bytes:
    return bytes([kind]) + msgspec.msgpack.encode(body)


def messages(*those: object, more: tuple[object, ...] = ()) -> bytes:
    return packed(MESSAGES, [those, *more])


ONE = ["1", "task", 1]
# A frame of messages, and one message whose payload is still to come.
FRAME = bytes([MESSAGES]) + b"\x91"
BEGUN = FRAME + b"\x91\x93\xa11\xa4task"

NOT_FRAMES = {
    "nothing": b"",
    "no body": bytes([MESSAGES]),
    "messages: a map": packed(MESSAGES, {"a": 1}),
    "messages: a map inside": FRAME + b"\x80",
    "messages: not in a frame": packed(MESSAGES, [ONE]),
    "messages: numbers": messages(1, 2),
    "messages: cut": messages(["1", "task", "payload"])[:-3],
    "messages: too long a claim": FRAME + b"\xdd\xff\xff\xff\xff",
    "messages: rest behind": messages(ONE) + b"rest",
    "messages: wrong types": messages([{}, 1, None, [], {}]),
    "messages: a map as a key": BEGUN + b"\x81\x80\x01",
    "messages: unknown extension": BEGUN + b"\xd4\x63\x00",
    "messages: broken json extension": BEGUN + b"\xd4\x01{",
    "messages: deeply nested": BEGUN + b"\x91" * 90_000,
    "messages: not utf-8": FRAME + b"\x91\x93\xa1\xff\xa4task\xc0",
    "messages: on a stream that was not opened": messages([*ONE, None, "other"]),
    "acks: text": messages(more=("all",)),
    "acks: of a stream that is none": messages(more=([[{}, 1]],)),
    "acks: a fraction": messages(more=([["default", 1.5]],)),
    "opens: before the first number": messages(more=([], [["other", -1]])),
    "opens: an endless name": messages(more=([], [["x" * 1025, 1]])),
    "flow: text": packed(FLOW, "stop"),
    "flow: an object as stream": packed(FLOW, [{}, True]),
    "listening: text": packed(LISTENING, "8770"),
    "listening: a port too high": packed(LISTENING, [[70_000]]),
    "listening: too many ports": packed(LISTENING, [list(range(1, 1000))]),
    "listening: a negative port": packed(LISTENING, [[-1]]),
    "proof: once more": packed(PROOF, [b"x" * 64]),
    "proof: text": packed(PROOF, "me"),
    "welcome: text": packed(WELCOME, "hello"),
}


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
    session = actor_at(node).session
    assert session is not None
    [connection] = actor_at(node).connections
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


async def cut(node: Node, peer: Raw, caplog: pytest.LogCaptureFixture) -> bytes:
    """The attacker's connection is cut, counted, and logged once with its address."""
    said = await peer.gone()
    await eventually(lambda: node.malformed == 1, 1.0)
    [line] = warnings_in(caplog)
    assert peer.address in line
    return said


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

BREACHES = {
    "unmasked text": frame(TEXT, plain("no"), mask=False),
    "reserved opcode 3": frame(3, plain("no")),
    "reserved opcode 7": frame(7, b""),
    "reserved control opcode 11": frame(11, b""),
    "reserved bit 2": frame(TEXT, plain("no"), rsv=2),
    "reserved bit 3": frame(TEXT, plain("no"), rsv=1),
    "compressed though not agreed": frame(TEXT, b"\xaa\x56\x00", rsv=4),
    "continuation of nothing": frame(CONTINUATION, plain("no")),
    "a message inside a message": frame(TEXT, b"{", fin=False) + frame(TEXT, plain("no")),
    "a binary inside a message": frame(TEXT, b"{", fin=False) + frame(BINARY, plain("no")),
    "a fragmented ping": frame(PING, b"x", fin=False),
    "a fragmented close": frame(CLOSE, struct.pack("!H", 1000), fin=False),
    "a long ping": frame(PING, b"x" * 126),
    "a close with half a code": frame(CLOSE, b"\x03"),
}


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


@pytest.mark.skipif(not can_measure_peak(), reason="cannot measure the peak of memory here")
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


# Handshakes ---------------------------------------------------------------------------------------


async def answer(port: int, request: bytes) -> bytes:
    client = await Raw.tcp(port)
    await client.send(request)
    said = await within(client.gone(), 2.0)
    client.close()
    return said


@pytest.mark.parametrize("path", ["/", "/index.html", "/status?x=1"])
async def test_plain_http_gets_an_http_answer_and_is_counted(node: Node, path: str) -> None:
    said = await answer(node.port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 4")
    await eventually(lambda: node.malformed == 1, 1.0)


NOT_UPGRADES = {
    "http post": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "no key": upgrade().replace(b"Sec-WebSocket-Key", b"X-Key"),
    "wrong version": upgrade().replace(b"Version: 13", b"Version: 8"),
    "wrong upgrade": upgrade().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "a long header": upgrade({"X-Long": "x" * 100_000}),
    "very many headers": upgrade({f"X-{n}": "x" for n in range(5000)}),
    "binary header": upgrade().replace(b"Host: 127.0.0.1", b"Host: \xff\xfe\x00\x01"),
    "no colon": upgrade().replace(b"Host: 127.0.0.1", b"Host 127.0.0.1"),
    "empty lines": b"\r\n" * 100,
}


@pytest.mark.parametrize("name", sorted(NOT_UPGRADES))
async def test_what_is_no_upgrade_never_becomes_a_connection(
    node: Node, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Raw.tcp(node.port)
    await client.send(NOT_UPGRADES[name])
    said = await within(client.gone(), 2.0)
    client.close()
    assert b" 101 " not in said
    await eventually(lambda: node.t.stats().pending_handshakes == 0)
    assert node.t.stats().accepted == 2
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await eventually(lambda: node.malformed == 1, 1.0)


UPGRADES = {
    "several connection tokens": upgrade().replace(
        b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"
    ),
    "other case": upgrade().replace(b"Upgrade: websocket", b"UPGRADE: WebSocket").replace(b"Sec-", b"sec-"),
    "a path": upgrade().replace(b"GET / ", b"GET /agents/7?token=x "),
    "a subprotocol": upgrade({"Sec-WebSocket-Protocol": "chat"}),
    "a browser's headers": upgrade({"Origin": "https://x.test", "Cookie": "a=b", "User-Agent": "x" * 500}),
}


@pytest.mark.parametrize("name", sorted(UPGRADES))
async def test_honest_forms_of_the_upgrade_are_accepted(node: Node, name: str) -> None:
    client = await Raw.tcp(node.port)
    await client.send(UPGRADES[name])
    head = await client.head()
    assert " 101 " in head
    assert "Sec-WebSocket-Protocol" not in head
    await client.say("hi")
    await eventually(lambda: node.box.payloads == ["hi"])
    client.close()


async def test_an_upgrade_that_comes_in_pieces_is_accepted(node: Node) -> None:
    client = await Raw.tcp(node.port)
    request = upgrade() + frame(TEXT, plain("right behind"))
    for start in range(0, len(request), 20):
        await client.send(request[start : start + 20])
        await asyncio.sleep(0)
    await eventually(lambda: node.box.payloads == ["right behind"])
    client.close()


GOOD_HELLO = f"1; node={NODE}; nonce={'n' * 32}; instance={'i' * 22}; dial=1"

NOT_HELLOS = {
    "empty": "",
    "another version": GOOD_HELLO.replace("1;", "2;", 1),
    "no node": GOOD_HELLO.replace("node=", "edon="),
    "a short node": GOOD_HELLO.replace(NODE, "abc"),
    "an upper-case node": GOOD_HELLO.replace(NODE, NODE.upper()),
    "a node in another spelling": GOOD_HELLO.replace(NODE, NODE[:-1] + ("b" if NODE[-1] == "a" else "r")),
    "no nonce": GOOD_HELLO.replace("nonce=", "once="),
    "a short nonce": GOOD_HELLO.replace("n" * 32, "n"),
    "no instance": GOOD_HELLO.replace("instance=", "class="),
    "a short instance": GOOD_HELLO.replace("i" * 22, "i"),
    "a dial in words": GOOD_HELLO.replace("dial=1", "dial=first"),
    "a dial too high": GOOD_HELLO.replace("dial=1", "dial=" + "9" * 17),
    "a port too high": f"{GOOD_HELLO}; listen=70000",
    "port zero": f"{GOOD_HELLO}; listen=0",
    "ports in words": f"{GOOD_HELLO}; listen=http",
    "too many ports": f"{GOOD_HELLO}; listen=" + ",".join(map(str, range(1, 100))),
    "too many capabilities": f"{GOOD_HELLO}; caps=" + ",".join(map(str, range(100))),
    "a capability too long": f"{GOOD_HELLO}; caps={'c' * 33}",
    "far too long": f"{GOOD_HELLO}; name={'x' * 5000}",
}


async def test_the_hello_that_those_below_differ_from_is_answered(node: Node, raw: Open) -> None:
    client = await Raw.tcp(node.port)
    await client.send(upgrade({HEADER: GOOD_HELLO}))
    assert " 101 " in await client.head()
    client.close()


@pytest.mark.parametrize("name", sorted(NOT_HELLOS))
async def test_an_invalid_hello_is_turned_away_counted_and_logged_once(
    node: Node, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Raw.tcp(node.port)
    await client.send(upgrade({"Openline-Hello": NOT_HELLOS[name]}))
    said = await within(client.gone(), 2.0)
    client.close()
    assert said.startswith(b"HTTP/1.1 4")
    await eventually(lambda: node.malformed == 1, 1.0)
    assert node.t.stats().accepted == 2
    [line] = warnings_in(caplog)
    assert str(client.port) in line


async def test_an_invalid_hello_of_a_server_is_unreachable_with_the_reason(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    server = await raw_server.accept({HEADER: with_proof("1; node=abc", b"s" * 64)})
    with pytest.raises(openline.Unreachable, match="hello without a valid node id"):
        await within(sending)
    assert b"secret" not in await server.gone()
    assert t.stats().active == 0


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno entry",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"",
    ],
    ids=["404", "200", "no accept key", "ssh", "garbage", "nothing"],
)
async def test_a_server_that_does_not_upgrade_is_unreachable(
    make: Make, raw_server: RawServer, said: bytes
) -> None:
    t = await make(dial_timeout=1.0)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    await server.head()
    await server.send(said)
    server.close()
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(sending)
    assert (t.stats().active, t.stats().created) == (0, 0)


async def test_a_servers_first_message_may_come_with_its_answer(make: Make, raw_server: RawServer) -> None:
    t = await make()
    box = Box(t)
    dialing = asyncio.ensure_future(t.connect(raw_server.address))
    server = await raw_server.tcp()
    server.request = await server.head()
    actor = Actor(raw_server.port)
    answer, _ = server.answered(actor)
    # HTTP has no case in the names of headers.
    answer = answer.replace(HEADER.encode(), HEADER.lower().encode()).replace(b"Upgrade", b"UPGRADE")
    await server.send(answer + frame(BINARY, server.numbered(task("first")), mask=False))
    peer = await within(dialing)
    await eventually(lambda: box.payloads == ["first"])
    assert box.peers == [peer]
    assert peer.node_id == actor.node_id


async def test_a_plain_servers_first_message_may_come_with_its_answer(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    box = Box(t)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    answer = switching(await server.head())
    await server.send(answer + frame(TEXT, plain("first"), mask=False))
    assert (await within(sending)).attempts == 1
    await eventually(lambda: box.payloads == ["first"])


async def refused(make: Make, server: RawServer, status: str, headers: str = "") -> openline.Error:
    """What a send raises where the server answers the upgrade with ``status``."""
    t = await make()
    sending = asyncio.ensure_future(t.send(server.address, task()))
    client = await server.tcp()
    await client.head()
    await client.send(f"HTTP/1.1 {status}\r\n{headers}Content-Length: 8\r\n\r\nno entry".encode())
    with pytest.raises(openline.Error, match=rf"{server.address}.*no entry") as caught:
        await within(sending)
    assert t.stats().active == 0
    return caught.value


@pytest.mark.parametrize("status", ["403 Forbidden", "409 Conflict", "503 Service Unavailable"])
async def test_a_refused_upgrade_shows_what_the_server_said(
    make: Make, raw_server: RawServer, status: str
) -> None:
    error = await refused(make, raw_server, status)
    assert isinstance(error, openline.Unreachable)
    assert status[:3] in str(error)


@pytest.mark.parametrize(
    ("status", "kind"), [("403 Forbidden", openline.Refused), ("409 Conflict", openline.IdentityConflict)]
)
async def test_a_refusal_by_an_openline_node_is_told_from_a_web_servers(
    make: Make, raw_server: RawServer, status: str, kind: type[openline.Error]
) -> None:
    error = await refused(make, raw_server, status, f"{REFUSED_HEADER}: 1\r\n")
    assert type(error) is kind


async def test_a_server_that_never_stops_its_head_is_unreachable(make: Make, raw_server: RawServer) -> None:
    t = await make(dial_timeout=0.5)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    await server.head()
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    with pytest.raises(ConnectionError):
        await again(100_000, lambda number: server.send(f"X-{number}: {'x' * 1000}\r\n".encode()))
    with pytest.raises(openline.Unreachable):
        await within(sending)


async def test_an_unfinished_handshake_is_cut_and_counted(node: Node) -> None:
    clients = [await Raw.tcp(node.port) for _ in range(3)]
    await clients[1].send(b"GET / HT")
    await clients[2].send(upgrade()[:-2])
    for client in clients:
        await within(client.gone(), 2.0)
        client.close()
    await eventually(lambda: node.t.stats().pending_handshakes == 0)
    assert node.malformed == 3


async def test_a_slow_loris_is_cut_although_it_always_says_a_little_more(node: Node) -> None:
    client = await Raw.tcp(node.port)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    request = upgrade({"X": "y" * 1000})
    with pytest.raises(ConnectionError):
        await again(len(request), lambda number: client.send(request[number : number + 1]), pause=0.02)
    assert loop.time() - begin < 2.0
    client.close()


async def flood(port: int, count: int, first: bytes = b"", *, at_once: bool = False) -> list[socket.socket]:
    """Half-open handshakes as fast as they can be made, with few turns of the loop in between."""
    made = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        made.append(sock)
        if len(made) % 200 == 0 and not at_once:
            await asyncio.sleep(0)
    if first:
        for sock in made:
            try:
                sock.send(first)
            except OSError:
                continue
    return made


def files_allowed() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


needs_files = pytest.mark.skipif(files_allowed() < 5000, reason="needs 5,000 file descriptors")


@needs_files
@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n"], ids=["silent", "begun"])
async def test_2000_half_open_handshakes_do_not_stop_the_listener(
    make: Make, raw: Open, first: bytes
) -> None:
    node = await attacked(make, raw, handshake_timeout=3.0, max_pending_handshakes=64)
    flooders = await flood(node.port, 2000, first)
    try:
        await eventually(lambda: node.t.stats().handshakes_evicted > 0)
        await node.still_serves()
        await eventually(lambda: node.t.stats().handshakes_evicted >= 2000 - 64 - 1)
        assert node.t.stats().pending_handshakes <= 64
        await node.still_serves()
    finally:
        for sock in flooders:
            sock.close()


@needs_files
async def test_2000_half_open_tls_handshakes_do_not_stop_the_listener(
    make: Make, certificate: Certificate
) -> None:
    t = await make(tls=certificate.serving(), max_pending_handshakes=64)
    box = Box(t)
    address = await serve(t)
    honest = await make(tls=openline.Tls(ca=certificate.cert))
    await honest.send(f"wss://{address}", task("before"))
    flooders = await flood(port_of(address), 2000, b"\x16\x03\x01\x02\x00")
    try:
        await within(honest.send(f"wss://{address}", task("open")), 1.0)
        # While a burst is being accepted, a handshake of several turns of the loop may be pushed out.
        await eventually(lambda: t.stats().handshakes_evicted >= 2000 - 64 - 1)
        assert t.stats().pending_handshakes <= 64
        new = await make(tls=openline.Tls(ca=certificate.cert))
        await within(new.send(f"wss://{address}", task("new")))
        await eventually(lambda: box.payloads == ["before", "open", "new"])
    finally:
        for sock in flooders:
            sock.close()


@needs_files
async def test_the_number_of_pending_handshakes_never_exceeds_its_limit(make: Make) -> None:
    """Also while a burst is being accepted in one turn of the loop."""
    t = await make(max_pending_handshakes=32)
    port = port_of(await serve(t))
    most = 0
    watching = True

    async def watch() -> None:
        nonlocal most
        while watching:
            most = max(most, t.stats().pending_handshakes)
            await asyncio.sleep(0)

    task_ = asyncio.ensure_future(watch())
    flooders = await flood(port, 1000)
    await eventually(lambda: t.stats().handshakes_evicted >= 1000 - 33)
    watching = False
    await task_
    for sock in flooders:
        sock.close()
    assert most <= 32


async def test_a_burst_of_connects_does_not_hold_up_the_loop(make: Make) -> None:
    """They are not all accepted in one turn, in which nothing else would happen."""
    t = await make(max_pending_handshakes=1000)
    flooders = await flood(port_of(await serve(t)), 900, at_once=True)
    most = before = 0
    while t.stats().pending_handshakes < 900:
        await asyncio.sleep(0)
        most = max(most, t.stats().pending_handshakes - before)
        before = t.stats().pending_handshakes
    for sock in flooders:
        sock.close()
    assert most <= 300


async def test_many_bad_peers_at_once_do_not_disturb_a_good_one(node: Node) -> None:
    async def bad(number: int) -> None:
        attacks = [*BREACHES.values(), *(frame(BINARY, data) for data in NOT_FRAMES.values())]
        client = await Raw.connect(node.port, Actor(9) if number % 2 else None)
        await client.send(attacks[number % len(attacks)])
        await asyncio.sleep(0.01)
        client.close()

    async def good() -> None:
        for _ in range(20):
            await node.still_serves()

    await within(asyncio.gather(good(), *(bad(number) for number in range(150))), BUSY)
    await eventually(lambda: node.t.stats().active == 2)


async def test_a_hello_is_shown_without_control_characters(make: Make, raw: Open) -> None:
    t = await make()
    box = Box(t)
    peer = await raw(port_of(await serve(t)), Actor(9, name="\x1b[31mred\r\n"))
    await peer.post(task())
    await eventually(lambda: box)
    assert box.peers[0].name == "[31mred"
    assert json.dumps(box.peers[0].name).count("\\") == 0
    assert os.linesep not in repr(box.peers[0])
