"""The memory backend: links between transports of one process, over ``openline.testing.Network``.

Frames travel as objects, but everything else is as on a TCP connection: they take time, arrive in
order, are acknowledged by a kernel, and wait where nobody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import AddressFamily
from typing import Protocol, cast

from ...address import Address, join
from ...config import Config
from ...core.frames import Malformed
from ...core.selection import Endpoint
from ...errors import Error, IdentityConflict, Refused, Unreachable
from ..base import Door, Doorkeeper, End, Link, OnBad
from ..sockets import Opener, SockAddr, connect, describe
from .link import HEADER, Frame, MemoryLink, Socket

HELLO, ANSWER, NO = "hello", "answer", "no"


class Bound(Protocol):
    """A port that is listened on."""

    port: int

    def close(self) -> None: ...


class Stack(Protocol):
    """A host's network."""

    async def open(self, family: AddressFamily, sockaddr: SockAddr) -> Socket:
        """Raises ``OSError``."""
        ...

    async def bind(self, host: str | None, port: int, on_accept: Callable[[Socket], None]) -> Bound:
        """Raises ``OSError``."""
        ...


class MemoryDoor:
    """A port that is listened on, with a bound on unfinished handshakes."""

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad) -> None:
        self.evicted = 0
        self.config = config
        self.doorkeeper = doorkeeper
        self.on_bad = on_bad
        self._bound: Bound
        self._closed = False
        self._pending: dict[_Visit, None] = {}

    async def start(self, stack: Stack, host: str | None, port: int) -> None:
        self._bound = await stack.bind(host, port, self._accept)

    @property
    def port(self) -> int:
        return self._bound.port

    @property
    def pending(self) -> int:
        return len(self._pending)

    def _accept(self, sock: Socket) -> None:
        if self._closed:
            sock.reset()
            return
        if len(self._pending) >= self.config.max_pending_handshakes:
            self.evicted += 1
            next(iter(self._pending)).cut()
        self._pending[_Visit(self, sock)] = None

    def forget(self, visit: _Visit) -> None:
        self._pending.pop(visit, None)

    async def close(self) -> None:
        self._closed = True
        self._bound.close()
        for visit in list(self._pending):
            visit.cut()


class _Visit:
    """One accepted socket whose handshake is not finished."""

    def __init__(self, door: MemoryDoor, sock: Socket) -> None:
        self._door = door
        self._sock = sock
        self._peer = join(*sock.remote)
        self._link: MemoryLink | None = None
        self._over = False
        timeout = door.config.handshake_timeout
        self._timer = asyncio.get_running_loop().call_later(timeout, self._too_late)
        sock.user = self
        sock.resume()

    def on_item(self, item: Frame) -> None:
        kind, hello = item
        try:
            if kind is not HELLO:
                raise Malformed("no hello")
            visitor = self._door.doorkeeper.answer(hello, None)
        except (Malformed, Error) as error:
            self._turn_away(error)
            return
        sock = self._sock
        crowded = visitor.crowded(sock.remote[0], "memory") if visitor else None
        if crowded is not None:
            self._turn_away(Malformed(f"there is no room just now: {crowded}"))
            return
        endpoint = Endpoint("inbound", *sock.remote, backend=MemoryBackend.name)
        link = self._link = MemoryLink(sock, endpoint, self._door.config)
        link.ended = self._on_ended
        answer = visitor.answer if visitor else None
        sock.send((ANSWER, answer), len(answer or "") + HEADER)
        sock.user = link
        link.events = self._door.doorkeeper.admit(link, visitor, self._entered)

    def on_drained(self) -> None:
        """Hellos are too small for that."""

    def on_end(self) -> None:
        self._lost("unfinished handshake")

    def _turn_away(self, error: Exception) -> None:
        kinds = (Malformed, IdentityConflict, Refused)
        kind = next((kind for kind in kinds if isinstance(error, kind)), Refused)
        self._sock.send((NO, kind, str(error)), len(str(error)) + HEADER)
        self._sock.close()
        self._lost(str(error))

    def _entered(self) -> None:
        if self._link is not None:
            self._link.ended = None
        self._done()

    def _on_ended(self, end: End) -> None:
        self._lost(end.text)

    def _lost(self, reason: str) -> None:
        if not self._over:
            self._done()
            self._door.on_bad(self._peer, reason)

    def _too_late(self) -> None:
        if not self._over:
            self.cut()
            self._door.on_bad(self._peer, "unfinished handshake")

    def cut(self) -> None:
        """End it now, without a word to anybody."""
        self._done()
        if self._link is not None:
            self._link.abort()
        else:
            self._sock.reset()

    def _done(self) -> None:
        self._over = True
        self._timer.cancel()
        self._door.forget(self)


class _Call:
    """A dial, from the hello to the link."""

    def __init__(self, backend: MemoryBackend, address: Address, sock: Socket) -> None:
        self.answered: asyncio.Future[MemoryLink] = asyncio.get_running_loop().create_future()
        self.link: MemoryLink | None = None
        self._backend = backend
        self._address = address
        self._sock = sock
        self._hello = backend.doorkeeper.hello()
        sock.user = self
        sock.send((HELLO, self._hello), len(self._hello) + HEADER)

    def on_item(self, item: Frame) -> None:
        kind, *content = item
        try:
            if kind is NO:
                self._turned_away(*content)
            self._up(*content)
        except (Malformed, Error) as error:
            self._sock.reset()
            self._settle(error)

    def _turned_away(self, kind: type[Exception], text: str) -> None:
        raise kind(text if kind is Malformed else f"{self._address}: {text}")

    def _up(self, answer: str | None) -> None:
        doorkeeper, target = self._backend.doorkeeper, self._address
        hello = doorkeeper.greeted(target, self._hello, answer, None)
        endpoint = Endpoint(
            "outbound", *self._sock.remote, target=target, hello=hello, backend=MemoryBackend.name
        )
        link = self._sock.user = self.link = MemoryLink(self._sock, endpoint, self._backend.config)
        link.events = doorkeeper.enter(link)
        if not self.answered.done():
            self.answered.set_result(link)

    def _settle(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    def on_drained(self) -> None:
        """Hellos are too small for that."""

    def on_end(self) -> None:
        self._settle(ConnectionResetError("the peer closed the connection during the handshake"))

    def hang_up(self) -> None:
        if self.link is not None:
            self.link.abort()
        else:
            self._sock.reset()


class MemoryBackend:
    """Opens and accepts links on one host of a network."""

    name = "memory"
    schemes: tuple[str, ...] = ("ws", "wss")
    secure = False

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, stack: Stack) -> None:
        self.config = config
        self.doorkeeper = doorkeeper
        self._on_bad = on_bad
        self._stack = stack

    def distrust(self, address: Address) -> None:
        """There is nothing to do better."""

    async def dial(self, address: Address) -> Link:
        path = f"memory {address.netloc}"
        if address.scheme == "wss":
            raise Unreachable(
                str(address), [(path, f"no {address.scheme} here: memory links do not encrypt")]
            )
        # A socket is a socket to those who only connect it.
        sock = cast(Socket, await connect(address, cast(Opener, self._stack.open)))
        call = _Call(self, address, sock)
        try:
            link = await call.answered
            if link.closing:
                raise ConnectionResetError("the peer closed the connection during the handshake")
        except (OSError, Malformed) as error:
            call.hang_up()
            raise Unreachable(str(address), [(path, describe(error))]) from None
        except BaseException:
            call.hang_up()
            raise
        return link

    async def listen(self, host: str | None, port: int) -> Door:
        door = MemoryDoor(self.config, self.doorkeeper, self._on_bad)
        await door.start(self._stack, host, port)
        return door
