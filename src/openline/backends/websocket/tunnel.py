"""TLS between a socket's transport and picows, over ``ssl.SSLObject`` (sans-IO) of the standard library.

asyncio's own TLS keeps a buffer of 256 KiB for each connection from its first byte on, used or not, so
that 10,000 idle ones, or a flood of handshakes that are never finished, would take gigabytes. Here all
connections of a backend read into one buffer, and what an idle one takes is what OpenSSL does: 16 kB.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from ..sockets import forget_frames

# The largest record (RFC 8446 section 5.1). OpenSSL's buffers never shrink, so each connection keeps as much
# as it was once handed at a time: two records when it reads, one when it writes.
RECORD = 16 * 1024
READ_SIZE = 2 * RECORD
# What answers the peer's TLS by itself (KeyUpdate, 30 bytes each) over the life of a connection. OpenSSL
# changes keys every 2^24 records; who asks for more wants us to work.
MAX_REPLIES = 64 * 1024


class _State(IntEnum):
    """Only ever goes on."""

    HANDSHAKE = 0
    ESTABLISHED = 1
    CLOSING = 2
    CLOSED = 3


_ESTABLISHED = _State.ESTABLISHED  # looked at for each write


class Tunnel(asyncio.BufferedProtocol, asyncio.Transport):
    """To the socket's transport a protocol, to its own protocol the transport.

    Nothing more is read when the handshake is over, until ``begin`` has given it the protocol.
    """

    __slots__ = (
        "_encrypt",
        "_encrypted",
        "_established",
        "_feed",
        "_flows",
        "_inner",
        "_is_closing",
        "_number",
        "_paused",
        "_put",
        "_read",
        "_replies",
        "_room",
        "_shared",
        "_ssl",
        "_state",
        "_take",
        "_transport",
        "_waiting",
        "_waits",
    )

    def __init__(
        self, context: ssl.SSLContext, shared: memoryview, *, server: bool, host: str | None = None
    ) -> None:
        """``shared``: where all tunnels of one loop read to. ``host``: for SNI, and to check against."""
        self._waiting, self._encrypted = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._waiting, self._encrypted, server, host)
        self._read: Any = self._ssl.read  # into a buffer, with how many bytes that were
        self._encrypt: Any = self._ssl.write
        self._put, self._take = self._waiting.write, self._encrypted.read
        self._shared = shared
        self._state = _State.HANDSHAKE
        self._inner: Any = None
        self._paused = False
        # Is what comes handed on now, and how: asked for each read.
        self._flows = False
        self._room: Any = None
        self._feed: Any = None
        self._replies = 0
        self._transport: Any = None
        self._waits: Any = None
        self._is_closing: Any = None
        # The socket's, while its transport is open: afterwards the number may be another's.
        self._number = -1
        self._established: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()

    async def established(self) -> None:
        """Wait, once, for the end of the handshake. Raises ``OSError`` where it failed."""
        try:
            if self._established is not None:
                await self._established
        finally:
            self._established = None  # an error that it has raised knows this call, and by that the tunnel

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        """The handshake is over, and ``protocol`` takes what comes from now on.

        Raises ``ConnectionResetError`` where the connection has ended since.
        """
        if self._state is not _State.ESTABLISHED:
            raise ConnectionResetError("the other side ended the connection after the TLS handshake")
        self.set_protocol(protocol)
        protocol.connection_made(self)
        self.resume_reading()

    # The socket's protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._waits, self._is_closing = self._transport.get_write_buffer_size, self._transport.is_closing
        if sys.platform != "win32":  # there a socket is no file
            self._number = self._transport.get_extra_info("socket").fileno()
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        self._put(self._shared[:nbytes])
        if not self._flows:
            if self._state is _State.HANDSHAKE:
                self._shake_hands()
            return
        # The usual: one record or a few, of which one read makes what they hold.
        room = self._room(-1)
        try:
            size = self._read(len(room), room)
        except ssl.SSLError:
            self._hand_on()  # which finds the same, and sees to it
            return
        self._feed(size)
        if self._waiting.pending or size == len(room) or self._encrypted.pending:
            self._hand_on()

    def eof_received(self) -> bool:
        """Also without TLS's goodbye: a WebSocket has one of its own, which tells what is missing."""
        self._failed(ConnectionResetError("the other side ended the connection in the TLS handshake"))
        return False

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        inner, self._inner = self._inner, None
        self._enter(_State.CLOSED)
        self._number = -1
        self._room = self._feed = None
        self._failed(exc or ConnectionResetError("the connection was lost in the TLS handshake"))
        if inner is not None:
            inner.connection_lost(exc)

    def _failed(self, error: Exception) -> None:
        """In the handshake, if it is not over."""
        if self._established is not None and not self._established.done():
            # Its traceback leads to calls that are under way still, and by them here: a circle.
            self._established.set_exception(error.with_traceback(None))
            self._established.exception()  # nobody may wait for it any more

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:
            forget_frames(error)
            self._send()  # the alert that says why
            self._failed(error)
            self._end()
        else:
            self._send()
            self._enter(_State.ESTABLISHED)
            self.pause_reading()
            if self._established is not None and not self._established.done():
                self._established.set_result(None)

    def _hand_on(self) -> None:
        """Decrypt what has come, as long as its receiver wants it."""
        read, waiting = self._read, self._waiting
        try:
            while self._flows:
                room = self._room(-1)
                size = read(len(room), room)
                self._feed(size)
                if size < len(room) and not waiting.pending:
                    break
        except ssl.SSLZeroReturnError:
            self.close()
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError):  # else the rest of a record is still to come
                forget_frames(error)
                self._send()
                self._end()
        if self._encrypted.pending:
            self._reply()

    def _look(self) -> None:
        """Is what comes handed on, and to whom?"""
        inner = self._inner
        self._flows = not self._paused and self._state is _State.ESTABLISHED and inner is not None
        if inner is not None:
            self._room, self._feed = inner.get_buffer, inner.buffer_updated

    def _enter(self, state: _State) -> None:
        self._state = max(self._state, state)
        self._look()

    def _reply(self) -> None:
        self._replies += self._encrypted.pending
        self._send()
        if self._replies > MAX_REPLIES:
            self.abort()

    def _send(self) -> None:
        if self._encrypted.pending and self._state < _State.CLOSED:
            self._transmit(self._take())

    def _end(self) -> None:
        """What has been written leaves, and nothing more."""
        if self._state < _State.CLOSING:
            self._enter(_State.CLOSING)
            self._transport.close()

    # Its protocol's transport --------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is not _ESTABLISHED:
            return
        written = self._encrypt(data if len(data) <= RECORD else memoryview(data)[:RECORD])
        self._transmit(self._take())
        if written < len(data):
            self._write_rest(memoryview(data)[written:])

    def _write_rest(self, data: memoryview) -> None:
        while data:
            data = data[self._encrypt(data[:RECORD]) :]
            self._transmit(self._take())

    def _transmit(self, data: bytes) -> None:
        """At once where nothing waits: libuv would write at the end of this turn of the loop."""
        if self._number >= 0 and not self._waits() and not self._is_closing():
            try:
                sent = os.write(self._number, data)
            except OSError:
                sent = 0  # it is full, or lost: the transport finds out, too, and tells
            if sent == len(data):
                return
            data = data[sent:]
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._state is not _State.ESTABLISHED or bool(self._transport.is_closing())

    def close(self) -> None:
        """TLS's goodbye leaves after what has been written; the peer's is not waited for."""
        if self._state is _State.ESTABLISHED and not self._transport.is_closing():
            try:
                self._ssl.unwrap()
            except ssl.SSLError as error:
                forget_frames(error)  # it is to be continued with the peer's goodbye
            self._send()
        self._end()

    def abort(self) -> None:
        self._enter(_State.CLOSING)
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ssl if name == "ssl_object" else self._transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._inner
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if self._state is not _State.CLOSED:
            self._inner = protocol
            self._look()

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._look()
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused:
            return
        self._paused = False
        self._look()
        self._transport.resume_reading()
        if self._waiting.pending or self._ssl.pending():
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._flows:
            self._hand_on()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high=high, low=low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        limits: tuple[int, int] = self._transport.get_write_buffer_limits()
        return limits

    def get_write_buffer_size(self) -> int:
        return int(self._transport.get_write_buffer_size())
