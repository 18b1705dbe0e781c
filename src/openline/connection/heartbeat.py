"""Drives liveness (rule 3.2): one timer for all connections of a transport.

The verdicts are ``core/liveness.py``'s. This adds the clocks, carries the actions out, and keeps
peers satisfied that watch us.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic

from ..backends.base import End
from ..core.lifecycle import State
from ..core.liveness import TICKS_PER_INTERVAL, Action
from ..core.unread import Unread, Verdict
from ..runtime.ratelog import process_log
from .connection import Connection, Pause
from .context import Context
from .events import R

# No timer faster than this, however short max_idle_timeout is.
MIN_TICK = 0.02
# agentic-flow wants a pong every 5 s (1 s at the least) and cuts a link whose pong is stuck behind
# data; RFC 6455 section 5.5.3 allows pongs that nobody asked for, and it takes them as life.
PONG_EVERY = 0.5
# A stall of this part of an interval calls for a fresh probe.
LONG_STALL = 0.25
# Checks in one turn of the loop, each with a ping at the most: a few milliseconds.
CHECKS_PER_TURN = 200
# A part of a tick. Timers may fire early by their grain, which is a millisecond in uvloop.
EARLY = 0.1


class Heartbeat(Generic[R]):
    """The liveness timer. Each connection is looked at when its next check is due, not on every tick."""

    def __init__(
        self, context: Context, wall_clock: Callable[[], float], on_tick: Callable[[float, float], None]
    ) -> None:
        """``wall_clock`` goes on while the machine sleeps; ``on_tick(now, wall)`` is called on every tick."""
        self._context = context
        self._wall_clock = wall_clock
        self._on_tick = on_tick
        self._interval = context.config.ping_interval
        self._tick_length = max(MIN_TICK, self._interval / TICKS_PER_INTERVAL)
        # Each with the tick in which it is due.
        self._connections: dict[Connection[R], int] = {}
        self._plain: dict[Connection[R], None] = {}
        # What is due in which tick, counted from the start.
        self._buckets: dict[int, dict[Connection[R], None]] = {}
        # What was due and has not had its turn; and that turn, if it is to come.
        self._checks: deque[Connection[R]] = deque()
        self._turn: asyncio.Handle | None = None
        self._start = context.loop.time()
        self._tick_number = 0
        self._pong_every = min(PONG_EVERY, self._interval / 2)
        self._pong_due = 0.0
        # Connections that are owed something which cannot be written.
        self._unread: dict[Connection[R], Unread] = {}
        # Those that are not being read.
        self._not_read: dict[Connection[R], None] = {}
        self._patience = max(1, int(context.config.progress_cap / self._tick_length))
        self._schedule(self._start, self._wall_clock())

    def add(self, connection: Connection[R]) -> None:
        if connection.plain:
            self._plain[connection] = None
        self._enter(connection)

    def remove(self, connection: Connection[R]) -> None:
        number = self._connections.pop(connection, None)
        if number in self._buckets:
            self._buckets[number].pop(connection, None)
        self._plain.pop(connection, None)
        self._unread.pop(connection, None)
        self._not_read.pop(connection, None)

    def owes(self, connection: Connection[R]) -> None:
        """What it is owed waits until its peer reads."""
        if connection not in self._unread and connection in self._connections:
            self._unread[connection] = Unread(TICKS_PER_INTERVAL, self._patience)

    def paused(self, connection: Connection[R]) -> None:
        """It is not read from now on."""
        self._not_read[connection] = None

    def resumed(self, connection: Connection[R]) -> None:
        self._not_read.pop(connection, None)

    def stop(self) -> None:
        self._timer.cancel()
        if self._turn is not None:
            self._turn.cancel()

    def _enter(self, connection: Connection[R]) -> None:
        number = self._connections[connection] = self._number(connection.liveness.due)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
        bucket[connection] = None

    def _number(self, due: float) -> int:
        """The tick in which something is due; the next one where that has passed."""
        return max(math.ceil((due - self._start) / self._tick_length), self._tick_number + 1)

    def _schedule(self, now: float, wall: float) -> None:
        """The next tick, of a clock: by how much this one is late is not carried on."""
        self._due = self._start + (self._tick_number + 1) * self._tick_length
        self._wall_due = wall + self._due - now
        self._timer = self._context.loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._context.advance()
        wall = self._wall_clock()
        late = max(now - self._due, wall - self._wall_due)
        if late > self._tick_length:
            self._forgive(now, late)
        self._take_due(now)
        if self._turn is None:
            self._check_some()
        for connection, unread in list(self._unread.items()):
            self._look_at(connection, unread, now)
        if now >= self._pong_due:
            self._pong_due = now + self._pong_every
            self._reassure(now)
        self._on_tick(now, wall)
        self._context.log.tick(now)
        process_log.tick(time.monotonic())
        self._schedule(now, wall)

    def _check_some(self) -> None:
        """As many as one turn of the loop may take; the rest in the next ones, so that nobody has to wait."""
        now, checks = self._context.now, self._checks
        for _ in range(min(len(checks), CHECKS_PER_TURN)):
            connection = checks.popleft()
            if connection not in self._connections:
                continue  # gone by what was done to another one
            if connection.reading_paused:
                connection.liveness.hold(now)
            else:
                self._check(connection, now)
            if connection.state is not State.CLOSED:
                self._enter(connection)
        self._turn = self._context.loop.call_soon(self._check_some) if checks else None

    def _look_at(self, connection: Connection[R], unread: Unread, now: float) -> None:
        """Does its peer take what it is owed?"""
        if not connection.in_arrears:
            del self._unread[connection]
            connection.resume_reading(Pause.UNREAD)
            return
        verdict = unread.look(connection.link.taken(), now - connection.heard < self._interval)
        if verdict is Verdict.STOP:
            text = "%r does not read: it is not read either"
            self._context.log.about(connection.remote, logging.INFO, text, connection)
            connection.pause_reading(Pause.UNREAD)
        elif verdict is Verdict.GO:
            connection.resume_reading(Pause.UNREAD)
        elif verdict is Verdict.CUT:
            self._bury(connection, f"it has not read for {self._patience * self._tick_length:g} s")

    def _take_due(self, now: float) -> None:
        last = int((now - self._start) / self._tick_length + EARLY)
        while self._tick_number < last:
            self._tick_number += 1
            self._checks += self._buckets.pop(self._tick_number, ())

    def _forgive(self, now: float, late: float) -> None:
        """Our loop stalled, or the machine slept: what has arrived since is still unread.

        A short stall does not count as silence; after a long one there is a fresh probe first.
        """
        if late <= self._interval * LONG_STALL:
            for connection in self._connections:
                connection.liveness.shift(late)
            return
        text = "stalled for %.1f s: probing all connections before judging any"
        self._context.log.line("this side", True, logging.INFO, text, late)
        for connection in self._connections:
            connection.liveness.wait_for_probe(now)
        number = self._number(now)
        self._connections = dict.fromkeys(self._connections, number)
        self._buckets = {number: dict.fromkeys(self._connections)}
        self._checks.clear()

    def _check(self, connection: Connection[R], now: float) -> None:
        progress, cap = connection.link.progress, self._context.config.progress_cap
        action = connection.liveness.check(now, connection.heard, progress, cap)
        counters = self._context.counters
        if action is Action.NONE:
            return
        if action is Action.PING:
            connection.probe()
        elif action is Action.SUSPECT:
            counters.suspects += 1
            text = "suspect: %r has not answered for %.1f s"
            self._context.log.about(connection.remote, logging.INFO, text, connection, self._interval)
            connection.set_state(State.SUSPECT)
            connection.probe()
        elif action is Action.RECOVERED:
            counters.recoveries += 1
            if connection.state is State.SUSPECT and not connection.stuck:
                connection.set_state(State.LIVE)
            self._context.log.about(connection.remote, logging.INFO, "recovered: %r", connection)
        elif action is Action.DEAD:
            self._bury(connection, f"no life for {3 * self._interval:g} s")

    def doubt(self, connection: Connection[R]) -> None:
        """Its link has probed in vain: suspect, before the clock says so."""
        connection.liveness.doubt(self._context.loop.time())
        self._context.counters.suspects += 1
        self._context.log.about(connection.remote, logging.INFO, "suspect: %r does not answer", connection)
        connection.set_state(State.SUSPECT)

    def trust(self, connection: Connection[R]) -> None:
        """Its link has had an answer."""
        connection.liveness.trust(self._context.loop.time())
        if connection.stuck:
            return
        self._context.counters.recoveries += 1
        connection.set_state(State.LIVE)
        self._context.log.about(connection.remote, logging.INFO, "recovered: %r", connection)

    def _bury(self, connection: Connection[R], why: str) -> None:
        self._context.log.about(connection.remote, logging.WARNING, "dead: %r, %s", connection, why)
        self._context.counters.evictions += 1
        connection.link.abort()
        connection.on_closed(End.lost(why))

    def _reassure(self, now: float) -> None:
        """Pongs that nobody asked for: to plain peers that are sending, and where we do not read."""
        for connection in self._plain:
            if now - connection.heard < self._pong_every + self._tick_length:
                connection.reassure()
        for connection in list(self._not_read):
            if connection.link.broken():
                connection.resume_reading()  # so that the loop sees the end of it
            else:
                connection.reassure()
