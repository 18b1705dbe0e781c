"""Does the peer read what it is owed? Pure.

A peer that sends and never reads shows life all the time, so liveness has nothing against it. What it is
owed, acknowledgements and answers to pings, waits while its link is full. Where nothing of all that
waits has been taken for an interval, it is not read any more; where that goes on, it is cut.

Time is counted in looks, so that a stall of our own loop is no silence of the peer's.
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    NONE = 0
    STOP = 1  # read no more from it
    GO = 2  # it has taken something
    CUT = 3


class Unread:
    """One connection that is owed something which cannot be written."""

    __slots__ = ("_cut_after", "_idle", "_stop_after", "_taken", "stopped")

    def __init__(self, stop_after: int, cut_after: int) -> None:
        """So many looks in a row at which nothing had been taken."""
        self._stop_after, self._cut_after = stop_after, cut_after
        self._taken: int | None = None
        self._idle = 0
        self.stopped = False

    def look(self, taken: int, heard: bool) -> Verdict:
        """``taken`` grows with what the peer takes; ``heard``: it has shown life within an interval.

        A silent peer is liveness's business, which has to go on reading in order to judge.
        """
        moved = self._taken is not None and taken > self._taken
        self._taken = taken
        if moved:
            self._idle = 0
            stopped, self.stopped = self.stopped, False
            return Verdict.GO if stopped else Verdict.NONE
        self._idle += 1
        if self._idle > self._cut_after:
            return Verdict.CUT
        if self._idle > self._stop_after and heard and not self.stopped:
            self.stopped = True
            return Verdict.STOP
        return Verdict.NONE
