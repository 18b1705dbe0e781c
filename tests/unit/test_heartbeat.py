"""The clock of liveness (rule 3.2): ticks, and passes over many connections, with virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from openline.connection.heartbeat import CHECKS_PER_TURN, Heartbeat
from openline.core.lifecycle import State
from openline.core.liveness import TICKS_PER_INTERVAL, Liveness

INTERVAL = 10.0
TICK = INTERVAL / TICKS_PER_INTERVAL


class Loop:
    """Turns and timers; ``late`` is by how much each timer is late."""

    def __init__(self) -> None:
        self.now, self.late = 1000.0, 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._soon: list[Callable[[], None]] = []
        self._numbers = itertools.count()
        self.turns = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        heapq.heappush(self._timers, (when, next(self._numbers), callback))
        return SimpleNamespace(cancel=self._timers.clear)

    def call_soon(self, callback: Callable[[], None]) -> Any:
        self._soon.append(callback)
        return SimpleNamespace(cancel=self._soon.clear)

    def run(self, until: float) -> None:
        while self._soon or (self._timers and self._timers[0][0] + self.late <= until):
            if self._soon:
                soon, self._soon = self._soon, []
                self.turns += 1
                for callback in soon:
                    callback()
            else:
                when, _, callback = heapq.heappop(self._timers)
                self.now = max(self.now, when + self.late)
                callback()


class Peer:
    """As much of a connection as the clock sees; it answers pings unless it is ``silent``."""

    plain = reading_paused = in_arrears = stuck = False
    state = State.LIVE
    remote = None

    def __init__(self, context: Any, **role: bool) -> None:
        self.context, self.heard, self.silent = context, context.now, False
        self.liveness = Liveness(INTERVAL, context.now, **role)
        self.link = SimpleNamespace(progress=lambda: None, abort=lambda: None)
        self.pings: list[float] = []

    def probe(self) -> None:
        self.pings.append(self.context.loop.turns)
        if not self.silent:
            self.heard = self.context.now

    def set_state(self, state: State) -> None:
        self.state = state

    def on_closed(self, end: object) -> None:
        self.state = State.CLOSED


class Bench:
    """A clock, its loop, and what they share."""

    def __init__(self) -> None:
        self.loop = Loop()
        quiet = SimpleNamespace(about=lambda *_: None, line=lambda *_: None, tick=lambda _: None)
        self.context: Any = SimpleNamespace(
            loop=self.loop,
            now=self.loop.now,
            advance=self._advance,
            config=SimpleNamespace(ping_interval=INTERVAL, progress_cap=300.0),
            counters=SimpleNamespace(suspects=0, evictions=0, recoveries=0),
            log=quiet,
        )
        self.ticks: list[float] = []
        self.heartbeat: Any = Heartbeat(self.context, self.loop.time, lambda now, _: self.ticks.append(now))

    def _advance(self) -> float:
        self.context.now = self.loop.now
        return self.loop.now

    def peers(self, number: int, **role: bool) -> list[Peer]:
        found = [Peer(self.context, **role) for _ in range(number)]
        for peer in found:
            self.heartbeat.add(peer)
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_ticks_are_a_clock_that_does_not_carry_lateness_on(bench: Bench) -> None:
    bench.loop.late = 0.3 * TICK
    bench.loop.run(1000.0 + 100.5 * TICK)
    assert len(bench.ticks) == 100
    for number, at in enumerate(bench.ticks, 1):
        assert at == pytest.approx(1000.0 + (number + 0.3) * TICK)


def test_after_a_stall_the_clock_is_where_it_would_have_been(bench: Bench) -> None:
    bench.loop.run(1000.0 + 2.5 * TICK)
    bench.loop.now += 3.2 * TICK
    bench.loop.run(1000.0 + 8.5 * TICK)
    assert [round((at - 1000.0) / TICK, 1) for at in bench.ticks] == [1, 2, 5.2, 6, 7, 8]


def test_ten_thousand_that_are_due_at_once_take_many_turns_of_the_loop(bench: Bench) -> None:
    peers = bench.peers(10_000, accepted=True, openline=True)
    bench.loop.run(1000.0 + INTERVAL)
    assert all(len(peer.pings) == 1 for peer in peers)
    turns = [peer.pings[0] for peer in peers]
    assert max(map(turns.count, set(turns))) == CHECKS_PER_TURN
    bench.loop.run(1000.0 + 10 * INTERVAL)
    assert all(10 <= len(peer.pings) <= 11 for peer in peers)
    assert bench.context.counters.suspects == 0


@pytest.mark.parametrize("role", [{"accepted": True}, {"openline": True}, {}])
def test_the_silent_are_found_in_time_by_a_clock_that_is_late(bench: Bench, role: dict[str, bool]) -> None:
    bench.loop.late = 0.4 * TICK
    [peer] = bench.peers(1, **role)
    peer.silent = True
    bench.loop.run(1000.0 + 2 * INTERVAL)
    assert peer.state is State.SUSPECT
    bench.loop.run(1000.0 + 3 * INTERVAL)
    assert peer.state is State.CLOSED


def test_a_long_stall_calls_for_a_probe_of_all_and_no_verdict(bench: Bench) -> None:
    peers = bench.peers(1000, accepted=True)
    bench.loop.run(1000.0 + 1.5 * TICK)
    bench.loop.now += 4 * INTERVAL
    bench.loop.run(bench.loop.now + 3 * TICK)
    assert {len(peer.pings) for peer in peers} == {1}
    assert (bench.context.counters.suspects, bench.context.counters.evictions) == (0, 0)


def test_who_is_gone_in_the_middle_of_a_pass_is_not_checked(bench: Bench) -> None:
    first, *rest = bench.peers(2 * CHECKS_PER_TURN, accepted=True)
    probe = first.probe

    def end_all() -> None:
        probe()
        for peer in rest:
            bench.heartbeat.remove(peer)

    first.probe = end_all  # type: ignore[method-assign]
    bench.loop.run(1000.0 + INTERVAL)
    assert len(first.pings) == 1
    assert not any(peer.pings for peer in rest)
