"""The real network, clocks and chance; a simulation brings its own (``backends.base.Environment``)."""

from __future__ import annotations

import random
import sys
import time

from .backends.base import Backend, Doorkeeper, OnBad
from .backends.sockets import Opener, open_socket
from .backends.websocket import WebSocketBackend
from .config import Config


class RealEnvironment:
    """Sockets of this machine. ``opener`` replaces how they are dialed (tests, the demo)."""

    def __init__(self, opener: Opener = open_socket) -> None:
        self.random = random.Random()
        self._opener = opener

    def backend(self, config: Config, door: Doorkeeper, on_bad: OnBad) -> Backend:
        return WebSocketBackend(config, door, on_bad, self._opener)

    def stopwatch(self) -> float:
        return time.perf_counter()

    def wall_clock(self) -> float:
        """A clock that goes on while the machine sleeps, and that nobody can set."""
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        if sys.platform == "darwin":
            return time.clock_gettime(time.CLOCK_MONOTONIC)
        return time.monotonic()
