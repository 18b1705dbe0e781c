"""Runs the contenders in turn, each round in a fresh process, and takes the median of the rounds.

Round-robin, because the machine is never quiet for long: whatever disturbs a round disturbs all contenders.
"""

import importlib.util
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import openline
from benchmarks import lossylink
from benchmarks.contenders import OVER_QUIC, TABLE, agentic_flow
from benchmarks.measure import percentile
from benchmarks.works import Plan, Work
from openline.testing.lab import netns

ROOT = Path(__file__).resolve().parent.parent
# Peers that would talk on stdout or stderr otherwise.
QUIET = {"QUIET": "true", "GRPC_VERBOSITY": "NONE"}
LOUD = ("VERBOSE", "DEBUG", "NODE_ENV", "NODE_OPTIONS")

Numbers = dict[str, float]


class Row(msgspec.Struct):
    """What one contender did in one work. `note` says why where there are no numbers."""

    rounds: list[Numbers] = []
    median: Numbers = {}
    note: str = ""


Rows = dict[str, Row]
Results = dict[str, Rows]


class Failed(Exception):
    pass


def run_all(works: list[Work], quick: bool, rounds: int | None) -> Results:
    return {work.name: run_work(work, quick, rounds or work.size(quick).rounds) for work in works}


def run_work(work: Work, quick: bool, rounds: int) -> Rows:
    plan = work.plan(quick)
    rows = {name: Row(note=why_not(work.name, name)) for name in work.contenders}
    for turn in range(rounds):
        for name in rotated(work.contenders, turn):
            if not rows[name].note:
                run_round(rows[name], name, plan, work.patience)
            progress(f"{work.name} {turn + 1}/{rounds}", name, rows[name])
    for row in rows.values():
        row.median = median(row.rounds)
    return rows


def run_round(row: Row, name: str, plan: Plan, patience: float) -> None:
    try:
        row.rounds.append(condense(one_round(name, plan, patience)))
    except Failed as error:
        row.note = f"failed: {error}"


def rotated(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    """Nobody always comes right after the same neighbour, whose sockets may still be winding down."""
    by %= len(names)
    return names[by:] + names[:by]


def why_not(work: str, name: str) -> str:
    """Why it cannot take part; empty when it can."""
    entry = TABLE[name]
    if not entry.kind:
        return agentic_flow.why_not()
    if entry.package and importlib.util.find_spec(entry.package) is None:
        return f"skipped: {entry.package} is not installed"
    if entry.alone and not (usable := netns.availability()):
        return f"skipped: {usable.reason}"
    if entry.who == OVER_QUIC:
        return without_quic()
    # Over a relay only datagrams can be lost.
    lossless = lossylink.why_no_cable() if work == "quic-loss" else ""
    return f"skipped: {lossless}" if lossless else ""


def without_quic() -> str:
    why = openline.capabilities().unavailable.get("quic", "")
    return f"skipped: {why}" if why else ""


@contextmanager
def command(name: str, plan: Plan) -> Iterator[list[str]]:
    plan_json = msgspec.json.encode(plan).decode()
    if not TABLE[name].kind:
        yield agentic_flow.command(plan_json)
        return
    python = [sys.executable, "-m", "benchmarks.worker", "run", name, plan_json]
    if not TABLE[name].alone:
        yield python
        return
    with netns.TwoHosts() as hosts:
        yield hosts.command("A", python)


def one_round(name: str, plan: Plan, patience: float) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key not in LOUD} | QUIET
    pipe = subprocess.PIPE
    # A session of its own, so that a round that hangs can be ended together with the processes it started.
    with (
        command(name, plan) as argv,
        subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise Failed(f"no result after {patience:.0f} s") from None
        finally:
            end_session(process.pid)
    return parse(output, errors, process.returncode)


def end_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def parse(output: bytes, errors: bytes, code: int) -> dict[str, Any]:
    if code == 0 and output.strip():
        return dict(msgspec.json.decode(output.strip().splitlines()[-1]))
    said = errors.decode(errors="replace").strip()
    print(said, file=sys.stderr)
    raise Failed(said.splitlines()[-1][:200] if said else f"exit code {code}")


def condense(raw: dict[str, Any]) -> Numbers:
    if times := raw.get("times_us"):
        return {"p50_us": percentile(times, 0.50), "p99_us": percentile(times, 0.99)}
    if "received" in raw:
        return condense_one_way(raw)
    return raw


def condense_one_way(raw: dict[str, Any]) -> Numbers:
    sent, received = raw["sent"], raw["received"]
    numbers = {"sent": sent, "received": received, "lost": sent - received, "acked": int(raw["acked"])}
    numbers["rate"] = received / raw["seconds"]
    return numbers if raw["closed"] is None else {**numbers, "closed": raw["closed"]}


def median(rounds: list[Numbers]) -> Numbers:
    keys = rounds[0] if rounds else {}
    return {key: round(statistics.median(numbers[key] for numbers in rounds), 4) for key in keys}


def progress(where: str, name: str, row: Row) -> None:
    latest = row.note or "  ".join(f"{key} {short(value)}" for key, value in brief(row.rounds[-1]))
    print(f"{where:<16} {name:<17} {latest}", file=sys.stderr, flush=True)


def brief(numbers: Numbers) -> list[tuple[str, float]]:
    return [(key, value) for key, value in numbers.items() if key not in ("sent", "received", "acked")]


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
