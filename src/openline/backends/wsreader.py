"""Between a transport and picows: bounds what an accepted connection may make picows hold.

picows (2.3) puts a frame together before anybody may look at it, in a buffer that doubles whenever it is
more than nine tenths full and never shrinks. It has one limit for a frame, from the first byte on. So
what it holds is counted here, from outside: the room that it offers for the next read tells how much
of its buffer is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from picows.picows import WSProtocol  # type: ignore[attr-defined]

from .pages import give_back
from .unfinished import FREE

# Read at a time at most, so that a burst of small frames does not make the buffer grow: what has
# come in one read is handled before the next.
READ = 256 * 1024
# A buffer that has been filled up to here is worth giving back when its frame is complete; not for every
# frame, so that a stream of large ones costs nothing, and soon, so that a flood of them holds little.
LARGE = 256 * 1024
GIVE_BACK_AFTER = 0.1
# A client's request at its longest, as picows has it.
UPGRADE = 16 * 1024

# What picows does with its buffer: how it begins, and when it doubles.
_SPARE, _TENTHS = 256, 90


class BoundedReader(asyncio.BufferedProtocol):
    """The protocol of an accepted connection; picows's own takes over where the peer is known."""

    __slots__ = (
        "_feed",
        "_filled",
        "_held",
        "_look_above",
        "_protocol",
        "_room",
        "_size",
        "_timer",
        "_transport",
    )

    def __init__(self, protocol: WSProtocol, buffer: int) -> None:
        """``buffer``: the size that picows begins with."""
        self._protocol = protocol
        self._transport: Any
        self._room: Callable[[int], memoryview] = protocol.get_buffer
        self._feed: Callable[[int], None] = protocol.buffer_updated
        # Of picows's buffer: its size, how much of it is taken, and up to where it has been written.
        self._size = buffer - _SPARE
        self._held = self._filled = 0
        # A smaller buffer holds too little to look at; but before the proof every byte counts.
        self._look_above = 0
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

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room(sizehint)
        self._held = self._size - len(room)
        return room if len(room) <= READ else room[:READ]

    def buffer_updated(self, nbytes: int) -> None:
        size, taken = self._size, self._held + nbytes
        if 100 * taken // size > _TENTHS or size - taken <= _SPARE:
            self._size = size = 2 * size
        self._feed(nbytes)
        if size > self._look_above:
            self._look(taken)

    def _look(self, taken: int) -> None:
        """What is left of it, now that all frames that were complete have been handled?"""
        link = self._protocol.listener
        if link is None:
            if taken >= UPGRADE:  # picows closes it, too, but over TLS it would wait for the client
                self._transport.abort()
            return
        room = self._room(-1)
        held = self._size - len(room)
        self._filled = max(self._filled, taken)
        link.hold(held)
        if self._filled > LARGE and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GIVE_BACK_AFTER, self._give_back)
        if link.limit > FREE:
            self._look_above = FREE
            if link.events.known and not self._transport.is_closing():
                self._stop()
                self._transport.set_protocol(self._protocol)

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
