"""Rule 3.3 over all interleavings: two nodes dial each other at once, and one link crashes.

What is ordered here are the four steps of each handshake (hello, answer, proof, welcome) and, for the
longer scripts, the first frames behind them; by QUIC there are six steps, as that has packets of its own
in front. A script may dial from one side by QUIC and from the other by TCP. Every merge of the two
sequences, with a crash of either link between any two steps. ``OPENLINE_INTERLEAVINGS=all`` runs every
one of them, which takes minutes, and hours by QUIC; without it all merges by TCP are run, and of all
others a sample that is spread over all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openline import Identity
from openline.connection.connection import State
from openline.testing import Host, run
from openline.testing.simulation import wire
from openline.testing.simulation.path import Path
from openline.testing.simulation.udp import Flow, UdpStack
from openline.testing.simulation.wire import Pipe

from .stage import Node, Stage, same_one

ALL = os.environ.get("OPENLINE_INTERLEAVINGS") == "all"
# Crashes that are run of those that there are, where not all are.
ONE_IN = 1 if ALL else 7

# Between two steps.
SLOT = 0.02
# Steps of a link: frames of its client and of its server in turn.
STEPS = 4
TCP, QUIC = "memory", "quic"
STEPS_OF = {TCP: STEPS, QUIC: STEPS + 2}
# Packets of QUIC that are steps.
COUNTED = ("initial", "answer", "data")

A, B = "ab"
LINKS = (A, B)
# What a crash is: both ends are told; only the client or the server is told; nobody is told.
RESET, CLIENT, SERVER, SILENT = KINDS = ("reset", "client forgets", "server forgets", "silent")


class Crash(msgspec.Struct, frozen=True):
    """``link`` ends in this way after so many steps of both."""

    kind: str
    link: str
    after: int


class Script(msgspec.Struct, frozen=True):
    """``order`` says whose step is next; ``greater`` which node has the greater key; ``by`` how they dial."""

    order: str
    greater: str
    crash: Crash | None = None
    by: tuple[str, str] = (TCP, TCP)

    def when(self, link: str, step: int) -> float:
        """The time of a link's step; those behind the script are at once."""
        places = [place for place, who in enumerate(self.order) if who == link]
        return (places[step] + 1) * SLOT if step < len(places) else 0.0

    @property
    def stays(self) -> str:
        """Whose link: QUIC's, where one of them is, else that of the greater key."""
        return self.greater if self.by[0] == self.by[1] else LINKS[self.by.index(QUIC)]


class Director:
    """Makes frames of the first link of each side arrive as the script says."""

    def __init__(self, script: Script, stage: Stage) -> None:
        self._script = script
        self._stage = stage
        # By the client's end, and who has dialed it.
        self._links: dict[tuple[str, int], str] = {}
        self._steps: dict[tuple[str, bool], int] = {}
        # Over QUIC: by the link's number, and which packet is which step.
        self._flows: dict[int, str] = {}
        self._packets: dict[tuple[int, bool, int], int] = {}

    def _link_of(self, pipe: Pipe) -> tuple[str, bool] | None:
        """Whose link that is, and whether the client sends; None for later links."""
        for end, client in ((pipe.source.local, True), (pipe.source.remote, False)):
            if end[1] != 8770:
                host = self._stage.network.at(end[0])
                assert host is not None
                if host.name not in self._links.values():
                    self._links[end] = host.name
                if self._links.get(end) == host.name:
                    return host.name, client
        return None

    def arrival(self, pipe: Pipe, now: float) -> float:
        found = self._link_of(pipe)
        if found is None:
            return now
        turn = self._steps[found] = self._steps.get(found, -1) + 1
        link, client = found
        return max(now, self._script.when(link, 2 * turn + (not client)))

    def datagram(self, host: str, packet: Any, now: float) -> float:
        number = packet.link
        if packet.kind == "initial" and host not in self._flows.values():
            self._flows.setdefault(number, host)
        link = self._flows.get(number)
        if link is None or packet.kind not in COUNTED:
            return now
        client = host == link
        key = number, client, packet.number
        if key not in self._packets:
            self._packets[key] = self._steps[link, client] = self._steps.get((link, client), -1) + 1
        return max(now, self._script.when(link, 2 * self._packets[key] + (not client)))

    def crash(self) -> None:
        crash = self._script.crash
        assert crash is not None
        network = self._stage.network
        for host in network.hosts:
            for engine in list(host.udp.live):
                if self._flows.get(engine._link) == crash.link:  # type: ignore[attr-defined]
                    self._end_flow(crash.kind, host, engine, client=host.name == crash.link)
        for end, name in self._links.items():
            if name != crash.link:
                continue
            for host in network.hosts:
                for sock in list(host.sockets):
                    if end in (sock.local, sock.remote):
                        self._end(crash.kind, sock, client=sock.local == end)

    def _end_flow(self, kind: str, host: Host, engine: Flow, client: bool) -> None:
        network = self._stage.network
        if kind == SILENT:
            other = network.at(engine.far[0])
            assert other is not None
            network.path(host, other).muted.add((engine.near, engine.far))
            network.path(other, host).muted.add((engine.far, engine.near))
        elif kind == RESET or client == (kind == CLIENT):
            engine.drop()

    def _end(self, kind: str, sock: Any, client: bool) -> None:
        if kind == SILENT:
            sock.out.mute()
        elif kind == RESET:
            sock.out.lose_after(0)
            sock.drop()
        elif client == (kind == CLIENT):
            sock.out.interrupt()
            sock.drop()


@contextmanager
def directed(director: Director) -> Iterator[None]:
    before = Pipe._fly

    def fly(self: Pipe, item: object, size: int) -> None:
        now = self._clock.now()
        self._last = max(self._last + 1e-6, director.arrival(self, now) + 1e-6)
        self._flying.append((self._last, item, size))
        if self._timer is None:
            self._timer = self._clock.call_at(self._last, self._arrive)

    before_datagrams = UdpStack.arrival

    def arrival(self: UdpStack, path: Path, packet: Any) -> float:
        return director.datagram(self.host.name, packet, self.host.network.now) + 1e-6

    wire.Pipe._fly = fly  # type: ignore[method-assign]
    UdpStack.arrival = arrival  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        wire.Pipe._fly = before  # type: ignore[method-assign]
        UdpStack.arrival = before_datagrams  # type: ignore[method-assign]


KEYS = sorted((Identity() for _ in range(2)), key=lambda identity: identity.public_key)


async def play(script: Script) -> None:
    stage = Stage()
    stage.network.default_latency = (0.0, 0.0)
    for host, by in zip((stage.a, stage.b), script.by, strict=True):
        host.offers = tuple(dict.fromkeys([by, *script.by]))
    director = Director(script, stage)
    keys = dict(zip("ab" if script.greater == "b" else "ba", KEYS, strict=True))
    config: dict[str, Any] = {"max_idle_timeout": 6.0, "backoff_max": 2.0}
    with directed(director):
        a = await stage.start(stage.a, identity=keys["a"], **config)
        b = await stage.start(stage.b, identity=keys["b"], **config)
        try:
            await act(script, stage, director, a, b)
        except BaseException as error:
            error.add_note(f"\n{script}\n{stage.network.trace}")
            raise


async def act(script: Script, stage: Stage, director: Director, a: Node, b: Node) -> None:
    keeping = [one.begin(one.transport.connect(to.address, keep=True)) for one, to in ((a, b), (b, a))]
    sending = insisting(a, b, 0) + insisting(b, a, 0)
    end = (len(script.order) + 1.5) * SLOT
    if script.crash is not None:
        at = (script.crash.after + 0.5) * SLOT
        await asyncio.sleep(at)
        sending += insisting(a, b, 1) + insisting(b, a, 1)
        director.crash()
        sending += insisting(a, b, 2) + insisting(b, a, 2)
        end -= at
    await asyncio.sleep(max(end, 0))
    sending += insisting(a, b, 3) + insisting(b, a, 3)
    await asyncio.gather(*keeping, *sending)
    await asyncio.sleep(12.0)
    dials = a.stats.dials + b.stats.dials
    await asyncio.sleep(4.0)
    check(script, a, b)
    assert a.stats.dials + b.stats.dials == dials, "they still dial each other"
    assert dials <= 8, f"{dials} dials"


def insisting(one: Node, to: Node, round: int) -> list[Any]:
    return [one.insist(to, f"{round}-{number}") for number in range(2)]


def check(script: Script, a: Node, b: Node) -> None:
    assert same_one(a, b), f"{a.connections()} and {b.connections()}"
    assert [c.state for c in (*a.connections(), *b.connections())] == [State.LIVE] * 2
    if script.crash is None:
        # Both have come up.
        assert (a.connections()[0].endpoint.direction == "outbound") == (script.stays == A)
    rounds = range(4) if script.crash else (0, 3)
    expected = [f"{round}-{number}" for round in rounds for number in range(2)]
    for node in (a, b):
        assert sorted(node.payloads) == expected
        for round in rounds:
            mine = [payload for payload in node.payloads if payload.startswith(f"{round}-")]
            assert mine == sorted(mine) or script.crash, "out of order"
        assert node.stats.conflicts == node.stats.handler_errors == 0
        assert script.crash or node.stats.malformed == 0


def perform(script: Script) -> None:
    run(play(script), limit=400.0)


def perform_all(scripts: list[Script]) -> None:
    """Fails with the number of those that fail, and one of them in full."""
    failures: list[BaseException] = []
    for script in scripts:
        try:
            perform(script)
        except Exception as error:
            failures.append(error)
    report(failures, len(scripts))


def report(failures: list[BaseException], total: int) -> None:
    if failures:
        error = failures[0]
        text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        pytest.fail(f"{len(failures)} of {total} fail: {text}", pytrace=False)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the transports warn of is what the scripts do to them."""
    caplog.set_level(logging.ERROR, "openline")


# What there is to be played -----------------------------------------------------------------------


def merges(steps: int, others: int) -> list[str]:
    """All orders of so many steps of each link."""
    total = steps + others
    places = itertools.combinations(range(total), steps)
    return ["".join(A if place in mine else B for place in range(total)) for mine in map(set, places)]


def crashes(steps: int) -> list[Crash]:
    """At any moment of so many steps."""
    after = range(steps + 1)
    return [Crash(*each) for each in itertools.product(KINDS, LINKS, after)]


MERGES = merges(STEPS, STEPS)


@pytest.mark.parametrize("greater", LINKS)
def test_two_dials_at_once(greater: str) -> None:
    perform_all([Script(order, greater) for order in MERGES])


@pytest.mark.timeout(3600 if ALL else 60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("greater", LINKS)
def test_two_dials_and_a_crash(greater: str, kind: str) -> None:
    scripts = [
        Script(order, greater, crash)
        for order in MERGES
        for crash in crashes(2 * STEPS)
        if crash.kind == kind
    ]
    first = (LINKS.index(greater) + 2 * KINDS.index(kind)) % ONE_IN
    perform_all(scripts[first::ONE_IN])


# By QUIC, and by both ------------------------------------------------------------------------------

PAIRS = ((QUIC, QUIC), (QUIC, TCP), (TCP, QUIC))
# There are many more of these, and each takes longer.
SOME, SOME_CRASHES = (1, 1) if ALL else (21, 800)


@pytest.mark.timeout(3600 if ALL else 60)
@pytest.mark.parametrize("by", PAIRS, ids="-".join)
@pytest.mark.parametrize("greater", LINKS)
def test_two_dials_by_quic(greater: str, by: tuple[str, str]) -> None:
    orders = merges(STEPS_OF[by[0]], STEPS_OF[by[1]])
    perform_all([Script(order, greater, None, by) for order in orders][LINKS.index(greater) :: SOME])


@pytest.mark.timeout(3600 if ALL else 60)
@pytest.mark.parametrize("by", PAIRS, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("greater", LINKS)
def test_two_dials_by_quic_and_a_crash(greater: str, kind: str, by: tuple[str, str]) -> None:
    steps = STEPS_OF[by[0]], STEPS_OF[by[1]]
    moments = [crash for crash in crashes(sum(steps)) if crash.kind == kind]
    every = [Script(order, greater, crash, by) for order in merges(*steps) for crash in moments]
    spread = SOME_CRASHES if by == (QUIC, QUIC) else SOME_CRASHES // 4
    perform_all(every[LINKS.index(greater) + 2 * KINDS.index(kind) :: max(1, spread)])


# A process dies, and another one with its identity begins ------------------------------------------


async def play_restart(order: str, greater: str, victim: str, after: int, kind: str) -> None:
    """``victim`` is killed, or loses its power, and comes back two steps later."""
    stage = Stage()
    stage.network.default_latency = (0.0, 0.0)
    director = Director(Script(order, greater), stage)
    keys = dict(zip("ab" if greater == "b" else "ba", KEYS, strict=True))
    config: dict[str, Any] = {"max_idle_timeout": 6.0, "backoff_max": 2.0, "send_timeout": 60.0}
    hosts = {A: stage.a, B: stage.b}
    other = B if victim == A else A
    with directed(director):
        nodes = {name: await stage.start(hosts[name], identity=keys[name], **config) for name in LINKS}
        survivor, dead = nodes[other], nodes[victim]
        for one, to in ((survivor, dead), (dead, survivor)):
            one.begin(one.transport.connect(to.address, keep=True))
        insisting(dead, survivor, 0)
        sending = insisting(survivor, dead, 0)
        await asyncio.sleep((after + 0.5) * SLOT)
        sending += insisting(survivor, dead, 1)
        hosts[victim].kill() if kind == "killed" else hosts[victim].power_off()
        sending += insisting(survivor, dead, 2)
        await asyncio.sleep(2 * SLOT)
        hosts[victim].restart()
        again = await stage.start(hosts[victim], identity=keys[victim], **config)
        keeping = again.begin(again.transport.connect(survivor.address, keep=True))
        sending += insisting(survivor, again, 3) + insisting(again, survivor, 4)
        await asyncio.gather(keeping, *sending)
        await asyncio.sleep(12.0)
        try:
            check_restart(survivor, dead, again)
        except AssertionError as error:
            error.add_note(
                f"\n{order} greater={greater} {victim} {kind} after {after}\n{stage.network.trace}"
            )
            raise


def check_restart(survivor: Node, dead: Node, again: Node) -> None:
    assert same_one(survivor, again), f"{survivor.connections()} and {again.connections()}"
    assert survivor.stats.conflicts == again.stats.conflicts == 0
    mine = {f"{round}-{number}" for round in range(4) for number in range(2)}
    assert len(dead.payloads) == len(set(dead.payloads))
    assert len(again.payloads) == len(set(again.payloads))
    assert {*dead.payloads, *again.payloads} == mine
    assert {"3-0", "3-1"} <= set(again.payloads)
    # What the dead one sent may have arrived, once; what the new one sent has.
    assert sorted(set(survivor.payloads) - {"0-0", "0-1"}) == ["4-0", "4-1"]
    assert len(survivor.payloads) == len(set(survivor.payloads))


@pytest.mark.timeout(3600 if ALL else 60)
@pytest.mark.parametrize("kind", ["killed", "power off"])
@pytest.mark.parametrize("victim", LINKS)
@pytest.mark.parametrize("greater", LINKS)
def test_two_dials_and_a_restart(greater: str, victim: str, kind: str) -> None:
    every = [(order, after) for order in MERGES for after in range(2 * STEPS + 1)]
    failures: list[BaseException] = []
    mine = every[LINKS.index(greater) + 2 * LINKS.index(victim) :: ONE_IN]
    for order, after in mine:
        try:
            run(play_restart(order, greater, victim, after, kind), limit=400.0)
        except Exception as error:
            failures.append(error)
    report(failures, len(mine))


LONG = 7


@settings(max_examples=100 if ALL else 60)
@given(
    st.permutations(A * LONG + B * LONG).map("".join),
    st.sampled_from(LINKS),
    st.none() | st.builds(Crash, st.sampled_from(KINDS), st.sampled_from(LINKS), st.integers(0, 2 * LONG)),
)
def test_longer_ones(order: str, greater: str, crash: Crash | None) -> None:
    """Also the first frames behind the handshakes come in any order."""
    perform(Script(order, greater, crash))
