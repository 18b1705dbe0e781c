"""Hosts, transports and puppets for scenarios that are written out by hand, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from openline import Config, Identity, Message, Peer, Receipt, Transport, Unreachable
from openline.address import Address
from openline.backends.base import Door, Link, LinkEvents, Visitor
from openline.backends.base import End as LinkEnd
from openline.backends.unfinished import Unfinished
from openline.connection.connection import Connection
from openline.core.frames import (
    HEADROOM,
    MESSAGES,
    Batched,
    Flow,
    Frame,
    Proof,
    Welcome,
    decode_frame,
    encode_flow,
    encode_proof,
    encode_welcome,
)
from openline.core.handshake import Hello, Transcript, parse_hello, split_proof, with_proof
from openline.message import StreamId
from openline.testing import Host, Network, run

T = TypeVar("T")

PORT = 8770
# Virtual seconds after which a scenario has failed.
LIMIT = 20_000.0


def task(payload: Any = None, **fields: Any) -> Message:
    return Message(payload=payload, **fields)


def tasks(count: int, **fields: Any) -> list[Message]:
    return [task(number, **fields) for number in range(count)]


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it holds, in virtual time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, f"not within {seconds} virtual seconds"
        await asyncio.sleep(0.01)


def simulated(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of ``async def scenario(stage, ...)``."""

    def test(**arguments: Any) -> None:
        async def play() -> None:
            stage = Stage()
            try:
                await scenario(stage, **arguments)
            except BaseException as error:
                error.add_note(f"\n{stage.network.trace}")
                raise

        run(play(), limit=LIMIT)

    test.__name__, test.__doc__, test.__module__ = scenario.__name__, scenario.__doc__, scenario.__module__
    test.__qualname__ = scenario.__qualname__
    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=list(signature.parameters.values())[1:]
    )
    return test


class Stage:
    """A network with hosts a, b and c at 10.0.0.1, .2 and .3."""

    def __init__(self, seed: int = 1) -> None:
        self.network = Network(seed)
        self.a, self.b, self.c = (
            self.network.host(f"10.0.0.{number}", name=name)
            for number, name in ((1, "a"), (2, "b"), (3, "c"))
        )

    @property
    def now(self) -> float:
        return self.network.now

    async def start(self, host: Host, *, listen: bool = True, port: int = PORT, **config: Any) -> Node:
        """A transport that listens and notes what it gets."""
        transport = await host.load_transport(Config(name=host.name, **config))
        node = Node(self, host, transport, port)
        transport.on_message(node.take)
        if listen:
            await node.do(transport.listen(port))
        return node

    async def two(self, **config: Any) -> tuple[Node, Node]:
        """Both listen, and nobody has dialed."""
        return await self.start(self.a, **config), await self.start(self.b, **config)

    async def restart(self, host: Host, *, kill: bool = True, **config: Any) -> Node:
        """Another process on that host."""
        if kill:
            host.kill()
        host.restart()
        return await self.start(host, **config)


class Node:
    """A transport on a host; ``got`` is what its handler has been given."""

    def __init__(self, stage: Stage, host: Host, transport: Transport, port: int) -> None:
        self.stage = stage
        self.host = host
        self.transport = transport
        self.address = f"{host.ips[0]}:{port}"
        self.got: list[Message] = []
        self.undelivered: list[tuple[Any, str]] = []
        # Where set, handlers wait for it, and then for so long.
        self.gate: asyncio.Event | None = None
        self.pause = 0.0
        transport.on_undelivered(lambda peer, message, why: self.undelivered.append((message.payload, why)))

    async def take(self, peer: Peer, message: Message) -> None:
        self.got.append(message)
        if self.gate is not None and message.stream_id == "default":
            await self.gate.wait()
        if self.pause:
            await asyncio.sleep(self.pause)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.got]

    def of(self, stream_id: StreamId) -> list[Any]:
        return [message.payload for message in self.got if message.stream_id == stream_id]

    @property
    def stats(self) -> Any:
        return self.transport.stats()

    def do(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Run it as this node's program does."""
        return self.host.run(work)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.host.spawn(work)

    def send(
        self, to: Node | Puppet, payload: Any = None, timeout: float | None = None, **fields: Any
    ) -> Any:
        """A task that sends one message."""
        return self.begin(self.transport.send(to.address, task(payload, **fields), timeout=timeout))

    def sends(self, to: Node | Puppet, payloads: Iterable[Any], **fields: Any) -> list[Any]:
        """Tasks that send one each, begun in order."""
        return [self.send(to, payload, **fields) for payload in payloads]

    def insist(self, to: Node | Puppet, payload: Any = None, **fields: Any) -> Any:
        """A task that sends one message, again and again as long as nothing of it has left."""
        return self.begin(self._insist(to.address, task(payload, **fields)))

    async def _insist(self, address: str, message: Message) -> Receipt:
        while True:
            try:
                return await self.transport.send(address, message)
            except (Unreachable, TimeoutError):
                await asyncio.sleep(0.1)

    def connections(self, other: Node | None = None) -> list[Connection]:
        peers = self.transport.peers()
        node_id = other.transport.node_id if other else None
        return [c for peer in peers if node_id in (None, peer.node_id) for c in peer._remote.connections]

    async def close(self) -> None:
        await self.do(self.transport.close())


async def gathered(work: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    return await asyncio.gather(*work, return_exceptions=True)


def same_one(one: Node, other: Node) -> bool:
    """Exactly one connection between them, and the same one on both sides."""
    ours, theirs = one.connections(other), other.connections(one)
    if len(ours) != 1 or len(theirs) != 1:
        return False
    return ours[0].endpoint.connection_id == theirs[0].endpoint.connection_id


# Puppets -----------------------------------------------------------------------------------------


class End:
    """A puppet's end of a connection: notes every frame, and says what the test says."""

    def __init__(self, link: Link, lost: list[bytes]) -> None:
        self.link = link
        self.lost = lost
        self.frames: list[Frame | None] = []
        self.closed: str | None = None
        # Acknowledge what comes, in a frame of its own.
        self.polite = False
        self.known = False
        self.positions: dict[StreamId, int] = {}
        # The number of the next message that ``post`` sends.
        self.numbers: dict[StreamId, int] = {}

    @property
    def batches(self) -> list[Batched]:
        return [frame for frame in self.frames if isinstance(frame, Batched)]

    @property
    def messages(self) -> list[Message]:
        return [message for batch in self.batches for message in batch.messages]

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self.messages]

    @property
    def acks(self) -> dict[StreamId, int]:
        return {stream_id: upto for batch in self.batches for stream_id, upto in batch.acks}

    @property
    def flows(self) -> list[Flow]:
        return [frame for frame in self.frames if isinstance(frame, Flow)]

    def on_text(self, data: memoryview) -> None:
        raise AssertionError("a text between openline peers")

    def on_binary(self, data: memoryview) -> None:
        frame = decode_frame(memoryview(bytes(data)))
        self.frames.append(frame)
        if isinstance(frame, Batched):
            self.positions.update(frame.opens)
            for message in frame.messages:
                self.positions[message.stream_id] += 1
            if self.polite and frame.messages:
                self.ack(*{message.stream_id for message in frame.messages})

    def on_ping(self, payload: bytes) -> None:
        self.link.pong(payload)

    def on_pong(self, payload: bytes) -> None: ...
    def on_writable(self) -> None: ...

    def on_closed(self, end: LinkEnd) -> None:
        self.closed = end.text

    def raw(self, frame: bytes) -> None:
        self.link.write_binary(bytearray(HEADROOM) + frame)

    def say(
        self,
        messages: Iterable[Message] = (),
        acks: Mapping[StreamId, int] | None = None,
        opens: Iterable[tuple[StreamId, int]] = (),
    ) -> None:
        body = Batched(list(messages), tuple((acks or {}).items()), tuple(opens))
        self.raw(bytes([MESSAGES]) + msgspec.msgpack.encode(body))

    def ack(self, *streams: StreamId) -> None:
        self.say([], {stream_id: self.positions[stream_id] for stream_id in streams})

    def post(self, *messages: Message) -> None:
        """As an honest peer does."""
        opens = []
        for message in messages:
            if message.stream_id not in self.numbers:
                self.numbers[message.stream_id] = 1
                opens.append((message.stream_id, 1))
            self.numbers[message.stream_id] += 1
        self.say(messages, None, opens)

    def flow(self, stream_id: StreamId, stop: bool) -> None:
        self.link.write_binary(encode_flow(stream_id, stop))


class Puppet:
    """A proven openline peer that does nothing by itself."""

    def __init__(
        self, host: Host, identity: Identity | None = None, port: int = PORT, caps: tuple[str, ...] = ()
    ) -> None:
        self.host = host
        self.identity = identity or Identity()
        self.unfinished = Unfinished(Config().stranger_buffer)
        self.instance = secrets.token_urlsafe(16)
        self.address = f"{host.ips[0]}:{port}"
        self.port = port
        self.caps = caps
        self.ends: list[End] = []
        self.bad: list[str] = []
        self._dials = itertools.count(1)
        self._backend = host.backends(Config(), self, lambda peer, reason: self.bad.append(reason))[0][0]

    @property
    def node_id(self) -> str:
        return self.identity.node_id

    @property
    def end(self) -> End:
        """The latest."""
        return self.ends[-1]

    async def dial(self, to: Node) -> End:
        await self.host.run(self._backend.dial(Address.parse(to.address)))
        return self.end

    async def listen(self) -> Door:
        return await self.host.run(self._backend.listen(None, self.port))

    # Doorkeeper ----------------------------------------------------------------------------------

    def _hello(self, dial: int) -> str:
        nonce = secrets.token_urlsafe(24)
        return Hello(self.node_id, nonce, (), "", self.instance, dial, self.caps).to_header()

    def hello(self, certified: bool = False) -> str:
        return self._hello(next(self._dials))

    def answer(self, hello: str | None, certificate: bytes | None) -> Visitor | None:
        assert hello is not None
        own = self._hello(0)
        transcript = Transcript(hello, own, certificate)
        signature = self.identity.sign(transcript.signed_by("server"))
        return Visitor(parse_hello(hello), with_proof(own, signature), transcript)

    def greeted(self, address: Address, mine: str, theirs: str | None, certificate: bytes | None) -> Hello:
        assert theirs is not None
        signed, _ = split_proof(theirs)
        return msgspec.structs.replace(parse_hello(signed), transcript=Transcript(mine, signed, certificate))

    def admit(self, link: Link, visitor: Visitor | None, entered: Callable[[], None]) -> LinkEvents:
        return _Doormat(self, link, entered)

    def enter(self, link: Link) -> LinkEvents:
        hello = link.endpoint.hello
        assert hello is not None
        assert hello.transcript is not None
        link.write_binary(encode_proof(self.identity.sign(hello.transcript.signed_by("client")), []))
        return self.up(link, [])

    def up(self, link: Link, lost: list[bytes]) -> End:
        end = End(link, lost)
        self.ends.append(end)
        return end


class _Doormat(End):
    """Until the client's proof has come; a puppet believes it."""

    def __init__(self, puppet: Puppet, link: Link, entered: Callable[[], None]) -> None:
        super().__init__(link, [])
        self._puppet = puppet
        self._entered = entered

    def on_binary(self, data: memoryview) -> None:
        proof = decode_frame(memoryview(bytes(data)))
        assert isinstance(proof, Proof)
        self.link.events = self._puppet.up(self.link, proof.lost)
        self._entered()
        self.link.write_binary(encode_welcome([]))


@contextlib.asynccontextmanager
async def watching(count: Callable[[], int], at_most: int) -> AsyncIterator[list[int]]:
    """Looks at ``count()`` all the time; it must never be more."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(count())
            await asyncio.sleep(0.001)

    looking = asyncio.ensure_future(look())
    try:
        yield seen
    finally:
        looking.cancel()
    assert max(seen, default=0) <= at_most, f"{max(seen)} at a time, more than {at_most}"


__all__ = [
    "PORT",
    "End",
    "Node",
    "Puppet",
    "Stage",
    "Welcome",
    "eventually",
    "gathered",
    "same_one",
    "simulated",
    "task",
    "tasks",
    "watching",
]


def arrived(outcome: Any) -> bool:
    """It was acknowledged; else no byte of it left."""
    assert getattr(outcome, "acked", False) or isinstance(outcome, Unreachable), outcome
    return not isinstance(outcome, Unreachable)
