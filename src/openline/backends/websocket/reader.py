"""Between a transport and picows: bounds what an accepted connection may make picows hold.

picows (2.3) puts a frame together before anybody may look at it, in a buffer that doubles whenever it is
more than nine tenths full and never shrinks. It has one limit for a frame, from the first byte on. So
what it holds is counted here, from outside: the room that it offers for the next read tells how much
of its buffer is taken, and whether that has doubled. One call of Python per read, and none between
nodes that know each other.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from picows.picows import WSProtocol  # type: ignore[attr-defined]

from ..pages import give_back
from ..unfinished import FREE

if TYPE_CHECKING:
    from .link import WebSocketLink

# A buffer that has been filled up to here is worth giving back when its frame is complete; not for every
# frame, so that a stream of large ones costs nothing, and soon, so that a flood of them holds little.
LARGE = 256 * 1024
GIVE_BACK_AFTER = 0.1
# A client's request at its longest, as picows has it.
UPGRADE = 16 * 1024

# Of its buffer picows leaves so much unused at first; it doubles when less is free, or a tenth.
_SPARE = 256


class BoundedReader(asyncio.BufferedProtocol):
    """The protocol of an accepted connection; picows's own takes over where the peer is known."""

    __slots__ = (
        "_feed",
        "_filled",
        "_free",
        "_margin",
        "_protocol",
        "_room",
        "_size",
        "_timer",
        "_transport",
        "get_buffer",
    )

    def __init__(self, protocol: WSProtocol, buffer: int) -> None:
        """``buffer``: the size that picows begins with."""
        self._protocol = protocol
        self._transport: Any
        self._room: Callable[[int], memoryview] = protocol.get_buffer
        self.get_buffer = self._room  # type: ignore[method-assign]  # one call less for each read
        self._feed: Callable[[int], None] = protocol.buffer_updated
        # Of picows's buffer: its size, how much of it is free at least, and up to where it was written.
        self._size = self._free = buffer - _SPARE
        self._filled = 0
        # While more than this is free, the buffer neither grows nor holds what is worth a look; before the
        # proof every byte is, and so is what comes of a frame that is counted.
        self._margin = sys.maxsize
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()  # type: ignore[no-any-return]

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def buffer_updated(self, nbytes: int) -> None:
        self._free -= nbytes
        if self._free > self._margin:
            self._feed(nbytes)
        else:
            self._measure(nbytes)

    def _measure(self, nbytes: int) -> None:
        before = len(self._room(-1))
        self._feed(nbytes)
        self._free = len(self._room(-1))
        taken = self._size - before + nbytes
        # It has doubled if there is more room than there was buffer; or if it was filled to the brim.
        if self._free > self._size or nbytes == before:
            self._size *= 2
        link = self._protocol.listener
        if link is not None:
            self._look(link, taken)
        elif taken >= UPGRADE:
            self._transport.abort()  # picows closes it, too, but over TLS it would wait for the client

    def _look(self, link: WebSocketLink, taken: int) -> None:
        """How much is left of what was ``taken``, now that all complete frames have been handled?"""
        self._filled = max(self._filled, taken)
        link.hold(self._size - self._free)
        if self._filled > LARGE and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GIVE_BACK_AFTER, self._give_back)
        if link.limit <= FREE or self._size - self._free > FREE:
            self._margin = sys.maxsize
        else:
            self._margin = max(self._size // 10 + _SPARE, self._free - FREE)
        transport = self._transport
        # While the connection is busy another one is in front (``turns``), which keeps this.
        if link.events.known and transport.get_protocol() is self and not transport.is_closing():
            self._stop()
            transport.set_protocol(self._protocol)

    def _give_back(self) -> None:
        self._timer = None
        room = self._room(-1)
        held = self._size - len(room)
        if held <= FREE:
            give_back(room[: self._filled - held])
            self._filled = held
        # Else its frame is not complete, and what comes next will bring this about again.

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
