"""Two ends for ``check_backend``: a doorkeeper that notes everything, and links that do, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ...address import Address, join
from ...backends.base import Backend, Door, Doorkeeper, End, Link, LinkEvents, OnBad, Visitor
from ...backends.unfinished import Unfinished
from ...config import Config
from ...core.frames import HEADROOM, Malformed, TooBig
from ...core.handshake import Hello, Transcript
from ...identity import Identity

# Makes the backend of the "server" or of the "client".
MakeBackend = Callable[[str, Config, Doorkeeper, OnBad], Backend]

# How long a check waits for what must happen, and for what must not.
PATIENCE = 10.0
A_WHILE = 0.1
POLL = 0.002

PROOF, WRONG_PROOF = b"proof", b"wrong"
# Frames that the recorder takes for bad input.
NONSENSE, TOO_MUCH = b"nonsense", b"too much"


class Violation(AssertionError):
    """A backend does not do what it must; the text says which check found it."""


def expect(holds: object, otherwise: str) -> None:
    """Raise ``Violation`` unless ``holds``."""
    if not holds:
        raise Violation(otherwise)


async def until(condition: Callable[[], object], otherwise: str, patience: float = PATIENCE) -> None:
    """Wait until it holds. Raises ``Violation``."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while not condition():
        expect(loop.time() < end, otherwise)
        await asyncio.sleep(POLL)


class Recorder:
    """Notes what a link tells, and writes to it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        # ("text" | "binary", data), ("ping" | "pong", payload), ("writable", b""), in order.
        self.log: list[tuple[str, bytes]] = []
        self.ended: list[End] = []
        # Events must come from the loop, and not out of a method of the link.
        self._inside = False
        self.known = False

    def of(self, *kinds: str) -> list[bytes]:
        return [data for kind, data in self.log if kind in kinds]

    @property
    def frames(self) -> list[tuple[str, bytes]]:
        return [entry for entry in self.log if entry[0] in ("text", "binary")]

    def _note(self, kind: str, data: bytes) -> None:
        expect(not self._inside, f"{kind}: an event inside of a method of the link")
        expect(not self.ended, f"{kind}: an event after on_closed")
        self.log.append((kind, data))

    def on_text(self, data: memoryview) -> None:
        self._note("text", bytes(data))

    def on_binary(self, data: memoryview) -> None:
        if data == NONSENSE:
            raise Malformed("nonsense")
        if data == TOO_MUCH:
            raise TooBig("too much")
        self._note("binary", bytes(data))

    def on_ping(self, payload: bytes) -> None:
        self._note("ping", payload)

    def on_pong(self, payload: bytes) -> None:
        self._note("pong", payload)

    def on_alive(self) -> None:
        expect(not self.ended, "on_alive after on_closed")

    def on_silent(self) -> None:
        expect(not self.ended, "on_silent after on_closed")

    def on_moved(self, ip: str, port: int) -> None:
        self._note("moved", f"{ip} {port}".encode())

    def on_writable(self) -> None:
        self._note("writable", b"")

    def on_closed(self, end: End) -> None:
        expect(not self._inside, "on_closed inside of a method of the link")
        self.ended.append(end)

    def do(self, method: Callable[..., object], *args: object) -> None:
        """Call a method of the link."""
        self._inside = True
        try:
            method(*args)
        finally:
            self._inside = False

    def text(self, data: bytes) -> None:
        self.do(self.link.write_text, data)

    def binary(self, data: bytes, track: int = 0) -> None:
        self.do(self.link.write_binary, bytearray(HEADROOM) + data, track)

    def ping(self, payload: bytes) -> None:
        self.do(self.link.ping, payload)

    def pong(self, payload: bytes) -> None:
        self.do(self.link.pong, payload)

    def close(self, code: int = 1001, reason: str = "closing") -> None:
        self.do(self.link.close, code, reason)

    def abort(self) -> None:
        self.do(self.link.abort)


class RecordingDoorkeeper:
    """Lets everybody in who shows the right proof, unless told otherwise; keeps the links."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = Identity()
        self.unfinished = Unfinished(Config().stranger_buffer)
        # Links that are in, and handshakes that brought nothing.
        self.links: list[Recorder] = []
        self.bad: list[tuple[str, str]] = []
        # The next hellos are answered with this.
        self.objection: Exception | None = None
        # What a client shows; nothing if None.
        self.proof: bytes | None = PROOF
        self.asked = 0
        self._hello = Hello(("server" + "a" * 46) if name == "server" else ("client" + "a" * 46), "n" * 22)

    def note_bad(self, peer: str, reason: str) -> None:
        self.bad.append((peer, reason))

    def hello(self, certified: bool = False) -> str:
        return f"hello from {self.name}"

    def answer(self, hello: str | None, certificate: bytes | None) -> Visitor | None:
        self.asked += 1
        expect(hello == "hello from client", f"answer() was given {hello!r}")
        if self.objection is not None:
            raise self.objection
        return Visitor(self._hello, "answer from server", Transcript("", "", certificate))

    def crowded(self, ip: str, backend: str) -> str | None:
        return None

    def greeted(
        self, address: Address, mine: str, theirs: str | None, certificate: bytes | None, ip: str = ""
    ) -> Hello | None:
        expect(mine == "hello from client", f"greeted() was given {mine!r} as ours")
        expect(theirs == "answer from server", f"greeted() was given {theirs!r} as theirs")
        if self.objection is not None:
            raise self.objection
        return self._hello

    def admit(self, link: Link, visitor: Visitor | None, entered: Callable[[], None]) -> LinkEvents:
        expect(link.endpoint.direction == "inbound", "an accepted link is not inbound")
        expect(visitor is not None, "admit() without the visitor that answer() returned")
        return _Threshold(self, link, entered)

    def enter(self, link: Link) -> LinkEvents:
        expect(link.endpoint.direction == "outbound", "a dialed link is not outbound")
        expect(link.endpoint.target is not None, "a dialed link does not know its target")
        expect(link.endpoint.hello is self._hello, "a dialed link does not have the hello from greeted()")
        if self.proof is not None:
            link.write_binary(bytearray(HEADROOM) + self.proof)
        return self.let_in(link)

    def let_in(self, link: Link) -> Recorder:
        recorder = Recorder(link)
        self.links.append(recorder)
        return recorder


class _Threshold(Recorder):
    """Of a server's link until the proof has come."""

    def __init__(self, door: RecordingDoorkeeper, link: Link, entered: Callable[[], None]) -> None:
        super().__init__(link)
        self._door = door
        self._entered = entered

    def on_binary(self, data: memoryview) -> None:
        if data != PROOF:
            raise Malformed("wrong proof")
        self.link.events = self._door.let_in(self.link)
        self._entered()


Check = Callable[["Pair"], Awaitable[None]]


class Pair:
    """A listening and a dialing backend, made anew for every check."""

    def __init__(self, make: MakeBackend, host: str) -> None:
        self._make = make
        self.host = host
        self.server, self.client = RecordingDoorkeeper("server"), RecordingDoorkeeper("client")
        self.dialing: Backend
        self.doors: list[Door] = []

    @property
    def door(self) -> Door:
        return self.doors[-1]

    @property
    def address(self) -> Address:
        return Address.parse(join(self.host, self.door.port))

    async def listen(self, config: Config | None = None, **options: Any) -> None:
        """Make both; ``options`` are the config's of the server alone."""
        config = config or Config()
        server_config = Config(**options) if options else config
        listening = self._make("server", server_config, self.server, self.server.note_bad)
        self.dialing = self._make("client", config, self.client, self.client.note_bad)
        self.doors.append(await listening.listen(self.host, 0))

    async def dial(self) -> Recorder:
        """One more link; the client's end."""
        link = await asyncio.wait_for(self.dialing.dial(self.address), PATIENCE)
        client = self.client.links[-1]
        expect(link is client.link, "dial() does not return the link that enter() was given")
        expect(client.ended or link.events is client, "a dialed link does not have the events of enter()")
        return client

    async def link(self) -> tuple[Recorder, Recorder]:
        """One more link, both ends: the server's and the client's."""
        before = len(self.server.links)
        client = await self.dial()
        await until(lambda: len(self.server.links) > before, "the server's link never came in")
        return self.server.links[-1], client

    async def close(self) -> None:
        for door in self.doors:
            await door.close()
        for recorder in self.server.links + self.client.links:
            if not recorder.ended:
                recorder.link.abort()
        await asyncio.sleep(A_WHILE)
