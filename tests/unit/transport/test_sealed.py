"""Encrypted unless asked otherwise (rule 3.8): what travels over TCP between nodes that have the defaults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets

import openline
from openline.backends.race import STAGGER
from openline.core.handshake import HEADER

from .certificates import Certificate, self_signed
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .lines import Line
from .proofs import Middle
from .rawsocket import Actor, PlainServer, RawServer

TLS = b"\x16"


class Wire(Line):
    """Keeps what passes, and is told what to do with TLS and with hellos."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.target = target
        self.seen = b""
        # The first bytes of each connection.
        self.begins: list[bytes] = []
        # Turns away TLS; takes hellos out of what is not encrypted; lets nothing more through.
        self.no_tls = self.no_hello = self.silent = False

    async def __aenter__(self) -> Wire:
        await super().__aenter__()
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            first = await reader.read(65536)
            self.begins.append(first)
            if self.no_tls and first[:1] == TLS:
                writer.transport.abort()
                return
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.append(onward)
            onward.write(self._kept(first))
            up, down = self._pump(reader, onward, True), self._pump(there, writer, False)
            await asyncio.gather(up, down, return_exceptions=True)

    def _kept(self, data: bytes) -> bytes:
        self.seen += data
        if self.no_hello and data[:4] in (b"GET ", b"HTTP"):
            head, _, rest = data.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.startswith(HEADER.encode())]
            return b"\r\n".join(lines) + b"\r\n\r\n" + rest
        return data

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upward: bool) -> None:
        try:
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(self._kept(data))
                    await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def sealing(make: Make) -> Make:
    """Transports with the default policy, and no UDP, so that it is TCP that is looked at."""

    async def made(name: str = "", **config: Any) -> openline.Transport:
        return await make(name, **{"plaintext": "plain-peers", "backends": ("websocket",), **config})

    return made


@pytest.fixture
async def tapped(stack: AsyncExitStack, sealing: Make) -> tuple[openline.Transport, Box, Wire]:
    """A node that listens, what it gets, and a wire to it."""
    server = await sealing("server")
    box = Box(server)
    wire = await stack.enter_async_context(Wire(port_of(await serve(server))))
    return server, box, wire


def plain(t: openline.Transport) -> list[bool]:
    return [not connection.endpoint.secure for connection in t._table.connections]


# What is seen on the wire ---------------------------------------------------------------------------


async def test_nothing_of_a_message_or_a_hello_is_seen(sealing: Make, tapped: Any) -> None:
    server, _, wire = tapped
    box = Box(server, stream_id="default")
    server.on_message(stream_id="rpc")(lambda peer, message: peer.reply(message, "the answer is secret too"))
    client = await sealing("the name of the client")
    await client.send(wire.address, task("very secret"))
    answer = await client.request(wire.address, task("also secret", stream_id="rpc"))
    await server.peers()[0].send(task("secret, the other way"))
    assert (box.payloads, answer.payload) == (["very secret"], "the answer is secret too")
    for word in (b"secret", b"name of", client.node_id.encode(), server.node_id.encode(), b"HTTP"):
        assert word not in wire.seen
    assert wire.begins[0][:1] == TLS
    assert plain(client) == plain(server) == [False]


async def test_a_reply_and_a_send_to_the_listening_port_ride_the_same_connection(
    sealing: Make, tapped: Any
) -> None:
    server, _, wire = tapped
    client = await sealing("client")
    box = Box(client)
    home = await serve(client)
    await client.connect(wire.address)
    receipts = [await server.send(home, task(1)), await server.send(client.node_id, task(2))]
    assert [receipt.direction for receipt in receipts] == ["inbound", "inbound"]
    assert (box.payloads, server.stats().created) == ([1, 2], 0)


async def test_large_messages_and_many(sealing: Make, tapped: Any) -> None:
    server, box, wire = tapped
    client = await sealing("client")
    await client.send(wire.address, task("x" * 3_000_000))
    await client.send_batch(wire.address, tasks(2000))
    await server.peers()[0].send(task("y" * 3_000_000))
    assert len(box.payloads[0]) == 3_000_000
    assert box.payloads[1:] == list(range(2000))


async def test_ws_says_plain_text_and_means_it(sealing: Make, tapped: Any) -> None:
    _, box, wire = tapped
    client = await sealing("client")
    await client.send(f"ws://{wire.address}", task("in the clear"))
    assert box.payloads == ["in the clear"]
    assert b"in the clear" not in wire.seen  # a client's frames are masked
    assert wire.begins[0][:4] == b"GET "
    assert plain(client) == [True]


# Plain peers ----------------------------------------------------------------------------------------


async def test_a_plain_peer_is_reached_and_the_next_time_at_once(sealing: Make, plain_server: Any) -> None:
    peer: PlainServer = await plain_server()
    async with Wire(peer.port) as wire:
        for count in (1, 2):
            client = await sealing(f"client {count}")
            for number in range(2):
                receipt = await client.send(wire.address, task(number))
                assert (receipt.acked, receipt.backend) == (False, "websocket")
                [connection] = client._table.connections
                connection.link.abort()
                await eventually(lambda c=client: not c.peers())
            await client.close()
        # TLS goes first where nobody is known; it is not tried where a plain peer has answered.
        assert [first[:1] == TLS for first in wire.begins] == [True, False, False] * 2


async def test_a_plain_peer_that_says_nothing_to_tls(sealing: Make, raw_server: RawServer) -> None:
    """As a server that waits for the end of a line: the next way begins all the same."""
    client = await sealing(dial_timeout=60.0)
    sending = asyncio.ensure_future(client.send(raw_server.address, task("hello")))
    silent = await raw_server.tcp(tls=True)
    peer = await raw_server.accept()
    await within(sending)
    assert (await peer.whole())[1].endswith(b'"payload":"hello"}')
    silent.close()


async def test_plain_clients_come_in_on_the_same_port(sealing: Make, plain_client: Any) -> None:
    server = await sealing()
    server.on_message(lambda peer, message: peer.reply(message, "welcome"))
    address = await serve(server)
    client = await plain_client(port_of(address))
    await client.send('{"id":"1","type":"task","payload":"hello"}')
    assert "welcome" in await within(client.recv())
    assert plain(server) == [True]


async def test_plain_clients_that_speak_tls_come_in_too(sealing: Make) -> None:
    server = await sealing()
    server.on_message(lambda peer, message: peer.reply(message, "welcome"))
    port = port_of(await serve(server))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with websockets.connect(f"wss://127.0.0.1:{port}", ssl=context, proxy=None) as client:
        await client.send('{"id":"1","type":"task","payload":"hello"}')
        assert "welcome" in await within(client.recv())
        assert plain(server) == [False]


async def test_a_plain_peer_with_a_certificate_of_its_own(sealing: Make, tmp_path: Path) -> None:
    """A bare address asks for no certificate: it takes what encryption there is."""
    got: list[str] = []

    async def serve_one(connection: Any) -> None:
        async for text in connection:
            got.append(text)

    context = self_signed(tmp_path).context()
    async with websockets.serve(serve_one, "127.0.0.1", 0, ssl=context) as server:
        client = await sealing()
        await client.send(f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", task("hello"))
        assert plain(client) == [False]
        await eventually(lambda: got)
        await client.close()


# Who does not encrypt -------------------------------------------------------------------------------


async def test_a_node_that_answers_in_plain_text_only_gets_nothing(
    sealing: Make, raw_server: RawServer
) -> None:
    client = await sealing()
    sending = asyncio.ensure_future(client.send(raw_server.address, task("secret")))
    server = await raw_server.tcp()
    server.request = await server.head()
    answer, _ = server.answered(Actor(raw_server.port))
    await server.send(answer)
    with pytest.raises(openline.Unreachable, match="ws://"):
        await within(sending)
    assert b"secret" not in await server.gone()
    assert client.stats().created == 0


@pytest.mark.parametrize("how", ["ws", "allow"])
async def test_it_does_where_plain_text_is_asked_for(sealing: Make, raw_server: RawServer, how: str) -> None:
    client = await sealing(plaintext="allow" if how == "allow" else "plain-peers")
    scheme = "ws://" if how == "ws" else ""
    sending = asyncio.ensure_future(client.connect(f"{scheme}{raw_server.address}"))
    await raw_server.accept(Actor(raw_server.port))
    await within(sending)
    assert plain(client) == [True]


async def test_never_means_never(sealing: Make, plain_client: Any, plain_server: Any) -> None:
    strict, other, third = await sealing(plaintext="never"), await sealing(), await sealing()
    box = Box(strict)
    address = await serve(strict)
    await other.send(address, task("sealed"))
    with pytest.raises(websockets.exceptions.InvalidStatus):
        await plain_client(port_of(address))
    with pytest.raises(openline.Unreachable, match="speaks TLS"):
        await third.send(f"ws://{address}", task("plain"))
    peer: PlainServer = await plain_server()
    with pytest.raises(openline.Refused, match="plaintext"):
        await strict.send(f"ws://{peer.address}", task("plain"))
    with pytest.raises(openline.Unreachable):
        await strict.send(peer.address, task("plain"))
    assert (box.payloads, peer.payloads) == (["sealed"], [])


# A step down ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stripped", [False, True], ids=["with hellos", "without"])
async def test_who_was_reached_encrypted_is_never_talked_to_in_plain_text_again(
    sealing: Make, tapped: Any, stripped: bool
) -> None:
    """Somebody on the path breaks TLS, and lets plain text through."""
    server, box, wire = tapped
    client = await sealing("client")
    await client.send(wire.address, task("first"))
    wire.no_tls, wire.no_hello = True, stripped
    wire.cut()
    await eventually(lambda: not client.peers())
    before = len(wire.begins)
    for address in (wire.address, f"localhost:{wire.port}", server.node_id):
        with pytest.raises((openline.Unreachable, openline.Refused)) as raised:
            await client.send(address, task("second"), timeout=2.0)
        assert "reached encrypted before" in str(raised.value) or address != wire.address
    await asyncio.sleep(2 * STAGGER)
    assert {first[:1] for first in wire.begins[before:]} <= {TLS, b"G"}
    assert not any(b"second" in part for part in wire.begins)
    assert box.payloads == ["first"]
    wire.no_tls = False
    await client.send(wire.address, task("third"))
    await eventually(lambda: box.payloads[-1] == "third")
    assert plain(client) == [False]


async def test_what_was_sent_encrypted_is_not_sent_again_in_plain_text(sealing: Make, tapped: Any) -> None:
    """The connection is lost before the acknowledgement, and its peer comes in by ws://."""
    server, box, wire = tapped
    client = await sealing("client")
    client.on_message(stream_id="rpc")(lambda peer, message: peer.reply(message, "yes"))
    home = await serve(client)
    await client.send(wire.address, task("first"))
    wire.silent = True
    sending = asyncio.ensure_future(client.send(wire.address, task("second")))
    await asyncio.sleep(0.05)
    await server._listeners[0].close()
    wire.cut()
    async with Wire(port_of(home)) as back:
        await server.connect(f"ws://{back.address}")
        await eventually(lambda: True in plain(client))
        # An answer on that connection goes: the peer has asked for plain text.
        answer = await server.request(f"ws://{back.address}", task(stream_id="rpc"), timeout=5.0)
        assert answer.payload == "yes"
        with pytest.raises(openline.Unreachable):
            await client.send(wire.address, task("third"))
        assert "plain text" in str(client.explain(wire.address))
        assert not sending.done()
        assert box.payloads == ["first"]
        wire.silent = False
        await server.listen(wire.target, host="127.0.0.1")
        await within(sending, 20.0)
        assert box.payloads == ["first", "second"]
        assert b"yes" in back.seen  # what a server says is not masked
        assert b"second" not in back.seen
        assert b"third" not in back.seen


async def test_a_plain_peer_does_not_stand_in_for_who_was_reached_encrypted(
    sealing: Make, tapped: Any, plain_client: Any
) -> None:
    """It comes from the same IP, and is the only one there."""
    _, _, wire = tapped
    client = await sealing("client")
    home = await serve(client)
    await client.send(wire.address, task("first"))
    wire.no_tls = True
    wire.cut()
    await eventually(lambda: not client.peers())
    stranger = await plain_client(port_of(home))
    await eventually(lambda: client.peers())
    with pytest.raises(openline.Unreachable):
        await client.send(wire.address, task("secret"), timeout=2.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stranger.recv(), 0.2)


@pytest.fixture(scope="module")
def proxys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("proxy"))


async def test_a_man_in_the_middle_with_a_certificate_of_his_own_is_refused(
    sealing: Make, stack: AsyncExitStack, proxys: Certificate
) -> None:
    """And plain text is not tried behind him."""
    server, client = await sealing(), await sealing()
    box = Box(server)
    port = port_of(await serve(server))
    any_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    any_certificate.check_hostname, any_certificate.verify_mode = False, ssl.CERT_NONE
    middle = await stack.enter_async_context(Middle(port, asks=proxys.context(), dials=any_certificate))
    with pytest.raises(openline.Refused, match="something in between ends TLS"):
        await client.send(middle.address, task("secret"))
    assert not box
    assert b"secret" not in middle.said
    assert client.stats().created == 0


async def test_a_wrong_node_id_is_refused_without_a_try_in_plain_text(sealing: Make, tapped: Any) -> None:
    _, box, wire = tapped
    client, third = await sealing(), await sealing()
    with pytest.raises(openline.Refused, match="the node there is"):
        await client.send(f"{third.node_id}@{wire.address}", task("secret"))
    await asyncio.sleep(2 * STAGGER)
    assert [first[:1] for first in wire.begins] == [TLS]
    assert not box


# Handshakes that are not finished -------------------------------------------------------------------


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("part", [1, 100, None], ids=["first byte", "half", "all"])
async def test_handshakes_that_are_not_finished_are_bounded(
    sealing: Make, part: int | None, stack: AsyncExitStack
) -> None:
    server, honest = await sealing(max_pending_handshakes=64), await sealing()
    box = Box(server)
    port = port_of(await serve(server))
    hello = client_hello()[:part]
    for _ in range(400):
        sock = socket.create_connection(("127.0.0.1", port))
        stack.callback(sock.close)
        sock.send(hello)
        await asyncio.sleep(0)
    await eventually(lambda: server.stats().handshakes_evicted >= 300, 30.0)
    assert server.stats().pending_handshakes <= 64
    await honest.send(f"127.0.0.1:{port}", task("honest"), timeout=20.0)
    assert box.payloads == ["honest"]


async def test_a_handshake_that_drips_ends_in_time(
    sealing: Make, caplog: pytest.LogCaptureFixture, stack: AsyncExitStack
) -> None:
    server = await sealing(handshake_timeout=0.3)
    port = port_of(await serve(server))
    sock = socket.create_connection(("127.0.0.1", port))
    stack.callback(sock.close)
    with caplog.at_level(logging.WARNING):
        for byte in client_hello()[:20]:
            with contextlib.suppress(OSError):
                sock.send(bytes([byte]))
            await asyncio.sleep(0.03)
        await eventually(lambda: server.stats().malformed == 1)
    assert "unfinished handshake" in caplog.text
    assert server.stats().pending_handshakes == 0


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x00\x05hello", b"\x16" + bytes(300), client_hello()[:60] + b"\xff" * 600],
    ids=["no hello", "zeros", "half a hello"],
)
async def test_what_only_looks_like_tls_costs_its_own_connection(
    sealing: Make, garbage: bytes, stack: AsyncExitStack
) -> None:
    server, honest = await sealing(), await sealing()
    box = Box(server)
    port = port_of(await serve(server))
    sock = socket.create_connection(("127.0.0.1", port))
    stack.callback(sock.close)
    sock.send(garbage)
    await eventually(lambda: server.stats().malformed == 1)
    await honest.send(f"127.0.0.1:{port}", task("honest"))
    assert box.payloads == ["honest"]


async def test_garbage_after_the_handshake_costs_its_own_connection(sealing: Make, tapped: Any) -> None:
    _, box, wire = tapped
    client, honest = await sealing(), await sealing()
    await client.connect(wire.address)
    wire._writers[1].write(b"\x17\x03\x03\x00\x20" + b"g" * 32)
    await eventually(lambda: not client.peers())
    await honest.send(wire.address, task("honest"))
    assert box.payloads == ["honest"]


async def test_a_client_that_goes_away_in_the_handshake_leaves_nothing(
    sealing: Make, raw: Open, stack: AsyncExitStack
) -> None:
    server = await sealing()
    port = port_of(await serve(server))
    for part in (1, 50, None):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.send(client_hello()[:part])
        await asyncio.sleep(0.02)
        sock.close()
    await eventually(lambda: server.stats().pending_handshakes == 0)
    assert server.stats().active == 0
