"""Time-outs of many on one timer."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..errors import Closed


class Expiring(Protocol):
    """Something that waits for ``limit`` seconds at most."""

    limit: float

    def expire(self) -> None: ...
    def done(self) -> bool: ...
    def fail(self, error: BaseException) -> None: ...


class Deadlines:
    """Time-outs of many on one timer; a timer each would cost more than a request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Expiring, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def add(self, waiting: Expiring, when: float | None = None) -> None:
        """``when`` it expires on the loop's clock; else ``limit`` seconds from now."""
        if when is None:
            when = self._loop.time() + waiting.limit
        self._due[waiting] = when
        if self._timer is None or when < self._at:
            self._arm(when)

    def remove(self, waiting: Expiring) -> None:
        """The timer stays: it finds nothing due, and is set for whoever is next."""
        self._due.pop(waiting, None)

    def close(self) -> None:
        """Nobody will answer any more."""
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._due:
            if not waiting.done():
                waiting.fail(Closed("the transport is closed"))

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        self._timer = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        # A timer may fire up to the clock's resolution early.
        now = self._loop.time() + 0.001
        for waiting in [waiting for waiting, when in self._due.items() if when <= now]:
            del self._due[waiting]
            waiting.expire()
        if self._due:
            self._arm(min(self._due.values()))
