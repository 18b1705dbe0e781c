"""Two processes with one identity (rule 3.3): which node ids that was so with, and for how long they may
not connect."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..connection.context import Context
from ..core.handshake import Hello

# How long neither of two processes with one identity may connect, and its limit, as it doubles each
# time the conflict comes back. Long enough that it is no fight, short enough to recover by itself.
CONFLICT_HOLD = 30.0
MAX_CONFLICT_HOLD = 3600.0
MAX_CONFLICTS = 1024
CUT = "identity conflict"


class Conflicts:
    """Of one transport. ``knows(node_id)`` says whether this program has a reason to know that node;
    ``is_process(hello)`` whether a hello repeats the instance of a process whose session is here."""

    def __init__(
        self, context: Context, knows: Callable[[str], bool], is_process: Callable[[Hello], bool]
    ) -> None:
        self._context = context
        self._knows = knows
        self.is_copy = is_process
        # Node id → until when, and how long it was held.
        self._held: dict[str, tuple[float, float]] = {}

    def holds(self, node_id: str) -> bool:
        """May nobody connect with that identity now?"""
        until, _ = self._held.get(node_id, (0.0, 0.0))
        return self._context.loop.time() < until

    def begin(self, node_id: str) -> None:
        """Two processes with that identity are there."""
        self._context.counters.conflicts += 1
        now = self._context.loop.time()
        until, hold = self._held.pop(node_id, (0.0, 0.0))
        again = hold and now < until + hold
        hold = min(2 * hold, MAX_CONFLICT_HOLD) if again else CONFLICT_HOLD
        self._held[node_id] = now + hold, hold
        if len(self._held) > MAX_CONFLICTS:
            # Whoever has keys can make conflicts: those of strangers go first.
            strangers = (each for each in self._held if not self._knows(each) and each != node_id)
            del self._held[next(strangers, next(iter(self._held)))]

    def on_copy(self, node_id: str, where: str) -> None:
        """Somebody at ``where`` has that node's key and repeats the instance of a process that he is not.

        Here it is certain who is genuine, so nothing happens to that one.
        """
        self._context.counters.conflicts += 1
        text = (
            "%s has the key of node %s and pretends to be a process of it that is known here: turned away. "
            "That key is stolen: replace it"
        )
        known = self._knows(node_id)
        self._context.log.line(node_id, known, logging.ERROR, text, where, node_id, most=1)
