"""What all tables are made of."""

from collections.abc import Sequence

from benchmarks.contenders import TABLE
from benchmarks.runner import Results, Row
from benchmarks.targets import KB, always_acked, bytes_each

Cells = list[str]


def sender(name: str) -> str:
    """Without how it answers, which matters to the echo only."""
    return TABLE[name].who


def numbers(row: Row, keys: Sequence[str], form: str) -> Cells:
    if not row.median:
        return [row.note, *["–"] * (len(keys) - 1)]
    return [format(row.median[key], form) if key in row.median else "–" for key in keys]


def acked(row: Row) -> str:
    if not row.rounds:
        return "–"
    return "yes" if always_acked(row) else "no"


def shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f} ×"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def idle_table(results: Results, work: str) -> str:
    rows = [idle_row(sender(name), row) for name, row in results[work].items()]
    return table(("", "dialed", "connected", "at the end", "KB each", "% of a core"), rows)


def idle_row(label: str, row: Row) -> Cells:
    counts = numbers(row, ("tried", "connections", "still_there"), ",.0f")
    if not row.median:
        return [label, *counts, "–", "–"]
    return [label, *counts, f"{bytes_each(row.median) / KB:.1f}", f"{row.median['cpu'] * 100:.2f}"]
