"""Draws results.png: one panel for each kind of work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.cells import sender
from benchmarks.contenders import NOT_ACKED, TABLE
from benchmarks.runner import Results, Row
from benchmarks.targets import KB, bytes_each

OURS, PLAIN, THEIRS = ("#0b6e4f", "#7fc8a9"), ("#2b6cb0", "#90bce4"), ("#4a5568", "#a8b3c4")
LOST = "#c0392b"
LIMITS = {"memory": 12.0, "processor": 3.0}


def draw(path: Path, results: Results) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(15, 10), layout="constrained")
    rtt(axes[0][0], results)
    one_way(axes[0][1], results)
    loss(axes[1][0], results)
    idle(axes[1][1], results)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rtt(axis: Any, results: Results) -> None:
    rows = [(TABLE[name].label.replace("`", ""), row) for name, row in results.get("rtt", {}).items()]
    rows += [("agentic-flow 2.1.3, request()", row) for row in results.get("rtt-polled", {}).values()]
    axis.set_title("Request and reply, 240 B: µs, p50 and p99 (less is better, log scale)")
    grouped(axis, rows_of(rows, rows, "p50_us", "p99_us"), ("p50", "p99"), "{:,.0f}")
    axis.set_xscale("log")
    axis.set_xlim(left=5)


def one_way(axis: Any, results: Results) -> None:
    one, two = results.get("one-way", {}), results.get("one-way-two", {})
    rows = [(sender(name), row) for name, row in one.items()]
    other = [(sender(name), two.get(name, Row())) for name in one]
    axis.set_title("One way, 240 B: thousand messages/s (more is better)")
    bars = [
        (label, first / 1000, second / 1000) for label, first, second in rows_of(rows, other, "rate", "rate")
    ]
    grouped(axis, bars, ("one process", "two processes"), "{:,.0f}")


def rows_of(
    rows: Sequence[tuple[str, Row]], other: Sequence[tuple[str, Row]], key: str, other_key: str
) -> list[tuple[str, float, float]]:
    """Label and both numbers, of those that were measured."""
    pairs = zip(rows, other, strict=True)
    return [
        (label, first.median.get(key, 0), second.median.get(other_key, 0))
        for (label, first), (_, second) in pairs
        if first.median or second.median
    ]


def grouped(axis: Any, bars: list[tuple[str, float, float]], legend: tuple[str, str], form: str) -> None:
    for at, (label, *pair) in enumerate(bars):
        colors = colors_of(label)
        for offset, length, color, name in zip((-0.2, 0.2), pair, colors, legend, strict=True):
            drawn = axis.barh(at + offset, length, height=0.38, color=color)
            axis.bar_label(drawn, [f"{form.format(length)}  {name}" if length else ""], padding=3, fontsize=8)
    finish(axis, [label for label, *_ in bars])


def loss(axis: Any, results: Results) -> None:
    rows = [(name, row.median) for name, row in results.get("one-way-1k", {}).items() if row.median]
    for at, (name, numbers) in enumerate(rows):
        color, _ = colors_of(sender(name))
        axis.barh(at, numbers["received"], color=color, height=0.6)
        drawn = axis.barh(at, numbers["lost"], left=numbers["received"], color=LOST, height=0.6)
        text = f"{numbers['rate']:,.0f}/s, {numbers['lost']:,.0f} lost"
        axis.bar_label(drawn, [text], padding=3, fontsize=9)
    axis.set_title("One way, 1 KB: messages received (and lost, in red)")
    finish(axis, [sender(name) for name, _ in rows])
    # Stacked bars take no margin.
    axis.set_xlim(0, 1.35 * max((numbers["sent"] for _, numbers in rows), default=1))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def idle(axis: Any, results: Results) -> None:
    row = results.get("idle", {}).get("openline", Row())
    axis.set_title("Idle openline connections: % of what is allowed")
    if not row.median:
        axis.text(0.5, 0.5, row.note or "not measured", ha="center", transform=axis.transAxes)
        return
    memory, processor = bytes_each(row.median) / KB, row.median["cpu"] * 100
    axis.set_xlabel(f"{row.median['connections']:,.0f} connections")
    shares = [memory / LIMITS["memory"], processor / LIMITS["processor"]]
    axis.barh((0, 1), [100 * share for share in shares], color=OURS[0], height=0.5)
    axis.axvline(100, color=LOST, linestyle="--", label="limit, 100 %")
    axis.legend(loc="upper right")
    finish(axis, [f"memory:\n{memory:.1f} of 12 KB each", f"liveness:\n{processor:.2f} of 3 % of a core"])


def colors_of(label: str) -> tuple[str, str]:
    if label.startswith(NOT_ACKED):
        return PLAIN
    return OURS if label.startswith("openline") else THEIRS


def finish(axis: Any, labels: list[str]) -> None:
    # The longest label would take a third of the panel.
    wrapped = [label.replace(f"{NOT_ACKED}, ", f"{NOT_ACKED},\n") for label in labels]
    axis.set_yticks(range(len(labels)), wrapped)
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
