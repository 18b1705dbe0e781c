"""Raw sockets on loopback that say anything, also what breaks the rules of WebSocket.

An openline node played by hand is an ``Actor``, given where the headers of the upgrade go:

    peer = await raw(port, Actor(8770))         # a client that says it listens on 8770; it is in
    await peer.post(task("hi"))                 # opens the stream, counts its numbers
    receipt = await peer.takes(t.send(...))     # reads and acknowledges meanwhile; see ``peer.got``
    server = await raw_server.accept(Actor())   # the other way round
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import openline
from openline.core.frames import (
    HEADROOM,
    Batched,
    Frame,
    Proof,
    Welcome,
    decode_frame,
    encode_proof,
    encode_welcome,
)
from openline.core.handshake import (
    DEFAULT_RESUME,
    HEADER,
    Hello,
    Transcript,
    parse_hello,
    split_proof,
    with_proof,
)
from openline.identity import verify
from openline.message import StreamId

from .helpers import within
from .wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    batch,
    frame,
    header,
    plain,
    switching,
    unframed,
    upgrade,
)

T = TypeVar("T")


# The node id of somebody who is not here.
NODE = openline.Identity().node_id


def hello(*ports: int, node: str = NODE, name: str = "forged") -> dict[str, str]:
    """The header by which a client says that it is an openline node; ``Actor`` proves it too."""
    said = Hello(node, secrets.token_urlsafe(24), ports, name, secrets.token_urlsafe(16), 1)
    return {HEADER: said.to_header()}


def two_identities() -> tuple[openline.Identity, openline.Identity]:
    """The one with the greater public key, whose node decides which connection stays, is the second."""
    one, other = sorted((openline.Identity(), openline.Identity()), key=lambda found: found.public_key)
    return one, other


class Actor:
    """An openline node played by hand: one process with its identity, on any number of ``Raw`` ends."""

    def __init__(
        self,
        *ports: int,
        name: str = "actor",
        identity: openline.Identity | None = None,
        resume: int = DEFAULT_RESUME,
    ) -> None:
        self.identity = identity or openline.Identity()
        self.node_id = self.identity.node_id
        self.instance = secrets.token_urlsafe(16)
        self.dials = itertools.count(1)
        # The number of the next message that it sends on a stream.
        self.numbers: dict[StreamId, int] = {}
        # What it says of itself; ``resume``: the seconds for which it may come back once it is gone.
        self._ports = ports
        self._name = name
        self._resume = resume

    def hello(self, dial: int = 0) -> str:
        nonce = secrets.token_urlsafe(24)
        said = Hello(self.node_id, nonce, self._ports, self._name, self.instance, dial, resume=self._resume)
        return said.to_header()

    def prove(self, transcript: Transcript, lost: Iterable[bytes] = ()) -> bytes:
        """A client's first frame."""
        return bytes(encode_proof(self.identity.sign(transcript.signed_by("client")), list(lost)))[HEADROOM:]


Who = Actor | dict[str, str] | None


def at_once(sock: socket.socket) -> None:
    """The kernel neither gathers what is sent nor puts off acknowledgements: it has a clock of its own."""
    for option in ("TCP_NODELAY", "TCP_QUICKACK"):
        if hasattr(socket, option):
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 1)


class Raw:
    """One end of a WebSocket over a bare socket, so that it can also break the rules."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        self.sock = sock
        at_once(sock)
        self.request = ""
        # This end, as the other side sees it; also after it is gone.
        self.port = int(sock.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        # Of an actor: who is on the other side and which connections that has lost, the messages
        # taken in, and what has been acknowledged.
        self.actor = Actor()
        self.far_end: Hello | None = None
        self.connection_id = b""
        self.lost: list[bytes] = []
        self.got: list[openline.Message] = []
        self.acked: dict[StreamId, int] = {}
        self._opened: set[StreamId] = set()
        self._positions: dict[StreamId, int] = {}
        self._client = client
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    @classmethod
    async def tcp(cls, port: int) -> Raw:
        """Connected, and nothing said yet."""
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock, client=True)

    @classmethod
    async def connect(cls, port: int, who: Who = None) -> Raw:
        """Upgraded; where ``who`` is an actor, it has been let in."""
        raw = await cls.tcp(port)
        try:
            if isinstance(who, Actor):
                await raw.enter(who)
            else:
                await raw.send(upgrade(who))
                status = await raw.head()
                assert " 101 " in status, status
        except BaseException:
            raw.close()
            raise
        return raw

    # The signed handshake ------------------------------------------------------------------------

    async def enter(self, actor: Actor, lost: Iterable[bytes] = ()) -> None:
        """A client's side, up to the welcome."""
        transcript = await self.greet(actor)
        await self.frame(BINARY, actor.prove(transcript, lost))
        welcome = await self.decoded()
        assert isinstance(welcome, Welcome), welcome
        self.lost = welcome.lost

    async def greet(self, actor: Actor) -> Transcript:
        """A client's side, up to its own proof."""
        mine = actor.hello(next(actor.dials))
        await self.send(upgrade({HEADER: mine}))
        head = await self.head()
        assert " 101 " in head, head
        theirs, signature = split_proof(header(head, HEADER))
        transcript = self._introduced(actor, mine, theirs, theirs)
        assert self.far_end is not None
        assert verify(self.far_end.node_id, signature[:64], transcript.signed_by("server"))
        return transcript

    async def welcome(self, actor: Actor, lost: Iterable[bytes] = ()) -> None:
        """A server's side, with the client's request in ``request``."""
        transcript = await self.answer(actor)
        proof = await self.decoded()
        assert isinstance(proof, Proof), proof
        assert self.far_end is not None
        assert verify(self.far_end.node_id, proof.signature[:64], transcript.signed_by("client"))
        self.lost = proof.lost
        await self.frame(BINARY, bytes(encode_welcome(list(lost)))[HEADROOM:])

    async def answer(self, actor: Actor) -> Transcript:
        """A server's side, up to its own proof."""
        answer, transcript = self.answered(actor)
        await self.send(answer)
        return transcript

    def answered(self, actor: Actor) -> tuple[bytes, Transcript]:
        """What ``answer`` sends."""
        mine, theirs = actor.hello(), header(self.request, HEADER)
        transcript = self._introduced(actor, theirs, mine, theirs)
        signed = with_proof(mine, actor.identity.sign(transcript.signed_by("server")))
        return switching(self.request, {HEADER: signed}), transcript

    def _introduced(self, actor: Actor, client: str, server: str, theirs: str) -> Transcript:
        transcript = Transcript(client, server, None)
        self.actor, self.far_end = actor, parse_hello(theirs)
        self.connection_id = transcript.connection_id
        return transcript

    # Saying --------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        await self.send(frame(opcode, payload, **{"mask": self._client, **how}))

    async def say(self, payload: Any = None, **fields: Any) -> None:
        """One message, as a plain peer."""
        await self.frame(TEXT, plain(payload, **fields))

    async def post(self, *messages: openline.Message) -> None:
        """Messages in one frame, as an openline peer; their streams are opened here where need be."""
        await self.frame(BINARY, self.numbered(*messages))

    def numbered(self, *messages: openline.Message) -> bytes:
        """What ``post`` sends."""
        opens: dict[StreamId, int] = {}
        for message in messages:
            stream_id = message.stream_id
            number = self.actor.numbers.get(stream_id, 1)
            if stream_id not in self._opened:
                self._opened.add(stream_id)
                opens[stream_id] = number
            self.actor.numbers[stream_id] = number + 1
        return batch(messages, opens=opens)

    # Hearing -------------------------------------------------------------------------------------

    async def head(self) -> str:
        """An HTTP head."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    async def _more(self) -> None:
        data: bytes | None = None
        while data is None:
            with suppress(BlockingIOError):
                data = self.sock.recv(65536)
                at_once(self.sock)
            if data is None:
                await within(self._readable())
        if not data:
            raise EOFError
        self._buffer += data

    async def _readable(self) -> None:
        """Unlike in ``loop.sock_recv``, nothing is lost where this is cancelled."""
        waiting = self._waiting = self._loop.create_future()
        self._loop.add_reader(self.sock, lambda: waiting.done() or waiting.set_result(None))
        try:
            await waiting
        finally:
            self._forget_reader()

    def _forget_reader(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._loop.remove_reader(self.sock)
            waiting.cancel()

    async def read(self) -> tuple[int, bytes]:
        """The next frame's first byte and payload. ``EOFError`` where the other side has closed."""
        while (found := unframed(self._buffer)) is None:
            await self._more()
        first, data, self._buffer = found
        return first, data

    async def whole(self) -> tuple[int, bytes]:
        """The next message's kind and content, put together; answers pings on the way.

        ``EOFError`` where the other side has closed, with the close code if it gave one.
        """
        kind, content = 0, b""
        while True:
            first, data = await self.read()
            opcode = first & 0x0F
            if opcode == PING:
                await self.frame(PONG, data)
            elif opcode == CLOSE:
                raise EOFError(int.from_bytes(data[:2], "big"))
            elif opcode in (TEXT, BINARY, CONTINUATION):
                kind, content = kind or opcode, content + data
                if first & 0x80:
                    return kind, content

    async def message(self) -> Any:
        """The next plain message."""
        kind, content = await self.whole()
        assert kind == TEXT, content[:80]
        return json.loads(content)

    async def decoded(self) -> Frame | None:
        """The next frame of an openline peer."""
        kind, content = await self.whole()
        assert kind == BINARY, content[:80]
        return decode_frame(memoryview(content))

    async def take(self) -> list[openline.Message]:
        """The next messages of an openline peer, which are acknowledged."""
        while True:
            found = await self.decoded()
            if isinstance(found, Batched):
                self.acked.update(found.acks)
                self._positions.update(found.opens)
                if found.messages:
                    self.got += found.messages
                    await self.frame(BINARY, batch([], self._count(found.messages)))
                    return found.messages

    def _count(self, messages: Iterable[openline.Message]) -> dict[StreamId, int]:
        acks: dict[StreamId, int] = {}
        for message in messages:
            assert message.stream_id in self._positions, f"not opened: {message.stream_id!r}"
            self._positions[message.stream_id] += 1
            acks[message.stream_id] = self._positions[message.stream_id]
        return acks

    async def takes(self, sending: Awaitable[T]) -> T:
        """What ``sending`` returns; until it does, this end takes in what comes."""
        taking = asyncio.ensure_future(forever(self.take))
        try:
            return await within(sending)  # type: ignore[no-any-return]
        finally:
            taking.cancel()
            with suppress(asyncio.CancelledError, EOFError, ConnectionError):
                await taking

    @property
    def payloads(self) -> list[Any]:
        """Of the messages taken in."""
        return [message.payload for message in self.got]

    async def gone(self) -> bytes:
        """Read until the other side has cut this connection; what it said before."""
        said = self._buffer
        with suppress(ConnectionError, EOFError):
            while True:
                self._buffer = b""
                await self._more()
                said += self._buffer
        return said

    async def closed(self) -> int:
        """Take in what comes until the other side says goodbye; its close code, and the answer to it."""
        with suppress(ConnectionError):
            try:
                await forever(self.take)
            except EOFError as goodbye:
                code = int(goodbye.args[0]) if goodbye.args else 0
                await self.frame(CLOSE, struct.pack("!H", code) if code else b"")
                return code
        return 0

    def reset(self) -> None:
        """Cut at once with RST, without a turn of the loop."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._forget_reader()
        self.sock.close()


async def forever(work: Callable[[], Awaitable[object]]) -> None:
    """``await work()`` again and again, until it raises."""
    while True:
        await work()


class RawServer:
    """Listens on loopback and does nothing by itself."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sock = socket.create_server((host, port), backlog=128)
        self.sock.setblocking(False)
        self.port = int(self.sock.getsockname()[1])
        self.address = f"{host}:{self.port}"
        self._accepted: list[Raw] = []

    async def tcp(self, tls: bool = False) -> Raw:
        """The next connection; one that begins with TLS is turned away, unless that is asked for."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await within(loop.sock_accept(self.sock))
            sock.setblocking(False)
            if tls or not await within(_begins_with_tls(sock)):
                break
            sock.close()
        raw = Raw(sock, client=False)
        self._accepted.append(raw)
        return raw

    async def accept(self, who: Who = None) -> Raw:
        """The next connection, upgraded; where ``who`` is an actor, it has let the client in.

        ``raw.request`` holds what it asked.
        """
        raw = await self.tcp()
        raw.request = await raw.head()
        if isinstance(who, Actor):
            await raw.welcome(who)
        else:
            await raw.send(switching(raw.request, who))
        return raw

    def close(self) -> None:
        """Stop listening; what was accepted stays."""
        self.sock.close()

    def close_all(self) -> None:
        self.close()
        for raw in self._accepted:
            raw.close()


async def _begins_with_tls(sock: socket.socket) -> bool:
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK) == b"\x16"
        except BlockingIOError:
            await asyncio.sleep(0.001)
        except OSError:
            return False


class PlainServer:
    """What a `websockets` server gets; it answers nothing by itself."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.connections: list[Any] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def payloads(self) -> list[Any]:
        return [message["payload"] for message in self.got]

    async def __call__(self, connection: Any) -> None:
        self.connections.append(connection)
        async for text in connection:
            self.got.append(json.loads(text))


async def frozen_server(t: openline.Transport, server: RawServer) -> Raw:
    """``t`` is connected to a plain peer that will neither read nor answer any more."""
    connecting = asyncio.ensure_future(t.connect(server.address))
    peer = await server.accept()
    await within(connecting)
    return peer
