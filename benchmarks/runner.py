"""Runs the contenders in turn, each round in a fresh process, and takes the median of the rounds.

Round-robin, because the machine is never quiet for long: whatever disturbs a round disturbs all contenders.
"""

import importlib.util
import statistics
import sys

import msgspec

import openline
from benchmarks import lossylink
from benchmarks.contenders import OVER_QUIC, TABLE, agentic_flow
from benchmarks.rounds import Failed, Numbers, condense, one_round
from benchmarks.works import Plan, Work
from openline.testing.lab import netns


class Row(msgspec.Struct):
    """What one contender did in one work. `note` says why where there are no numbers."""

    rounds: list[Numbers] = []
    median: Numbers = {}
    note: str = ""


Rows = dict[str, Row]
Results = dict[str, Rows]


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
