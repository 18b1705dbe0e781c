"""The short comparison in the project's README, written from the results and never by hand."""

from pathlib import Path

from benchmarks.cells import sender, table
from benchmarks.contenders import TABLE
from benchmarks.runner import Results
from benchmarks.targets import ratio
from benchmarks.works import BARE_QUIC

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
FOR_ECHO = "openline-handler"
# Compared with each other, in tables of their own.
QUIC = ("openline-quic", "openline-quic-handler", "openline-quic-send", *BARE_QUIC, "qh3-joined")
GATHERED = ("openline-gather", "openline-quic-gather", "openline-stream")
TLS = ("openline-tls", "openline-tls-handler", "openline-tls-send", "openline-tls-gather")
# In the full tables only; the echo is the round trip of openline's row.
LEFT_OUT = (
    "openline-send",
    FOR_ECHO,
    "plain-client",
    "yardstick",
    "yardstick-send",
    "tcp-json",
    *GATHERED,
    *QUIC,
    *TLS,
)
NOTE = "Acked: a send is over when the receiver has taken responsibility. Plain peer: any other WebSocket\n"
NOTE += "program, which cannot confirm; its round trip is by `request()`."


def update(readme: Path, results: Results) -> None:
    """Replace what stands between the two marks."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{comparison(results)}\n{END}{after}", encoding="utf-8")


def comparison(results: Results) -> str:
    names = [name for name in TABLE if name not in LEFT_OUT]
    head = ("", "round trip, 240 B", "one way, 240 B", "in two processes", "1 KB: lost of 100,000")
    return f"{table(head, [line(results, name) for name in names])}\n\n{NOTE}"


def line(results: Results, name: str) -> list[str]:
    echo = FOR_ECHO if name == "openline" else name
    return [
        sender(name),
        times(ratio(results, "rtt", "p50_us", echo, "agentic-flow")),
        times(ratio(results, "one-way", "rate", name, "agentic-flow")),
        times(ratio(results, "one-way-two", "rate", name, "agentic-flow")),
        lost(results, name),
    ]


def times(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f} ×"


def lost(results: Results, name: str) -> str:
    row = results.get("one-way-1k", {}).get(name)
    return f"{row.median['lost']:,.0f}" if row and row.median else "–"
