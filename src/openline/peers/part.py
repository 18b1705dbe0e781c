"""What belongs to one remote node."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .remote import Remote


class Part:
    """Knows its node weakly: in a circle a node would not be freed as soon as it is forgotten."""

    __slots__ = ("_ref",)

    def __init__(self, remote: Remote) -> None:
        self._ref = weakref.ref(remote)

    @property
    def remote(self) -> Remote:
        remote = self._ref()
        assert remote is not None
        return remote
