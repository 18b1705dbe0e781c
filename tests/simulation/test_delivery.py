"""Rules 3.2 to 3.5 on whole transports, under seeded faults.

``OPENLINE_SEEDS`` says how many seeds, ``OPENLINE_SEED`` replays one. One in three is of a fleet without
QUIC, of one with nothing else, and of one whose hosts have both or not, and race them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from openline import Config, Peer
from openline.connection.connection import State
from openline.core.tracks import MAX_TRACKS
from openline.testing import Fault, Faults, Host, run

from .fleet import FLAVOURS, PLAIN, Fleet, Undertaker

SEEDS = int(os.environ.get("OPENLINE_SEEDS", "60"))
ONE = os.environ.get("OPENLINE_SEED")
# Virtual seconds: faults begin within this time; and what a run may take at most.
FAULTY = 25.0
LIMIT = 1000.0
# Ping intervals until all is well after the last fault.
QUIET = 9
# Several processes can share them.
PARTS = 8
TRACE_LINES = 80
SAMPLE = 0.5

TIGHT = Config(
    resume_timeout=60.0,
    window_messages=64,
    window_bytes=64 * 1024,
    inbox_messages=16,
    inbox_bytes=32 * 1024,
    write_high_water=32 * 1024,
    max_message_size=256 * 1024,
)
# Peers forget each other sooner than most faults end.
FORGETFUL = Config(max_idle_timeout=9.0, resume_timeout=2.0, send_timeout=4.0, dial_timeout=2.0)
QUICK = Config(max_idle_timeout=12.0, resume_timeout=20.0, send_timeout=8.0)
# What a run's nodes draw theirs from.
CONFIGS = ([TIGHT], [TIGHT], [Config()], [QUICK], [FORGETFUL], [TIGHT, Config(), QUICK, FORGETFUL])
# What may be too much: a burst and two of the largest messages, sent before the stop was heard.
SLACK = 8 * 20_200 + 2 * 200_000


class Broken(AssertionError):
    """Invariants that do not hold; the text names them."""


def kinds(random: Random, flavour: str) -> list[str] | None:
    """What can happen in this run: one kind of fault, several, all, or also the end of processes."""
    everything = [kind for kind in Faults.KINDS if flavour != PLAIN or kind not in Faults.DATAGRAMS]
    peaceful = [kind for kind in everything if kind not in Faults.KILLING]
    return random.choice([[], [random.choice(peaceful)], random.sample(peaceful, 3), peaceful, everything])


async def simulate(seed: int, loud: bool = False) -> None:
    random = Random(seed)
    flavour = FLAVOURS[seed % len(FLAVOURS)]
    fleet = Fleet(seed, random.choice([2, 2, 2, 3, 4]), random.choice(CONFIGS), flavour)
    trace, log = fleet.network.trace, logging.getLogger("openline")
    trace.frames = loud
    undertaker = Undertaker(fleet)
    log.addHandler(undertaker)
    try:
        with trace.logged(level=logging.DEBUG if loud else logging.WARNING):
            await play(fleet, random)
    except BaseException as error:
        error.add_note(f"\n{trace}")
        raise
    finally:
        log.removeHandler(undertaker)


Crowd = Callable[[Fleet, float], Coroutine[Any, Any, None]]


async def play(fleet: Fleet, random: Random, crowd: Crowd | None = None) -> None:
    """``crowd`` is what else goes on while there are faults."""
    network = fleet.network

    async def begin(host: Host) -> None:
        for program in await fleet.start(host):
            program.begin_flows(random.randint(1, 4), FAULTY)

    possible = kinds(random, fleet.flavour)
    faults = Faults(network, random.getrandbits(32), kinds=possible, restarted=begin)
    plan = faults.plan(FAULTY, random.choice([1, 3, 8, 25])) if possible else []
    plan += [upgrade(fleet, faults, random) for _ in range(random.choice([0, 0, 0, 1, 3]))]
    fleet.audited = True
    fleet.stops = any(fault.what.startswith(("freeze", "sleep")) for fault in plan)
    for fault in plan:
        network.trace.note("plan", "%s", fault)
    for host in network.hosts:
        await begin(host)
    sampling = asyncio.ensure_future(sample(fleet))
    others = asyncio.ensure_future(crowd(fleet, FAULTY)) if crowd else None
    await faults.play(plan)
    if others is not None:
        await others
    network.trace.note("-", "quiet from now on")
    await fleet.finish_flows()
    await fleet.finish_consumers()
    interval = max(seat.config.ping_interval for seat in fleet.seats)
    await asyncio.sleep((QUIET - 1) * interval)
    before = dials(fleet)
    await asyncio.sleep(interval)
    sampling.cancel()
    for auditor in fleet.auditors:
        auditor.look()
        auditor.look_at_peers()
    broken = fleet.ledger.violations(fleet.restarted) + one_connection_per_pair(fleet) + at_rest(fleet)
    if dials(fleet) != before:
        broken.append(f"they still dial: {dials(fleet)} after {before}")
    await fleet.close()
    await asyncio.sleep(1.0)
    for auditor in fleet.auditors:
        auditor.over()
    broken += fleet.mistold
    for host in network.hosts:
        left = [*host.sockets, *host.udp.sockets(), *host.udp.live]
        if left:
            broken.append(f"{host.name} has {left} after close")
    if broken:
        raise Broken("\n".join(broken[:20]))


def dials(fleet: Fleet) -> dict[str, int]:
    return {seat.name: program.transport.stats().dials for seat, program in fleet.programs.items()}


def upgrade(fleet: Fleet, faults: Faults, random: Random) -> Fault:
    host = random.choice(fleet.network.hosts)

    async def begin_anew() -> None:
        await fleet.upgrade(host)
        await asyncio.sleep(random.choice([0.0, 0.5, 5.0]))
        await faults.restart(host)

    return Fault(random.uniform(0, FAULTY), 0.0, f"upgrade {host.name}", lambda: None, begin_anew)


async def sample(fleet: Fleet) -> None:
    """Memory stays bounded all the time (rule 3.5)."""
    for _ in iter(int, 1):
        await asyncio.sleep(SAMPLE)
        for auditor in fleet.auditors:
            auditor.look()
        for seat, program in fleet.programs.items():
            for peer in program.transport.peers():
                now = f"at {fleet.network.now:.1f} {seat.name}"
                fleet.ledger.strange += [f"{now} {text}" for text in too_much(peer, seat.config)]


def too_much(peer: Peer, config: Config) -> list[str]:
    """What is more than it may be."""
    found = []
    for stream_id, mailbox in peer._remote.mailboxes.by_stream.items():
        if mailbox.bytes > config.inbox_bytes + config.window_bytes + SLACK:
            found.append(f"holds {mailbox.bytes} bytes of {peer!r} on {stream_id!r}")
    for connection in peer._remote.connections:
        readers = getattr(connection.link, "_readers", ())
        if len(readers) > MAX_TRACKS + 1:
            found.append(f"{connection!r} has {len(readers)} tracks")
    session = peer._remote.outstanding.session
    for stream_id, out in session.out.items() if session is not None else ():
        if out.size > config.window_bytes + SLACK or out.next - out.acked > config.window_messages + 100:
            found.append(
                f"keeps {out.next - out.acked} messages, {out.size} bytes for {peer!r} on {stream_id!r}"
            )
    return found


def one_connection_per_pair(fleet: Fleet) -> list[str]:
    """After quiet: at most one between two nodes, live, and the same one on both sides."""
    found = []
    ends: dict[bytes | None, list[str]] = {}
    for seat, program in fleet.programs.items():
        for peer in program.transport.peers():
            if len(peer._remote.connections) > 1:
                found.append(f"{seat.name} has {peer._remote.connections}")
            for connection in peer._remote.connections:
                if connection.state is not State.LIVE:
                    found.append(f"{seat.name} has {connection!r}")
                ends.setdefault(connection.endpoint.connection_id, []).append(f"{seat.name}: {connection!r}")
    return found + [f"only one side has {sides}" for sides in ends.values() if len(sides) != 2]


def at_rest(fleet: Fleet) -> list[str]:
    """After quiet nothing waits for anything."""
    found = []
    for seat, program in fleet.programs.items():
        stats = program.transport.stats()
        if stats.pending_handshakes:
            found.append(f"{seat.name} has {stats.pending_handshakes} pending handshakes")
        if stats.handler_errors:
            found.append(f"{seat.name} has {stats.handler_errors} handler errors")
        for remote in program.transport._table:
            reachable = remote.connected or not any(
                other.name == remote.name for other in fleet.seats if not other.listens
            )
            if remote.outstanding.has_unacked and reachable:
                found.append(f"{seat.name} has something unacknowledged for {remote!r}")
    return found


def attempt(seed: int) -> str:
    """What went wrong, with the trace; empty if nothing did."""
    try:
        run(simulate(seed), seed=seed, limit=LIMIT)
    except BaseException as error:
        return _explain(seed, error)
    finally:
        gc.collect()
    return ""


def _explain(seed: int, first: BaseException) -> str:
    """The same again, with everything in the trace."""
    try:
        run(simulate(seed, loud=True), seed=seed, limit=LIMIT)
    except BaseException as error:
        return _text(error)
    return f"{_text(first)}\n(and the same run with a trace did not fail)"


def _text(error: BaseException) -> str:
    notes = "\n".join(getattr(error, "__notes__", [])).splitlines()
    cause = f"\n{error.__cause__!r}" if error.__cause__ else ""
    plan = [line for line in notes if " plan " in line]
    return "\n".join([f"{type(error).__name__}: {error}{cause}", *plan, *notes[-TRACE_LINES:]])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_delivery(part: int) -> None:
    seeds = range(SEEDS) if ONE is None else [int(ONE)]
    mine = [seed for seed in seeds if seed % PARTS == part]
    failures = [(seed, failure) for seed in mine if (failure := attempt(seed))]
    if failures:
        pytest.fail(report(failures, len(mine)), pytrace=False)


def report(failures: list[tuple[int, str]], total: int) -> str:
    numbers = ", ".join(str(seed) for seed, _ in failures[:40])
    seed, text = min(failures, key=lambda failure: len(failure[1]))
    replay = f"OPENLINE_SEED={seed} python -m pytest tests/simulation/test_delivery.py -q"
    return f"{len(failures)} of {total} seeds fail: {numbers}\n\nseed {seed}: {text}\n\nreplay: {replay}"
