"""Is this connection alive? (rule 3.2; the watchdog of RFC 3539 section 3.4.1, with a busy link's needs)

Any inbound unit is life. Idle for an interval: one ping. An interval without an answer: suspect,
and one more ping. Three intervals without life: dead. Before either verdict the kernel's counters
are asked: bytes that still move, in either direction, are life too, within a cap; a ping that the
peer's kernel has not even acknowledged because our own data is in front of it proves nothing.

Between openline peers one side is enough to ask, as a ping is life to whom it reaches: the side that
accepted. The side that dialed pings once, to learn the round trip, and from then on only when no ping
has come; so it finds a death in time also where the other side never asks.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

# The caller's clock ticks this often, and life is known to the tick in which it was heard, which is never
# after it came. So "suspect within 2, dead within 3 intervals" holds as measured from outside when the
# verdicts fall in ticks 39 and 59. All fractions lie half a tick before the tick that is meant: a tick
# that is a little late, or early by rounding, is the same one.
TICKS_PER_INTERVAL = 20
_TICK = 1 / TICKS_PER_INTERVAL
PING_AFTER = 17.5 * _TICK
# The side that accepted waits a tick longer: where both would ping, as on a new link, one ping serves.
PING_AFTER_ACCEPTED = 18.5 * _TICK
# The side that waits for pings: two ticks longer still. One is for a ping on its way, as each side knows
# life to a tick of its own; one is for a ping that is late.
PING_AFTER_WAITING = 20.5 * _TICK
# From life on, whenever the ping left: who pings later gives less time to answer.
SUSPECT_AFTER = 38 * _TICK
DEAD_AFTER = 58.5 * _TICK
# What a ping itself takes in the kernel's queue, at most: its frame, masked and in a TLS record.
PING_BYTES = 64


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
        "_answer_within",
        "_heard",
        "_interval",
        "_pending",
        "_ping_after",
        "_ping_at",
        "_ping_end",
        "_received",
        "_unseen",
        "_waits",
        "life",
        "suspect",
    )

    def __init__(
        self, interval: float, now: float, *, accepted: bool = False, openline: bool = False
    ) -> None:
        """``accepted``: the peer dialed. ``openline``: the peer goes by these rules, too."""
        self._interval = interval
        self._waits = openline and not accepted
        self._expect(PING_AFTER_ACCEPTED if accepted else PING_AFTER)
        # The last inbound unit; and the last sign of life of any kind.
        self._heard = self.life = now
        self.suspect = False
        self._ping_at: float | None = None
        # The kernel's counters when last asked, and the acknowledgement that covers the ping.
        self._acked = self._received = self._ping_end = self._pending = 0
        # They have not been asked since the ping left.
        self._unseen = False

    def _expect(self, ping_after: float) -> None:
        self._ping_after = ping_after * self._interval
        self._answer_within = (SUSPECT_AFTER - ping_after) * self._interval

    @property
    def due(self) -> float:
        """When the next check can have a result; checks before that are wasted, not wrong."""
        if self.suspect:
            return self.life
        # While a ping is out, every tick: life is the moment when the bytes moved.
        return self.life + self._ping_after if self._ping_at is None else self.life

    def check(self, now: float, heard: float, look: Callable[[], Progress | None], cap: float) -> Action:
        """One check. ``heard`` is when the last inbound unit came, to the tick.

        ``look`` is called only while a ping is not answered; by the side that pings late, as it leaves.
        """
        if heard > self._heard:
            self._heard = heard
            if self._hear(heard):
                return Action.RECOVERED
        if self._ping_at is None:
            return self._ping(now, look) if now - self.life >= self._ping_after else Action.NONE
        if now - self._heard < cap and self._moves(now, look()):
            return Action.NONE
        if now - self._ping_at < self._answer_within:
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

    def _ping(self, now: float, look: Callable[[], Progress | None]) -> Action:
        """Nearly all are answered before the next check, so what is in front of it is asked then.

        Who pings late has fewer checks left until the verdict, and asks now.
        """
        self._ping_at = now
        self._unseen = True
        if self._ping_after > self._interval and (progress := look()) is not None:
            self._see(progress, progress.pending)
        if self._waits:
            self._expect(PING_AFTER_WAITING)
        return Action.PING

    def _see(self, progress: Progress, in_front: int) -> None:
        """The first look since the ping left, with so many bytes of ours in front of it."""
        self._note(progress)
        self._ping_end = progress.acked + in_front
        self._unseen = False

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
        if self._unseen:
            self._see(progress, max(0, progress.pending - PING_BYTES))
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
