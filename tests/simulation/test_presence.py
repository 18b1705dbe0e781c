"""What programs are told of peers, on whole transports: seeded faults, and scenarios written out.

``OPENLINE_SEEDS`` says how many seeds, ``OPENLINE_SEED`` replays one. One in three is of a fleet without
QUIC, of one with nothing else, and of one whose hosts have both or not. The seeds of ``test_delivery`` are
held to the same.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from openline import Config, Error, Message, PeerEvent
from openline.connection.connection import Connection
from openline.testing import Faults, Host, run

from .fleet import FLAVOURS, PLAIN, Fleet, Program
from .stage import Node, Stage, eventually, same_one, simulated
from .test_delivery import Broken, upgrade

SEEDS = int(os.environ.get("OPENLINE_SEEDS", "60"))
ONE = os.environ.get("OPENLINE_SEED")
# Virtual seconds: faults begin within this time; what follows the last of them; a run at most.
FAULTY, QUIET, LIMIT = 12.0, 12.0, 1000.0
LOOK = 0.5
PARTS = 4

QUICK = Config(max_idle_timeout=9.0, resume_timeout=20.0, send_timeout=4.0, dial_timeout=2.0)
# Sessions end before their peers come back.
FORGETFUL = Config(max_idle_timeout=9.0, resume_timeout=1.0, send_timeout=2.0, dial_timeout=1.0)
CONFIGS = ([QUICK], [QUICK], [FORGETFUL], [QUICK, FORGETFUL])


# Seeds ----------------------------------------------------------------------------------------------


async def talk(program: Program, until: float) -> None:
    """A message now and then to anybody, by any of its names."""
    others = [seat for seat in program.fleet.seats if seat is not program.seat]
    while program.fleet.network.now < until and not program.transport._node.home.closing:
        target = program.random.choice(others)
        with suppress(Error, TimeoutError):
            await program.transport.send(program.random.choice(target.addresses()), Message())
        await asyncio.sleep(program.random.choice([0.05, 0.5, 2.0]))


async def wander(fleet: Fleet, random: Random) -> None:
    """Clients of QUIC go on from other ports, now and then."""
    for _ in iter(int, 1):
        await asyncio.sleep(random.uniform(0.5, 5.0))
        program = random.choice(list(fleet.programs.values()))
        if not program.host.process.running or not hasattr(program, "transport"):
            continue
        found = [c for c in program.transport._table.connections if c.link.multiplexed]
        for connection in [c for c in found if c.endpoint.direction == "inbound"][:1]:
            # On its host, whose clock is not everybody's.
            program.host.spawn(migrate(connection, random.randint(50_000, 60_000)))


async def migrate(connection: Connection[Any], port: int) -> None:
    connection.on_moved(connection.endpoint.ip, port)


async def watch(fleet: Fleet) -> None:
    for _ in iter(int, 1):
        await asyncio.sleep(LOOK)
        for auditor in fleet.auditors:
            auditor.look()


def alike(fleet: Fleet) -> list[str]:
    """After quiet, both of two nodes are told that the other one is there, or neither is."""
    pairs = {
        (program.transport.node_id, peer.node_id)
        for program in fleet.programs.values()
        for peer in program.transport.peers()
    }
    return [f"{a} has {b}, which does not have it" for a, b in pairs if (b, a) not in pairs]


async def play(fleet: Fleet, random: Random) -> None:
    fleet.audited = True

    async def begin(host: Host) -> None:
        # Of two on one host, one may not have come up when the host went down.
        for program in [each for each in await fleet.start(host) if hasattr(each, "transport")]:
            program.flows.append(host.spawn(talk(program, FAULTY + 5.0)))

    kinds = [kind for kind in Faults.KINDS if fleet.flavour != PLAIN or kind not in Faults.DATAGRAMS]
    few = random.choice([[], random.sample(kinds, 1), random.sample(kinds, 3), kinds])
    faults = Faults(fleet.network, random.getrandbits(32), kinds=few, restarted=begin)
    plan = faults.plan(FAULTY, random.choice([1, 3, 8, 20])) if few else []
    plan += [upgrade(fleet, faults, random) for _ in range(random.choice([0, 0, 1, 3]))]
    for fault in plan:
        fleet.network.trace.note("plan", "%s", fault)
    for host in fleet.network.hosts:
        await begin(host)
    watching = [asyncio.ensure_future(watch(fleet)), asyncio.ensure_future(wander(fleet, random))]
    await faults.play(plan)
    await fleet.finish_flows()
    await asyncio.sleep(QUIET)
    for task in watching:
        task.cancel()
    broken = alike(fleet)
    for auditor in fleet.auditors:
        auditor.look()
        auditor.look_at_peers()
    await fleet.close()
    await asyncio.sleep(1.0)
    for auditor in fleet.auditors:
        auditor.over()
    broken += fleet.mistold
    broken += failed(fleet)
    if broken:
        raise Broken("\n".join(broken[:20]))


def failed(fleet: Fleet) -> list[str]:
    errors = {seat.name: each.transport.stats().handler_errors for seat, each in fleet.programs.items()}
    return [f"{name} has {count} handler errors" for name, count in errors.items() if count]


async def simulate(seed: int) -> None:
    random = Random(f"presence {seed}")
    fleet = Fleet(seed, random.choice([2, 2, 3]), random.choice(CONFIGS), FLAVOURS[seed % len(FLAVOURS)])
    try:
        with fleet.trace.logged(level=logging.INFO):
            await play(fleet, random)
    except BaseException as error:
        error.add_note("\n".join(str(fleet.network.trace).splitlines()[-80:]))
        error.add_note(f"replay: OPENLINE_SEED={seed} python -m pytest tests/simulation/test_presence.py")
        raise


def attempt(seed: int) -> str:
    """What went wrong; empty if nothing did."""
    try:
        run(simulate(seed), seed=seed, limit=LIMIT)
    except Exception as error:
        return "\n".join([f"seed {seed}: {error!r}", *getattr(error, "__notes__", [])])
    finally:
        gc.collect()
    return ""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part: int) -> None:
    seeds = range(SEEDS) if ONE is None else [int(ONE)]
    failures = [failure for seed in seeds if seed % PARTS == part and (failure := attempt(seed))]
    if failures:
        numbers = ", ".join(failure.partition(":")[0] for failure in failures)
        pytest.fail(f"{len(failures)} fail: {numbers}\n{min(failures, key=len)}", pytrace=False)


# Written out ----------------------------------------------------------------------------------------


class Told(list[str]):
    """What a node's handler has been told, and of whom."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.events: list[PeerEvent] = []
        node.transport.on_peer(self._on_peer)

    def _on_peer(self, event: PeerEvent) -> None:
        self.events.append(event)
        self.append(event.kind)


@simulated
async def test_a_cut_is_suspect_and_recovered_on_both_sides(stage: Stage) -> None:
    a, b = await stage.two(max_idle_timeout=6.0)
    both = Told(a), Told(b)
    await a.send(b, 1)
    stage.network.cut(stage.a, stage.b)
    await eventually(lambda: all(told == ["connected", "suspect"] for told in both))
    stage.network.heal()
    await eventually(lambda: all(told[:3] == ["connected", "suspect", "recovered"] for told in both))
    assert "no answer" in both[0].events[1].why
    at = [event.at for event in both[0].events]
    assert at == sorted(at)
    assert stage.a.unix_time() - 20.0 < at[0]


@simulated
async def test_a_long_cut_is_gone_and_what_comes_back_is_connected(stage: Stage) -> None:
    a, b = await stage.two(max_idle_timeout=6.0)
    told = Told(a)
    await a.send(b, 1)
    stage.network.cut(stage.a, stage.b)
    await eventually(lambda: told == ["connected", "suspect", "gone"])
    stage.network.heal()
    await a.send(b, 2)
    await eventually(lambda: told == ["connected", "suspect", "gone", "connected"])
    assert len({event.peer for event in told.events}) == 1


@simulated
async def test_what_is_dialed_in_place_of_a_suspect_one_recovers_the_peer(stage: Stage) -> None:
    a, b = await stage.two(max_idle_timeout=6.0)
    told = Told(b)
    await a.send(b, 1)
    stage.network.silence(stage.a, stage.b)
    await eventually(lambda: told == ["connected", "suspect"])
    await a.send(b, 2)
    await eventually(lambda: told == ["connected", "suspect", "recovered", "moved"])
    await asyncio.sleep(20.0)
    assert len(told) == 4


@pytest.mark.parametrize("first", ["quic", "memory"])
@simulated
async def test_two_that_dial_each_other_at_once_are_connected_once(stage: Stage, first: str) -> None:
    stage.a.offers = stage.b.offers = (first, "memory") if first == "quic" else ("memory",)
    a, b = await stage.two()
    both = Told(a), Told(b)
    await asyncio.gather(a.send(b, 1), b.send(a, 1))
    await asyncio.sleep(10.0)
    assert same_one(a, b)
    for told in both:
        assert told[0] == "connected"
        assert set(told[1:]) <= {"moved"}
        assert len(told) <= 2


@simulated
async def test_a_restart_is_gone_and_connected(stage: Stage) -> None:
    a, b = await stage.two(max_idle_timeout=6.0)
    told = Told(b)
    await a.send(b, 1)
    stage.network.cut(stage.a, stage.b)
    stage.a.power_off()
    stage.network.heal()
    again = await stage.restart(stage.a, kill=False, max_idle_timeout=6.0)
    await again.send(b, 2)
    await eventually(lambda: told == ["connected", "gone", "connected"])
    assert told.events[1].why == "its process is another one than before"


@simulated
async def test_a_client_of_quic_that_goes_on_from_elsewhere_has_moved(stage: Stage) -> None:
    stage.a.offers = stage.b.offers = ("quic",)
    a, b = await stage.two()
    told = Told(b)
    await a.send(b, 1)
    [connection] = b.connections()
    before = connection.endpoint.remote

    async def migrate() -> None:
        connection.on_moved("10.0.7.7", 4321)

    await b.do(migrate())
    await eventually(lambda: told == ["connected", "moved"])
    assert told.events[1].why == f"reached by quic 10.0.7.7:4321 now, by quic {before} before"


@simulated
async def test_two_processes_with_one_key_are_gone(stage: Stage) -> None:
    a, b = await stage.start(stage.a), await stage.start(stage.b)
    told = Told(b)
    await a.send(b, 1)
    other = await stage.start(stage.c, identity=stage.a.identity)
    await other.send(b, 2)
    await asyncio.sleep(5.0)
    assert told[:3] == ["connected", "gone", "connected"]
    assert told[-1] == "gone"
    assert not b.transport.peers()
