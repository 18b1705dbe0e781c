"""What is measured: each work is one row of the comparison, with its size in a full and in a quick run."""

from collections.abc import Collection

import msgspec

from benchmarks.messages import payload_of

Payload = dict[str, str | int]


class Plan(msgspec.Struct, frozen=True):
    """Everything one subprocess has to know; it travels as JSON, to Python and to node alike."""

    work: str
    count: int
    warmup: int = 0
    payload: Payload = {}
    chunk: int = 1000
    seconds: float = 0.0


class Size(msgspec.Struct, frozen=True):
    rounds: int
    count: int
    warmup: int = 0
    seconds: float = 0.0


class Work(msgspec.Struct, frozen=True):
    name: str
    title: str
    contenders: tuple[str, ...]
    full: Size
    quick: Size
    message_bytes: int = 0
    patience: float = 120.0

    def size(self, quick: bool) -> Size:
        return self.quick if quick else self.full

    def narrowed(self, names: Collection[str]) -> "Work":
        kept = tuple(name for name in self.contenders if name in names)
        return msgspec.structs.replace(self, contenders=kept)

    def plan(self, quick: bool) -> Plan:
        size = self.size(quick)
        payload = payload_of(self.message_bytes) if self.message_bytes else {}
        return Plan(self.name, size.count, size.warmup, payload, seconds=size.seconds)


OTHERS = ("agentic-flow", "websockets", "zmq", "grpc", "nats", "zenoh", "tcp-json", "tcp")
SENDERS = ("openline", "openline-plain", "yardstick", *OTHERS, "zenoh-block")

BARE_QUIC = ("qh3", "aioquic", "iroh")

WORKS = (
    Work(
        "rtt",
        "Request and reply, 240 B, both ends in one process",
        (
            "openline",
            "openline-handler",
            "openline-send",
            "openline-plain",
            "plain-client",
            "yardstick",
            "yardstick-send",
            *OTHERS,
        ),
        full=Size(rounds=5, count=10_000, warmup=1000),
        quick=Size(rounds=1, count=2000, warmup=1000),
        message_bytes=240,
    ),
    Work(
        "rtt-two",
        "Request and reply, 240 B, two processes",
        ("openline", "openline-quic", "yardstick", "agentic-flow", "websockets", "zenoh", "tcp", "qh3"),
        full=Size(rounds=5, count=10_000, warmup=1000),
        quick=Size(rounds=1, count=2000, warmup=1000),
        message_bytes=240,
    ),
    Work(
        # Not timed: the same number on every machine, but for what a timer adds.
        "calls",
        "Python calls of one message, both ends in one process",
        (
            "openline",
            "openline-send",
            "openline-quic",
            "openline-quic-send",
            "yardstick",
            "yardstick-send",
            "websockets",
        ),
        full=Size(rounds=3, count=301, warmup=1000),
        quick=Size(rounds=1, count=101, warmup=200),
        message_bytes=240,
    ),
    Work(
        # Apart from the others: it polls for its answer every 100 ms, so 10,000 rounds would take long.
        "rtt-polled",
        "agentic-flow's own `request()`, 240 B",
        ("agentic-flow",),
        full=Size(rounds=3, count=20, warmup=2),
        quick=Size(rounds=1, count=10, warmup=2),
        message_bytes=240,
    ),
    Work(
        "one-way",
        "One way, 240 B, both ends in one process",
        SENDERS,
        full=Size(rounds=5, count=100_000, warmup=2000),
        quick=Size(rounds=1, count=30_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "one-way-two",
        "One way, 240 B, two processes",
        SENDERS,
        full=Size(rounds=5, count=100_000, warmup=2000),
        quick=Size(rounds=1, count=30_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "one-way-1k",
        "One way, 1 KB, both ends in one process",
        ("openline", "openline-plain", "agentic-flow", "zenoh", "zenoh-block", "tcp-json"),
        full=Size(rounds=3, count=100_000),
        quick=Size(rounds=1, count=100_000),
        message_bytes=1024,
    ),
    Work(
        "gather",
        "Many sends at once, 240 B, acked, both ends in one process",
        (
            "openline-gather",
            "openline",
            "openline-quic-gather",
            "openline-quic",
        ),
        full=Size(rounds=5, count=50_000, warmup=2000),
        quick=Size(rounds=1, count=20_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "stream",
        "One answer in pieces, 240 B each, acked, both ends in one process",
        ("openline-stream", "openline"),
        full=Size(rounds=5, count=100_000, warmup=2000),
        quick=Size(rounds=1, count=30_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "idle",
        "Idle connections into one process",
        ("openline",),
        full=Size(rounds=1, count=10_000, seconds=30.0),
        quick=Size(rounds=1, count=1000, seconds=10.0),
        patience=900.0,
    ),
    Work(
        "tls-rtt",
        "TLS: request and reply, 240 B, both ends in one process",
        (
            "openline-tls",
            "openline-tls-handler",
            "openline-tls-send",
            "openline",
            "openline-handler",
            "openline-send",
        ),
        full=Size(rounds=5, count=10_000, warmup=1000),
        quick=Size(rounds=1, count=2000, warmup=1000),
        message_bytes=240,
    ),
    Work(
        "tls-one-way",
        "TLS: one way, 240 B, acked, both ends in one process",
        ("openline-tls", "openline-tls-gather", "openline", "openline-gather"),
        full=Size(rounds=5, count=100_000, warmup=2000),
        quick=Size(rounds=1, count=30_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "tls-idle",
        "TLS: idle connections into one process",
        ("openline-tls", "openline"),
        full=Size(rounds=1, count=2000, seconds=30.0),
        quick=Size(rounds=1, count=500, seconds=10.0),
        patience=900.0,
    ),
    Work(
        "quic-rtt",
        "QUIC: request and reply, 240 B, both ends in one process",
        (
            "openline-quic",
            "openline-quic-handler",
            "openline-quic-send",
            "openline",
            "openline-handler",
            "openline-send",
            *BARE_QUIC,
        ),
        full=Size(rounds=5, count=10_000, warmup=1000),
        quick=Size(rounds=1, count=2000, warmup=1000),
        message_bytes=240,
    ),
    Work(
        "quic-one-way",
        "QUIC: one way, 240 B, both ends in one process",
        ("openline-quic", "openline", *BARE_QUIC, "qh3-joined"),
        full=Size(rounds=5, count=100_000, warmup=2000),
        quick=Size(rounds=1, count=30_000, warmup=2000),
        message_bytes=240,
    ),
    Work(
        "quic-dial",
        "QUIC: from nothing to the first answer, both ends in one process",
        ("openline-quic", "openline", *BARE_QUIC),
        full=Size(rounds=3, count=50, warmup=3),
        quick=Size(rounds=1, count=20, warmup=3),
        message_bytes=240,
    ),
    Work(
        "quic-loss",
        "QUIC: seven streams beside one that loses packets, two processes",
        ("openline-quic", "openline"),
        full=Size(rounds=5, count=0, seconds=4.0),
        quick=Size(rounds=1, count=0, seconds=2.0),
    ),
    Work(
        "quic-idle",
        "QUIC: idle connections into one process",
        ("openline-quic", "qh3"),
        full=Size(rounds=1, count=1000, seconds=30.0),
        quick=Size(rounds=1, count=200, seconds=10.0),
        patience=900.0,
    ),
)
