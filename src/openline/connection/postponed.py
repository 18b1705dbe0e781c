"""What comes too often is put off, and done soon for all connections together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic

from .connection import Connection
from .events import R

# Seconds. At this rate caches of choices may be worthless, and pings of a flood are answered.
LATE = 0.1


class Postponed(Generic[R]):
    """Connections whose peers have sent pings, or changed, at too high a rate."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """``changed`` is called once for all changes of a time."""
        self._loop = loop
        self._changed = changed
        self._late: dict[Connection[R], None] = {}

    def add(self, connection: Connection[R]) -> None:
        self._late[connection] = None
        if len(self._late) == 1:
            self._loop.call_later(LATE, self._catch_up)

    def _catch_up(self) -> None:
        late, self._late = self._late, {}
        changes = [connection.take_changes() for connection in late]
        if any(changes):
            self._changed()
        for connection in late:
            connection.catch_up()
