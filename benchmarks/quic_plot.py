"""Draws quic.png: one panel for each kind of work over QUIC."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.contenders import OVER_QUIC
from benchmarks.lossy import LOSSES
from benchmarks.plot import OURS, PLAIN, THEIRS, finish
from benchmarks.quic_report import label, measured, sender
from benchmarks.rounds import Numbers
from benchmarks.runner import Results

Rows = Sequence[tuple[str, Numbers]]


def draw(path: Path, results: Results) -> None:
    """Nothing where nothing of it was measured."""
    if not measured(results):
        return
    figure, axes = plt.subplots(2, 2, figsize=(15, 10), layout="constrained")
    rtt(axes[0][0], results)
    one_way(axes[0][1], results)
    dial(axes[1][0], results)
    loss(axes[1][1], results)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rtt(axis: Any, results: Results) -> None:
    rows = [
        (label(name).replace("`", ""), row.median)
        for name, row in results.get("quic-rtt", {}).items()
        if row.median
    ]
    axis.set_title("Request and reply, 240 B: µs, p50 and p99 (less is better, log scale)")
    bars(axis, rows, {"p50_us": "p50", "p99_us": "p99"}, "{:,.0f}")
    logarithmic(axis, 10)


def one_way(axis: Any, results: Results) -> None:
    axis.set_title("One way, 240 B: messages/s (more is better)")
    bars(axis, senders(results, "quic-one-way"), {"rate": ""}, "{:,.0f}")


def dial(axis: Any, results: Results) -> None:
    axis.set_title("From nothing to the first answer: ms (less is better)")
    ways = {"cold": "cold", "resumed": "resumed", "early": "0-RTT"}
    bars(
        axis,
        senders(results, "quic-dial"),
        {f"{how}_answered_ms": name for how, name in ways.items()},
        "{:.1f}",
    )


def loss(axis: Any, results: Results) -> None:
    axis.set_title("Beside a stream that loses packets: p99, µs (log scale)")
    keys = {f"p99_us_{percent}": f"{percent} % lost" for percent in LOSSES}
    bars(axis, senders(results, "quic-loss"), keys, "{:,.0f}")
    logarithmic(axis, 100)


def senders(results: Results, work: str) -> Rows:
    return [(sender(name), row.median) for name, row in results.get(work, {}).items() if row.median]


def bars(axis: Any, rows: Rows, legend: dict[str, str], form: str) -> None:
    """One bar for each key that was measured, from the top down."""
    if not rows:
        axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        return
    height = 0.76 / len(legend)
    for at, (whose, numbers) in enumerate(rows):
        for place, (key, name) in enumerate(legend.items()):
            length = numbers.get(key, 0)
            offset = (place - (len(legend) - 1) / 2) * height
            drawn = axis.barh(at + offset, length, height=height * 0.94, color=shade(whose, place))
            axis.bar_label(drawn, [f"{form.format(length)}  {name}" if length else ""], padding=3, fontsize=8)
    finish(axis, [whose for whose, _ in rows])


def shade(whose: str, place: int) -> str:
    dark, light = THEIRS
    if whose.startswith(OVER_QUIC):
        dark, light = OURS
    elif whose.startswith("openline"):
        dark, light = PLAIN
    return light if place else dark


def logarithmic(axis: Any, left: float) -> None:
    axis.set_xscale("log")
    axis.set_xlim(left=left)
