"""A bare `websockets` client at the other end: what plain RFC 6455 peers may do (rule 3.7)."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

import openline
from openline import Message

from .conftest import OpenTransport
from .helpers import Dial, Mailbox, heard, serving, stat, task, until

pytestmark = pytest.mark.interop

MALFORMED = [
    "{",
    "",
    "not json",
    '{"id": 1',
    '{"id": 1}}',
    "[]",
    "[1, 2]",
    '"text"',
    "17",
    "null",
    '{"id": {}, "type": "task"}',
    '{"id": "x", "type": 5}',
    '{"id": "x", "type": "task", "streamId": {}}',
    '{"id": "x", "type": "task", "streamId": 1.5}',
    '{"id": "x", "type": "task", "metadata": "text"}',
    '{"payload": 1e999}',
    "[" * 100_000,
    '{"payload":' * 50_000,
]
NUMBERS = '{"int":1,"float":1.0,"exp":1e3,"big":123456789012345678901234567890,"tiny":5e-324,"neg":-0.0}'


async def closing(connection: ClientConnection) -> ConnectionClosed:
    """How the far side closes."""
    with pytest.raises(ConnectionClosed) as caught:
        await drain(connection)
    return caught.value


async def drain(connection: ClientConnection) -> None:
    async with asyncio.timeout(10.0):
        while True:
            await connection.recv()


async def test_client_talks_both_ways(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task("in", streamId=7)))
    peer, message = await mailbox.take()
    assert (message.payload, message.stream_id) == ("in", 7)
    host, port, *_ = client.local_address
    assert peer.address == f"{host}:{port}"

    receipt = await peer.send(Message(id=1, type="status", payload="out", stream_id="news"))
    assert await heard(client) == {"id": 1, "type": "status", "payload": "out", "streamId": "news"}
    assert (receipt.attempts, receipt.acked, receipt.direction) == (1, False, "inbound")


@pytest.mark.parametrize("path", ["/", "/agents?token=x#", "/deep/er/path"])
async def test_any_path_and_subprotocol_is_served(
    open_transport: OpenTransport, dial: Dial, path: str
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport) + path.rstrip("#"), subprotocols=["chat", "mqtt"])
    assert client.subprotocol is None
    await client.send(json.dumps(task("hi")))
    assert (await mailbox.take()).message.payload == "hi"


async def test_numbers_keep_their_form(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(f'{{"id":1.0,"type":"task","payload":{NUMBERS},"extra":{NUMBERS}}}')
    peer, message = await mailbox.take()
    assert repr(message.payload) == repr(json.loads(NUMBERS))

    await peer.send(message)
    back = await heard(client)
    assert repr(back["payload"]) == repr(json.loads(NUMBERS))
    assert repr(back["extra"]) == repr(json.loads(NUMBERS))
    assert repr(back["id"]) == "1.0"


async def test_binary_frames_may_hold_json(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task({"ü": 1})).encode())
    assert (await mailbox.take()).message.payload == {"ü": 1}


@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_fragments_are_put_together(open_transport: OpenTransport, dial: Dial, kind: str) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    raw = json.dumps(task("漢字🜁" * 50), ensure_ascii=False).encode()

    async def single_bytes() -> AsyncIterator[bytes]:
        """Cuts characters in half, and lets control frames in between."""
        for n in range(len(raw)):
            if n % 100 == 0:
                await (await client.ping())
            yield raw[n : n + 1]

    await client.send(single_bytes(), text=kind == "text")
    assert (await mailbox.take()).message.payload == "漢字🜁" * 50
    await client.send(json.dumps(task("next")))
    assert (await mailbox.take()).message.payload == "next"


async def test_compressed_fragments_are_put_together(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport), compression="deflate")
    assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
    text = json.dumps(task("compress me " * 1000))
    for _ in range(3):
        await client.send([text[:10], text[10:5000], "", text[5000:]])
        peer, message = await mailbox.take()
        assert message.payload == "compress me " * 1000
        await peer.send(message)
        assert (await heard(client))["payload"] == message.payload


async def test_pings_of_client_are_answered(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    entered, release = asyncio.Event(), asyncio.Event()

    @transport.on_message
    async def stuck(peer: openline.Peer, message: Message) -> None:
        entered.set()
        await release.wait()

    client = await dial(await serving(transport), ping_interval=0.05, ping_timeout=1.0)
    await client.send(json.dumps(task()))
    await entered.wait()
    for body in (b"", b"x" * 125, "ü".encode()):
        async with asyncio.timeout(2.0):
            latency = await (await client.ping(body))
        assert latency < 1.0
    release.set()
    assert client.state.name == "OPEN"


async def test_pings_to_client_keep_a_quiet_connection(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport(max_idle_timeout=0.6)
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task()))
    peer, _ = await mailbox.take()
    quiet = asyncio.ensure_future(client.recv())
    # Longer than the whole idle time: only answered pings can have kept it.
    done, _ = await asyncio.wait([quiet], timeout=1.0)
    assert not done
    await peer.send(Message(payload="still here"))
    assert json.loads(await quiet)["payload"] == "still here"
    assert stat(transport, "closed") == 0


async def test_malformed_messages_disturb_nobody(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    other = await dial(address)
    for n, text in enumerate(MALFORMED):
        client = await dial(address)
        await send_all(client, [text, text.encode(), os.urandom(64), b"\x00", b"\xff" * 8])
        await other.send(json.dumps(task(n)))
        assert (await mailbox.take()).message.payload == n, text[:50]
    assert mailbox.empty()
    fresh = await dial(address)
    await fresh.send(json.dumps(task("fresh")))
    peer, _ = await mailbox.take()
    await peer.send(Message(payload="served"))
    assert (await heard(fresh))["payload"] == "served"


async def send_all(client: ClientConnection, frames: list[str | bytes]) -> None:
    """Hostile input may cost the connection at any frame."""
    for frame in frames:
        try:
            await client.send(frame)
        except ConnectionClosed:
            return


async def test_malformed_message_is_dropped_and_the_next_one_heard(
    open_transport: OpenTransport, dial: Dial
) -> None:
    """As agentic-flow does: its programs now and then send something odd, and go on."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send("{not json")
    await client.send(json.dumps(task("good")))
    peer, message = await mailbox.take()
    assert message.payload == "good"
    await peer.send(Message(payload="answer"))
    assert (await heard(client))["payload"] == "answer"


async def test_invalid_utf8_is_not_a_message(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    broken, other = await dial(address), await dial(address)
    await send_all(broken, [b'{"id":"x","type":"task","payload":"\xc3\x28"}'])
    await broken.send([b'{"id":"x","type":"task","payload":"', b'\xff\xfe"}'], text=True)
    await other.send(json.dumps(task("good")))
    assert (await mailbox.take()).message.payload == "good"


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_oversized_message_costs_its_own_connection(
    open_transport: OpenTransport, dial: Dial, pieces: int
) -> None:
    transport = await open_transport(max_message_size=100_000)
    mailbox = Mailbox(transport)
    address = await serving(transport)
    greedy, other = await dial(address), await dial(address)
    piece = "x" * (200_000 // pieces)
    sending = asyncio.ensure_future(greedy.send([piece] * pieces if pieces > 1 else piece))
    closed = await closing(greedy)
    await asyncio.gather(sending, return_exceptions=True)
    assert closed.rcvd is not None
    assert closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG
    await other.send(json.dumps(task("good")))
    assert (await mailbox.take()).message.payload == "good"


def bomb(megabytes: int) -> bytes:
    """A masked, compressed text frame that grows a thousandfold when it is read."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(megabytes))
    body += deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert len(body) < 1 << 16
    return b"\xc1\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body


async def test_deflate_bomb_costs_its_own_connection(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport(compression=True, max_message_size=1 << 20)
    mailbox = Mailbox(transport)
    address = await serving(transport)
    bomber, other = await dial(address, compression="deflate"), await dial(address)
    frame = bomb(megabytes=60)
    with peak_memory() as peak:
        bomber.transport.write(frame)
        closed = await closing(bomber)
    assert closed.rcvd is not None
    assert closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG
    assert peak() < 16 << 20
    await other.send(json.dumps(task("good")))
    assert (await mailbox.take()).message.payload == "good"


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    try:
        yield lambda: peak
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4001])
async def test_client_may_close_with_any_code(open_transport: OpenTransport, dial: Dial, code: int) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task()))
    peer, _ = await mailbox.take()
    async with asyncio.timeout(5.0):
        await client.close(code, "bye")
    assert client.close_code == code
    await until(lambda: stat(transport, "active") == 0)
    with pytest.raises(openline.Error):
        await peer.send(Message())


async def test_close_says_going_away(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task()))
    await mailbox.take()
    _, closed = await asyncio.gather(transport.close(), closing(client))
    assert closed.rcvd is not None
    assert closed.rcvd.code in (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)


async def test_messages_sent_just_before_close_arrive(open_transport: OpenTransport, dial: Dial) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    client = await dial(await serving(transport))
    await client.send(json.dumps(task()))
    peer, _ = await mailbox.take()
    for n in range(100):
        await peer.send(Message(payload=n))
    closing_ = asyncio.ensure_future(transport.close())
    assert [(await heard(client))["payload"] for _ in range(100)] == list(range(100))
    await closing(client)
    await closing_
