"""The memory backend: links between transports of one process, over ``openline.testing.Network``.

Frames travel as objects, but everything else is as on a TCP connection: they take time, arrive in
order, are acknowledged by a kernel, and wait where nobody reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from socket import AddressFamily
from typing import Any, Protocol, cast

from ..address import Address, join
from ..config import Config
from ..core.frames import FRAME_BYTES, HEADROOM, Batched, Malformed, TooBig, decode_frame
from ..core.liveness import Progress
from ..core.selection import Endpoint
from ..errors import Error, IdentityConflict, Refused, Unreachable
from .base import FRAGMENT, PROTOCOL_ERROR, TOO_BIG, Door, Doorkeeper, Link, LinkEvents, OnBad
from .sockets import Opener, SockAddr, connect, describe

TEXT, BINARY, PART, PING, PONG, CLOSE = "text", "binary", "part", "ping", "pong", "close"
HELLO, ANSWER, NO = "hello", "answer", "no"
# What a frame takes besides its payload.
HEADER = 8
# A binary frame may carry other messages, its kind and a count besides a message of full size.
_FRAME_OVERHEAD = FRAME_BYTES + 64

Frame = tuple[Any, ...]


def describe_frame(frame: object) -> str:
    """A frame in a few words, for traces. It may be one that cannot be read."""
    if not isinstance(frame, tuple):
        return str(frame)
    kind, *content = frame
    if kind is not BINARY:
        return f"{kind} {str(content)[1:-1][:80]}"
    try:
        decoded = decode_frame(memoryview(content[0]))
    except Malformed:
        return f"binary of {len(content[0])} bytes"
    if isinstance(decoded, Batched):
        ids = " ".join(str(message.id) for message in decoded.messages)
        return f"{len(content[0])} bytes: {ids} {decoded.acks or ''}"
    return f"{len(content[0])} bytes: {str(decoded)[:80]}"


class SocketUser(Protocol):
    """What a socket tells."""

    def on_item(self, item: Any) -> None: ...
    def on_drained(self) -> None: ...
    def on_end(self) -> None:
        """The connection is gone. The last thing told."""
        ...


class Socket(Protocol):
    """One end of a connection that carries objects. All its news comes from event-loop callbacks."""

    remote: tuple[str, int]
    user: SocketUser | None

    @property
    def waiting(self) -> int:
        """Bytes that the other side has not acknowledged."""
        ...

    @property
    def acked(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def gone(self) -> bool:
        """The kernel knows that it has ended."""
        ...

    def send(self, item: object, size: int) -> None: ...
    def when_drained(self, low: int) -> None:
        """Call ``user.on_drained`` when at most so much waits."""
        ...

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def soon(self, callback: Callable[[], object]) -> None: ...
    def close(self) -> None: ...
    def reset(self) -> None: ...


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


class MemoryLink(Link):
    """One link. Behaves as ``WebSocketLink`` does, with the same words."""

    backend = "memory"

    def __init__(self, sock: Socket, endpoint: Endpoint, config: Config) -> None:
        self.endpoint = endpoint
        self.events: LinkEvents
        self.congested = False
        # Told when the link is over, before its events are.
        self.ended: Callable[[str], None] | None = None
        self._sock = sock
        self.limit = config.max_message_size + _FRAME_OVERHEAD
        self._high_water = config.write_high_water
        self._outbox: deque[tuple[Frame, int]] = deque()
        self._full = False
        self._closing = self._over = False
        self._why = ""

    def __repr__(self) -> str:
        return f"<memory link {self.endpoint.direction} {self.endpoint.remote}>"

    # Reading -------------------------------------------------------------------------------------

    def on_item(self, item: Frame) -> None:
        try:
            self._on_frame(*item)
        except Malformed as error:
            self._fail(TOO_BIG if isinstance(error, TooBig) else PROTOCOL_ERROR, str(error))
        except BaseException:
            self.abort()
            raise

    def _on_frame(self, kind: str, *content: Any) -> None:
        if kind is TEXT or kind is BINARY:
            self._on_message(kind, *content)
        elif kind is CLOSE:
            self._on_close(*content)
        elif not self._closing:
            if kind is PING:
                self.events.on_ping(*content)
            elif kind is PONG:
                self.events.on_pong(*content)

    def _on_message(self, kind: str, data: bytearray) -> None:
        if len(data) > self.limit:
            raise TooBig(f"a message of more than {self.limit} bytes")
        on_data = self.events.on_text if kind is TEXT else self.events.on_binary
        on_data(memoryview(data))
        # It was valid only during the call: whoever looks at it later shall see that.
        data[:] = bytes(len(data))

    def _on_close(self, code: int, reason: str) -> None:
        self._why = self._why or f"the peer closed it ({code}{': ' + reason if reason else ''})"
        if not self._closing:
            self._empty_outbox()
            self._put((CLOSE, code, reason), HEADER)
        self._end()

    def on_end(self) -> None:
        self._end()

    def _fail(self, code: int, reason: str) -> None:
        """Bad input: say why, then cut; this link only (rule 3.6)."""
        self._why = self._why or f"bad input: {reason}"
        if not self._closing:
            self._outbox.clear()
            self._put((CLOSE, code, reason[:120]), HEADER)
        self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = self._closing = True
        self._outbox.clear()
        sock = self._sock
        sock.soon(self._tell_end)
        sock.close()

    def _tell_end(self) -> None:
        self._why = self._why or "connection lost"
        if self.ended is not None:
            self.ended(self._why)
        self.events.on_closed(self._why)

    # Writing -------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    def write_text(self, data: bytes) -> None:
        self._write(TEXT, bytearray(data))

    def write_binary(self, buffer: bytearray) -> None:
        data = buffer[HEADROOM:]
        # The buffer is ours: a WebSocket masks it in place, so that it is of no use to the sender, either.
        buffer[:] = bytes(len(buffer))
        self._write(BINARY, data)

    def _write(self, kind: str, data: bytearray) -> None:
        """The last piece of a large frame carries all of it; those before it only take their time."""
        if self._closing:
            return
        left = len(data)
        while left > FRAGMENT:
            self._outbox.append(((PART,), FRAGMENT))
            left -= FRAGMENT
        if self._outbox:
            self._outbox.append(((kind, data), left))
            self._pump()
        else:
            self._put((kind, data), left + HEADER)

    def _put(self, frame: Frame, size: int) -> None:
        sock = self._sock
        sock.send(frame, size)
        if not self._full and sock.waiting > self._high_water:
            self._full = self.congested = True
            sock.when_drained(self._high_water // 4)

    def _pump(self) -> None:
        outbox = self._outbox
        while outbox and not self._full and not self._over:
            frame, size = outbox.popleft()
            self._put(frame, size + HEADER)
        if outbox:
            self.congested = True

    def on_drained(self) -> None:
        self._full = False
        self._pump()
        if not self._outbox and not self._full:
            self.congested = False
            self.events.on_writable()

    def ping(self, payload: bytes) -> None:
        if not self._closing:
            self._put((PING, payload), len(payload) + HEADER)

    def pong(self, payload: bytes) -> None:
        if not self._closing:
            self._put((PONG, payload), len(payload) + HEADER)

    def close(self, code: int, reason: str) -> None:
        self._why = self._why or "closed by this side"
        if not self._closing:
            self._empty_outbox()
            self._put((CLOSE, code, reason[:120]), HEADER)
            self._closing = True

    def _empty_outbox(self) -> None:
        """Goodbye comes after what has been promised."""
        while self._outbox:
            frame, size = self._outbox.popleft()
            self._sock.send(frame, size + HEADER)

    def abort(self) -> None:
        self._why = self._why or "aborted by this side"
        self._sock.reset()
        self._end()

    def pause_reading(self) -> None:
        if not self._over:
            self._sock.pause()

    def resume_reading(self) -> None:
        if not self._over:
            self._sock.resume()

    # The kernel ----------------------------------------------------------------------------------

    def broken(self) -> bool:
        return self._over or self._sock.gone

    def progress(self) -> Progress | None:
        if self._closing:
            return None
        sock = self._sock
        return Progress(sock.acked, sock.received, sock.waiting)


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
        endpoint = Endpoint("inbound", *sock.remote)
        link = self._link = MemoryLink(sock, endpoint, self._door.config)
        link.ended = self._lost
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
        endpoint = Endpoint("outbound", *self._sock.remote, target=target, hello=hello)
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
    secure = False

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, stack: Stack) -> None:
        self.config = config
        self.doorkeeper = doorkeeper
        self._on_bad = on_bad
        self._stack = stack

    async def dial(self, address: Address) -> LinkEvents:
        path = f"memory {address.netloc}"
        if address.scheme in ("wss", "quic"):
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
        return link.events

    async def listen(self, host: str | None, port: int) -> Door:
        door = MemoryDoor(self.config, self.doorkeeper, self._on_bad)
        await door.start(self._stack, host, port)
        return door
