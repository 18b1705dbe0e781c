"""Which of the log lines that a peer can cause are written, and how many were not. Pure.

Within a window each source has a few lines of each kind, and all that this program has no reason to
know have one limit together. What is over is counted, exactly, and told as sums when the window
ends. The tables are as large as the limits allow, whatever comes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

# Long enough that a flood makes a few lines a minute, short enough to hear of it while it lasts.
WINDOW = 60.0
# Lines of one kind about one source: enough to see what it is, and that it repeats.
LINES_PER_KIND = 5
# Lines about all strangers together, as one can come under any number of names: one a second.
STRANGERS_LINES = 60
# Sources counted one by one, known and strangers each; those beyond are counted as one.
MAX_SOURCES = 256


K = TypeVar("K")


class Sum(msgspec.Struct, Generic[K]):
    """Lines of a kind that were not written, and the source that most of them were about."""

    kind: K
    count: int
    source: str
    sources: int = 1


class _Count:
    """Lines of one kind about one source."""

    __slots__ = ("left_out", "written")

    def __init__(self) -> None:
        self.written = self.left_out = 0


class LogLimit(Generic[K]):
    """A window begins with a line, and ends with the first ``sums`` after its time."""

    def __init__(self) -> None:
        self._until = float("inf")
        # Lines about strangers that were written.
        self._strangers = 0
        # By whether the source is known, by source, by kind.
        self._counts: dict[bool, dict[str, dict[K, _Count]]] = {True: {}, False: {}}

    def allows(self, now: float, source: str, kind: K, known: bool, most: int = LINES_PER_KIND) -> bool:
        """May this line be written, with ``most`` of its kind? If not, it is counted."""
        if self._until == float("inf"):
            self._until = now + WINDOW
        sources = self._counts[known]
        kinds = sources.get(source)
        if kinds is None:
            kinds = sources.setdefault(source if len(sources) < MAX_SOURCES else "others", {})
        count = kinds.get(kind)
        if count is None:
            count = kinds[kind] = _Count()
        if count.written >= most or not (known or self._strangers < STRANGERS_LINES):
            count.left_out += 1
            return False
        count.written += 1
        self._strangers += not known
        return True

    def sums(self, now: float) -> list[Sum[K]]:
        """What was left out in a window that has ended, and nothing before: of known sources one by one,
        of strangers by kind."""
        if now < self._until:
            return []
        counts, self._counts = self._counts, {True: {}, False: {}}
        self._until, self._strangers = float("inf"), 0
        found = list(_left_out(counts[True]))
        by_kind: dict[K, list[Sum[K]]] = {}
        for each in _left_out(counts[False]):
            by_kind.setdefault(each.kind, []).append(each)
        return found + [_together(each) for each in by_kind.values()]


def _left_out(counts: dict[str, dict[K, _Count]]) -> list[Sum[K]]:
    return [
        Sum(kind, count.left_out, source)
        for source, kinds in counts.items()
        for kind, count in kinds.items()
        if count.left_out
    ]


def _together(sums: list[Sum[K]]) -> Sum[K]:
    most = max(sums, key=lambda each: each.count)
    return Sum(most.kind, sum(each.count for each in sums), most.source, len(sums))
