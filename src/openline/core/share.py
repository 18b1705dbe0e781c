"""One limit in bytes that many holders take from; the largest of them pays first (rule 3.10). Pure.

What nodes may take that this program has no reason to know is bounded for all of them together:
each bound is one ``Share``. Whoever owns it decides what paying means: to be cut, not to be read,
to be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

H = TypeVar("H")


class Share(Generic[H]):
    """Bytes by holder. Holders are compared by identity or equality, as in a dict."""

    __slots__ = ("_buckets", "_sizes", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._sizes: dict[H, int] = {}
        # Holders by the number of bits of what they hold, each the longest there first: so the
        # largest is found without a search, which a flood of small ones would make expensive.
        self._buckets: dict[int, dict[H, None]] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, holder: H) -> bool:
        return holder in self._sizes

    def __iter__(self) -> Iterator[H]:
        return iter(self._sizes)

    def held_by(self, holder: H) -> int:
        return self._sizes.get(holder, 0)

    def set(self, holder: H, size: int) -> None:
        """``holder`` has so many bytes now; with 0 it is no holder any more."""
        before = self._sizes.get(holder, 0)
        self.used += size - before
        if size.bit_length() != before.bit_length():
            self._leave(holder, before)
            if size:
                self._buckets.setdefault(size.bit_length(), {})[holder] = None
        if size:
            self._sizes[holder] = size
        else:
            self._sizes.pop(holder, None)

    def remove(self, holder: H) -> None:
        self.set(holder, 0)

    def excess(self) -> H | None:
        """Who has to give something up: of the largest, by powers of two, the longest there.

        None where all of them together are within the limit.
        """
        return self.largest() if self.used > self.limit else None

    def largest(self) -> H | None:
        return next(iter(self._buckets[max(self._buckets)])) if self._buckets else None

    def _leave(self, holder: H, size: int) -> None:
        bucket = self._buckets.get(size.bit_length())
        if bucket is not None:
            bucket.pop(holder, None)
            if not bucket:
                del self._buckets[size.bit_length()]
