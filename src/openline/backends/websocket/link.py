"""One WebSocket over picows: reassembly, fragmentation, deflate, ping and pong, the kernel's counters.

What picows leaves to its user (2.3): pongs alone count in its automatic ping, so that is off;
fragments arrive one by one; there is no deflate; writes queue without limit; and it writes to the
socket by number, so nothing may be written once the transport is closing: the number may already
be another socket's.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import sys
from collections import deque
from typing import Any

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from ...core.doubt import Sending
from ...core.frames import HEADROOM, Malformed, TooBig
from ...core.liveness import Progress
from ...core.selection import Endpoint
from ...core.text import printable
from ..base import FRAGMENT, NOBODY, PROTOCOL_ERROR, TOO_BIG, End, Link, LinkEvents
from ..unfinished import FREE, Unfinished
from . import deflate
from .portions import BUSY, TakesTurns

if sys.platform != "win32":
    import fcntl
    import termios

log = logging.getLogger("openline")

TEXT, BINARY, CONTINUATION = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION
PING, PONG, CLOSE = WSMsgType.PING, WSMsgType.PONG, WSMsgType.CLOSE

# A server's larger frames picows sends by writelines(), which on some CPython (seen on 3.12.1 and 3.13.0)
# does not pause the protocol when the buffer is full; a frame made in place takes another way.
WRITELINES_OVER = 8192
# Fragments of one message: 16 MiB in pieces of 256 bytes. Empty ones cost us, and add no bytes.
MAX_PARTS = 65_536
# What a message takes besides itself: frame headers, and control frames in between.
_HEADERS = 256
_GONE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)
_LINUX = sys.platform == "linux"
# struct tcp_info (linux/tcp.h): tcpi_bytes_acked and tcpi_bytes_received, two u64 at offset 120.
_TCP_INFO_SIZE = 136
_TCP_COUNTERS = struct.Struct("@120xQQ")
# In the same: tcpi_rtt in microseconds, tcpi_total_retrans, and tcpi_bytes_acked.
_TCP_SENDING = struct.Struct("@68xI28xI16xQ8x")
# struct linger: closing it sends a reset.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0


class WebSocketLink(WSListener, Link):
    """A link from the moment the upgrade is done. ``backend.link_up`` gives it its events."""

    backend = "websocket"

    def __init__(
        self,
        endpoint: Endpoint,
        up: Any,
        max_message: int,
        high_water: int,
        window: int,
        unfinished: Unfinished,
    ) -> None:
        self.endpoint = endpoint
        self.events: LinkEvents = NOBODY
        self.congested = False
        self._up = up
        self.limit = max_message
        self._high_water = high_water
        # What is sent does not get through.
        self._stalled = False
        # Our deflate window, or 0 where compression was not agreed.
        self._window = window
        self._ws: WSTransport
        self._closed = False
        self._is_closing: Any = None
        self._paused = False
        # Not read on behalf of its user.
        self.held = False
        self._turns: TakesTurns | None = None
        self._outbox: deque[tuple[WSMsgType, memoryview, bool, bool]] | None = None
        self._parts: bytearray | None = None
        self._parts_count = 0
        self._parts_type = TEXT
        self._parts_deflated = False
        # Bytes of a frame that has not come whole; and are they, and those of fragments, counted?
        self._held = 0
        self._counted = False
        self._unfinished = unfinished
        self._poll: Any = None
        # How it ends, from when that is certain.
        self._how: End | None = None

    # From picows ---------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._ws = transport
        under = transport.underlying_transport
        self._is_closing = under.is_closing
        under.set_write_buffer_limits(high=self._high_water)
        # About 2 kB each, and all of it has been read.
        if transport.request is not None:
            transport.request.headers.clear()
        if transport.response is not None:
            transport.response.headers.clear()
        self._up(self)
        self._up = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self._closed:
            return  # what a failed or aborted link still has in its buffer
        kind = frame.msg_type
        if frame.tail_size > BUSY:
            self._take_turns()
        try:
            if frame.fin and self._parts is None and not (frame.rsv1 or frame.rsv2 or frame.rsv3):
                if kind is BINARY:
                    self.events.on_binary(frame.get_payload_as_memoryview())
                    return
                if kind is TEXT:
                    self.events.on_text(frame.get_payload_as_memoryview())
                    return
            self._on_other_frame(kind, frame)
        except Malformed as error:
            self._fail(TOO_BIG if isinstance(error, TooBig) else PROTOCOL_ERROR, str(error))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._closed = True
        self._outbox = self._parts = self._up = self._turns = None
        self._unfinished.remove(self)
        # Whoever is told may hold this link; that must not be a circle.
        events, self.events = self.events, NOBODY
        events.on_closed(self._how or self._how_it_ended())

    def pause_writing(self) -> None:
        self._paused = self.congested = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._outbox:
            self._pump()
        if not self._outbox and not self._paused:
            self.congested = False
            self.events.on_writable()

    # Reading -------------------------------------------------------------------------------------

    def _take_turns(self) -> None:
        """There is much more where that came from."""
        under = self._ws.underlying_transport
        if not self._closed and under.get_protocol() is not self._turns:
            self._turns = TakesTurns(under.get_protocol(), under, lambda: self.held)
            self._turns.take_over()

    def _on_other_frame(self, kind: WSMsgType, frame: WSFrame) -> None:
        if self._ws.is_close_frame_sent and kind is not CLOSE:
            return
        if frame.rsv2 or frame.rsv3 or (frame.rsv1 and kind not in (TEXT, BINARY)):
            raise Malformed("reserved bits")
        if kind is PING:
            self.events.on_ping(frame.get_payload_as_bytes())
        elif kind is PONG:
            self.events.on_pong(frame.get_payload_as_bytes())
        elif kind is CLOSE:
            self._on_close_frame(frame)
        else:
            self._on_part(kind, frame)

    def _on_part(self, kind: WSMsgType, frame: WSFrame) -> None:
        if (kind is CONTINUATION) == (self._parts is None):
            raise Malformed("fragments out of order")
        if frame.rsv1 and not self._window:
            raise Malformed("a compressed frame, which was not agreed")
        if self._parts is None:
            self._parts, self._parts_count = bytearray(), 0
            self._parts_type, self._parts_deflated = kind, frame.rsv1
        self._parts_count += 1
        if self._parts_count > MAX_PARTS:
            raise TooBig(f"a message in more than {MAX_PARTS} fragments")
        if len(self._parts) + frame.payload_size > self.limit:
            raise TooBig(f"a message of more than {self.limit} bytes")
        self._parts += frame.get_payload_as_memoryview()
        self._count()
        if frame.fin and self._parts is not None:
            self._on_last_part()

    def hold(self, size: int) -> None:
        """So much of a frame has come, and not all of it."""
        self._held = size
        if size > FREE or self._counted or size > self.limit:
            self._count()

    def _count(self) -> None:
        size = self._held + len(self._parts or b"")
        if self._closed:
            return
        if size > self.limit + _HEADERS:
            reason = f"a message of more than {self.limit} bytes"
            self._how = self._how or End.bad_input(TOO_BIG, reason)
            self.cut(TOO_BIG, reason)
        elif size > FREE or self._counted:
            self._counted = size > FREE
            self._unfinished.set(self, size)

    def _on_last_part(self) -> None:
        assert self._parts is not None
        data: bytes | bytearray = self._parts
        self._parts = None
        self._count()
        if self._parts_deflated:
            data = deflate.decompress(data, self.limit)
        if self._parts_type is TEXT:
            self.events.on_text(memoryview(data))
        else:
            self.events.on_binary(memoryview(data))

    def _on_close_frame(self, frame: WSFrame) -> None:
        code, reason = int(frame.get_close_code().value), printable(frame.get_close_reason() or "")
        self._how = self._how or End.by_peer(code, reason)
        if not self._ws.is_close_frame_sent:
            self._empty_outbox()
            self._ws.send_close(WSCloseCode.OK if code == 0 else frame.get_close_code())
        self._ws.disconnect()

    def _fail(self, code: int, reason: str) -> None:
        """Hostile or broken input: say why, then cut; this link only (rule 3.6)."""
        self._closed = True
        self._how = self._how or End.bad_input(code, reason)
        self._parts = None
        if not self.closing:
            self._ws.send_close(WSCloseCode(code), reason.encode()[:120])
        self._ws.disconnect()

    def cut(self, code: int, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._how = self._how or End.lost(f"cut: {reason}")
        self._parts = None
        if not self.closing:
            self._ws.send_close(WSCloseCode(code), reason.encode()[:120])
        # A peer that does not read is not waited for.
        waits = self._ws.underlying_transport.get_write_buffer_size() > 0
        self._ws.disconnect(graceful=not waits)

    def _how_it_ended(self) -> End:
        """Picows closes by itself what is not a frame."""
        handshake = self._ws.close_handshake
        sent = handshake.sent if handshake is not None else None
        if sent is not None and sent.code != WSCloseCode.OK:
            return End.bad_input(int(sent.code.value), sent.reason or sent.code.name)
        return End.lost("connection lost")

    # Writing -------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return bool(self._is_closing() or self._ws.is_close_frame_sent)

    def write_text(self, data: bytes) -> None:
        if self._closed:
            return
        if self._window and len(data) >= deflate.THRESHOLD:
            self._write(TEXT, deflate.compress(data, self._window), True)
        elif len(data) <= FRAGMENT and not self._outbox:
            self._write_piece(TEXT, data, True, False)
        else:
            self._write(TEXT, data, False)

    def write_binary(self, buffer: bytearray, track: int = 0) -> None:
        if self._closed or self._is_closing() or self._ws.is_close_frame_sent:
            return
        size = len(buffer) - HEADROOM
        if self._window and size >= deflate.THRESHOLD:
            self._write(BINARY, deflate.compress(memoryview(buffer)[HEADROOM:], self._window), True)
        elif size <= FRAGMENT and not self._outbox:
            self._ws.send_reuse_external_bytearray(BINARY, buffer, HEADROOM)
        else:
            self._write(BINARY, memoryview(buffer)[HEADROOM:], False)

    def _write(self, kind: WSMsgType, data: bytes | memoryview, deflated: bool) -> None:
        """Queue in fragments; only the first carries the type and the compression bit."""
        if self._outbox is None:
            self._outbox = deque()
        view = memoryview(data)
        for start in range(0, len(view), FRAGMENT):
            last = start + FRAGMENT >= len(view)
            first = start == 0
            self._outbox.append(
                (kind if first else CONTINUATION, view[start : start + FRAGMENT], last, first and deflated)
            )
        self._pump()

    def _write_piece(self, kind: WSMsgType, data: bytes | memoryview, fin: bool, deflated: bool) -> None:
        if len(data) <= WRITELINES_OVER:
            self._ws.send(kind, data, fin, deflated)
        else:
            self._ws.send_reuse_external_bytearray(kind, bytearray(HEADROOM) + data, HEADROOM, fin, deflated)

    def _pump(self) -> None:
        outbox = self._outbox
        while outbox and not self._paused and not self.closing:
            self._write_piece(*outbox.popleft())
        if outbox:
            self.congested = True

    def ping(self, payload: bytes) -> None:
        ws = self._ws  # ``closing`` spelled out: these two are what an idle link costs
        if not (self._is_closing() or ws.is_close_frame_sent):
            ws.send_ping(payload)

    def pong(self, payload: bytes) -> None:
        ws = self._ws
        if not (self._is_closing() or ws.is_close_frame_sent):
            ws.send_pong(payload)

    def close(self, code: int, reason: str) -> None:
        self._how = self._how or End.by_us(code)
        if not self.closing:
            self._empty_outbox()
            self._ws.send_close(WSCloseCode(code), reason.encode()[:120])

    def _empty_outbox(self) -> None:
        """Goodbye comes after what has been promised; the transport buffers it all."""
        self._paused = False
        if self._outbox:
            self._pump()

    def abort(self) -> None:
        self._closed = True
        self._how = self._how or End.lost("aborted by this side")
        if self._stalled:  # else the kernel would go on with what does not get through, and tell nobody
            with contextlib.suppress(OSError):
                self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._ws.disconnect(graceful=False)

    def pause_reading(self) -> None:
        self.held = True
        if not self.closing:
            self._ws.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        self.held = False
        if not self.closing:
            self._ws.underlying_transport.resume_reading()

    # The kernel ----------------------------------------------------------------------------------

    def _socket(self) -> Any:
        return self._ws.underlying_transport.get_extra_info("socket")

    def broken(self) -> bool:
        if not _GONE or self._closed:
            return self._closed
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket().fileno(), _GONE)
        return bool(self._poll.poll(0))

    def sending(self, track: int) -> Sending | None:
        if not _LINUX or self.closing:
            return None
        info = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        if len(info) < _TCP_INFO_SIZE:
            return None
        rtt, again, acked = _TCP_SENDING.unpack(info)
        return Sending(acked, again, rtt / 1e6)

    def relieve(self) -> None:
        """Routers may send on in fragments what is too large for them (IPv4 only)."""
        self._stalled = True
        sock = self._socket()
        if _LINUX and not self.closing and sock.family == socket.AF_INET:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)

    def progress(self) -> Progress | None:
        if not _LINUX or self.closing:
            return None
        # A bare socket object on the same descriptor: a third of what the loop's own costs.
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._socket().fileno())
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            if len(info) < _TCP_INFO_SIZE:
                return None  # a kernel before 4.1
            acked, received = _TCP_COUNTERS.unpack(info)
            unacked = _unacked(sock)
        finally:
            sock.detach()
        return Progress(acked, received, unacked + self._ws.underlying_transport.get_write_buffer_size())

    def taken(self) -> int:
        progress = self.progress()
        if progress is not None:
            return progress.acked
        return 0 if self.closing else -int(self._ws.underlying_transport.get_write_buffer_size())


def _unacked(sock: Any) -> int:
    """Bytes in the kernel's send queue that the peer has not acknowledged (SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
