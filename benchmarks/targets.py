"""What openline has to reach (and whether it did): every verdict is computed from the results."""

import statistics

import msgspec

from benchmarks.runner import Results, Row

KB = 1024
CONNECTIONS = 10_000
CALLS = 70
# 150,000 in a second where raw TCP's round trip takes 18.5 µs.
GATHERED = 2.8


class Target(msgspec.Struct, frozen=True):
    work: str
    demand: str
    measured: str
    # None where this run cannot tell.
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "**not met**", None: "cannot tell"}[self.met]


def value(results: Results, work: str, name: str, key: str) -> float | None:
    row = results.get(work, {}).get(name)
    return row.median.get(key) if row else None


def ratio(results: Results, work: str, key: str, name: str, against: str) -> float | None:
    ours, theirs = value(results, work, name, key), value(results, work, against, key)
    return ours / theirs if ours is not None and theirs else None


def targets(results: Results) -> list[Target]:
    return [
        *rtt_targets(results),
        calls_target(results),
        send_target(results),
        *rate_targets(results),
        loss_target(results),
        *idle_targets(results),
        gather_target(results),
        stream_target(results),
        *tls_targets(results),
        *quic_idle_targets(results),
        *quic_rtt_targets(results),
        quic_rate_target(results),
        quic_loss_target(results),
    ]


def rtt_targets(results: Results) -> list[Target]:
    limits = (("agentic-flow", "agentic-flow's handler echo", 1.0), ("tcp", "raw TCP", 3.5))
    ways = (("openline-handler", "RTT p50, handler echo"), ("openline", "RTT p50, `request()`"))
    return [
        *(
            at_most(results, work, limit, label, name, against)
            for name, work in ways
            for against, label, limit in limits
        ),
        at_most(results, "RTT p50, `request()`", 1.45, "yardstick", "openline", "yardstick"),
    ]


def calls_target(results: Results) -> Target:
    work, demand = "Python calls of `request()` and its reply", f"≤ {CALLS} on uvloop"
    measured = value(results, "calls", "openline", "uvloop")
    if measured is None:
        return Target(work, demand, "not measured", None)
    return Target(work, demand, f"{measured:.0f}", measured <= CALLS)


def send_target(results: Results) -> Target:
    """One `await send()` after another: the rate is 1 / p50, so the ratio is that of the times."""
    pair = ("rtt", "p50_us", "tcp", "openline-send")
    work, demand = "one `await send()` after another, acked", "≥ 0.5 × 1 / RTT of raw TCP"
    measured = ratio(results, *pair)
    if measured is None:
        return Target(work, demand, "not measured", None)
    return Target(work, demand, f"{measured:.3f} ×{by_round(results, *pair)}", measured >= 0.5)


def rate_targets(results: Results) -> list[Target]:
    limits = (
        ("one-way", "one way 240 B, one process", 2.5),
        ("one-way-two", "one way 240 B, two processes", 2.0),
        ("one-way-1k", "one way 1 KB", 20.0),
    )
    return [rate_target(results, *limit) for limit in limits]


def rate_target(results: Results, work: str, label: str, limit: float) -> Target:
    demand = f"≥ {limit:g} × agentic-flow, acked"
    measured = ratio(results, work, "rate", "openline", "agentic-flow")
    if measured is None:
        return Target(label, demand, "not measured", None)
    acked = always_acked(results[work]["openline"])
    spread = by_round(results, work, "rate", "openline", "agentic-flow")
    said = f"{measured:.2f} ×{spread}, {'acked' if acked else 'not acked'}"
    return Target(label, demand, said, measured >= limit and acked)


def always_acked(row: Row) -> bool:
    """In all rounds: a median would hide one that was not."""
    return all(numbers["acked"] for numbers in row.rounds)


def at_most(
    results: Results, work: str, limit: float, label: str, name: str, against: str, measured_in: str = "rtt"
) -> Target:
    demand = f"≤ {limit:g} × {label}"
    measured = ratio(results, measured_in, "p50_us", name, against)
    if measured is None:
        return Target(work, demand, "not measured", None)
    spread = by_round(results, measured_in, "p50_us", name, against)
    return Target(work, demand, f"{measured:.3f} ×{spread}", measured <= limit)


def by_round(results: Results, work: str, key: str, name: str, against: str) -> str:
    """How far the rounds are apart: a ratio near its limit may be a matter of luck."""
    pairs = zip(results[work][name].rounds, results[work][against].rounds, strict=False)
    ratios = [ours[key] / theirs[key] for ours, theirs in pairs if theirs[key]]
    return f" (rounds {min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""


def gather_target(results: Results) -> Target:
    """In messages for one round trip of raw TCP, because a rate would be about the machine."""
    work, demand = "`gather` of many `send()`s", f"≥ {GATHERED} in one RTT of raw TCP, acked"
    rate = value(results, "gather", "openline-gather", "rate")
    floor = value(results, "rtt", "tcp", "p50_us")
    if rate is None or floor is None:
        return Target(work, demand, "not measured", None)
    acked = always_acked(results["gather"]["openline-gather"])
    measured = rate * floor / 1e6
    said = f"{measured:.2f} ({rate:,.0f}/s), {'acked' if acked else 'not acked'}"
    return Target(work, demand, said, measured >= GATHERED and acked)


def stream_target(results: Results) -> Target:
    work, demand = "one answer in pieces, 240 B", "≥ 0.7 × `send_batch()`"
    pair = ("stream", "rate", "openline-stream", "openline")
    measured = ratio(results, *pair)
    if measured is None:
        return Target(work, demand, "not measured", None)
    return Target(work, demand, f"{measured:.3f} ×{by_round(results, *pair)}", measured >= 0.7)


def loss_target(results: Results) -> Target:
    row = results.get("one-way-1k", {}).get("openline")
    if row is None or not row.rounds:
        return Target("one way 1 KB", "nothing lost", "not measured", None)
    lost = sum(numbers["lost"] for numbers in row.rounds)
    return Target("one way 1 KB", "nothing lost", f"{lost:,.0f} lost", lost == 0)


def idle_targets(results: Results) -> list[Target]:
    row = results.get("idle", {}).get("openline")
    if row is None or not row.median:
        return []
    idle = row.median
    kept = min(idle["connections"], idle["still_there"])
    each, cpu = bytes_each(idle) / KB, idle["cpu"] * 100
    return [
        Target(
            "idle connections", f"{CONNECTIONS:,} in one process", f"{kept:,.0f}", enough(kept, idle["tried"])
        ),
        Target("idle connections", "≤ 12 KB each", f"{each:.1f} KB", each <= 12),
        Target("idle connections", "liveness ≤ 3 % of a core", f"{cpu:.1f} %", cpu <= 3 and kept > 0),
    ]


def tls_targets(results: Results) -> list[Target]:
    """Against the same in plain text."""
    work, demand = "TLS, one way 240 B, one process", "≥ 0.6 × in plain text, acked"
    pair = ("tls-one-way", "rate", "openline-tls", "openline")
    measured = ratio(results, *pair)
    rate = Target(work, demand, "not measured", None)
    if measured is not None:
        acked = always_acked(results["tls-one-way"]["openline-tls"])
        said = f"{measured:.3f} ×{by_round(results, *pair)}, {'acked' if acked else 'not acked'}"
        rate = Target(work, demand, said, measured >= 0.6 and acked)
    times = ("TLS, RTT p50, `request()`", 1.25, "in plain text", "openline-tls", "openline", "tls-rtt")
    return [at_most(results, *times), rate, *tls_idle_targets(results)]


def tls_idle_targets(results: Results) -> list[Target]:
    row = results.get("tls-idle", {}).get("openline-tls")
    if row is None or not row.median:
        return []
    each = bytes_each(row.median) / KB
    return [Target("TLS, idle connections", "≤ 24 KB each", f"{each:.1f} KB", each <= 24)]


def quic_idle_targets(results: Results) -> list[Target]:
    row = results.get("quic-idle", {}).get("openline-quic")
    if row is None or not row.median:
        return []
    idle = row.median
    kept = min(idle["connections"], idle["still_there"])
    each, cpu = bytes_each(idle) / KB, idle["cpu"] * 100 * 1000 / max(kept, 1)
    return [
        Target("QUIC, idle connections", "≤ 30 KB each", f"{each:.1f} KB", each <= 30),
        Target("QUIC, idle connections", "≤ 1 % of a core per 1,000", f"{cpu:.2f} %", cpu <= 1 and kept > 0),
    ]


def enough(kept: float, tried: float) -> bool | None:
    return None if kept == tried < CONNECTIONS else kept >= CONNECTIONS


def bytes_each(idle: dict[str, float]) -> float:
    return idle["bytes"] / max(idle["connections"], 1)


def quic_rtt_targets(results: Results) -> list[Target]:
    ways = (("openline-quic-handler", "handler echo"), ("openline-quic", "`request()`"))
    return [
        at_most(results, f"QUIC, RTT p50, {way}", 1.5, "bare qh3", name, "qh3", "quic-rtt")
        for name, way in ways
    ]


def quic_rate_target(results: Results) -> Target:
    work, demand = "QUIC, one way 240 B, one process", "≥ 0.6 × bare qh3, acked"
    pair = ("quic-one-way", "rate", "openline-quic", "qh3")
    measured = ratio(results, *pair)
    if measured is None:
        return Target(work, demand, "not measured", None)
    acked = always_acked(results["quic-one-way"]["openline-quic"])
    said = f"{measured:.3f} ×{by_round(results, *pair)}, {'acked' if acked else 'not acked'}"
    return Target(work, demand, said, measured >= 0.6 and acked)


def quic_loss_target(results: Results) -> Target:
    """What the other streams notice, against the same link when it loses nothing."""
    work, demand = "QUIC, p99 beside a stream that loses 5 %", "≤ 2 × without loss"
    row = results.get("quic-loss", {}).get("openline-quic")
    if row is None or not row.rounds:
        return Target(work, demand, "not measured", None)
    ratios = with_loss(row, 5)
    measured = statistics.median(ratios)
    said = f"{measured:.3f} ×" + (f" (rounds {min(ratios):.2f} to {max(ratios):.2f})" if ratios[1:] else "")
    return Target(work, demand, said, measured <= 2)


def with_loss(row: Row, percent: int) -> list[float]:
    """Of each round by itself: a p99 tells as much of what else the machine did just then."""
    return [numbers[f"p99_us_{percent}"] / numbers["p99_us_0"] for numbers in row.rounds]
