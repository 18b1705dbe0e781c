"""Rule 3.2 under seeded faults. ``OPENLINE_SEEDS`` says how many seeds, ``OPENLINE_SEED`` replays one.

Every seed checks, in ``world.py``: nobody is declared dead while bytes flow, or without time to
answer a fresh probe; silence is found, suspect within two and dead within three intervals and a
tick; never a second ping while one is out. The scenarios add what they alone can promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import pytest

from openline.core.liveness import Action

from .world import FOREVER, INTERVAL, PLENTY, STEP, TICK, Load, Side, Span, Violation, Way, World

SEEDS = int(os.environ.get("OPENLINE_SEEDS", "300"))
ONE = os.environ.get("OPENLINE_SEED")
END = 20 * INTERVAL
TRACE_LINES = 60

Scenario = Callable[[World], None]


def span(random: Random, first: float, last: float, shortest: float, longest: float) -> Span:
    start = random.uniform(first, last)
    return start, start + random.uniform(shortest, longest)


def distance(world: World, most: float) -> None:
    """How far apart the two are; jitter included."""
    shortest = world.random.uniform(0, most)
    for way in world.ways:
        way.delay = shortest, shortest + world.random.uniform(0, most - shortest)
    world.plan("delay", seconds=world.ways[0].delay)


def heavy(side: Side, until: float) -> None:
    """Much data one way, over a link or toward a reader that is too slow for it."""
    random, way = side.world.random, side.out
    way.bandwidth = random.choice([10_000, 100_000, 1_000_000])
    # Up to several intervals' worth in the receiver's buffer, and in front of the next ping.
    way.buffer = int(way.bandwidth * random.uniform(0.2, 40))
    other = side.world.b if side is side.world.a else side.world.a
    other.reads = random.choice([PLENTY, PLENTY, way.bandwidth // 3])
    unit = int(way.bandwidth * random.choice([0.2, 2, 25]))
    high_water = int(way.bandwidth * random.choice([0.3, random.uniform(1, 60)]))
    load = side.load = Load(
        (random.uniform(0, 2 * INTERVAL), until), unit, high_water, insist=random.random() < 0.5
    )
    told = {"bandwidth": way.bandwidth, "buffer": way.buffer, "reads": other.reads, "unit": unit}
    told |= {"high_water": high_water, "insist": load.insist}
    side.world.plan(f"load from {side.name}", **told, span=load.span)


def maybe_heavy(world: World, until: float) -> None:
    for side in world.sides:
        if side.load is None and world.random.random() < 0.4:
            heavy(side, until)


def cut(world: World, ways: list[Way], when: Span) -> None:
    for way in ways:
        way.cuts.append(when)
        world.plan(f"cut {'a→b' if way is world.ways[0] else 'b→a'}", span=when)


def some_ways(world: World) -> list[Way]:
    there, back = world.ways
    return world.random.choice([[there], [back], [there, back], [there, back]])


def slow_readers(world: World) -> bool:
    return any(side.reads < PLENTY for side in world.sides)


def alive_and_well(world: World) -> None:
    for side in world.sides:
        if side.closed:
            raise Violation(f"{side.name} was closed: {side.closed}")
        if side.liveness.suspect:
            raise Violation(f"{side.name} still suspects its peer")


# Scenarios ----------------------------------------------------------------------------------------


def idle(world: World) -> None:
    """A peer that answers within an interval is never even suspected."""
    distance(world, 0.3 * INTERVAL)
    world.run(END)
    alive_and_well(world)
    for side in world.sides:
        if side.counts[Action.SUSPECT]:
            raise Violation(f"{side.name} suspected a peer that answers")
        if side.counts[Action.PING] > 1.1 * END / INTERVAL:
            raise Violation(f"{side.counts[Action.PING]} pings on an idle link")


def idle_and_near(world: World) -> None:
    """About one ping in an interval, both sides together, most of them by the side that accepted.

    An answer takes a tick or more in this world, so a ping is at times overtaken by the side that waits
    for it. Where answers take less, none is: ``test_an_idle_pair_...`` in the unit tests.
    """
    for way in world.ways:
        way.delay = 0.0, 0.0
    world.run(END)
    alive_and_well(world)
    dialed, accepted = (side.counts[Action.PING] for side in world.sides)
    if any(side.counts[Action.SUSPECT] for side in world.sides):
        raise Violation("a peer that answers was suspected")
    if not 0.9 <= accepted * INTERVAL / END <= 1.1 or dialed > accepted / 2:
        raise Violation(f"{dialed} and {accepted} pings in {END / INTERVAL:g} intervals")


def half_open_and_idle(world: World) -> None:
    """As measured from outside: suspect within two intervals and dead within three, at both ends."""
    world.slack = 0.0
    distance(world, world.random.choice([0.4 * TICK, 0.2 * INTERVAL]))
    cut(world, some_ways(world), (world.random.uniform(0, 10 * INTERVAL), FOREVER))
    world.run(END)
    for side in world.sides:
        if not side.closed:
            raise Violation(f"{side.name} has not found out")


def alone(world: World) -> None:
    """The other side only answers, as an old one might: whoever watches pings, and finds the cut in time."""
    world.slack = 0.0
    distance(world, 0.1 * INTERVAL)
    watching, other = world.random.sample(world.sides, 2)
    other.mute = True
    cut_at = world.random.uniform(3, 10) * INTERVAL
    cut(world, some_ways(world), (cut_at, FOREVER))
    world.run(cut_at)
    alive_and_well(world)
    if not 0.7 * cut_at / INTERVAL - 1 <= watching.counts[Action.PING] <= 1.2 * cut_at / INTERVAL:
        raise Violation(f"{watching.counts[Action.PING]} pings in {cut_at / INTERVAL:.1f} intervals")
    world.run(END)
    if not watching.closed:
        raise Violation(f"{watching.name} has not found out")


def saturated(world: World) -> None:
    """A link full of data, or a reader far behind, is busy and not dead."""
    distance(world, 0.2 * INTERVAL)
    heavy(world.random.choice(world.sides), END)
    maybe_heavy(world, END)
    world.run(END)
    if slow_readers(world):
        return  # one that stops sending to them sees nothing move until they have caught up
    for side in world.sides:
        if side.closed or side.counts[Action.SUSPECT]:
            raise Violation(f"{side.name} did not see that bytes move")


def half_open(world: World) -> None:
    """The link ends without a word, one way or both, idle or in the middle of a transfer."""
    distance(world, 0.2 * INTERVAL)
    maybe_heavy(world, END)
    cut(world, some_ways(world), (world.random.uniform(INTERVAL, 10 * INTERVAL), FOREVER))
    world.run(END)
    for side in world.sides:
        if not side.closed and not slow_readers(world):
            raise Violation(f"{side.name} has not found out")


def outages(world: World) -> None:
    """The link comes back before the dead line."""
    distance(world, 0.1 * INTERVAL)
    for number in range(3):
        first = (2 + 5 * number) * INTERVAL
        cut(world, some_ways(world), span(world.random, first, first + INTERVAL, STEP, 1.4 * INTERVAL))
    world.run(END)
    alive_and_well(world)


def freezes(world: World) -> None:
    """A process is stopped and continues before the dead line."""
    distance(world, 0.1 * INTERVAL)
    if world.random.random() < 0.5:
        # The frozen one's kernel goes on to acknowledge, until its buffer is full.
        sender = world.random.choice(world.sides)
        sender.out.bandwidth, sender.out.buffer = 50_000, world.random.choice([1_000, 100_000, PLENTY])
        sender.load = Load((0.0, END - 3 * INTERVAL), 1_000, 20_000)
        world.plan(f"load from {sender.name}", buffer=sender.out.buffer)
    for number in range(3):
        side, first = world.random.choice(world.sides), (2 + 5 * number) * INTERVAL
        side.stalls.append(span(world.random, first, first + INTERVAL, STEP, 1.5 * INTERVAL))
        world.plan(f"freeze {side.name}", span=side.stalls[-1])
    world.run(END)
    alive_and_well(world)


def stalls(world: World) -> None:
    """Our own loop is often late, a little or much: that kills nobody, and hides no death for ever."""
    distance(world, 0.2 * INTERVAL)
    random, side = world.random, world.random.choice(world.sides)
    at = 0.0
    while at < 12 * INTERVAL:
        at += random.expovariate(1 / random.choice([2 * TICK, INTERVAL]))
        length = random.choice([TICK, 2 * TICK, 0.5 * INTERVAL]) * random.random()
        side.stalls.append((at, at + length))
        at += length
    world.plan(f"stalls of {side.name}", number=len(side.stalls))
    broken = random.random() < 0.3
    if broken:
        cut(world, list(world.ways), (random.uniform(2, 10) * INTERVAL, FOREVER))
    world.run(END)
    if not broken:
        alive_and_well(world)
    elif not all(side.closed for side in world.sides):
        raise Violation("the cut was not found")


def everything(world: World) -> None:
    """All at once; what holds always has to hold here, too."""
    distance(world, world.random.choice([0.05, 0.3, 0.6]) * INTERVAL)
    maybe_heavy(world, 15 * INTERVAL)
    for _ in range(world.random.randrange(4)):
        cut(world, some_ways(world), span(world.random, 0, 12 * INTERVAL, STEP, 2 * INTERVAL))
    for _ in range(world.random.randrange(4)):
        side = world.random.choice(world.sides)
        kind, spans = world.random.choice([("stall", side.stalls), ("pause", side.pauses)])
        spans.append(span(world.random, 0, 12 * INTERVAL, STEP, 4 * INTERVAL))
        world.plan(f"{kind} {side.name}", span=spans[-1])
    if world.random.random() < 0.3:
        cut(world, some_ways(world), (world.random.uniform(5, 12) * INTERVAL, FOREVER))
    world.run(END)


SCENARIOS = [
    idle,
    saturated,
    half_open,
    outages,
    freezes,
    stalls,
    everything,
    idle_and_near,
    half_open_and_idle,
    alone,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_liveness(scenario: Scenario) -> None:
    seeds = [int(ONE)] if ONE is not None else range(SEEDS)
    seeds = [seed for seed in seeds if SCENARIOS[seed % len(SCENARIOS)] is scenario]
    if not seeds:
        pytest.skip("OPENLINE_SEED is another scenario's")
    failures = [(seed, failure) for seed in seeds if (failure := play(scenario, seed))]
    if failures:
        pytest.fail(report(scenario, failures, len(seeds)), pytrace=False)


def play(scenario: Scenario, seed: int) -> str:
    """What went wrong, with the trace; empty if nothing did."""
    world = World(seed)
    try:
        scenario(world)
    except Violation as violation:
        dropped = max(0, len(world.trace) - TRACE_LINES)
        head = [f"… {dropped} lines"] if dropped else []
        return "\n".join([str(violation), *world.trace[:12], *head, *world.trace[max(12, dropped) :]])
    return ""


def report(scenario: Scenario, failures: list[tuple[int, str]], total: int) -> str:
    numbers = ", ".join(str(seed) for seed, _ in failures[:20])
    seed, trace = min(failures, key=lambda failure: len(failure[1]))
    replay = f"OPENLINE_SEED={seed} python -m pytest tests/simulation -q -k {scenario.__name__}"
    return (
        f"{scenario.__name__}: {len(failures)} of {total} seeds fail: {numbers}\n"
        f"{scenario.__doc__}\n\nseed {seed}: {trace}\n\nreplay: {replay}"
    )
