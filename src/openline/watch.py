"""Drives liveness (rule 3.2): one timer for all connections of a transport.

The verdicts are ``core/liveness.py``'s. This adds the clocks, carries the actions out, and keeps
peers satisfied that watch us.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable

from .connection import UNASKED, Connection, Hub, State
from .core.liveness import TICKS_PER_INTERVAL, Action

log = logging.getLogger("openline")

# No timer faster than this, however short max_idle_timeout is.
MIN_TICK = 0.02
# agentic-flow wants a pong every 5 s (1 s at the least) and cuts a link whose pong is stuck behind
# data; RFC 6455 section 5.5.3 allows pongs that nobody asked for, and it takes them as life.
PONG_EVERY = 0.5
# A stall of this part of an interval calls for a fresh probe.
LONG_STALL = 0.25


def _wall_clock() -> float:
    """A clock that goes on while the machine sleeps, which ``loop.time()`` does not on Linux."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


class Watch:
    """The liveness timer. ``connections`` is looked at anew on every tick."""

    def __init__(self, hub: Hub, connections: Iterable[Connection]) -> None:
        self._hub = hub
        self._connections = connections
        self._interval = hub.config.ping_interval
        self._tick_length = max(MIN_TICK, self._interval / TICKS_PER_INTERVAL)
        self._due = self._wall_due = self._pong_due = 0.0
        self._schedule()

    def _schedule(self) -> None:
        self._due = self._hub.loop.time() + self._tick_length
        self._wall_due = _wall_clock() + self._tick_length
        self._timer = self._hub.loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._hub.loop.time()
        late = max(now - self._due, _wall_clock() - self._wall_due)
        if late > self._interval:
            log.info("stalled for %.1f s: probing all connections before judging any", late)
        pongs = now >= self._pong_due
        if pongs:
            self._pong_due = now + PONG_EVERY
        for connection in list(self._connections):
            if late > self._tick_length:
                self._forgive(connection, now, late)
            if connection.reading_paused:
                self._while_paused(connection, now, pongs)
            else:
                self._check(connection, now, pongs)
        self._schedule()

    def _forgive(self, connection: Connection, now: float, late: float) -> None:
        """Our loop stalled, or the machine slept: what has arrived since is still unread.

        A short stall does not count as silence; after a long one there is a fresh probe first.
        """
        if late > self._interval * LONG_STALL:
            connection.liveness.wait_for_probe(now)
        else:
            connection.liveness.shift(late)

    def _check(self, connection: Connection, now: float, pongs: bool) -> None:
        heard = connection.rx != connection.rx_mark
        liveness = connection.liveness
        action = liveness.check(now, connection.rx, connection.link.progress, self._hub.config.progress_cap)
        connection.rx_mark, connection.tx_mark = connection.rx, connection.tx
        if heard:
            connection.tx_life = connection.tx
            if pongs and connection.plain:
                connection.link.pong(UNASKED)
        if action is not Action.NONE:
            self._act(connection, action)

    def _act(self, connection: Connection, action: Action) -> None:
        counters = self._hub.counters
        if action is Action.PING:
            connection.probe()
        elif action is Action.SUSPECT:
            counters.suspects += 1
            log.info("suspect: %r has not answered for %.1f s", connection, self._interval)
            connection.set_state(State.SUSPECT)
            connection.probe()
        elif action is Action.RECOVERED:
            counters.recoveries += 1
            if connection.state is State.SUSPECT:
                connection.set_state(State.LIVE)
            log.info("recovered: %r", connection)
        elif action is Action.DEAD:
            log.warning("dead: %r, no life for %.1f s", connection, 3 * self._interval)
            counters.evictions += 1
            connection.link.abort()
            connection.on_closed(f"no life for {3 * self._interval:g} s")

    def _while_paused(self, connection: Connection, now: float, pongs: bool) -> None:
        """We are not reading (backpressure): tell the peer we live, and judge it later."""
        connection.liveness.hold(now)
        if connection.link.broken():
            connection.resume_reading()  # so that the loop sees the end of it
        elif pongs:
            connection.link.pong(UNASKED)
