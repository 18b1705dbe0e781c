"""Writes the tables: results.json for programs, README.md for people."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks import quic_report, tls_report
from benchmarks.cells import Cells, acked, idle_table, numbers, sender, shown, table
from benchmarks.contenders import TABLE
from benchmarks.runner import Results, Row, Rows
from benchmarks.targets import ratio, targets
from benchmarks.works import WORKS, Work

BY_NAME = {work.name: work for work in WORKS}
AGAINST = {"agentic-flow": "agentic-flow", "yardstick": "yardstick", "tcp": "raw TCP"}
POLLED = "agentic-flow 2.1.3, its own `request()`"

HOW = """\
## How it is measured

- Every contender carries the same message, `{id, type, payload}`, 240 bytes (or 1,024) as JSON. The text in
  the payload is words, and every message has its own id. Messages are built before the clock starts.
- openline and agentic-flow bring their own codec. For every other contender msgspec encodes and decodes the
  JSON, at both ends, so that like is compared with like. Only *raw uvloop TCP* carries bare bytes, without
  framing and without a codec: it is the floor. *uvloop TCP with JSON* has both.
- The *yardstick* (`benchmarks/yardstick.py`) is no library that anybody uses: it is the least that an
  acknowledged request and its reply have to do on the same two libraries as openline (picows, msgspec), and
  shows what openline's layers cost. It numbers, acknowledges, recognises what comes twice, and correlates;
  it has one connection, no identities, no bounds and no liveness.
- *zenoh* has two sessions in peer mode over TCP, without discovery and shared memory. Its calls block, and
  its callbacks come from threads of its own. A put is not acknowledged: by default it is dropped where the
  queue is full (counted as lost), and with *congestion control BLOCK* it waits.
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
  the next one begins. NATS has its server between the ends, in another process. *In two processes* each end
  has a process, and on this machine a core, of its own.
- *Python calls*: what `sys.setprofile` reports as calls of Python functions, a resumed coroutine among them,
  from one question to the next, at both ends and with the acknowledgements: the median of 301 after
  1,000. It is a count, so the machine does not matter.
- *Many sends at once*: chunks of 1,000 again; `gather` has a coroutine for each message that awaits its own
  `send()`, as programs do that have many tasks, and `send_batch()` is what they could do instead.
- *One answer in pieces*: an async generator yields the payloads, in chunks of 1,000 as the batch send gets
  its messages, and `peer.stream()` at the other end counts them.
- *One way*: counted at the receiver, from the first send to the last arrival. openline and agentic-flow use
  their batch send, in chunks of 1,000. A sender waits for nothing but what its own send call waits for;
  acked, that is the acknowledgement of the whole chunk before the next one. The column *acked*: the receiver
  has confirmed every message to the sender, in every round, as the receipts tell. Both TCP contenders
  make one write of each message; who puts many into one write can be faster than they are.
- *TLS*: a bare address is dialed where UDP is left out (`Config(backends=("websocket",))`): TLS 1.3 with the
  certificate of the node, by OpenSSL. Plain text beside it is `ws://` in the same run.
- *Idle*: the memory is the resident set of the listening process after a garbage collection, less what it was
  before the first connection; the processor time is that of the same process while nobody sends. The dialing
  side is another process, every connection from a node of its own. 1 KB is 1,024 bytes.
- `python -m benchmarks.compare --base FOLDER` measures two checkouts of openline in turns, by the same works.
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


def rtt_table(work: str) -> Callable[[Results], str]:
    def build(results: Results) -> str:
        others = results[work]
        rows = [rtt_row(row, TABLE[name].label, others) for name, row in others.items()]
        if work == "rtt" and "rtt-polled" in results:
            rows.append(rtt_row(results["rtt-polled"]["agentic-flow"], POLLED, others))
        return table(("", "p50, µs", "p99, µs", *(f"p50 / {who}" for who in AGAINST.values())), rows)

    return build


def rtt_row(row: Row, label: str, others: Rows) -> Cells:
    p50 = row.median.get("p50_us")
    against = [divide(p50, others.get(other)) for other in AGAINST]
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


def calls_table(results: Results) -> str:
    rows = [
        [TABLE[name].label, *numbers(row, ("uvloop", "asyncio"), ",.0f")]
        for name, row in results["calls"].items()
    ]
    return table(("", "on uvloop", "on asyncio"), rows)


def gather_table(results: Results) -> str:
    rows = [gather_row(results, name) for name in results["gather"]]
    return table(("", "messages/s", "of `send_batch()`", "lost", "acked"), rows)


def gather_row(results: Results, name: str) -> Cells:
    row, batch = results["gather"][name], name.removesuffix("-gather")
    label = TABLE[name].label if name != batch else f"{sender(name)}, `send_batch()`"
    rate, lost = numbers(row, ("rate", "lost"), ",.0f")
    return [label, rate, shown(ratio(results, "gather", "rate", name, batch)), lost, acked(row)]


def stream_table(results: Results) -> str:
    rows = [
        [
            TABLE[name].label if name != "openline" else f"{sender(name)}, `send_batch()`",
            *numbers(row, ("rate",), ",.0f"),
            shown(ratio(results, "stream", "rate", name, "openline")),
            *numbers(row, ("lost",), ",.0f"),
            acked(row),
        ]
        for name, row in results["stream"].items()
    ]
    return table(("", "messages/s", "of `send_batch()`", "lost", "acked"), rows)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "rtt": rtt_table("rtt"),
    "rtt-two": rtt_table("rtt-two"),
    "calls": calls_table,
    "gather": gather_table,
    "one-way": rate_table("one-way"),
    "one-way-two": rate_table("one-way-two"),
    "one-way-1k": loss_table,
    "stream": stream_table,
    "idle": partial(idle_table, work="idle"),
    **tls_report.SECTIONS,
    **quic_report.SECTIONS,
}
