"""The way between two hosts, and the time in which it is gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Protocol

from .loop import Process, VirtualLoop

if TYPE_CHECKING:
    from .wire import Pipe

Place = tuple[str, int]


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The time of the network, which stands above that of any process."""

    def now(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> Timer: ...
    def call_soon(self, callback: Callable[[], object], process: Process) -> object: ...


class NetworkClock:
    """Time of the running loop; network callbacks belong to no host."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.virtual = self.loop if isinstance(self.loop, VirtualLoop) else None
        self._outside = Context()

    def now(self) -> float:
        return self.virtual.clock if self.virtual is not None else self.loop.time()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        if self.virtual is not None:
            return self.virtual.call_at_clock(when, callback)
        return self.loop.call_at(when, callback, context=self._outside)

    def call_soon(self, callback: Callable[[], object], process: Process) -> None:
        if process.alive:
            self.loop.call_soon(callback, context=process.context)


class Station(Protocol):
    """What a path leads to."""

    name: str
    on: bool


class Path:
    """One direction between two hosts. Set its attributes at any time, and call ``changed`` after a cut."""

    def __init__(self, clock: Clock, random: Random, source: Station, target: Station) -> None:
        self.source, self.target = source, target
        # Seconds from end to end, at least and at most: drawn per frame.
        self.latency = (0.0005, 0.001)
        # Bytes per second, for all connections together.
        self.bandwidth = math.inf
        self.cut = False
        # For new connections only.
        self.no_route = self.refused = self.blackhole = False
        # Datagrams only: none pass; so many of them are lost; and flows that a NAT has forgotten.
        self.udp_blocked = False
        self.loss = 0.0
        # What is longer never arrives, and nobody is told: a small MTU, and ICMP is filtered.
        self.longest_tcp = self.longest_udp = math.inf
        self.muted: set[tuple[Place, Place]] = set()
        # Directions of connections that send on this path, and those that acknowledge on it.
        self.pipes: dict[Pipe, None] = {}
        self.returns: dict[Pipe, None] = {}
        self._clock = clock
        self._random = random
        self._free_at = 0.0
        self._down_since: float | None = None

    def __repr__(self) -> str:
        return f"<path {self.source.name}→{self.target.name}{'' if self.up else ', cut'}>"

    @property
    def up(self) -> bool:
        return not self.cut and self.source.on and self.target.on

    def delay(self) -> float:
        low, high = self.latency
        return low + (high - low) * self._random.random()

    def leave(self, size: int) -> float:
        """When the last of so many bytes has left, behind what others send."""
        now = self._clock.now()
        if self.bandwidth == math.inf:
            return now
        self._free_at = max(now, self._free_at) + size / self.bandwidth
        return self._free_at

    @property
    def queued(self) -> float:
        """Seconds that what is sent now waits behind what others have sent."""
        return max(0.0, self._free_at - self._clock.now())

    def passes_udp(self, fresh: bool, source: Place, target: Place, size: int) -> bool:
        """One datagram, perhaps the first of its flow."""
        if size > self.longest_udp:
            return False
        if not self.up or self.udp_blocked or (fresh and self.blackhole) or (source, target) in self.muted:
            return False
        return not (self.loss and self._random.random() < self.loss)

    def swallow(self, over: int, protocol: str) -> None:
        """Let what is longer vanish: ``tcp``, ``udp`` or ``both``."""
        if protocol != "udp":
            self.longest_tcp = over
        if protocol != "tcp":
            self.longest_udp = over

    def heal(self) -> None:
        self.cut = self.no_route = self.refused = self.blackhole = self.udp_blocked = False
        self.longest_tcp = self.longest_udp = math.inf
        self.changed()
        for pipe in list(self.pipes):
            pipe.transmit()

    def changed(self) -> None:
        """It may be up or down now: stop what is under way, or let it go on."""
        if self.up and self._down_since is not None:
            outage, self._down_since = self._clock.now() - self._down_since, None
            for pipe in list(self.pipes):
                # TCP notices at its next retransmission, and those get rarer.
                pipe.resume(self._clock.now() + self._random.random() * outage / 2)
            for pipe in list(self.returns):
                pipe.look_for_acks()
        elif not self.up and self._down_since is None:
            self._down_since = self._clock.now()
            for pipe in list(self.pipes):
                pipe.interrupt()
            for pipe in list(self.returns):
                pipe.settle_until_now()
