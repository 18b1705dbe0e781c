"""What all connections of one transport share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic

from ..config import Config
from ..runtime.ratelog import RateLog
from ..stats import Counters
from .events import Arrivals, Later, Lifecycle, Liveness, R, Turn


class Context:
    """Configuration, counters, log and clocks. ``now`` is the loop's time at the last tick of liveness."""

    __slots__ = ("config", "counters", "log", "loop", "node_id", "now", "stopwatch", "turn")

    def __init__(
        self,
        config: Config,
        node_id: str,
        log: RateLog,
        stopwatch: Callable[[], float],
    ) -> None:
        self.config = config
        self.counters = Counters()
        self.log = log
        self.loop = asyncio.get_running_loop()
        self.node_id = node_id
        self.now = self.loop.time()
        self.stopwatch = stopwatch
        self.turn: Turn

    def bind(self, turn: Turn) -> None:
        """Before there is any connection."""
        self.turn = turn

    def advance(self) -> float:
        """A tick of the liveness clock; reading ``now`` between ticks costs nothing."""
        self.now = self.loop.time()
        return self.now


class Listeners(Generic[R]):
    """Whom connections tell."""

    __slots__ = ("arrivals", "later", "lifecycle", "liveness")

    def __init__(
        self, arrivals: Arrivals[R], lifecycle: Lifecycle[R], liveness: Liveness[R], later: Later[R]
    ) -> None:
        self.arrivals = arrivals
        self.lifecycle = lifecycle
        self.liveness = liveness
        self.later = later
