"""Two ``Liveness`` machines at the ends of a virtual link: virtual time, a seed for every choice.

The link is two streams of bytes as TCP makes them: a send queue, bytes under way, the receiver's
buffer, and acknowledgements that come from the receiver's kernel whether its program runs or not.
Cuts hold bytes and acknowledgements back until they end; nothing is lost, as TCP sends it again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from openline.core.liveness import TICKS_PER_INTERVAL, Action, Liveness, Progress

INTERVAL = 10.0
TICK = INTERVAL / TICKS_PER_INTERVAL
# The grain of virtual time.
STEP = TICK / 2
# A stall longer than this calls for a fresh probe; the watch does the same.
LONG_STALL = INTERVAL / 4
NO_CAP = math.inf
FOREVER = math.inf
PING_SIZE = 6
PLENTY = 10**9

Span = tuple[float, float]


class Violation(AssertionError):
    """An invariant does not hold."""


def within(now: float, spans: Iterable[Span]) -> bool:
    return any(start <= now < end for start, end in spans)


class Way:
    """One direction of the link."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.written = self.sent = self.arrived = self.read = self.acked = 0
        self.units: deque[tuple[int, str]] = deque()
        self.bandwidth = PLENTY
        self.buffer = PLENTY
        # Seconds from end to end: at least, and at most.
        self.delay: Span = (0.0, STEP)
        self.cuts: list[Span] = []
        self.reset_at = FOREVER
        self._under_way: deque[tuple[float, int]] = deque()
        self._acks: deque[tuple[float, int]] = deque()
        self._data: deque[tuple[int, int]] = deque()
        self._last = 0.0
        self._covered = 0

    @property
    def backlog(self) -> int:
        return self.written - self.acked

    def write(self, kind: str, size: int) -> None:
        if kind == "data":
            self._data.append((self.written, self.written + size))
        self.written += size
        self.units.append((self.written, kind))

    def is_data(self, start: int, end: int) -> bool:
        """Whether any byte in between is of a data unit. Asked in order, from the beginning on."""
        while self._data and self._data[0][1] <= start:
            self._data.popleft()
        return start < end and bool(self._data) and self._data[0][0] < end

    def step(self, now: float, cut_back: bool) -> None:
        if self.sent < self.written:
            room = self.buffer - (self.sent - self.read)
            size = min(self.written - self.sent, int(self.bandwidth * STEP), room)
            if size > 0:
                self.sent += size
                self._under_way.append((self._travel(now), size))
        if self._under_way and not within(now, self.cuts):
            self._arrive(now)
        while self._acks and self._acks[0][0] <= now:
            self._covered = self._acks.popleft()[1]
        if not cut_back:
            self.acked = self._covered

    def _travel(self, now: float) -> float:
        self._last = max(self._last, now + self.random.uniform(*self.delay))
        return self._last

    def _arrive(self, now: float) -> None:
        before = self.arrived
        while self._under_way and self._under_way[0][0] <= now:
            self.arrived += self._under_way.popleft()[1]
        if self.arrived != before:
            self._acks.append((now + self.delay[0], self.arrived))

    def take(self, size: int) -> list[str]:
        """The receiving program reads; returns the kinds of the units it now has whole."""
        self.read += min(self.arrived - self.read, size)
        kinds = []
        while self.units and self.units[0][0] <= self.read:
            kinds.append(self.units.popleft()[1])
        return kinds


class Load:
    """Data that a side writes as long as there is room."""

    def __init__(self, span: Span, unit: int, high_water: int, *, insist: bool = False) -> None:
        self.span, self.unit, self.high_water = span, unit, high_water
        # There is no other connection, so a suspect one is used on.
        self.insist = insist


class Side:
    """One process, with what the watch keeps of its connection."""

    def __init__(self, world: World, name: str, out: Way, into: Way, *, accepted: bool) -> None:
        self.world, self.name, self.out, self.into = world, name, out, into
        self.liveness = Liveness(INTERVAL, 0.0, accepted=accepted, openline=True)
        # It answers pings, and has no liveness of its own.
        self.mute = False
        self.stalls: list[Span] = []
        self.pauses: list[Span] = []
        self.load: Load | None = None
        self.reads = PLENTY
        self.closed = ""
        self.counts = dict.fromkeys(Action, 0)
        # The two clocks tick at their own times.
        self._tick_due = TICK + world.random.choice([0.0, STEP])
        self._hub_now = self._heard = 0.0
        # What an onlooker knows: the last sign of a living program, the last sign of anything, and
        # what our own stalls add to the deadlines.
        self._life = self._stir = 0.0
        self._seen = (0, 0)
        self._units = self._acked = 0
        self._excused = 0.0
        self._probed = 0.0
        self._awaits_answer = False

    def step(self, now: float) -> None:
        self._observe(now)
        if self.closed or within(now, self.stalls):
            return
        if now >= self.into.reset_at:
            self.close("reset by the other side")
            return
        # After a stall, what comes first is up to the event loop.
        jobs: list[Callable[[float], None]] = [self._read, self._tick]
        if self.world.random.random() < 0.5:
            jobs.reverse()
        for job in jobs:
            if not self.closed:
                job(now)
        self._observe(now)
        self._write(now)

    def close(self, why: str) -> None:
        self.closed = why
        self.into.cuts.append((self.world.now, FOREVER))
        self.world.note(self, f"closed: {why}")

    def _observe(self, now: float) -> None:
        seen, acked = (self._units, self.into.arrived), self.out.acked
        if seen != self._seen or acked != self._acked:
            self._stir = now
            self._excused = 0.0
        # A ping acknowledged shows a kernel and not a program.
        if seen != self._seen or self.out.is_data(self._acked, acked):
            self._life = now
        self._seen, self._acked = seen, acked

    # The program ----------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        if within(now, self.pauses):
            return
        for kind in self.into.take(int(self.reads * STEP)):
            self._units += 1
            self._heard = self._hub_now
            self._awaits_answer = False
            if kind == "ping":
                self.out.write("pong", PING_SIZE)
        self._observe(now)

    def _write(self, now: float) -> None:
        load = self.load
        if load is None or self.closed or not within(now, [load.span]):
            return
        if self.liveness.suspect and not load.insist:
            return
        while self.out.backlog < load.high_water:
            self.out.write("data", load.unit)

    # The watch ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now < self._tick_due:
            return
        late = now - self._tick_due
        self._tick_due += TICK * (1 + late // TICK)
        self._hub_now = now
        if late:
            self._forgive(now, late)
        if self.mute:
            return
        if within(now, self.pauses):
            self._hold(now)
        elif now >= self.liveness.due:
            self._act(now, self.liveness.check(now, self._heard, self._kernel, NO_CAP))
        self._check_deadlines(now)

    def _forgive(self, now: float, late: float) -> None:
        if late > LONG_STALL:
            self.liveness.wait_for_probe(now)
            self._begin_anew(now)
        else:
            self._excused += late
            if late > TICK:
                self.liveness.shift(late)

    def _hold(self, now: float) -> None:
        self.liveness.hold(now)
        self._begin_anew(now)
        self.out.write("pong", PING_SIZE)

    def _begin_anew(self, now: float) -> None:
        self._probed = now
        self._awaits_answer = False

    def _kernel(self) -> Progress:
        return Progress(self.out.acked, self.into.arrived, self.out.backlog)

    def _act(self, now: float, action: Action) -> None:
        self.counts[action] += 1
        if action is not Action.NONE:
            self.world.note(self, action.name)
        if action is Action.PING:
            self._claim(not self._awaits_answer, "a second ping while one is out")
            self._awaits_answer = True
        elif action is Action.DEAD:
            self._claim(now - self._life >= 1.9 * INTERVAL, "dead while bytes flow")
            self._claim(now - self._probed >= 1.5 * INTERVAL, "dead without time to answer a fresh probe")
            self.out.reset_at = now + self.out.delay[1]
            if within(now, self.out.cuts):
                self.out.reset_at = FOREVER
            self.close("dead")
        if action in (Action.PING, Action.SUSPECT):
            self._awaits_answer = True
            self.out.write("ping", PING_SIZE)

    # What must hold -------------------------------------------------------------------------------

    def _check_deadlines(self, now: float) -> None:
        if self.closed:
            return
        silent = now - max(self._stir, self._probed) - self._excused
        slack = self.world.slack
        self._claim(silent <= 2 * INTERVAL + slack or self.liveness.suspect, "not suspect in two intervals")
        self._claim(silent <= 3 * INTERVAL + slack, "not dead in three intervals")

    def _claim(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.world.note(self, f"VIOLATION: {otherwise}")
            raise Violation(f"{self.name}: {otherwise}")

    def __str__(self) -> str:
        out, into = self.out, self.into
        unsent, unacked = out.written - out.sent, out.sent - out.acked
        return (
            f"unsent {unsent:>7} unacked {unacked:>7} acked {out.acked:>8} arrived {into.arrived:>8}"
            f" unread {into.arrived - into.read:>7} life {self._life:>6.1f}"
        )


class World:
    """Both sides, the link, and a trace."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        # By how much a verdict may be late.
        self.slack = TICK
        self.trace: list[str] = []
        there, back = Way(self.random), Way(self.random)
        self.ways = there, back
        self.a = Side(self, "a", there, back, accepted=False)
        self.b = Side(self, "b", back, there, accepted=True)
        self.sides = self.a, self.b

    def note(self, who: Side | None, what: str) -> None:
        state = f"{who.name}  {what:<22} {who}" if who else f"-  {what}"
        self.trace.append(f"{self.now:>7.1f}  {state}")

    def plan(self, what: str, **details: Any) -> None:
        """Note what is going to happen, before it does."""
        told = " ".join(f"{name}={_short(value)}" for name, value in details.items())
        self.note(None, f"{what} {told}")

    def run(self, until: float) -> None:
        there, back = self.ways
        for number in range(round(self.now / STEP) + 1, int(until / STEP) + 1):
            self.now = now = number * STEP
            there.step(now, within(now, back.cuts))
            back.step(now, within(now, there.cuts))
            self.a.step(now)
            self.b.step(now)
            if self.a.closed and self.b.closed:
                return


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, tuple):
        return "–".join(map(_short, value))
    return str(value)
