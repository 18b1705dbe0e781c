"""qh3's connection, which can be told to hold back what has been received.

``_drain_core`` hands over what has come, and with that gives the peer more credit. Not calling it is
how a link stops reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qh3.quic.connection import QuicConnection

from ..core.portion import Portion


class Quic(QuicConnection):
    """A connection that can be told to hand nothing over, and hands stream data over directly."""

    holding = False
    # It has had its share of this turn of the loop; and who is told that.
    resting = False
    on_share: Callable[[], None]
    portion: Portion
    # Takes stream data, once the handshake is done.
    sink: Callable[[int, bytes, bool], None] | None = None

    def _drain_core(self) -> None:
        core, sink = self._core, self.sink
        if sink is None or core is None:
            if not self.holding:
                super()._drain_core()
            return
        if self.resting:
            return
        left = self.portion.size
        while not self.holding:
            native = core.next_event()
            if native is None:
                return
            if native[0] == "stream_data" and not self._events:
                data = native[2]
                sink(native[1], data, native[3])
                left -= len(data)
                if left < 0:
                    self.resting = True
                    self.on_share()
                    return
            else:
                self._drain_one(native)

    def _drain_one(self, native: tuple[Any, ...]) -> None:
        """Have qh3 handle one event that has been taken from its core."""
        core = self._core
        self._core = _Before(core, native)  # type: ignore[assignment]
        try:
            super()._drain_core()
        finally:
            self._core = core


class _Before:
    """A core whose next event is this one, and then none for now."""

    def __init__(self, core: Any, native: tuple[Any, ...]) -> None:
        self._rest = [native]
        self._real = core

    def next_event(self) -> Any:
        return self._rest.pop() if self._rest else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
