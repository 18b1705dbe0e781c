"""QUIC ends played by hand on qh3's sans-IO connection, so that they can also break the rules.

client = await RawQuic.connect(port)              # TLS is done, nothing has been said
await client.enter(Actor(8770))                   # hello, proof, welcome
client.write(client.track(1), unit(BINARY, batch([task("hi")], opens={"default": 1})))
server = RawQuicServer(certificate)               # the other way round
end = await server.accept(Actor())
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from qh3._hazmat import pull_quic_header
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.tls import SignatureAlgorithm

import openline
from openline.backends.quic.framing import BINARY, GOODBYE, HELLO, UnitReader, goodbye, header, read_goodbye
from openline.backends.quic.tls import ALPN, certificate_of
from openline.core.frames import HEADROOM, Batched, Frame, Proof, Welcome, decode_frame, encode_welcome
from openline.core.handshake import Hello, Transcript, parse_hello, split_proof, with_proof
from openline.identity import verify
from openline.message import StreamId

from ..transport.helpers import within
from ..transport.rawsocket import Actor
from ..transport.wire import batch

T = TypeVar("T")

ANY_SIZE = 1 << 40


def unit(kind: int, content: bytes = b"") -> bytes:
    return header(kind, len(content)) + content


class Over(Exception):
    """The other side has closed the connection: code, was it the program, and the reason."""

    def __init__(self, code: int, by_program: bool, reason: str) -> None:
        super().__init__(code, by_program, reason)
        self.code = code
        self.by_program = by_program
        self.reason = reason


def client_configuration(**options: Any) -> QuicConfiguration:
    """Trusts everybody."""
    quic = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], server_name="openline")
    quic.verify_mode = ssl.CERT_NONE
    quic.signature_algorithms = [
        SignatureAlgorithm.ED25519,
        SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
        SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    ]
    for name, value in options.items():
        setattr(quic, name, value)
    return quic


def server_configuration(pem: bytes, key: bytes, **options: Any) -> QuicConfiguration:
    quic = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
    quic.load_cert_chain(pem, key)
    for name, value in options.items():
        setattr(quic, name, value)
    return quic


class RawQuic:
    """One end of one connection."""

    def __init__(self, quic: QuicConnection, sock: socket.socket, *, client: bool) -> None:
        self.quic = quic
        self.sock = sock
        self.client = client
        self.port = int(sock.getsockname()[1])
        # Every datagram that went out and came in, where somebody wants to look.
        self.sent: list[bytes] = []
        self.mute = False
        self.completed: events.HandshakeCompleted | None = None
        self.over: Over | None = None
        # Units by stream, and what has been read of streams that ended.
        self.units: list[tuple[int, int, bytes]] = []
        self.certificate = b""
        self.actor = Actor()
        self.far_end: Hello | None = None
        self.transcript: Transcript
        # Both hellos, and the server's signature.
        self.said = "", ""
        self.signature = b""
        self.got: list[openline.Message] = []
        self.acked: dict[StreamId, int] = {}
        self._positions: dict[StreamId, int] = {}
        self._opened: set[StreamId] = set()
        self._readers: dict[int, UnitReader] = {}
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False
        self.closed = False
        # What it counts for its goodbye.
        self.count = 0

    @classmethod
    def begin(
        cls, port: int, configuration: QuicConfiguration | None = None, host: str = "127.0.0.1", **quic: Any
    ) -> Self:
        """A client with its socket, that has said nothing yet."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((host, port))
        end = cls(
            QuicConnection(configuration=configuration or client_configuration(), **quic), sock, client=True
        )
        end._loop.add_reader(sock, end._readable)
        end._reading = True
        return end

    def take_a_fresh_socket(self) -> None:
        """A client's address has changed."""
        there, family = self.sock.getpeername(), self.sock.family
        self._loop.remove_reader(self.sock)
        self.sock.close()
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect(there)
        self.port = int(self.sock.getsockname()[1])
        self._loop.add_reader(self.sock, self._readable)

    def start(self) -> None:
        """A client's first packet."""
        self.quic.connect(self.sock.getpeername(), time.monotonic())
        self.transmit()

    @classmethod
    async def connect(cls, port: int, configuration: QuicConfiguration | None = None, **how: Any) -> RawQuic:
        """A client up to the end of TLS."""
        end = cls.begin(port, configuration, **how)
        try:
            end.start()
            await end.handshake()
        except BaseException:
            end.close()
            raise
        return end

    # Datagrams -----------------------------------------------------------------------------------

    def _readable(self) -> None:
        while not self.closed:
            try:
                data, addr = self.sock.recvfrom(65536)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue
            self.received(data, addr)

    def received(self, data: bytes, addr: Any) -> None:
        with suppress(QuicConnectionError):
            self.quic.receive_datagram(data, addr[:2], time.monotonic())
        self._look()

    def _look(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.completed = event
                shown = self.quic.get_peercert()
                self.certificate = shown.public_bytes() if shown is not None else b""
            elif isinstance(event, events.StreamDataReceived):
                reader = self._readers.setdefault(event.stream_id, UnitReader())
                reader.feed(event.data, ANY_SIZE, self._taker(event.stream_id))
            elif isinstance(event, events.ConnectionTerminated):
                self._ended(event)
        if self.quic._close_event is not None:
            self._ended(self.quic._close_event)
        self.transmit()
        self._changed.set()

    def _taker(self, stream: int) -> Callable[[int, memoryview], None]:
        return lambda kind, data: self.units.append((stream, kind, bytes(data)))

    def _ended(self, event: events.ConnectionTerminated) -> None:
        if self.over is None:
            self.over = Over(event.error_code, event.frame_type is None, event.reason_phrase)

    def transmit(self) -> None:
        if self.closed:
            return
        for data, addr in self.quic.datagrams_to_send(time.monotonic()):
            self.sent.append(data)
            if not self.mute:
                self.put(data, addr)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self.quic.get_timer()
        if when is not None:
            self._timer = self._loop.call_later(max(0.001, when - time.monotonic()), self._on_timer)

    def put(self, data: bytes, addr: Any) -> None:
        with suppress(OSError):
            if self.client:
                self.sock.send(data)
            else:
                self.sock.sendto(data, addr)

    def _on_timer(self) -> None:
        self._timer = None
        with suppress(QuicConnectionError):
            self.quic.handle_timer(time.monotonic())
        self._look()

    async def until(self, condition: Callable[[], T | None]) -> T:
        """The first true value of ``condition()``. Raises ``Over`` where the connection ends before."""

        async def wait() -> T:
            while not (found := condition()):
                if self.over is not None:
                    raise self.over
                self._changed.clear()
                await self._changed.wait()
            return found

        return await within(wait(), 15)  # type: ignore[no-any-return]

    async def handshake(self) -> None:
        await self.until(lambda: self.completed)

    async def gone(self) -> Over:
        """How the other side has closed it."""
        return await self.until(lambda: self.over)

    # Streams -------------------------------------------------------------------------------------

    @property
    def control(self) -> int:
        """This end's control stream."""
        return 2 if self.client else 3

    def track(self, number: int) -> int:
        """The stream of this end's track ``number``."""
        return self.control + 4 * number

    def write(self, stream: int, data: bytes, end: bool = False) -> None:
        self.quic.send_stream_data(stream, data, end)
        self.transmit()

    async def read(self, stream: int | None = None) -> tuple[int, bytes]:
        """The next unit's kind and content, of that stream of theirs (0 is control), or of any."""
        wanted = None if stream is None else (3 if self.client else 2) + 4 * stream

        def found() -> tuple[int, int, bytes] | None:
            return next((item for item in self.units if wanted in (None, item[0])), None)

        item = await self.until(found)
        self.units.remove(item)
        return item[1:]

    async def decoded(self, stream: int | None = None) -> Frame | None:
        kind, content = await self.read(stream)
        assert kind == BINARY, (kind, content[:80])
        return decode_frame(memoryview(content))

    # The handshake -------------------------------------------------------------------------------

    async def greet(self, actor: Actor, hello: str | None = None) -> Transcript:
        """A client's side, up to its own proof."""
        mine = hello or actor.hello(next(actor.dials))
        self.write(self.control, unit(HELLO, mine.encode()))
        kind, content = await self.read(0)
        assert kind == HELLO, kind
        theirs, signature = split_proof(content.decode())
        self.said, self.signature = (mine, theirs), signature
        self.transcript = Transcript(mine, theirs, self.certificate)
        self.actor, self.far_end = actor, parse_hello(theirs)
        assert verify(self.far_end.node_id, signature[:64], self.transcript.signed_by("server"))
        return self.transcript

    async def enter(self, actor: Actor) -> None:
        """A client's side, up to the welcome."""
        await self.greet(actor)
        self.prove()
        await self.welcomed()

    def prove(self, proof: bytes | None = None) -> None:
        self.say(self.control, self.actor.prove(self.transcript) if proof is None else proof)

    async def welcomed(self) -> None:
        frame = await self.decoded(0)
        assert isinstance(frame, Welcome), frame

    async def answer(self, actor: Actor, certificate: bytes) -> Transcript:
        """A server's side, up to its own proof."""
        kind, content = await self.read(0)
        assert kind == HELLO, kind
        theirs, mine = content.decode(), actor.hello()
        self.transcript = Transcript(theirs, mine, certificate)
        self.actor, self.far_end = actor, parse_hello(theirs)
        signature = actor.identity.sign(self.transcript.signed_by("server"))
        self.write(self.control, unit(HELLO, with_proof(mine, signature).encode()))
        return self.transcript

    async def welcome(self, actor: Actor, certificate: bytes) -> None:
        """A server's side: the client is in."""
        await self.answer(actor, certificate)
        proof = await self.decoded(0)
        assert isinstance(proof, Proof), proof
        assert self.far_end is not None
        assert verify(self.far_end.node_id, proof.signature[:64], self.transcript.signed_by("client"))
        self.say(self.control, bytes(encode_welcome([]))[HEADROOM:])

    # Messages ------------------------------------------------------------------------------------

    def say(self, stream: int, content: bytes) -> None:
        """One binary unit, counted."""
        self.count += 1
        self.write(stream, unit(BINARY, content))

    def post(self, *messages: openline.Message, track: int = 1) -> None:
        self.say(self.track(track), self.numbered(*messages))

    def numbered(self, *messages: openline.Message) -> bytes:
        opens: dict[StreamId, int] = {}
        for message in messages:
            number = self.actor.numbers.get(message.stream_id, 1)
            if message.stream_id not in self._opened:
                self._opened.add(message.stream_id)
                opens[message.stream_id] = number
            self.actor.numbers[message.stream_id] = number + 1
        return batch(messages, opens=opens)

    async def take(self) -> list[openline.Message]:
        """The next messages, which are acknowledged."""
        while True:
            found = await self.decoded()
            if isinstance(found, Batched):
                self.acked.update(found.acks)
                self._positions.update(found.opens)
                if found.messages:
                    self.got += found.messages
                    acks: dict[StreamId, int] = {}
                    for message in found.messages:
                        self._positions[message.stream_id] += 1
                        acks[message.stream_id] = self._positions[message.stream_id]
                    self.say(self.control, batch([], acks))
                    return found.messages

    async def takes(self, sending: Awaitable[T]) -> T:
        """What ``sending`` returns; meanwhile this end takes in what comes."""

        async def forever() -> None:
            while True:
                await self.take()

        taking = asyncio.ensure_future(forever())
        try:
            return await within(sending, 15)  # type: ignore[no-any-return]
        finally:
            taking.cancel()
            with suppress(asyncio.CancelledError, Over):
                await taking

    def goodbye(self, code: int, reason: str = "", count: int | None = None) -> None:
        content = goodbye(code, self.count if count is None else count, reason)
        self.write(self.control, unit(GOODBYE, content))

    async def farewell(self) -> tuple[int, int, str]:
        """The other side's goodbye; what comes before is passed over."""
        while True:
            kind, content = await self.read(0)
            if kind == GOODBYE:
                return read_goodbye(memoryview(content))

    # The end -------------------------------------------------------------------------------------

    def hang_up(self, code: int = 0, reason: str = "", frame_type: int | None = None) -> None:
        self.quic.close(code, frame_type, reason)
        self.transmit()

    def leave(self) -> None:
        """The other side is told that it is over."""
        if not self.closed and not self.mute and self.over is None:
            with suppress(QuicConnectionError):
                self.hang_up()
        self.close()

    def close(self) -> None:
        """The socket is closed without a word."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reading:
            self._loop.remove_reader(self.sock)
            self.sock.close()


class RawQuicServer:
    """Listens on loopback; connections do nothing by themselves."""

    def __init__(
        self,
        identity: openline.Identity | None = None,
        *,
        cert: str | None = None,
        key: str | None = None,
        port: int = 0,
        **options: Any,
    ) -> None:
        if cert is not None and key is not None:
            pem, secret = Path(cert).read_bytes(), Path(key).read_bytes()
        else:
            owner = identity or openline.Identity()
            pem, secret = certificate_of(owner), owner.to_pem()
        own = pem.decode().partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER
        self.certificate = ssl.PEM_cert_to_DER_cert(own)
        self.configuration = server_configuration(pem, secret, **options)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", port))
        self.port = int(self.sock.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"quic://{self.address}"
        self.ends: list[RawQuic] = []
        # Given every new connection before it has received anything.
        self.on_new: Callable[[RawQuic], object] | None = None
        self.quic_options: dict[str, Any] = {}
        self._by_addr: dict[Any, RawQuic] = {}
        self._taken = 0
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.sock, self._readable)

    def _readable(self) -> None:
        while True:
            try:
                data, addr = self.sock.recvfrom(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            end = self._by_addr.get(addr) or self._new(data, addr)
            if end is not None:
                end.received(data, addr)

    def _new(self, data: bytes, addr: Any) -> RawQuic | None:
        try:
            destination = pull_quic_header(data, 0, 8)[3]
        except ValueError:
            return None
        quic = QuicConnection(
            configuration=self.configuration,
            original_destination_connection_id=destination,
            **self.quic_options,
        )
        end = self._by_addr[addr] = RawQuic(quic, self.sock, client=False)
        self.ends.append(end)
        if self.on_new is not None:
            self.on_new(end)
        self._changed.set()
        return end

    async def end(self) -> RawQuic:
        """The next connection, up to the end of TLS."""

        async def wait() -> None:
            while len(self.ends) <= self._taken:
                self._changed.clear()
                await self._changed.wait()

        await within(wait(), 15)
        end = self.ends[self._taken]
        self._taken += 1
        await end.handshake()
        return end

    async def accept(self, actor: Actor | None = None) -> RawQuic:
        """The next connection, with the client let in."""
        end = await self.end()
        await end.welcome(actor or Actor(), self.certificate)
        return end

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self._stop()

    def leave(self) -> None:
        for end in self.ends:
            end.leave()
        self._stop()

    def _stop(self) -> None:
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()
