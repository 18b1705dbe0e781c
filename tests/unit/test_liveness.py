"""Rule 3.2 on timelines with virtual time, and an interval of 10 s."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.core.liveness import TICKS_PER_INTERVAL, Action, Liveness, Progress

INTERVAL = 10.0
TICK = INTERVAL / TICKS_PER_INTERVAL
NO_CAP = 1e9
PING, SUSPECT, RECOVERED, DEAD = Action.PING, Action.SUSPECT, Action.RECOVERED, Action.DEAD

Kernel = Callable[[float], Progress | None]
Happened = list[tuple[float, Action]]


def quiet(_: float) -> Progress | None:
    """Nothing moves, and nothing waits."""
    return Progress(acked=1000, received=1000, pending=0)


class Line:
    """One connection under watch. Units are known to the tick in which they came, as in the watch."""

    def __init__(
        self,
        kernel: Kernel = quiet,
        cap: float = NO_CAP,
        *,
        accepted: bool = False,
        openline: bool = False,
    ) -> None:
        self.liveness = Liveness(INTERVAL, 0.0, accepted=accepted, openline=openline)
        self.kernel, self.cap = kernel, cap
        self.now, self.heard = 0.0, 0.0
        self.looks = 0
        self.happened: Happened = []

    def unit(self, at: float) -> None:
        """Something arrives, after the tick before it and ahead of the next."""
        self.to(math.floor(at / TICK) * TICK)
        self.heard = self.now

    def to(self, until: float) -> Happened:
        """Tick on, until death at most; returns all that has happened so far."""
        while self.now + TICK <= until and DEAD not in self.actions[-1:]:
            self.tick(self.now + TICK)
        return self.happened

    def tick(self, now: float) -> Action:
        self.now = now
        action = self.liveness.check(now, self.heard, self._look, self.cap)
        if action is not Action.NONE:
            self.happened.append((now, action))
        return action

    def _look(self) -> Progress | None:
        self.looks += 1
        return self.kernel(self.now)

    @property
    def actions(self) -> list[Action]:
        return [action for _, action in self.happened]

    def when(self, action: Action) -> float:
        """The first time of ``action``; never is infinity."""
        return next((at for at, what in self.happened if what is action), math.inf)


# Silence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0.0, 0.1, 7.0, 7.5, 7.999])
@pytest.mark.parametrize("openline", [True, False])
@pytest.mark.parametrize("accepted", [True, False])
def test_suspect_within_two_and_dead_within_three_intervals(
    last: float, accepted: bool, openline: bool
) -> None:
    line = Line(accepted=accepted, openline=openline)
    if last:
        line.unit(last)
    line.to(last + 4 * INTERVAL)
    assert line.actions == [PING, SUSPECT, DEAD]
    assert 0.7 * INTERVAL <= line.when(PING) - last <= 1.1 * INTERVAL
    assert 1.6 * INTERVAL <= line.when(SUSPECT) - last <= 2 * INTERVAL
    assert 2.7 * INTERVAL <= line.when(DEAD) - last <= 3 * INTERVAL


def test_one_ping_before_and_none_after_the_suspicion_that_repeats_it() -> None:
    """``SUSPECT`` means one more ping; there is never a second one out on top of that."""
    line = Line()
    line.to(2.8 * INTERVAL)
    assert line.actions == [PING, SUSPECT]


def test_without_the_kernels_counters_the_verdicts_are_the_same() -> None:
    with_them, without = Line(), Line(lambda _: None)
    assert with_them.to(40.0) == without.to(40.0)


# Life ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.1, 1.0, 5.0, 7.9])
def test_any_unit_is_life_and_a_busy_line_is_not_pinged(gap: float) -> None:
    line = Line()
    for number in range(1, int(200 / gap)):
        line.unit(number * gap)
    assert line.happened == []
    assert line.looks == 0


@pytest.mark.parametrize("rtt", [0.01, 0.5, 1.5, 8.0])
def test_a_peer_that_answers_is_pinged_once_per_interval_and_never_suspected(rtt: float) -> None:
    line = Line()
    while line.now < 200.0:
        if line.tick(line.now + TICK) is PING:
            line.unit(line.now + rtt)
    assert set(line.actions) == {PING}
    assert 200 / (INTERVAL + rtt) - 1 <= len(line.actions) <= 200 / (0.7 * INTERVAL)
    if rtt < TICK:
        assert line.looks <= len(line.actions)


def idle_pair(dialed: Line, accepted: Line, until: float) -> None:
    """Both tick, the one that accepted first; a ping is life to the other, and its answer to the first."""
    while dialed.now < until:
        for line, other in ((accepted, dialed), (dialed, accepted)):
            if line.tick(line.now + TICK) is PING:
                other.heard, line.heard = other.now, line.now


@pytest.mark.parametrize("openline", [True, False])
def test_an_idle_link_carries_one_ping_in_an_interval(openline: bool) -> None:
    """Between openline peers the side that accepted pings, else the one that dialed."""
    dialed, accepted = Line(openline=openline), Line(accepted=True, openline=openline)
    idle_pair(dialed, accepted, 20 * INTERVAL)
    asks, waits = (accepted, dialed) if openline else (dialed, accepted)
    assert waits.actions == ([PING] if openline else [])
    assert 19 <= len(asks.actions) <= 22
    assert set(asks.actions) == {PING}


@given(
    st.floats(0.0, 0.99),
    st.floats(0.0, 0.3),
    st.lists(st.floats(0.0, 0.3), min_size=2, max_size=20),
)
def test_an_idle_pair_whose_answers_come_within_a_tick_carries_exactly_one_ping_in_an_interval(
    phase: float, way: float, lateness: list[float]
) -> None:
    """Each side ticks at times of its own, a little late; all in ticks, and a way is ``way`` of one."""
    dialed, accepted = Line(openline=True), Line(accepted=True, openline=True)
    ticks = [(1.0, 0), (1.0 + phase, 1)]  # when, and whose
    arrivals: list[tuple[float, int, bool]] = []  # when, at whom, and is it a ping?
    lines = dialed, accepted
    for number in range(2 * 20 * TICKS_PER_INTERVAL):
        due, whose = heapq.heappop(ticks)
        heapq.heappush(ticks, (due + 1, whose))
        now = due + lateness[number % len(lateness)]
        while arrivals and arrivals[0][0] < now:
            at, who, is_ping = heapq.heappop(arrivals)
            lines[who].heard = lines[who].now
            if is_ping:
                heapq.heappush(arrivals, (at + way, 1 - who, False))
        if lines[whose].tick(now * TICK) is PING:
            heapq.heappush(arrivals, (now + way, 1 - whose, True))
    assert dialed.actions == [PING]
    assert set(accepted.actions) == {PING}
    assert 19 <= len(accepted.actions) <= 21


@pytest.mark.parametrize("openline", [True, False])
def test_who_dialed_pings_first_to_learn_the_round_trip(openline: bool) -> None:
    dialed, accepted = Line(openline=openline), Line(accepted=True, openline=openline)
    dialed.to(INTERVAL)
    accepted.to(INTERVAL)
    assert dialed.when(PING) < accepted.when(PING) < INTERVAL


def test_who_waits_for_pings_asks_soon_when_none_come() -> None:
    """The other side may be an older one, that has no reason to ask."""
    line = Line(openline=True)
    line.to(0.9 * INTERVAL)
    line.unit(line.now)
    line.happened.clear()
    line.to(line.heard + 3 * INTERVAL)
    assert line.actions == [PING, SUSPECT, DEAD]
    assert INTERVAL < line.when(PING) - line.heard <= 1.05 * INTERVAL
    assert line.when(SUSPECT) - line.heard <= 2 * INTERVAL - TICK
    assert line.when(DEAD) - line.heard <= 3 * INTERVAL - TICK


@pytest.mark.parametrize("openline", [True, False])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_tick_that_is_late_by_less_than_half_is_the_same_tick(accepted: bool, openline: bool) -> None:
    late = Line(accepted=accepted, openline=openline)
    for number in range(1, 80):
        late.tick(number * TICK + 0.4 * TICK * (number % 2))
        if DEAD in late.actions:
            break
    assert late.when(SUSPECT) <= 2 * INTERVAL
    assert late.when(DEAD) <= 3 * INTERVAL


@pytest.mark.parametrize("accepted", [True, False])
def test_an_answer_in_time_spares_the_kernel(accepted: bool) -> None:
    """Its counters are a system call for each ping otherwise."""
    line = Line(accepted=accepted, openline=True)
    while line.actions.count(PING) < 1:
        line.tick(line.now + TICK)
    line.heard = line.now
    line.tick(line.now + TICK)
    assert line.looks == 0


def test_a_ping_in_the_queue_alone_is_not_data_in_front_of_itself() -> None:
    """Its own acknowledgement shows a kernel and no program, also where it comes after the first look."""
    line = Line(lambda now: Progress(1000, 0, pending=11) if now < 10.0 else Progress(1011, 0, pending=0))
    line.to(3 * INTERVAL)
    assert line.actions == [PING, SUSPECT, DEAD]
    assert line.when(SUSPECT) <= 2 * INTERVAL


def test_a_late_answer_ends_the_suspicion_and_all_begins_anew() -> None:
    line = Line()
    line.unit(24.5)
    line.to(80.0)
    assert line.actions == [PING, SUSPECT, RECOVERED, PING, SUSPECT, DEAD]
    assert line.when(RECOVERED) == 25.0
    second = [at for at, action in line.happened if action is SUSPECT][1]
    assert 1.6 * INTERVAL <= second - 24.5 <= 2 * INTERVAL
    assert 2.7 * INTERVAL <= line.when(DEAD) - 24.5 <= 3 * INTERVAL


def test_the_last_moment_to_recover_is_just_before_the_dead_line() -> None:
    line = Line()
    line.unit(27.0)
    line.to(29.0)
    assert line.actions == [PING, SUSPECT, RECOVERED]
    assert not line.liveness.suspect


@given(st.lists(st.floats(0.01, 60.0), max_size=12))
def test_deadlines_hold_from_the_last_unit_on_whatever_came_before(gaps: list[float]) -> None:
    """Anything may come at any time; a death is not early, and never late."""
    line, last = Line(), 0.0
    for gap in gaps:
        line.to(last + gap)
        if DEAD in line.actions:
            break
        last += gap
        line.unit(last)
    line.to(last + 5 * INTERVAL)
    assert 2.7 * INTERVAL <= line.when(DEAD) - last <= 3 * INTERVAL
    early = [at for at, action in line.happened if action is SUSPECT and at > last + TICK]
    assert last + 1.6 * INTERVAL <= early[0] <= last + 2 * INTERVAL


@given(st.lists(st.floats(0.01, 60.0), max_size=12))
def test_never_two_pings_without_life_or_a_verdict_between(gaps: list[float]) -> None:
    line, at = Line(), 0.0
    for gap in gaps:
        at += gap
        line.unit(at)
        line.happened.append((at, Action.NONE))
    line.to(at + 50.0)
    for (_, one), (_, other) in zip(line.happened, line.happened[1:], strict=False):
        assert (one, other) != (PING, PING)


# Bytes that move ----------------------------------------------------------------------------------


def steps(at: float, every: float = TICK, size: int = 100) -> int:
    return int(at / every) * size


def arriving(now: float) -> Progress:
    return Progress(acked=0, received=steps(now), pending=0)


def leaving(now: float) -> Progress:
    """Our own data is in front of the ping, and the peer takes it slowly."""
    return Progress(acked=steps(now), received=0, pending=10**9)


@pytest.mark.parametrize("kernel", [arriving, leaving])
def test_bytes_that_move_either_way_are_life(kernel: Kernel) -> None:
    line = Line(kernel)
    line.to(100 * INTERVAL)
    assert line.actions == [PING]


@pytest.mark.parametrize("every", [1.0, 2.0, 5.0, 8.0])
def test_they_need_not_move_often(every: float) -> None:
    line = Line(lambda now: Progress(acked=0, received=steps(now, every), pending=0))
    line.to(100 * INTERVAL)
    assert DEAD not in line.actions


@pytest.mark.parametrize("kernel", [arriving, leaving])
def test_but_only_within_a_cap_counted_from_the_last_unit(kernel: Kernel) -> None:
    line = Line(kernel, cap=60.0)
    line.unit(20.0)
    line.to(20.0 + 60.0 + 4 * INTERVAL)
    assert line.actions[-2:] == [SUSPECT, DEAD]
    assert 80.0 <= line.when(SUSPECT) <= 80.0 + INTERVAL
    assert 80.0 <= line.when(DEAD) <= 80.0 + 3 * INTERVAL


def test_a_ping_stuck_behind_our_own_data_proves_nothing_until_that_stops_moving() -> None:
    stuck_at = 50.0
    line = Line(lambda now: leaving(min(now, stuck_at)))
    line.to(stuck_at + 4 * INTERVAL)
    assert line.actions == [PING, SUSPECT, DEAD]
    assert stuck_at + INTERVAL / 2 <= line.when(SUSPECT) <= stuck_at + 2 * INTERVAL
    assert stuck_at + 2 * INTERVAL <= line.when(DEAD)


def test_an_acknowledgement_that_leaps_over_the_ping_is_life_too() -> None:
    """After an outage all that waited is taken at once, the ping with it."""
    healed = 28.0

    def kernel(now: float) -> Progress:
        return Progress(0, 0, pending=100_000) if now < healed else Progress(100_030, 0, pending=0)

    line = Line(kernel)
    line.to(healed + INTERVAL)
    assert line.actions == [PING, SUSPECT]


def test_a_frozen_process_is_suspected_although_its_kernel_acknowledges_the_ping() -> None:
    line = Line(lambda now: Progress(acked=1000 if now < 10.0 else 1006, received=0, pending=0))
    line.to(40.0)
    assert line.actions == [PING, SUSPECT, DEAD]
    assert line.when(SUSPECT) <= 2 * INTERVAL
    assert line.when(DEAD) <= 3 * INTERVAL


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 3.0, 5.0, 8.0])
def test_dead_within_three_intervals_of_the_last_byte_also_under_load(offset: float) -> None:
    """The link is cut at some moment while our data is in front of the ping."""
    cut = 12.0 + offset
    for kernel in (leaving, arriving):
        line = Line(lambda now, kernel=kernel: kernel(min(now, cut)))
        line.to(cut + 5 * INTERVAL)
        assert line.when(SUSPECT) - cut <= 2 * INTERVAL + TICK
        assert line.when(DEAD) - cut <= 3 * INTERVAL + TICK


@pytest.mark.parametrize("pending", [1_000, 1_000_000])
def test_a_slow_reader_with_large_buffers_is_not_dead_while_it_takes_bytes(pending: int) -> None:
    """Its kernel has the ping, behind data that its program has yet to read; ours goes on leaving.

    "A saturated link is never declared dead": the acknowledgements are for bytes after the ping.
    """
    line = Line(lambda now: Progress(acked=steps(now), received=0, pending=pending))
    line.to(20 * INTERVAL)
    assert DEAD not in line.actions


def test_the_counters_are_read_only_where_they_matter() -> None:
    """Reading them is a system call: not for a connection that hears from its peer."""
    line = Line()
    for at in range(5, 1000, 5):
        line.unit(at)
    assert line.looks == 0


# The clock cannot be trusted ----------------------------------------------------------------------


def test_a_short_stall_of_our_own_does_not_count_as_silence() -> None:
    stalled, plain = Line(), Line()
    plain.to(40.0)
    stalled.to(5.0)
    stalled.now += 2.5
    stalled.liveness.shift(2.5)
    stalled.to(42.5)
    assert stalled.actions == plain.actions == [PING, SUSPECT, DEAD]
    for action in (PING, SUSPECT, DEAD):
        assert 2.5 - TICK <= stalled.when(action) - plain.when(action) <= 2.5 + TICK


def test_a_stall_while_a_ping_is_out_gives_the_answer_as_much_more_time() -> None:
    line, plain = Line(), Line()
    plain.to(40.0)
    line.to(plain.when(PING) + 1.0)
    line.now += 2.0
    line.liveness.shift(2.0)
    line.to(45.0)
    assert line.when(SUSPECT) - plain.when(SUSPECT) == 2.0
    assert line.when(DEAD) - plain.when(DEAD) == 2.0


@pytest.mark.parametrize("before", [1.0, 9.0, 12.0, 18.0, 19.0, 25.0, 28.0])
@pytest.mark.parametrize("asleep", [5.0, 100.0, 1e6])
def test_after_a_long_stall_there_is_a_fresh_probe_before_any_verdict(before: float, asleep: float) -> None:
    line = Line()
    line.to(before)
    suspect = line.liveness.suspect
    line.happened.clear()
    woke = before + asleep
    line.liveness.wait_for_probe(woke)
    assert line.liveness.due <= woke
    assert line.tick(woke) is PING
    line.to(woke + 0.8 * INTERVAL)
    assert line.actions == [PING]
    line.to(woke + 4 * INTERVAL)
    assert line.actions == ([PING, DEAD] if suspect else [PING, SUSPECT, DEAD])
    assert line.when(DEAD) - woke >= 1.5 * INTERVAL
    assert line.when(DEAD) - woke <= 3 * INTERVAL


def test_the_answer_to_that_probe_settles_it() -> None:
    line = Line()
    line.to(25.0)
    assert line.liveness.suspect
    line.liveness.wait_for_probe(1000.0)
    line.tick(1000.0)
    line.unit(1000.5)
    line.to(1005.0)
    assert line.actions == [PING, SUSPECT, PING, RECOVERED]


@given(st.floats(0.02, 3600.0), st.floats(0.0, 1e9), st.booleans(), st.booleans())
def test_the_probe_leaves_at_once_whatever_the_clock_shows(
    interval: float, now: float, accepted: bool, openline: bool
) -> None:
    liveness = Liveness(interval, 0.0, accepted=accepted, openline=openline)
    liveness.wait_for_probe(now)
    assert liveness.check(now, 0.0, lambda: None, NO_CAP) is PING


@pytest.mark.parametrize("since", [3.0, 9.5, 20.0, 28.0])
def test_while_we_do_not_read_silence_means_nothing(since: float) -> None:
    line = Line()
    line.to(since)
    before = list(line.happened)
    for _ in range(100):
        line.now += TICK
        line.liveness.hold(line.now)
    released = line.now
    line.to(released + 0.7 * INTERVAL)
    assert line.happened == before
    line.to(released + 4 * INTERVAL)
    after = line.happened[len(before) :]
    assert after[0][1] is PING
    assert 2.7 * INTERVAL <= next(at for at, a in after if a is DEAD) - released <= 3 * INTERVAL


# When to look -------------------------------------------------------------------------------------


class Lazy(Line):
    """Looks only from ``due`` on."""

    def tick(self, now: float) -> Action:
        if now >= self.liveness.due:
            return super().tick(now)
        self.now = now
        return Action.NONE


@given(
    st.lists(st.floats(0.01, 40.0), max_size=10),
    st.sampled_from([quiet, arriving, leaving]),
    st.sampled_from([NO_CAP, 25.0]),
)
def test_looking_only_when_a_check_is_due_finds_the_same(
    gaps: Sequence[float], kernel: Kernel, cap: float
) -> None:
    eager, lazy = Line(kernel, cap), Lazy(kernel, cap)
    for line in (eager, lazy):
        at = 0.0
        for gap in gaps:
            at += gap
            line.unit(at)
        line.to(at + 50.0)
    assert lazy.happened == eager.happened
