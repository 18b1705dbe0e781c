"""What the demo shows, and in which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from openline import Config
from openline.config import BackendName

MAX_WIDTH = 100
INDENT = 3
ROWS = ("delivered", "attempts each", "connections created", "carried by", "errors")


@dataclass(frozen=True)
class Outcome:
    """What became of a number of messages sent one way."""

    delivered: int
    reports: Sequence[dict[str, Any]]

    @property
    def sent(self) -> int:
        return len(self.reports)

    @property
    def created(self) -> int:
        """Connections opened for these messages."""
        return sum(report["created"] for report in self.reports)

    @property
    def all_arrived_at_once(self) -> bool:
        """Every message arrived, on its first attempt, over a connection that was there before."""
        tries = {report["attempts"] for report in self.reports}
        return self.delivered == self.sent and tries == {1} and self.created == 0

    @property
    def score(self) -> str:
        return f"{self.delivered} of {self.sent}"

    @property
    def tries(self) -> str:
        spread = sorted({report["attempts"] for report in self.reports})
        return " or ".join(map(str, spread))

    @property
    def error(self) -> str:
        errors = Counter(report["error"] for report in self.reports if report["error"])
        return "\n".join(f"{count} x {error}" for error, count in errors.most_common(3)) or "none"

    def line(self, sender: str) -> str:
        """Which connection carried them, by what the receipts say."""
        other = {"A": "B", "B": "A"}[sender]
        openers = {"outbound": sender, "inbound": other}
        used = {(openers[direction], backend) for direction, backend in self._lines}
        return (
            " and ".join(f"the {backend} line {opener} opened" for opener, backend in sorted(used)) or "none"
        )

    def by(self, backend: str) -> bool:
        """Did nothing else carry them?"""
        return {used for _, used in self._lines} <= {backend}

    @property
    def _lines(self) -> Sequence[tuple[str, str]]:
        return [tuple(report["line"]) for report in self.reports if report["line"]]


@dataclass(frozen=True)
class Comparison:
    """The same messages over one backend, in two ways."""

    backend: BackendName
    dialing: Outcome
    answering: Outcome


class Screen:
    """Prints the story; knows nothing of how it is made to happen."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.console.width = min(self.console.width, MAX_WIDTH)
        self._steps = 0

    def opening(self) -> None:
        self.console.print("\n[bold cyan]openline demo[/]: answer on the line that is already open\n")

    def step(self, title: str) -> None:
        self._steps += 1
        self.console.print(f"\n[bold]{self._steps}. {title}[/]")

    def say(self, text: str) -> None:
        self.console.print(Padding.indent(text, INDENT))

    def warn(self, text: str) -> None:
        self.say(f"[yellow]{escape(text)}[/]")

    def result(self, good: bool, text: str) -> None:
        self.say(f"[{'green' if good else 'red'}]{escape(text)}[/]")

    def limits(self, interval: float) -> None:
        asked = "openline's default" if interval == Config().ping_interval else "set short for this run"
        self.say(
            f"A silent line is pinged within {interval:.1f} s ({asked}), "
            f"suspect within {2 * interval:.1f} s, dead within {3 * interval:.1f} s."
        )

    def moment(self, seconds: float, text: str) -> None:
        self.say(f"[bold]{seconds:6.1f} s[/]  {escape(text)}")

    def waiting(self, text: str) -> AbstractContextManager[object]:
        return self.console.status(text)

    def side_by_side(self, comparisons: Sequence[Comparison]) -> None:
        table = Table("")
        columns: list[list[str]] = []
        for comparison in comparisons:
            table.add_column(f"{comparison.backend}\nalways dial", style="red")
            table.add_column(f"{comparison.backend}\nopenline", style="green")
            columns += [
                _column(comparison.backend, way) for way in (comparison.dialing, comparison.answering)
            ]
        for label, *cells in zip(ROWS, *columns, strict=True):
            table.add_row(label, *cells)
        self.console.print(Padding.indent(table, INDENT))

    def verdict(self, failures: Sequence[str]) -> None:
        self.console.print()
        for failure in failures:
            self.console.print(f"[red]Not as promised:[/] {escape(failure)}")
        if not failures:
            self.console.print("[green]The story came out.[/] Everything it made is cleaned up again.")

    def stopped(self) -> None:
        self.console.print("\nStopped. Everything it made is cleaned up again.")


def _column(backend: str, outcome: Outcome) -> list[str]:
    # The columns are narrow: the backend is above them, and an error's name has a line of its own.
    line = outcome.line("B").replace(f"the {backend} line", "the line")
    errors = escape(outcome.error.replace(": ", "\n"))
    return [f"[bold]{outcome.score}[/]", outcome.tries, str(outcome.created), line, errors]
