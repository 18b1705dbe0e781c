"""Writes the tables: results.json for programs, README.md for people."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import quic_report
from benchmarks.cells import Cells, acked, numbers, sender, shown, table
from benchmarks.contenders import TABLE
from benchmarks.runner import Results, Row
from benchmarks.targets import KB, bytes_each, ratio, targets
from benchmarks.works import WORKS, Work

BY_NAME = {work.name: work for work in WORKS}
POLLED = "agentic-flow 2.1.3, its own `request()`"

HOW = """\
## How it is measured

- Every contender carries the same message, `{id, type, payload}`, 240 bytes (or 1,024) as JSON. The text in
  the payload is words, and every message has its own id. Messages are built before the clock starts.
- openline and agentic-flow bring their own codec. For every other contender msgspec encodes and decodes the
  JSON, at both ends, so that like is compared with like. Only *raw uvloop TCP* carries bare bytes, without
  framing and without a codec: it is the floor. *uvloop TCP with JSON* has both.
- Each round of each contender is a fresh process. The rounds are interleaved: every contender has its turn
  before anybody has the next one, each time in another order. Every number is the median of its rounds.
- All Python contenders run on uvloop. agentic-flow compresses messages over 256 B, as it always does; nobody
  else compresses (`websockets` would by default, and is faster without).
- *openline, acked* talks to another openline: a send is over when the receiver has taken responsibility.
  *openline, plain peer, not acked* is the same sender, and at the other end a WebSocket server of a few
  lines (picows, JSON by msgspec), which cannot confirm: a send is over when the socket has the message.
- *Request and reply*: one question at a time, after 1,000 that are not counted. *Handler echo*: both ends
  only ever send from a message handler, and the answer rides the connection that the question came in on.
  *`send()` until its ack*: nobody answers, each `await send()` lasts until its message is acknowledged, and
  the next one begins. NATS has its server between the ends, in another process.
- *One way*: counted at the receiver, from the first send to the last arrival. openline and agentic-flow use
  their batch send, in chunks of 1,000. A sender waits for nothing but what its own send call waits for;
  acked, that is the acknowledgement of the whole chunk before the next one. The column *acked*: the receiver
  has confirmed every message to the sender, in every round, as the receipts tell. Both TCP contenders
  make one write of each message; who puts many into one write can be faster than they are.
- *Idle*: the memory is the resident set of the listening process after a garbage collection, less what it was
  before the first connection; the processor time is that of the same process while nobody sends. The dialing
  side is another process, every connection from a node of its own. 1 KB is 1,024 bytes.
"""


def write(folder: Path, results: Results, machine: dict[str, str], command: str, quick: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    everything = {
        "command": command,
        "quick": quick,
        "machine": machine,
        "targets": targets(results),
        "results": results,
    }
    folder.joinpath("results.json").write_bytes(msgspec.json.format(msgspec.json.encode(everything)) + b"\n")
    folder.joinpath("README.md").write_text(readme(results, machine, command, quick), encoding="utf-8")


def readme(results: Results, machine: dict[str, str], command: str, quick: bool) -> str:
    parts = [
        "# Benchmarks",
        "Times are not comparable between machines; ratios are. The benchmark itself writes this page.",
        *(["**A quick run:** few rounds, small counts. Take it as a smoke test."] if quick else []),
        f"```\n{command}\n```",
        "![results](results.png)",
        *(["![QUIC](quic.png)"] if quic_report.measured(results) else []),
        tables(results),
        HOW.strip() + quic_report.HOW.rstrip(),
        "## Machine",
        table(("", ""), [[key, text] for key, text in machine.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def tables(results: Results) -> str:
    sections = [section(results, name) for name in results if name in SECTIONS]
    return "\n\n".join(["## Targets", target_table(results), *sections])


def target_table(results: Results) -> str:
    rows = [[target.work, target.demand, target.measured, target.verdict] for target in targets(results)]
    return table(("work", "openline must reach", "measured", ""), rows)


def section(results: Results, name: str) -> str:
    heading = f"## {BY_NAME[name].title}"
    return "\n\n".join((heading, SECTIONS[name](results), *failures(results[name], BY_NAME[name])))


def failures(rows: dict[str, Row], work: Work) -> list[str]:
    return [f"{TABLE[name].label}: {row.note}" for name, row in rows.items() if row.note and row.rounds]


def rtt_table(results: Results) -> str:
    rows = [rtt_row(results, "rtt", name, TABLE[name].label) for name in results["rtt"]]
    if "rtt-polled" in results:
        rows.append(rtt_row(results, "rtt-polled", "agentic-flow", POLLED))
    return table(("", "p50, µs", "p99, µs", "p50 / agentic-flow", "p50 / raw TCP"), rows)


def rtt_row(results: Results, work: str, name: str, label: str) -> Cells:
    row = results[work][name]
    p50 = row.median.get("p50_us")
    against = [divide(p50, results.get("rtt", {}).get(other)) for other in ("agentic-flow", "tcp")]
    return [label, *numbers(row, ("p50_us", "p99_us"), ",.1f"), *against]


def divide(p50: float | None, other: Row | None) -> str:
    theirs = other.median.get("p50_us") if other else None
    return f"{p50 / theirs:.2f}" if p50 and theirs else "–"


def rate_table(work: str) -> Callable[[Results], str]:
    def build(results: Results) -> str:
        rows = [[sender(name), *rate_cells(results, work, name)] for name in results[work]]
        return table(("", "messages/s", "of agentic-flow", "of raw TCP", "lost", "acked"), rows)

    return build


def rate_cells(results: Results, work: str, name: str) -> Cells:
    against = [shown(ratio(results, work, "rate", name, other)) for other in ("agentic-flow", "tcp")]
    row = results[work][name]
    rate, lost = numbers(row, ("rate", "lost"), ",.0f")
    return [rate, *against, lost, acked(row)]


def loss_table(results: Results) -> str:
    keys = ("sent", "received", "lost", "rate", "closed")
    rows = [
        [
            sender(name),
            *numbers(row, keys, ",.0f"),
            shown(ratio(results, "one-way-1k", "rate", name, "agentic-flow")),
            acked(row),
        ]
        for name, row in results["one-way-1k"].items()
    ]
    return table(
        ("", "sent", "received", "lost", "messages/s", "connections closed", "of agentic-flow", "acked"), rows
    )


def idle_table(results: Results) -> str:
    rows = [idle_row(name, row) for name, row in results["idle"].items()]
    return table(("", "dialed", "connected", "at the end", "KB each", "% of a core"), rows)


def idle_row(name: str, row: Row) -> Cells:
    counts = numbers(row, ("tried", "connections", "still_there"), ",.0f")
    if not row.median:
        return [name, *counts, "–", "–"]
    return [name, *counts, f"{bytes_each(row.median) / KB:.1f}", f"{row.median['cpu'] * 100:.2f}"]


SECTIONS: dict[str, Callable[[Results], str]] = {
    "rtt": rtt_table,
    "one-way": rate_table("one-way"),
    "one-way-two": rate_table("one-way-two"),
    "one-way-1k": loss_table,
    "idle": idle_table,
    **quic_report.SECTIONS,
}
