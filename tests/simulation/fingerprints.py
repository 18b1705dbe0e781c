"""Hashes of what seeded runs do: whether a change of the code leaves the behaviour as it was.

    python -m tests.simulation.fingerprints --seeds 2000 --jobs 2 --out base.json
    python -m tests.simulation.fingerprints --quick --against base.json
    python -m tests.simulation.fingerprints --show quic:17

A seed has three hashes. ``trace``: each frame and packet with its content, when a kernel sends it and
when a program reads it, connections as they begin and end, and faults. ``ledger``: each message, what
became of it, its receipt or error, and where it arrived at what time. ``stats``: the counters of every
node, before and after it closes. Seeds of the net ``memory`` are of hosts with simulated TCP; those of
``quic`` are of hosts with simulated QUIC alone (even ones), or of some with both that race them (odd).

What is random in a real process follows from the seed here: keys, nonces, message ids.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import itertools
import json
import logging
import multiprocessing
import re
import secrets
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openline import Config, Message
from openline.testing import Fault, Faults, Host, Trace, run

from .fleet import MIXED, MULTIPLEXED, PLAIN, Fleet
from .ledger import Ledger, Sent

NETS = MEMORY, QUIC = ("memory", "quic")
PARTS = ("trace", "ledger", "stats")
# Of ten seeds, so many are of the net ``memory``; and how many of each are quick.
OF_TEN, QUICK = 7, {MEMORY: 150, QUIC: 50}
# Virtual seconds: faults and flows begin within this time; what follows the last of them; a run at most.
FAULTY, QUIET, LIMIT = 10.0, 25.0, 1000.0
# Of a program, at most: packets of QUIC take a long time to simulate.
FLOWS = {PLAIN: 4, MULTIPLEXED: 2, MIXED: 2}
# Differing seeds that are printed.
SHOWN = 20

# These are not other tests', whose changes would change every hash.
TIGHT = Config(
    resume_timeout=60.0,
    window_messages=64,
    window_bytes=64 * 1024,
    inbox_messages=16,
    inbox_bytes=32 * 1024,
    write_high_water=32 * 1024,
    max_message_size=256 * 1024,
)
FORGETFUL = Config(max_idle_timeout=9.0, resume_timeout=2.0, send_timeout=4.0, dial_timeout=2.0)
QUICK_CONFIG = Config(max_idle_timeout=12.0, resume_timeout=20.0, send_timeout=8.0)
CONFIGS = ([TIGHT], [Config()], [QUICK_CONFIG], [FORGETFUL], [TIGHT, Config(), QUICK_CONFIG, FORGETFUL])

# In texts: the number of a connection, which the process counts, and the address of an object.
NUMBERED = re.compile(r"(<(?:in|out)bound \w+ )#\d+|\b0x[0-9a-f]{6,}")

Prints = dict[str, str]
Run = tuple[str, int]


# Hashes ---------------------------------------------------------------------------------------------


def plain(value: object) -> object:
    """What a text can be made of that says neither addresses of objects nor names of modules."""
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return data if len(data) <= 64 else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, float):
        return f"{value:.9f}"
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value if value is None or isinstance(value, int | str) else str(value)


def described(frame: Any, *, whole: bool) -> str:
    """A frame of simulated TCP, or a packet of simulated QUIC: ``whole``, or enough to know it again."""
    if hasattr(frame, "content"):
        text = f"#{frame.link}.{frame.number} {frame.kind} {frame.size}"
        return f"{text} {frame.content!r}" if whole else text
    if whole or not isinstance(frame, tuple):
        return str(plain(frame))
    return f"{frame[0]} {sum(len(part) for part in frame[1:] if hasattr(part, '__len__'))}"


class Recorder(Trace):
    """Hashes each line as it comes. ``tell`` is given the lines, too."""

    def __init__(self, clock: Callable[[], float], tell: Callable[[str], object] | None) -> None:
        super().__init__(clock)
        self.frames = True
        self._now = clock
        self._tell = tell
        self._hash = hashlib.sha256()

    def note(self, where: str, what: str, *details: object) -> None:
        line = f"{self._now():.9f} {where} {what % details}"
        self._hash.update(line.encode() + b"\n")
        if self._tell is not None:
            self._tell(f"trace  {line}")

    def frame(self, where: str, what: str, sock: object, frame: object) -> None:
        self.note(where, what, sock, described(frame, whole="sends" in what))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def ledger_lines(ledger: Ledger) -> list[str]:
    lines = [str(plain(sent)) for sent in map(unnumbered, ledger.sent.values())]
    lines += [f"{key} {numbers}" for key, numbers in ledger.order.items()]
    return lines + [NUMBERED.sub(r"\1", text) for text in ledger.strange]


def unnumbered(sent: Sent) -> Sent:
    return msgspec.structs.replace(sent, error=NUMBERED.sub(r"\1", sent.error)) if sent.error else sent


def stats_lines(when: str, fleet: Fleet) -> list[str]:
    return [
        f"{when} {seat.name} {plain(dict(program.transport.stats()))}"
        for seat, program in fleet.programs.items()
    ]


# One run --------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Meanwhile, what a process draws or counts for itself follows from the seed."""
    random = Random(f"chance {seed}")
    ids = vars(sys.modules[Message.__module__])
    own_ids = {"_prefix": "0123456789abcdef", "_next": itertools.count(1).__next__}
    if not own_ids.keys() <= ids.keys():
        raise LookupError("message ids are made in another way now: make them follow from the seed again")

    def key() -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(random.randbytes(32))

    with (
        mock.patch.dict(ids, own_ids),
        mock.patch.object(secrets, "token_bytes", lambda size=32: random.randbytes(size)),
        mock.patch.object(Ed25519PrivateKey, "generate", key),
    ):
        yield


def fleet_of(net: str, seed: int, random: Random) -> Fleet:
    flavour = PLAIN if net == MEMORY else MIXED if seed % 2 else MULTIPLEXED
    return Fleet(seed, random.choice([2, 2, 2, 3, 4]), random.choice(CONFIGS), flavour)


def upgrade(fleet: Fleet, faults: Faults, random: Random) -> Fault:
    """A program is closed and started again."""
    host, pause = random.choice(fleet.network.hosts), random.choice([0.0, 0.5, 5.0])

    async def begin_anew() -> None:
        await fleet.upgrade(host)
        await asyncio.sleep(pause)
        await faults.restart(host)

    return Fault(random.uniform(0, FAULTY), 0.0, f"upgrade {host.name}", lambda: None, begin_anew)


def planned(fleet: Fleet, random: Random, restarted: Callable[[Host], Any]) -> tuple[Faults, list[Fault]]:
    everything = [kind for kind in Faults.KINDS if fleet.flavour != PLAIN or kind not in Faults.DATAGRAMS]
    peaceful = [kind for kind in everything if kind not in Faults.KILLING]
    kinds = random.choice([[], [random.choice(peaceful)], random.sample(peaceful, 3), peaceful, everything])
    faults = Faults(fleet.network, random.getrandbits(32), kinds=kinds, restarted=restarted)
    plan = faults.plan(FAULTY, random.choice([1, 3, 8, 25])) if kinds else []
    return faults, plan + [upgrade(fleet, faults, random) for _ in range(random.choice([0, 0, 0, 1, 3]))]


async def play(fleet: Fleet, random: Random) -> list[str]:
    """The stats, in lines."""

    async def begin(host: Host) -> None:
        for program in await fleet.start(host):
            program.begin_flows(random.randint(1, FLOWS[fleet.flavour]), FAULTY)

    faults, plan = planned(fleet, random, begin)
    fleet.stops = True  # how late a send ends is seen in the ledger
    for host in fleet.network.hosts:
        await begin(host)
    await faults.play(plan)
    await fleet.finish_flows()
    await asyncio.sleep(QUIET)
    before = stats_lines("before close", fleet)
    await fleet.close()
    await asyncio.sleep(1.0)
    return before + stats_lines("after close", fleet)


def fingerprint(net: str, seed: int, tell: Callable[[str], object] | None = None) -> Prints:
    """The three hashes, and ``failed`` where a run has not come to its end. ``tell`` is given all lines."""
    made: list[tuple[Fleet, Recorder]] = []
    stats: list[str] = []

    async def main() -> None:
        random = Random(f"{net} {seed}")
        fleet = fleet_of(net, seed, random)
        recorder = fleet.network.trace = Recorder(fleet.network.clock.now, tell)
        made.append((fleet, recorder))
        stats.extend(await play(fleet, random))

    failed = ""
    with seeded(seed):
        try:
            run(main(), seed=seed, limit=LIMIT)
        except Exception as error:
            failed = NUMBERED.sub(r"\1", f"{type(error).__name__}: {error}")
    if not made:
        raise RuntimeError(failed)
    [(fleet, recorder)] = made
    found = {"trace": recorder.hexdigest()}
    for part, lines in (("ledger", ledger_lines(fleet.ledger)), ("stats", stats)):
        found[part] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if tell is not None:
            for line in lines:
                tell(f"{part:<6} {line}")
    return {**found, "failed": failed} if failed else found


# Many of them ---------------------------------------------------------------------------------------


def silence() -> None:
    logging.disable(logging.CRITICAL)
    gc.freeze()  # what is there already need not be looked through after every run


def one(task: Run) -> Prints:
    try:
        return fingerprint(*task)
    finally:
        gc.collect()


def many(counts: dict[str, int], jobs: int) -> dict[str, list[Prints]]:
    """By net, in the order of seeds."""
    tasks: list[Run] = [(net, seed) for net in NETS for seed in range(counts[net])]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=silence) as pool:
        found = zip(tasks, pool.map(one, tasks, chunksize=5), strict=True)
        by_net: dict[str, list[Prints]] = {net: [] for net in NETS}
        for (net, _), prints in found:
            by_net[net].append(prints)
    return by_net


def differences(
    base: dict[str, list[Prints]], found: dict[str, list[Prints]]
) -> tuple[int, list[tuple[str, int, list[str]]]]:
    """How many seeds both have, and those whose hashes differ: the net, the seed, and in which parts."""
    pairs = [
        (net, seed, before, after)
        for net in NETS
        for seed, (before, after) in enumerate(zip(base[net], found[net], strict=False))
    ]
    parts = (*PARTS, "failed")
    different = [
        (net, seed, [part for part in parts if before.get(part) != after.get(part)])
        for net, seed, before, after in pairs
        if before != after
    ]
    return len(pairs), different


def report(base: dict[str, list[Prints]], found: dict[str, list[Prints]]) -> bool:
    """Print which seeds differ. False where some do, or where there is nothing to compare."""
    count, different = differences(base, found)
    print(f"compared {count} seeds: {len(different)} differ")
    for net, seed, parts in different[:SHOWN]:
        print(f"  {net}:{seed}  {', '.join(parts)}  {found[net][seed].get('failed', '')}")
    for part in (*PARTS, "failed"):
        if total := sum(part in parts for _, _, parts in different):
            print(f"  {part}: {total}")
    if len(different) > SHOWN:
        print(f"  … and {len(different) - SHOWN} more")
    return bool(count) and not different


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.fingerprints")
    parser.add_argument("--seeds", type=int, default=2000, help=f"of both nets; {OF_TEN} of 10 are memory")
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK}")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--show", metavar="NET:SEED", help="print all that is hashed of one run")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    if options.show:
        net, _, seed = options.show.partition(":")
        silence()
        fingerprint(net, int(seed), print)
        return 0
    memory = options.seeds * OF_TEN // 10
    counts = QUICK if options.quick else {MEMORY: memory, QUIC: options.seeds - memory}
    found = many(counts, options.jobs)
    failed = [f"{net}:{seed}" for net in NETS for seed, each in enumerate(found[net]) if "failed" in each]
    print(f"{counts[MEMORY]} memory, {counts[QUIC]} quic; not come to an end: {len(failed)} {failed[:SHOWN]}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.against:
        return 0 if report(json.loads(options.against.read_text()), found) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
