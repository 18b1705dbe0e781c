"""What openline promises, kept by real processes while real kernels fail them (rules 3.3 and 3.4).

Two agents send each other 1,000 messages on five streams, one by one, pipelined, in batches and as
requests. Each scenario breaks something meanwhile; then everything must have arrived once and in
order, every send must have ended well, and one connection must be left, the same on both sides.

Nearly all the time is waiting, so the scenarios run side by side, each in a lab of its own.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agents import PORT
from conftest import require_lab
from talkers import DEAD_AFTER, Outcome, Scene

from openline.testing.netns import Direction, HostName, TwoHosts

pytestmark = pytest.mark.faults

SIDE_BY_SIDE = 6
# Change it to play the mixes otherwise. It repeats what is done, and when; the rest is up to the kernel.
SEED = int(os.environ.get("OPENLINE_FAULT_SEED", "1"))

# Why a send could not leave: there was no connection just then, and the dial failed like this.
UNREACHABLE = "EHOSTUNREACH|ECONNRESET|ECONNABORTED|ConnectionResetError|dial_timeout"
DEAD = f"{UNREACHABLE}|ECONNREFUSED|TimeoutError"

# A request has no answer where the process that was asked is killed; then it is made again.
ANSWER_WITHIN = 1.0

Play = Callable[[Scene], Outcome]
SCENARIOS: dict[str, tuple[Play, dict[str, Any]]] = {}


def scenario(**config: Any) -> Callable[[Play], Play]:
    """Talkers with that configuration play it; `names` says which, if it is not A and B."""

    def enter(play: Play) -> Play:
        SCENARIOS[play.__name__] = play, config
        return play

    return enter


# Those that take longest come first.


@scenario(max_idle_timeout=30.0)
def cut_at_default_timing(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(200)
    scene.cut()
    scene.until("gone", patience=20.0)
    scene.heal()
    outcome = scene.finish()
    assert outcome.total("resent") > 0
    return outcome


@scenario(names="ABC")
def seeded_mix(scene: Scene) -> Outcome:
    """Three talkers, and any fault but a death; B and C are behind one address."""
    chance = random.Random(SEED)
    for dialer, to in ("AB", "CA", "BC"):
        scene.connect(dialer, to)
    scene.talk(seconds=8.0)
    ends = time.monotonic() + 8.0
    while time.monotonic() < ends:
        time.sleep(chance.uniform(0.0, 0.4))
        fault = chance.choice([cut_for_a_while, freeze_for_a_while, reset_once, lose_route_for_a_while])
        fault(scene, chance)
    return scene.finish(UNREACHABLE)


def cut_for_a_while(scene: Scene, chance: random.Random) -> None:
    directions: list[Direction] = ["both", "a-to-b", "b-to-a"]
    scene.cut(chance.choice(directions))
    time.sleep(chance.uniform(0.1, 2 * DEAD_AFTER))
    scene.heal()


def freeze_for_a_while(scene: Scene, chance: random.Random) -> None:
    name = chance.choice(list(scene.talkers))
    scene.freeze(name)
    time.sleep(chance.uniform(0.1, 2 * DEAD_AFTER))
    scene.thaw(name)


def reset_once(scene: Scene, chance: random.Random) -> None:
    scene.reset()


def lose_route_for_a_while(scene: Scene, chance: random.Random) -> None:
    """One side cannot dial for some time, during which other things break."""
    hosts: list[HostName] = ["A", "B"]
    host = chance.choice(hosts)
    scene.stale_route(host)
    fault = chance.choice([cut_for_a_while, freeze_for_a_while, reset_once])
    fault(scene, chance)
    scene.heal_route(host)


@scenario(names="ABC", request_timeout=ANSWER_WITHIN)
def deadly_mix(scene: Scene) -> Outcome:
    """The same with deaths: at least once, where one of the two has died meanwhile."""
    chance = random.Random(SEED)
    for dialer, to in ("AB", "CA", "BC"):
        scene.connect(dialer, to)
    scene.talk(seconds=6.0)
    ends = time.monotonic() + 6.0
    while time.monotonic() < ends:
        time.sleep(chance.uniform(0.0, 0.4))
        fault = chance.choice([cut_for_a_while, freeze_for_a_while, reset_once, die_during_something])
        fault(scene, chance)
    return scene.finish(DEAD)


def die_during_something(scene: Scene, chance: random.Random) -> None:
    name = chance.choice(list(scene.talkers))
    fault = chance.choice([cut_for_a_while, reset_once])
    scene.kill(name)
    fault(scene, chance)
    scene.restart(name)


@scenario()
def cut_longer_than_dead(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(200)
    scene.cut()
    scene.until("gone")
    time.sleep(0.5)
    scene.heal()
    outcome = scene.finish()
    assert outcome.total("resent") > 0
    assert outcome.total("evictions") >= 2
    return outcome


@scenario(request_timeout=ANSWER_WITHIN)
def killed(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(300)
    scene.kill("B")
    time.sleep(0.3)
    scene.restart("B")
    return scene.finish(DEAD)


@scenario(identities=False, request_timeout=ANSWER_WITHIN)
def killed_and_another_in_its_place(scene: Scene) -> Outcome:
    """By default a process has a new identity each time: what was sent to the address is for the new one."""
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(300)
    scene.kill("B")
    scene.restart("B")
    return scene.finish(DEAD)


@scenario(request_timeout=ANSWER_WITHIN)
def killed_during_a_cut(scene: Scene) -> Outcome:
    """Nothing tells A: its connection leads to a process that is gone, and another comes."""
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(300)
    scene.cut()
    scene.kill("B")
    scene.restart("B")
    scene.heal()
    return scene.finish(DEAD)


@scenario()
def closed_and_started_again(scene: Scene) -> Outcome:
    """What it has acknowledged it has handled, and the rest waits for the next process: once, this time."""
    scene.connect("A", "B")
    scene.talk()
    for name, count in (("B", 300), ("A", 600)):
        scene.until_received(count)
        scene.leave(name)
        scene.restart(name)
    return scene.finish(DEAD)


@scenario()
def cut_again_and_again(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk(seconds=3.0)
    for seconds in (0.2, 1.0, 0.4, 0.7):
        scene.cut()
        time.sleep(seconds)
        scene.heal()
        time.sleep(0.3)
    return scene.finish(UNREACHABLE)


def cut_one_way(scene: Scene, direction: Direction) -> Outcome:
    scene.connect("A", "B")
    scene.connect("B", "A")
    scene.talk()
    scene.until_received(200)
    scene.cut(direction)
    scene.until("gone")
    scene.heal()
    return scene.finish()


@scenario()
def cut_from_a_to_b(scene: Scene) -> Outcome:
    return cut_one_way(scene, "a-to-b")


@scenario()
def cut_from_b_to_a(scene: Scene) -> Outcome:
    return cut_one_way(scene, "b-to-a")


@scenario(max_idle_timeout=6.0)
def saturated(scene: Scene) -> Outcome:
    """10 MB each way over a slow cable that drops what does not fit: slow, and nothing else."""
    scene.lab.throttle("24mbit")
    scene.connect("A", "B")
    scene.talk(seconds=0.5, size=10_000)
    outcome = scene.finish()
    assert outcome.total("closed") == outcome.total("evictions") == 0
    return outcome


@scenario()
def saturated_and_cut(scene: Scene) -> Outcome:
    scene.lab.throttle("40mbit")
    scene.connect("A", "B")
    scene.talk(seconds=0.5, size=10_000)
    scene.until_received(200)
    scene.cut()
    scene.until("gone")
    scene.heal()
    return scene.finish()


@scenario(inbox_messages=16, inbox_bytes=10_000)
def slow_consumer_and_cuts(scene: Scene) -> Outcome:
    """One stream is held up all the time, and whether it is gets lost with the connection."""
    for talker in scene.talkers.values():
        talker.ask("dawdle", seconds=0.01)
    scene.connect("A", "B")
    scene.talk(seconds=0.5)
    scene.until_received(200)
    for direction in ("both", "a-to-b", "b-to-a"):
        scene.cut(direction)
        time.sleep(DEAD_AFTER)
        scene.heal()
        time.sleep(0.2)
    return scene.finish(UNREACHABLE)


@scenario()
def shrunken_path(scene: Scene) -> Outcome:
    """A's long packets vanish and its short ones arrive; a new connection knows better."""
    scene.connect("A", "B")
    scene.talk(size=2000)
    scene.until_received(200)
    scene.shrink()
    outcome = scene.finish()
    assert outcome.total("evictions") > 0
    return outcome


@scenario()
def frozen_longer_than_dead(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(200)
    scene.freeze("B")
    scene.a.becomes("gone")
    time.sleep(0.5)
    scene.thaw("B")
    return scene.finish()


@scenario()
def frozen_and_thawed(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    for name in ("B", "A", "B"):
        time.sleep(0.3)
        scene.freeze(name)
        time.sleep(DEAD_AFTER / 2)
        scene.thaw(name)
    return scene.finish()


@scenario()
def cut_shorter_than_dead(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk()
    scene.until_received(200)
    scene.cut()
    time.sleep(DEAD_AFTER / 2)
    scene.heal()
    return scene.finish()


@scenario()
def stale_route(scene: Scene) -> Outcome:
    """B cannot dial A. It answers on A's line, and on the next, and on the next."""
    scene.connect("A", "B")
    scene.stale_route("B")
    assert scene.b.ask("dial", host=scene.a.ip, port=PORT) == "EHOSTUNREACH"
    scene.talk()
    scene.until_received(200)
    scene.reset()
    scene.until_received(400)
    scene.cut()
    scene.until("gone")
    scene.heal()
    outcome = scene.finish(UNREACHABLE)
    assert scene.b.stat("created") == [0]
    assert outcome.stats["A"]["created"] >= 3
    return outcome


@scenario()
def reset_again_and_again(scene: Scene) -> Outcome:
    """Both dial at once, each time anew."""
    scene.connect("A", "B")
    scene.connect("B", "A")
    scene.talk()
    for count in range(100, 901, 100):
        scene.until_received(count)
        scene.reset()
    outcome = scene.finish(UNREACHABLE)
    assert outcome.total("created") > 9
    return outcome


@scenario()
def first_contact(scene: Scene) -> Outcome:
    """Neither knows the other, and both begin at the same time."""
    scene.talk(seconds=0.5)
    return scene.finish()


@pytest.mark.parametrize("name", SCENARIOS)
def test_promises_hold(name: str, runs: dict[str, Future[Outcome]]) -> None:
    print(f"{name}: {runs[name].result()}")


# Running them


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """The scenarios that were asked for, all begun."""
    require_lab()
    asked = {item.name for item in request.session.items}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {
            name: pool.submit(run, tmp_path_factory.mktemp(name), *SCENARIOS[name])
            for name in SCENARIOS
            if f"test_promises_hold[{name}]" in asked
        }


def run(folder: Path, play: Play, config: dict[str, Any]) -> Outcome:
    with TwoHosts() as lab:
        scene = Scene(lab, folder, **config)
        scene.note(f"{play.__name__}, OPENLINE_FAULT_SEED={SEED}")
        try:
            return play(scene)
        except BaseException as error:
            error.add_note(scene.story)
            raise
