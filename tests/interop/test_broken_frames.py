"""Frames that break RFC 6455: they cost their own connection, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .conftest import OpenTransport
from .helpers import Mailbox, serving, stat, task, until

pytestmark = pytest.mark.interop

MASK = bytes(4)  # a mask of zeros leaves the payload readable
Dial = Callable[[str], Awaitable[ClientConnection]]

BROKEN = {
    "not masked": b"\x81\x02{}",
    "reserved opcode": b"\x83\x80" + MASK,
    "reserved control opcode": b"\x8b\x80" + MASK,
    "compressed without agreement": b"\xc1\x82" + MASK + b"{}",
    "reserved bit": b"\xa1\x82" + MASK + b"{}",
    "long ping": b"\x89\xfe\x00\x80" + MASK + bytes(128),
    "fragmented ping": b"\x09\x80" + MASK,
    "continuation of nothing": b"\x80\x80" + MASK,
    "text inside fragments": b"\x01\x81" + MASK + b"{" + b"\x81\x82" + MASK + b"{}",
    "length over the limit": b"\x81\xff" + (1 << 40).to_bytes(8, "big") + MASK,
    "length with the top bit": b"\x81\xff" + (1 << 63).to_bytes(8, "big") + MASK,
    "not WebSocket at all": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4,
}
CLOSINGS = {
    "no code": b"",
    "normal": b"\x03\xe8",
    "half a code": b"\x03",
    "code 0": b"\x00\x00",
    "code 999": b"\x03\xe7",
    "reserved 1005": b"\x03\xed",
    "reserved 1006": b"\x03\xee",
    "unassigned 1100": b"\x04\x4c",
    "code 65535": b"\xff\xff",
    "reason that is not UTF-8": b"\x03\xe8\xff\xfe",
}


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    async with AsyncExitStack() as stack:

        async def dialed(address: str) -> ClientConnection:
            connection = connect(address, compression=None, proxy=None, ping_interval=None, close_timeout=1)
            return await stack.enter_async_context(connection)

        yield dialed


async def ended(client: ClientConnection) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        async with asyncio.timeout(5.0):
            await client.recv()
    return caught.value


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_frame_costs_its_own_connection(
    open_transport: OpenTransport, dial: Dial, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    breaker, other = await dial(address), await dial(address)
    with caplog.at_level(logging.INFO, logger="openline"):
        breaker.transport.write(BROKEN[kind])
        await ended(breaker)
    await other.send(json.dumps(task("served")))
    assert (await mailbox.take()).message.payload == "served"
    await until(lambda: stat(transport, "active") == 1)
    assert stat(transport, "malformed") == 1
    assert mailbox.empty()
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("kind", CLOSINGS)
async def test_closing_of_any_form_ends_the_connection(
    open_transport: OpenTransport, dial: Dial, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Browsers close without a code when a program does not name one."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    leaver, other = await dial(address), await dial(address)
    body = CLOSINGS[kind]
    with caplog.at_level(logging.INFO, logger="openline"):
        leaver.transport.write(bytes([0x88, 0x80 | len(body)]) + MASK + body)
        await until(lambda: stat(transport, "active") == 1)
    await other.send(json.dumps(task("served")))
    assert (await mailbox.take()).message.payload == "served"
    assert tracebacks(caplog) == []
    if kind in ("no code", "normal"):
        assert stat(transport, "malformed") == 0


async def trickle(client: ClientConnection, frame: bytes) -> None:
    """Repeats a frame until the far side has had enough, or a million times."""
    for _ in range(1000):
        if client.transport.is_closing():
            return
        client.transport.write(frame * 1000)
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [0, 1])
async def test_endless_fragments_cost_their_own_connection(
    open_transport: OpenTransport, dial: Dial, size: int
) -> None:
    """A limit on bytes alone would never end those that carry none."""
    transport = await open_transport(max_message_size=100_000)
    mailbox = Mailbox(transport)
    address = await serving(transport)
    endless, other = await dial(address), await dial(address)
    endless.transport.write(b"\x01\x80" + MASK)
    await trickle(endless, bytes([0x00, 0x80 | size]) + MASK + bytes(size))
    await ended(endless)
    await other.send(json.dumps(task("served")))
    assert (await mailbox.take()).message.payload == "served"
    assert stat(transport, "malformed") == 1
