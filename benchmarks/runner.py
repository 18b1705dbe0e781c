"""Runs the contenders in turn, each round in a fresh process, and takes the median of the rounds.

Round-robin, because the machine is never quiet for long: whatever disturbs a round disturbs all contenders.
"""

import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import TABLE, agentic_flow
from benchmarks.works import Plan, Work

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
    rows = {name: Row(note=why_not(name)) for name in work.contenders}
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


def why_not(name: str) -> str:
    if TABLE[name].module != agentic_flow.__name__.rpartition(".")[2]:
        return ""
    return agentic_flow.why_not()


def command(name: str, plan: Plan) -> list[str]:
    plan_json = msgspec.json.encode(plan).decode()
    if TABLE[name].kind:
        return [sys.executable, "-m", "benchmarks.worker", "run", name, plan_json]
    return agentic_flow.command(plan_json)


def one_round(name: str, plan: Plan, patience: float) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key not in LOUD} | QUIET
    pipe = subprocess.PIPE
    # A session of its own, so that a round that hangs can be ended together with the processes it started.
    with subprocess.Popen(
        command(name, plan), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
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


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


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
