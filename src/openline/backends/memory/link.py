"""One link in memory, and what it needs of a socket that carries objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ...config import Config
from ...core.doubt import Sending
from ...core.frames import FRAME_BYTES, HEADROOM, Batched, Malformed, TooBig, decode_frame
from ...core.liveness import Progress
from ...core.selection import Endpoint
from ...core.text import printable
from ..base import FRAGMENT, NOBODY, PROTOCOL_ERROR, TOO_BIG, End, Link, LinkEvents

TEXT, BINARY, PART, PING, PONG, CLOSE = "text", "binary", "part", "ping", "pong", "close"
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
    def again(self) -> int:
        """How often it has sent something again."""
        ...

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


class MemoryLink(Link):
    """One link. Behaves as ``WebSocketLink`` does, with the same words."""

    backend = "memory"

    def __init__(self, sock: Socket, endpoint: Endpoint, config: Config) -> None:
        self.endpoint = endpoint
        self.events: LinkEvents = NOBODY
        self.congested = False
        # Told when the link is over, before its events are.
        self.ended: Callable[[End], None] | None = None
        self._sock = sock
        self.limit = config.max_message_size + _FRAME_OVERHEAD
        self._high_water = config.write_high_water
        self._outbox: deque[tuple[Frame, int]] = deque()
        self._full = False
        self._closing = self._over = False
        # How it ends, from when that is certain.
        self._how: End | None = None

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
        reason = printable(reason)
        self._how = self._how or End.by_peer(code, reason)
        if not self._closing:
            self._empty_outbox()
            self._put((CLOSE, code, reason), HEADER)
        self._end()

    def on_end(self) -> None:
        self._end()

    def _fail(self, code: int, reason: str) -> None:
        """Bad input: say why, then cut; this link only (rule 3.6)."""
        self._how = self._how or End.bad_input(code, reason)
        if not self._closing:
            self._outbox.clear()
            self._put((CLOSE, code, reason[:120]), HEADER)
        self._end()

    def cut(self, code: int, reason: str) -> None:
        if not self._over:
            self._how = self._how or End.lost(f"cut: {reason}")
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
        how = self._how or End.lost("connection lost")
        ended, self.ended = self.ended, None
        if ended is not None:
            ended(how)
        # Whoever is told may hold this link; that must not be a circle.
        events, self.events = self.events, NOBODY
        events.on_closed(how)

    # Writing -------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    def write_text(self, data: bytes) -> None:
        self._write(TEXT, bytearray(data))

    def write_binary(self, buffer: bytearray, track: int = 0) -> None:
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
        self._how = self._how or End.by_us(code)
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
        self._how = self._how or End.lost("aborted by this side")
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

    def sending(self, track: int) -> Sending | None:
        return None if self._over else Sending(self._sock.acked, self._sock.again, 0.0)

    def progress(self) -> Progress | None:
        if self._closing:
            return None
        sock = self._sock
        return Progress(sock.acked, sock.received, sock.waiting)

    def taken(self) -> int:
        return self._sock.acked
