"""Is this connection alive? (rule 3.2; the watchdog of RFC 3539 section 3.4.1, with a busy link's needs)

Any inbound unit is life. Idle for an interval: one ping. An interval without an answer: suspect,
and one more ping. Three intervals without life: dead. Before either verdict the kernel's counters
are asked: bytes that still move, in either direction, are life too, within a cap; a ping that the
peer's kernel has not even acknowledged because our own data is in front of it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

# The caller's clock ticks this often, and life is known to the tick in which it was heard. The
# fractions leave a tick for that and a tick for the timer, so that "suspect within 2, dead within
# 3 intervals" holds as measured from outside.
TICKS_PER_INTERVAL = 20
PING_AFTER = 0.9
# The side that accepted waits a tick longer, so that an idle link carries one ping and not two.
PING_AFTER_ACCEPTED = 0.95
ANSWER_WITHIN = 0.9
DEAD_AFTER = 2.85


class Action(Enum):
    """What the caller has to do after a check."""

    NONE = 0
    PING = 1
    SUSPECT = 2  # mark it, and ping once more
    RECOVERED = 3
    DEAD = 4


class Progress(msgspec.Struct, frozen=True):
    """The kernel's view: bytes the peer acknowledged, bytes received, bytes of ours not yet acknowledged."""

    acked: int
    received: int
    pending: int


class Liveness:
    """The state of one connection."""

    __slots__ = (
        "_acked",
        "_heard",
        "_interval",
        "_pending",
        "_ping_after",
        "_ping_at",
        "_ping_end",
        "_received",
        "life",
        "suspect",
    )

    def __init__(self, interval: float, now: float, *, accepted: bool = False) -> None:
        self._interval = interval
        self._ping_after = interval * (PING_AFTER_ACCEPTED if accepted else PING_AFTER)
        # The last inbound unit; and the last sign of life of any kind.
        self._heard = self.life = now
        self.suspect = False
        self._ping_at: float | None = None
        # The kernel's counters when last asked, and the acknowledgement that covers the ping.
        self._acked = self._received = self._ping_end = self._pending = 0

    @property
    def due(self) -> float:
        """When the next check can have a result; checks before that are wasted, not wrong."""
        if self.suspect:
            return self.life
        # While a ping is out, every tick: life is the moment when the bytes moved.
        return self.life + self._ping_after if self._ping_at is None else self.life

    def check(self, now: float, heard: float, look: Callable[[], Progress | None], cap: float) -> Action:
        """One check. ``heard`` is when the last inbound unit came, to the tick.

        ``look`` is called only when a ping leaves and while it is not answered.
        """
        if heard > self._heard:
            self._heard = heard
            if self._hear(heard):
                return Action.RECOVERED
        if self._ping_at is None:
            silent = now - self.life >= self._ping_after
            return self._ping(now, look()) if silent else Action.NONE
        if now - self._heard < cap and self._moves(now, look()):
            return Action.NONE
        if now - self._ping_at < ANSWER_WITHIN * self._interval:
            return Action.NONE
        return self._verdict(now)

    def wait_for_probe(self, now: float) -> None:
        """The clock cannot be trusted (our loop stalled, the machine slept): ping now, judge later."""
        self._ping_at = None
        self.life = now - 1.001 * self._ping_after  # due now, whatever the rounding

    def shift(self, late: float) -> None:
        """Our loop was late by so many seconds, which were not the peer's silence."""
        self.life += late
        if self._ping_at is not None:
            self._ping_at += late

    def hold(self, now: float) -> None:
        """We are not reading (backpressure), so silence means nothing."""
        self._ping_at = None
        self._heard = self.life = now

    def doubt(self, now: float) -> None:
        """The link knows of probes without an answer: suspect; the time to dead counts from its life."""
        self.suspect, self._ping_at = True, now

    def trust(self, now: float) -> None:
        """The link has had an answer."""
        self._heard = now
        self._hear(now)

    def _hear(self, heard: float) -> bool:
        """A unit has come; True if that ends a suspicion."""
        self.life = max(self.life, heard)
        self._ping_at = None
        suspected, self.suspect = self.suspect, False
        return suspected

    def _ping(self, now: float, progress: Progress | None) -> Action:
        self._ping_at = now
        if progress is not None:
            self._note(progress)
            self._ping_end = progress.acked + progress.pending
        return Action.PING

    def _note(self, progress: Progress) -> None:
        self._acked, self._received, self._pending = progress.acked, progress.received, progress.pending

    def _moves(self, now: float, progress: Progress | None) -> bool:
        """Do bytes still move? Then the answer has another interval from now.

        Acknowledged bytes count where they were in front of the ping, and also behind it while
        something of ours waits all the time: on such a link the peer's buffers are full, and they
        empty only because its program reads.
        """
        if progress is None:
            return False
        arriving = progress.received > self._received
        in_front, waiting = self._acked < self._ping_end, min(self._pending, progress.pending) > 0
        leaving = progress.acked > self._acked and (in_front or waiting)
        self._note(progress)
        if arriving or leaving:
            self.life = self._ping_at = now
        return arriving or leaving

    def _verdict(self, now: float) -> Action:
        if not self.suspect:
            self.suspect = True
            return Action.SUSPECT
        if now - self.life < DEAD_AFTER * self._interval:
            return Action.NONE
        return Action.DEAD
