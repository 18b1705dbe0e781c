"""A connection's share of a turn of the loop, where picows reads.

libuv reads a socket up to 32 times in a row while there is more, and picows hands out all frames that
its buffer holds, which grows with what comes. So one busy connection could keep the loop for seconds.
Here a read takes no more than a portion (``core/portion.py``), and a connection that had more waits until
the others have had their turn. Who sends less than that is not touched.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from picows.picows import WSProtocol  # type: ignore[attr-defined]

from ..core.portion import Portion

_room, _feed = WSProtocol.get_buffer, WSProtocol.buffer_updated


class TakesTurns(WSProtocol):  # type: ignore[misc]
    """picows's protocol, that reads its share and then lets others have theirs."""

    __slots__ = ("_resting", "portion")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.portion = Portion()
        self._resting = False

    def get_buffer(self, sizehint: int) -> memoryview:
        return _room(self, sizehint)[: self.portion.size]  # type: ignore[no-any-return]

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < self.portion.size:
            _feed(self, nbytes)
        else:
            self._feed_much(nbytes)

    def _feed_much(self, nbytes: int) -> None:
        """There is more than that, mostly."""
        self._rest()
        began = time.perf_counter()
        _feed(self, nbytes)
        self.portion.took(time.perf_counter() - began)

    def _rest(self) -> None:
        """Read no more in this turn. Other loops than libuv's read once per turn anyway."""
        under = self.transport.underlying_transport
        if self._resting or not type(under).__module__.startswith("uvloop"):
            return
        self._resting = True
        under.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        under, link = self.transport.underlying_transport, self.listener
        if not under.is_closing() and not (link is not None and link.held):
            under.resume_reading()
