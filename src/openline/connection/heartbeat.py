"""Drives liveness (rule 3.2): one timer for all connections of a transport.

The verdicts are ``core/liveness.py``'s. This adds the clocks, carries the actions out, and keeps
peers satisfied that watch us.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from ..backends.base import End
from ..core.liveness import TICKS_PER_INTERVAL, Action
from ..core.unread import Unread, Verdict
from ..runtime.ratelog import process_log
from .connection import Connection, Pause, State
from .writer import Hub

# No timer faster than this, however short max_idle_timeout is.
MIN_TICK = 0.02
# agentic-flow wants a pong every 5 s (1 s at the least) and cuts a link whose pong is stuck behind
# data; RFC 6455 section 5.5.3 allows pongs that nobody asked for, and it takes them as life.
PONG_EVERY = 0.5
# A stall of this part of an interval calls for a fresh probe.
LONG_STALL = 0.25


class Watch:
    """The liveness timer. Each connection is looked at when its next check is due, not on every tick."""

    def __init__(
        self, hub: Hub, wall_clock: Callable[[], float], on_tick: Callable[[float, float], None]
    ) -> None:
        """``wall_clock`` goes on while the machine sleeps; ``on_tick(now, wall)`` is called on every tick."""
        self._hub = hub
        self._wall_clock = wall_clock
        self._on_tick = on_tick
        self._interval = hub.config.ping_interval
        self._tick_length = max(MIN_TICK, self._interval / TICKS_PER_INTERVAL)
        # Each with the tick in which it is due.
        self._connections: dict[Connection, int] = {}
        self._plain: dict[Connection, None] = {}
        # What is due in which tick, counted from the start.
        self._buckets: dict[int, dict[Connection, None]] = {}
        self._start = hub.loop.time()
        self._tick_number = 0
        self._pong_every = min(PONG_EVERY, self._interval / 2)
        self._pong_due = 0.0
        # Connections that are owed something which cannot be written.
        self._unread: dict[Connection, Unread] = {}
        self._patience = max(1, int(hub.config.progress_cap / self._tick_length))
        self._schedule()

    def add(self, connection: Connection) -> None:
        if connection.plain:
            self._plain[connection] = None
        self._enter(connection)

    def remove(self, connection: Connection) -> None:
        number = self._connections.pop(connection, None)
        if number in self._buckets:
            self._buckets[number].pop(connection, None)
        self._plain.pop(connection, None)
        self._unread.pop(connection, None)
        self._hub.paused.pop(connection, None)

    def owes(self, connection: Connection) -> None:
        """What it is owed waits until its peer reads."""
        if connection not in self._unread and connection in self._connections:
            self._unread[connection] = Unread(TICKS_PER_INTERVAL, self._patience)

    def stop(self) -> None:
        self._timer.cancel()

    def _enter(self, connection: Connection) -> None:
        number = self._connections[connection] = self._number(connection.liveness.due)
        self._buckets.setdefault(number, {})[connection] = None

    def _number(self, due: float) -> int:
        """The tick in which something is due; the next one where that has passed."""
        return max(math.ceil((due - self._start) / self._tick_length), self._tick_number + 1)

    def _schedule(self) -> None:
        self._due = self._hub.loop.time() + self._tick_length
        self._wall_due = self._wall_clock() + self._tick_length
        self._timer = self._hub.loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._hub.now = self._hub.loop.time()
        wall = self._wall_clock()
        late = max(now - self._due, wall - self._wall_due)
        if late > self._tick_length:
            self._forgive(now, late)
        for connection in self._take_due(now):
            if connection not in self._connections:
                continue  # gone by what was done to another one in this tick
            if connection.reading_paused:
                connection.liveness.hold(now)
            else:
                self._check(connection, now)
            if connection.state is not State.CLOSED:
                self._enter(connection)
        for connection, unread in list(self._unread.items()):
            self._look_at(connection, unread, now)
        if now >= self._pong_due:
            self._pong_due = now + self._pong_every
            self._reassure(now)
        self._on_tick(now, wall)
        self._hub.log.tick(now)
        process_log.tick(time.monotonic())
        self._schedule()

    def _look_at(self, connection: Connection, unread: Unread, now: float) -> None:
        """Does its peer take what it is owed?"""
        if not connection.in_arrears:
            del self._unread[connection]
            connection.resume_reading(Pause.UNREAD)
            return
        verdict = unread.look(connection.link.taken(), now - connection.heard < self._interval)
        if verdict is Verdict.STOP:
            text = "%r does not read: it is not read either"
            self._hub.log.about(connection.peer, logging.INFO, text, connection)
            connection.pause_reading(Pause.UNREAD)
        elif verdict is Verdict.GO:
            connection.resume_reading(Pause.UNREAD)
        elif verdict is Verdict.CUT:
            self._bury(connection, f"it has not read for {self._patience * self._tick_length:g} s")

    def _take_due(self, now: float) -> list[Connection]:
        due: list[Connection] = []
        last = int((now - self._start) / self._tick_length)
        while self._tick_number < last:
            self._tick_number += 1
            due += self._buckets.pop(self._tick_number, ())
        return due

    def _forgive(self, now: float, late: float) -> None:
        """Our loop stalled, or the machine slept: what has arrived since is still unread.

        A short stall does not count as silence; after a long one there is a fresh probe first.
        """
        if late <= self._interval * LONG_STALL:
            for connection in self._connections:
                connection.liveness.shift(late)
            return
        text = "stalled for %.1f s: probing all connections before judging any"
        self._hub.log.line("this side", True, logging.INFO, text, late)
        for connection in self._connections:
            connection.liveness.wait_for_probe(now)
        number = self._number(now)
        self._connections = dict.fromkeys(self._connections, number)
        self._buckets = {number: dict.fromkeys(self._connections)}

    def _check(self, connection: Connection, now: float) -> None:
        progress, cap = connection.link.progress, self._hub.config.progress_cap
        action = connection.liveness.check(now, connection.heard, progress, cap)
        counters = self._hub.counters
        if action is Action.PING:
            connection.probe()
        elif action is Action.SUSPECT:
            counters.suspects += 1
            text = "suspect: %r has not answered for %.1f s"
            self._hub.log.about(connection.peer, logging.INFO, text, connection, self._interval)
            connection.set_state(State.SUSPECT)
            connection.probe()
        elif action is Action.RECOVERED:
            counters.recoveries += 1
            if connection.state is State.SUSPECT and not connection.stuck:
                connection.set_state(State.LIVE)
            self._hub.log.about(connection.peer, logging.INFO, "recovered: %r", connection)
        elif action is Action.DEAD:
            self._bury(connection, f"no life for {3 * self._interval:g} s")

    def doubt(self, connection: Connection) -> None:
        """Its link has probed in vain: suspect, before the clock says so."""
        connection.liveness.doubt(self._hub.loop.time())
        self._hub.counters.suspects += 1
        self._hub.log.about(connection.peer, logging.INFO, "suspect: %r does not answer", connection)
        connection.set_state(State.SUSPECT)

    def trust(self, connection: Connection) -> None:
        """Its link has had an answer."""
        connection.liveness.trust(self._hub.loop.time())
        if connection.stuck:
            return
        self._hub.counters.recoveries += 1
        connection.set_state(State.LIVE)
        self._hub.log.about(connection.peer, logging.INFO, "recovered: %r", connection)

    def _bury(self, connection: Connection, why: str) -> None:
        self._hub.log.about(connection.peer, logging.WARNING, "dead: %r, %s", connection, why)
        self._hub.counters.evictions += 1
        connection.link.abort()
        connection.on_closed(End.lost(why))

    def _reassure(self, now: float) -> None:
        """Pongs that nobody asked for: to plain peers that are sending, and where we do not read."""
        for connection in self._plain:
            if now - connection.heard < self._pong_every + self._tick_length:
                connection.reassure()
        for connection in list(self._hub.paused):
            if connection.link.broken():
                connection.resume_reading()  # so that the loop sees the end of it
            else:
                connection.reassure()
