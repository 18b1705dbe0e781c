"""One limit in bytes, shared between origins first and then between who came from there. Pure.

A node id costs nothing, an address does. So who has to give something up is the largest holder of
the origin that holds the most: a crowd of throwaway keys from one place pushes out itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from .share import Share

H = TypeVar("H")


class FairShare(Generic[H]):
    """Bytes by holder, each of which has an origin that does not change while it holds something."""

    __slots__ = ("_groups", "_origin_of", "_origins")

    def __init__(self, limit: int) -> None:
        self._origins: Share[str] = Share(limit)
        self._groups: dict[str, Share[H]] = {}
        self._origin_of: dict[H, str] = {}

    def __contains__(self, holder: H) -> bool:
        return holder in self._origin_of

    def __iter__(self) -> Iterator[H]:
        return iter(self._origin_of)

    def origin_of(self, holder: H) -> str:
        return self._origin_of.get(holder, "")

    def __len__(self) -> int:
        return len(self._origin_of)

    @property
    def limit(self) -> int:
        return self._origins.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._origins.limit = limit

    @property
    def used(self) -> int:
        return self._origins.used

    def used_by(self, origin: str) -> int:
        group = self._groups.get(origin)
        return group.used if group is not None else 0

    def of(self, origin: str) -> Iterator[H]:
        """The holders of an origin, in the order in which they came."""
        return iter(self._groups.get(origin, ()))

    def largest_origin(self) -> str:
        """By powers of two, the one that has been there longest; empty where nobody holds anything."""
        return self._origins.largest() or ""

    def held_by(self, holder: H) -> int:
        origin = self._origin_of.get(holder)
        return self._groups[origin].held_by(holder) if origin is not None else 0

    def set(self, holder: H, origin: str, size: int) -> None:
        """``holder`` has so many bytes now; ``origin`` counts where it had none before."""
        origin = self._origin_of.setdefault(holder, origin)
        group = self._groups.get(origin)
        if group is None:
            group = self._groups[origin] = Share(0)
        group.set(holder, size)
        self._origins.set(origin, group.used)
        if not size:
            del self._origin_of[holder]
        if not group.used:
            del self._groups[origin]

    def remove(self, holder: H) -> None:
        if holder in self._origin_of:
            self.set(holder, "", 0)

    def excess(self) -> H | None:
        """Who has to give something up; None where all of them together are within the limit."""
        origin = self._origins.excess()
        return self._groups[origin].excess() if origin is not None else None
