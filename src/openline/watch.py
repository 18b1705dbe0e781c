"""Drives liveness (rule 3.2): one timer for all connections of a transport.

The verdicts are ``core/liveness.py``'s. This adds the clocks, carries the actions out, and keeps
peers satisfied that watch us.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from .connection import UNASKED, Connection, State
from .core.liveness import TICKS_PER_INTERVAL, Action
from .outlet import Hub
from .ratelog import process_log

log = logging.getLogger("openline")

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
        self._connections: dict[Connection, None] = {}
        self._plain: dict[Connection, None] = {}
        # What is due in which tick, counted from the start.
        self._buckets: dict[int, list[Connection]] = {}
        self._start = hub.loop.time()
        self._tick_number = 0
        self._pong_every = min(PONG_EVERY, self._interval / 2)
        self._pong_due = 0.0
        self._schedule()

    def add(self, connection: Connection) -> None:
        self._connections[connection] = None
        if connection.plain:
            self._plain[connection] = None
        self._enter(connection)

    def remove(self, connection: Connection) -> None:
        """It leaves its bucket when that comes up."""
        self._connections.pop(connection, None)
        self._plain.pop(connection, None)
        self._hub.paused.pop(connection, None)

    def stop(self) -> None:
        self._timer.cancel()

    def _enter(self, connection: Connection) -> None:
        self._buckets.setdefault(self._number(connection.liveness.due), []).append(connection)

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
            if connection.reading_paused:
                connection.liveness.hold(now)
            else:
                self._check(connection, now)
            if connection.state is not State.CLOSED:
                self._enter(connection)
        if now >= self._pong_due:
            self._pong_due = now + self._pong_every
            self._reassure(now)
        self._on_tick(now, wall)
        self._hub.log.tick(now)
        process_log.tick(time.monotonic())
        self._schedule()

    def _take_due(self, now: float) -> list[Connection]:
        due: list[Connection] = []
        last = int((now - self._start) / self._tick_length)
        while self._tick_number < last:
            self._tick_number += 1
            due += self._buckets.pop(self._tick_number, ())
        return [connection for connection in due if connection in self._connections]

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
        self._buckets = {self._number(now): list(self._connections)}

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
            self._bury(connection)

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

    def _bury(self, connection: Connection) -> None:
        text = "dead: %r, no life for %.1f s"
        self._hub.log.about(connection.peer, logging.WARNING, text, connection, 3 * self._interval)
        self._hub.counters.evictions += 1
        connection.link.abort()
        connection.on_closed(f"no life for {3 * self._interval:g} s")

    def _reassure(self, now: float) -> None:
        """Pongs that nobody asked for: to plain peers that are sending, and where we do not read."""
        for connection in self._plain:
            if now - connection.heard < self._pong_every + self._tick_length:
                connection.link.pong(UNASKED)
        for connection in list(self._hub.paused):
            if connection.link.broken():
                connection.resume_reading()  # so that the loop sees the end of it
            else:
                connection.link.pong(UNASKED)
