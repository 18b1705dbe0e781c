"""What is done to talkers, and what must have come of it then (rules 3.3 and 3.4).

Two agents send each other 1,000 messages on five streams, one by one, pipelined, in batches and as
requests. Each scenario breaks something meanwhile; then everything must have arrived once and in
order, every send must have ended well, and one connection must be left, the same on both sides.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Any

from openline.testing.lab.firewall import Refusal
from openline.testing.lab.netns import Direction

from .agents import PORT, WAYS
from .talkers import DEAD_AFTER, HOSTS, Outcome, Scene

# Change it to play the mixes otherwise. It repeats what is done, and when; the rest is up to the kernel.
SEED = int(os.environ.get("OPENLINE_FAULT_SEED", "1"))

# Why a send could not leave: there was no connection just then, and the dial failed like this.
UNREACHABLE = "EHOSTUNREACH|ETIMEDOUT|ECONNRESET|ECONNABORTED|ENOTCONN|ConnectionResetError|dial_timeout"
DEAD = f"{UNREACHABLE}|ECONNREFUSED|TimeoutError"

# A request has no answer where the process that was asked is killed; then it is made again.
ANSWER_WITHIN = 1.0

Play = Callable[[Scene], Outcome]
SCENARIOS: dict[str, tuple[Play, dict[str, Any]]] = {}


def scenario(*ways: str, **config: Any) -> Callable[[Play], Play]:
    """Talkers with that configuration play it; `names` says which, if it is not A and B.

    `ways` are those by which they may reach each other (`agents.WAYS`): over either backend if not said.
    """

    def enter(play: Play) -> Play:
        for way in ways or ("websocket", "quic"):
            SCENARIOS[f"{play.__name__}-{way}"] = play, {"way": way, **config}
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


@scenario(*WAYS, names="ABC")
def seeded_mix(scene: Scene) -> Outcome:
    """Three talkers, and any fault but a death; B and C are behind one address."""
    chance = random.Random(SEED)
    for dialer, to in ("AB", "CA", "BC"):
        scene.connect(dialer, to)
    scene.talk(seconds=8.0)
    ends = time.monotonic() + 8.0
    while time.monotonic() < ends:
        time.sleep(chance.uniform(0.0, 0.4))
        fault = chance.choice([cut_for_a_while, freeze_for_a_while, upset, lose_route_for_a_while])
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


def upset(scene: Scene, chance: random.Random) -> None:
    """TCP connections are reset, and UDP flows are seen at other ports."""
    if scene.way != "quic":
        scene.reset()
    if scene.way != "websocket":
        scene.rebind_nat(chance.choice(HOSTS))


def lose_route_for_a_while(scene: Scene, chance: random.Random) -> None:
    """One side cannot dial for some time, during which other things break."""
    host = chance.choice(HOSTS)
    scene.stale_route(host)
    fault = chance.choice([cut_for_a_while, freeze_for_a_while, upset])
    fault(scene, chance)
    scene.heal_route(host)


@scenario(*WAYS, names="ABC", request_timeout=ANSWER_WITHIN)
def deadly_mix(scene: Scene) -> Outcome:
    """The same with deaths: at least once, where one of the two has died meanwhile."""
    chance = random.Random(SEED)
    for dialer, to in ("AB", "CA", "BC"):
        scene.connect(dialer, to)
    scene.talk(seconds=6.0)
    ends = time.monotonic() + 6.0
    while time.monotonic() < ends:
        time.sleep(chance.uniform(0.0, 0.4))
        fault = chance.choice([cut_for_a_while, freeze_for_a_while, upset, die_during_something])
        fault(scene, chance)
    return scene.finish(DEAD)


def die_during_something(scene: Scene, chance: random.Random) -> None:
    name = chance.choice(list(scene.talkers))
    fault = chance.choice([cut_for_a_while, upset])
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


@scenario("websocket")
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
    for count in (200, 400):
        scene.until_received(count)
        if scene.way == "websocket":
            scene.reset()
    scene.cut()
    scene.until("gone")
    scene.heal()
    outcome = scene.finish(UNREACHABLE)
    assert scene.b.stat("created") == [0]
    assert outcome.stats["A"]["created"] >= (4 if scene.way == "websocket" else 2)
    return outcome


@scenario("websocket")
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


@scenario(*WAYS)
def first_contact(scene: Scene) -> Outcome:
    """Neither knows the other, and both begin at the same time."""
    scene.talk(seconds=0.5)
    return scene.finish()


# Over QUIC, or with both to choose from


@scenario("quic")
def long_packets_lost(scene: Scene) -> Outcome:
    """One in twenty of them, each way. Slower, and nothing else; but that qh3 (2.1) may give up a connection
    whose datagrams have to become smaller while it repeats larger ones."""
    scene.lab.lose(5)
    scene.connect("A", "B")
    scene.talk(size=2000)
    outcome = scene.finish()
    assert outcome.total("closed") <= 4
    assert scene.lab.dropped().lost > 0
    return outcome


@scenario("quic")
def moved(scene: Scene) -> Outcome:
    """The dialer's host gets another address, and then another; its connection goes on from there."""
    return migrated(scene, lambda number: scene.readdress("A", f"10.10.10.{11 + number}"))


@scenario("quic")
def rebound(scene: Scene) -> Outcome:
    """The NAT before the dialer gives it another port, and then another."""
    return migrated(scene, lambda number: scene.rebind_nat("A"))


def migrated(scene: Scene, move: Callable[[int], None]) -> Outcome:
    scene.connect("A", "B")
    before = scene.b.lines
    scene.talk(by_node="A")
    for number, count in enumerate((200, 600)):
        scene.until_received(count)
        move(number)
    outcome = scene.finish()
    assert [outcome.stats[name][what] for name, what in (("A", "created"), ("B", "accepted"))] == [1, 1]
    assert outcome.total("closed") == outcome.total("resent") == 0
    assert scene.b.stat("migrations") == [2]
    assert scene.b.lines != before
    return outcome


@scenario("race", "quic")
def moved_and_dialed_anew(scene: Scene) -> Outcome:
    """The host that was dialed gets another address: the dialer finds nobody, but is found."""
    scene.connect("A", "B")
    scene.connect("B", "A")
    scene.talk(by_node="AB")
    scene.until_received(200)
    scene.readdress("B", "10.10.10.12")
    return scene.finish(UNREACHABLE)


@scenario("race")
def udp_dropped(scene: Scene) -> Outcome:
    """From some moment on a firewall takes all UDP: WebSocket goes on in QUIC's place."""
    return without_udp(scene, "drop")


@scenario("race")
def udp_rejected(scene: Scene) -> Outcome:
    return without_udp(scene, "reject")


def without_udp(scene: Scene, how: Refusal) -> Outcome:
    # On a busy machine the race itself may go either way.
    scene.a.ask("connect", to=f"quic://{scene.b.address}", keep=False)
    scene.talk()
    scene.until_received(200)
    scene.block_udp(how)
    outcome = scene.finish(UNREACHABLE)
    assert scene.a.backends == scene.b.backends == {"websocket": 1}
    assert outcome.total("resent") > 0
    return outcome


@scenario("race")
def udp_comes_and_goes(scene: Scene) -> Outcome:
    scene.connect("A", "B")
    scene.talk(seconds=4.0)
    for seconds in (1.0, 0.4, 1.0):
        scene.block_udp()
        time.sleep(seconds)
        scene.unblock_udp()
        time.sleep(0.5)
    return scene.finish(UNREACHABLE)
