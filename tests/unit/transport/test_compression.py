"""permessage-deflate (rule 3.7): off by default, agreed by both, never needed."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import websockets

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .rawsocket import RawServer
from .wire import TEXT, plain

Plain = Callable[..., Any]

LONG = "compress me " * 1000
EXTENSION = "Sec-WebSocket-Extensions"


def inflate(data: bytes, bits: int = 15) -> Any:
    """One message, with nothing known of those before it."""
    return json.loads(zlib.decompressobj(-bits).decompress(data + b"\x00\x00\xff\xff"))


@pytest.mark.parametrize("server", [False, True], ids=["server off", "server on"])
@pytest.mark.parametrize("client", [False, True], ids=["client off", "client on"])
async def test_every_combination_of_openline_peers_talks(make: Make, client: bool, server: bool) -> None:
    a, b = await make(compression=server), await make(compression=client)
    box, back = Box(a), Box(b)
    a.on_message(lambda peer, message: peer.reply(message, message.payload))
    address = await serve(a)
    payloads = ["", "x" * 255, "x" * 256, LONG, LONG * 20, {"nested": [LONG] * 3}, b"\x00\xff" * 1000]
    for payload in payloads:
        assert (await b.request(address, task(payload), timeout=2.0)).payload == payload
    assert (box.payloads, back) == (payloads, [])


@pytest.mark.parametrize("server", [False, True], ids=["openline off", "openline on"])
@pytest.mark.parametrize("client", [None, "deflate"], ids=["websockets off", "websockets on"])
async def test_every_combination_with_a_websockets_client_talks(
    make: Make, plain_client: Plain, client: str | None, server: bool
) -> None:
    t = await make(compression=server)
    t.on_message(lambda peer, message: peer.reply(message, message.payload))
    connection = await plain_client(port_of(await serve(t)), compression=client)
    for payload in ("short", LONG, LONG * 50):
        await connection.send(plain(payload).decode())
        assert json.loads(await within(connection.recv()))["payload"] == payload
    agreed = [extension.name for extension in connection.protocol.extensions]
    assert agreed == (["permessage-deflate"] if client and server else [])


@pytest.mark.parametrize("client", [False, True], ids=["openline off", "openline on"])
@pytest.mark.parametrize("server", [None, "deflate"], ids=["websockets off", "websockets on"])
async def test_every_combination_with_a_websockets_server_talks(
    make: Make, plain_server: Plain, server: str | None, client: bool
) -> None:
    t = await make(compression=client)
    box = Box(t)
    there = await plain_server(compression=server)
    for payload in ("short", LONG, LONG * 50):
        await t.send(there.address, task(payload))
    await eventually(lambda: there.payloads == ["short", LONG, LONG * 50])
    await there.connections[0].send(plain(LONG).decode())
    await eventually(lambda: box.payloads == [LONG])
    agreed = [extension.name for extension in there.connections[0].protocol.extensions]
    assert agreed == (["permessage-deflate"] if client and server else [])


async def test_it_is_not_offered_by_default(make: Make, raw_server: RawServer) -> None:
    t = await make()
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    server = await raw_server.accept()
    await within(connecting)
    assert EXTENSION.lower() not in server.request.lower()


async def test_it_is_offered_where_configured(make: Make, raw_server: RawServer) -> None:
    t = await make(compression=True)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    server = await raw_server.accept()
    await within(connecting)
    line = next(line for line in server.request.split("\r\n") if line.startswith(EXTENSION))
    assert "permessage-deflate" in line
    assert "client_no_context_takeover" in line
    assert "server_no_context_takeover" in line


async def test_it_is_not_agreed_to_by_default(make: Make, plain_client: Plain) -> None:
    t = await make()
    client = await plain_client(port_of(await serve(t)), compression="deflate")
    assert client.protocol.extensions == []


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; client_max_window_bits=9; server_max_window_bits=9",
        "x-unknown, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    ],
)
async def test_every_usable_offer_is_agreed_to_and_kept(make: Make, raw: Open, offer: str) -> None:
    t = await make(compression=True)
    box = Box(t)
    client = await raw(port_of(await serve(t)), {EXTENSION: offer})
    packer = zlib.compressobj(9, zlib.DEFLATED, -9)
    data = (packer.compress(plain(LONG)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    await client.frame(TEXT, data, rsv=4)
    await eventually(lambda: box.payloads == [LONG])
    await t.send(client.address, task(LONG))
    first, packed = await client.read()
    assert first == 0xC1
    bits = 9 if "server_max_window_bits=9" in offer else 10 if "=10" in offer else 15
    assert inflate(packed, bits)["payload"] == LONG


@pytest.mark.parametrize(
    "offer", ["x-unknown", "permessage-deflate; server_max_window_bits=8", "permessage-deflat", ";", ""]
)
async def test_an_offer_that_cannot_be_kept_is_declined(make: Make, raw: Open, offer: str) -> None:
    t = await make(compression=True)
    box = Box(t)
    client = await raw(port_of(await serve(t)), {EXTENSION: offer})
    await client.say(LONG)
    await eventually(lambda: box.payloads == [LONG])
    await t.send(client.address, task(LONG))
    assert (await client.read())[0] == 0x81


async def test_messages_under_256_bytes_go_as_they_are(make: Make, raw: Open) -> None:
    t = await make(compression=True)
    client = await raw(port_of(await serve(t)), {EXTENSION: "permessage-deflate"})
    await eventually(lambda: t.stats().active == 1)
    await t.send(client.address, task("x" * 100))
    assert (await client.read())[0] == 0x81
    await t.send(client.address, task("x" * 300))
    first, data = await client.read()
    assert first == 0xC1
    assert len(data) < 200


async def test_every_message_stands_alone(make: Make, raw: Open) -> None:
    """No context takeover: each can be inflated without the one before."""
    t = await make(compression=True)
    client = await raw(port_of(await serve(t)), {EXTENSION: "permessage-deflate"})
    await eventually(lambda: t.stats().active == 1)
    for _ in range(3):
        await t.send(client.address, task(LONG))
        first, data = await client.read()
        assert first == 0xC1
        assert inflate(data)["payload"] == LONG


async def test_an_uncompressed_message_on_a_compressed_connection_is_fine(make: Make, raw: Open) -> None:
    t = await make(compression=True)
    box = Box(t)
    client = await raw(port_of(await serve(t)), {EXTENSION: "permessage-deflate"})
    await client.say(LONG)
    await eventually(lambda: box.payloads == [LONG])


async def test_a_compressed_message_of_the_largest_size_arrives(make: Make) -> None:
    a, b = await make(compression=True), await make(compression=True)
    box = Box(a)
    payload = "0123456789" * 1_600_000
    await b.send(await serve(a), task(payload))
    await eventually(lambda: box.payloads == [payload])


async def test_order_is_kept_between_compressed_and_uncompressed_messages(make: Make) -> None:
    a, b = await make(compression=True), await make(compression=True)
    box = Box(a)
    address = await serve(a)
    sizes = [1, 300, 5, 200_000, 7, 255, 256, 1000]
    await b.connect(address)
    await asyncio.gather(*(b.send(address, task([n, "x" * size])) for n, size in enumerate(sizes)))
    await b.send_batch(address, [task([8 + n, "y"]) for n in range(100)])
    await eventually(lambda: len(box) == 108)
    assert [payload[0] for payload in box.payloads] == list(range(108))


async def test_context_takeover_that_a_server_insists_on_is_no_silent_corruption(
    make: Make, raw_server: RawServer
) -> None:
    """It answers without the parameters that were offered: unreachable, with the reason."""
    t = await make(compression=True)
    sending = asyncio.ensure_future(t.send(raw_server.address, task(LONG)))
    await raw_server.accept({EXTENSION: "permessage-deflate"})
    with pytest.raises(openline.Unreachable, match="extension"):
        await within(sending)


async def test_a_websockets_client_with_context_takeover_is_understood(make: Make, stack: Any) -> None:
    """`websockets` keeps its context unless told not to; the agreement must tell it."""
    t = await make(compression=True)
    box = Box(t)
    port = port_of(await serve(t))
    client = await stack.enter_async_context(
        websockets.connect(f"ws://127.0.0.1:{port}", compression="deflate", proxy=None)
    )
    for message in tasks(20):
        await client.send(plain([message.payload, LONG]).decode())
    await eventually(lambda: [payload[0] for payload in box.payloads] == list(range(20)))
