"""The tables about QUIC, and how what is in them was measured."""

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.cells import Cells, acked, idle_table, numbers, shown, table
from benchmarks.contenders import ACKED, TABLE
from benchmarks.lossy import LOSSES
from benchmarks.runner import Results
from benchmarks.targets import ratio, with_loss

OVER_WEBSOCKET = "openline over WebSocket, acked"

HOW = """
- *QUIC*: the bare contenders carry the same 240 bytes on one stream that stays open, with four bytes of
  length before each, and without a codec: they are the floor, as raw TCP is for WebSocket. They are written
  on the protocol classes of qh3 and aioquic, and the answer is written in the callback that brings the
  question; *bare qh3* has its batching UDP transport (GSO, GRO) at both ends. The certificate is self-signed
  and not verified. One way, each message is one write, as with raw TCP; *many messages in one write* joins
  1,000, and so does iroh, where each write is a call into another thread. QUIC encrypts; openline's WebSocket
  beside it does not here.
- *From nothing to the first answer*: a new socket and connection each time. *Connected* is when the program
  may send, for openline after both nodes have proven themselves; *answered* when the answer to the first
  message is in. *Resumed* has a session ticket of the last connection. With *0-RTT* the first flight of
  the bare ones carries the message; that of openline (`Config.zero_rtt`) carries its hello, never a message,
  so that nothing can be replayed. On this link a round trip costs next to nothing: what is left is the work
  of both ends, and what a saved round trip is worth elsewhere does not show. iroh uses its tickets by itself.
- *QUIC: idle*: as over WebSocket. Bare qh3 sends no pings, and would not notice that the other end is gone;
  what it takes of a core is what its connections send by themselves in their first minute, ever less.
- *Streams beside one that loses packets*: two processes. Eight streams to one peer over one connection. One
  carries messages of 24 KB, up to 50 in a second, and the seven others one of 100 bytes every 10 ms each,
  whatever became of the last one. The link drops 1 % or 5 % of the packets over 600 bytes that go to the
  receiver, so those of the one stream only. It is a cable between two network namespaces with nftables at
  its end, and segmentation offload is off (counted: no packet was longer than the MTU). What is timed is
  `await send()` of the small ones, until the acknowledgement. The link adds no delay: the waits for a lost
  packet are those of the two stacks, and the shortest retransmission timeout of Linux's TCP is 200 ms.
  *p99 / without loss* is the median of the rounds' own ratios: a p99 depends on what else the machine does.
  Without namespaces or nftables a relay in user space drops datagrams, as the list below then says, and
  WebSocket is left out.
"""


def measured(results: Results) -> bool:
    return any(name in SECTIONS for name in results)


def sender(name: str) -> str:
    """As elsewhere, but openline says here that it is not over QUIC."""
    who = TABLE[name].who
    return OVER_WEBSOCKET if who == ACKED else who


def label(name: str) -> str:
    return f"{sender(name)}, {how}" if (how := TABLE[name].how) else sender(name)


def rtt_table(results: Results) -> str:
    rows = [
        [
            label(name),
            *numbers(row, ("p50_us", "p99_us"), ",.1f"),
            shown(ratio(results, "quic-rtt", "p50_us", name, "qh3")),
        ]
        for name, row in results["quic-rtt"].items()
    ]
    return table(("", "p50, µs", "p99, µs", "p50 / bare qh3"), rows)


def rate_table(results: Results) -> str:
    rows = [rate_row(results, name) for name in results["quic-one-way"]]
    return table(("", "messages/s", "of bare qh3", "lost", "acked"), rows)


def rate_row(results: Results, name: str) -> Cells:
    row = results["quic-one-way"][name]
    rate, lost = numbers(row, ("rate", "lost"), ",.0f")
    return [sender(name), rate, shown(ratio(results, "quic-one-way", "rate", name, "qh3")), lost, acked(row)]


def dial_table(results: Results) -> str:
    keys = [f"{how}_{part}_ms" for how in ("cold", "resumed", "early") for part in ("connected", "answered")]
    head = ("connected", "answered", "resumed: connected", "answered", "0-RTT: connected", "answered, ms")
    rows = [[sender(name), *numbers(row, keys, ".2f")] for name, row in results["quic-dial"].items()]
    return table(("", *head), rows)


def loss_table(results: Results) -> str:
    rows = [loss_row(results, name, percent) for name in results["quic-loss"] for percent in LOSSES]
    head = ("", "loss", "p50, µs", "p99, µs", "p99 / without loss", "large messages/s", "large packets lost")
    return table(head, rows)


def loss_row(results: Results, name: str, percent: int) -> Cells:
    row = results["quic-loss"][name]
    keys = [f"{key}_{percent}" for key in ("p50_us", "p99_us", "large_rate", "dropped", "large")]
    p50, p99, large_rate, dropped, large = numbers(row, keys, ",.0f")
    times = statistics.median(with_loss(row, percent)) if row.rounds else None
    return [sender(name), f"{percent} %", p50, p99, shown(times), large_rate, f"{dropped} of {large}"]


SECTIONS: dict[str, Callable[[Results], str]] = {
    "quic-rtt": rtt_table,
    "quic-one-way": rate_table,
    "quic-dial": dial_table,
    "quic-loss": loss_table,
    "quic-idle": partial(idle_table, work="quic-idle"),
}
