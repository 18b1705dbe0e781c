"""The tables of what encryption costs: the same over TLS and in plain text, in the same run."""

from collections.abc import Callable
from functools import partial

from benchmarks.cells import Cells, acked, idle_table, numbers, sender, shown, table
from benchmarks.contenders import TABLE
from benchmarks.runner import Results
from benchmarks.targets import ratio


def in_plain_text(name: str) -> str:
    return name.replace("openline-tls", "openline")


def rtt_table(results: Results) -> str:
    rows = [rtt_row(results, name) for name in results["tls-rtt"]]
    return table(("", "p50, µs", "p99, µs", "p50 / in plain text"), rows)


def rtt_row(results: Results, name: str) -> Cells:
    row = results["tls-rtt"][name]
    times = shown(ratio(results, "tls-rtt", "p50_us", name, in_plain_text(name)))
    return [TABLE[name].label, *numbers(row, ("p50_us", "p99_us"), ",.1f"), times]


def rate_table(results: Results) -> str:
    rows = [rate_row(results, name) for name in results["tls-one-way"]]
    return table(("", "messages/s", "of plain text", "lost", "acked"), rows)


def rate_row(results: Results, name: str) -> Cells:
    row = results["tls-one-way"][name]
    rate, lost = numbers(row, ("rate", "lost"), ",.0f")
    label = TABLE[name].label if name.endswith("-gather") else f"{sender(name)}, `send_batch()`"
    times = shown(ratio(results, "tls-one-way", "rate", name, in_plain_text(name)))
    return [label, rate, times, lost, acked(row)]


SECTIONS: dict[str, Callable[[Results], str]] = {
    "tls-rtt": rtt_table,
    "tls-one-way": rate_table,
    "tls-idle": partial(idle_table, work="tls-idle"),
}
