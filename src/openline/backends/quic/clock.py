"""The clock of a backend's connections: it goes on while our own loop runs, and stands while that stalls.

A stall is nobody's silence (rule 3.2). If a process was stopped for a minute, its idle connections are not
to time out at once (RFC 9000 section 10.1) before what has come meanwhile is read. One timer sees that for
all of them: with one each, they would wake an idle process for nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# A loop that is later than this has stalled.
STALL = 0.1
# Parts of the idle time-out in which the clock is looked at, so that a stall is seen as one.
LOOKS = 20


class Clock:
    """``read`` is the host's. Who is in a hurry does by itself what ``now`` does."""

    __slots__ = ("_loop", "_timer", "_users", "limit", "period", "read", "stalled")

    def __init__(self, read: Callable[[], float], idle_timeout: float) -> None:
        self.read = read
        self.period = idle_timeout / LOOKS
        # Seconds that our own loop has stood still.
        self.stalled = 0.0
        # From here on the timer is so late that the loop has stalled; by ``now``.
        self.limit = float("inf")
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        now = self.read() - self.stalled
        return now if now <= self.limit else self.past(now)

    def past(self, now: float) -> float:
        """``now`` is beyond ``limit``: time has stood still since the timer was due."""
        due = self.limit - STALL
        self.stalled += now - due
        return due

    def join(self) -> None:
        """One more connection, until it leaves."""
        self._users += 1
        if self._users == 1:
            self._loop = asyncio.get_running_loop()
            self._look()

    def leave(self) -> None:
        self._users -= 1
        if not self._users and self._timer is not None:
            self._timer.cancel()
            self._timer, self.limit = None, float("inf")

    def _look(self) -> None:
        assert self._loop is not None
        self.limit = self.now() + self.period + STALL
        self._timer = self._loop.call_later(self.period, self._look)
