"""A busy connection's share of a turn of the loop, between the transport and picows.

libuv reads a socket up to 32 times in a row while there is more, and picows (2.3) hands out all frames
that its buffer holds, which grows with what comes. So one busy connection could keep the loop for
seconds. While it is busy, a read takes no more than a portion (``core/portion.py``), and what is
behind that waits until the others have had their turn. A quiet one is not touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ...core.portion import Portion
from .tunnel import Tunnel

# More than that behind a frame in picows's buffer: the connection is busy.
BUSY = 16 * 1024
# So many reads in a row that brought less than a page: it is quiet again. But with a buffer that has
# grown beyond ``SMALL`` it is not left alone any more, as what is read into that comes in one go.
CALM_READS, PAGE, SMALL = 64, 4096, 64 * 1024


class TakesTurns(asyncio.BufferedProtocol):
    """In the place of a busy connection's protocol, ``inner``."""

    __slots__ = ("_calm", "_feed", "_most", "_portion", "_resting", "_room", "_stays", "_transport", "inner")

    def __init__(self, inner: Any, transport: Any, held: Callable[[], bool]) -> None:
        """``held()``: is it not to be read, whoever's turn it is?"""
        self.inner = inner
        self._room: Callable[[int], memoryview] = inner.get_buffer
        self._feed: Callable[[int], None] = inner.buffer_updated
        self._transport = transport
        self._stays = held
        self._portion = Portion()
        self._most = self._portion.size
        self._calm = 0
        self._resting = False

    def take_over(self) -> None:
        """From now on, and from the next turn of the loop."""
        self._transport.set_protocol(self)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        inner = self.inner
        # A transport that is over may hold on to this.
        self.inner = self._transport = self._room = self._feed = self._stays = None  # type: ignore[assignment]
        inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()  # type: ignore[no-any-return]

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room(sizehint)
        if self._calm >= CALM_READS:
            self._calm = 0
            if len(room) <= SMALL:
                self._transport.set_protocol(self.inner)
        return room if len(room) <= self._most else room[: self._most]

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < PAGE:
            self._calm += 1
            self._feed(nbytes)
            return
        self._calm = 0
        if nbytes < self._most:
            self._feed(nbytes)
            return
        self._rest()
        began = time.perf_counter()
        self._feed(nbytes)
        self._portion.took(time.perf_counter() - began)
        self._most = self._portion.size

    def _rest(self) -> None:
        """Read no more in this turn. Other loops than libuv's read once in a turn anyway, without TLS."""
        transport = self._transport
        reads_on = type(transport).__module__.startswith("uvloop") or isinstance(transport, Tunnel)
        if not self._resting and reads_on:
            self._resting = True
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        transport = self._transport
        if transport is not None and not self._stays() and not transport.is_closing():
            transport.resume_reading()
