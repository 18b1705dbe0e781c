"""Seeded chaos: which fault happens when, to whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import Random

import msgspec

from .network import Host, Network

# Seconds that a fault lasts: usually short, sometimes longer than any time-out.
SHORT, LONG = (0.05, 3.0), (3.0, 25.0)
# One in so many is a long one.
LONG_ONES = 4


class Fault(msgspec.Struct):
    """One fault of a plan: seconds from the start of the plan, its length, and what it does."""

    at: float
    lasts: float
    what: str
    begin: Callable[[], object]
    # Makes it good again; nothing where it is over at once.
    end: Callable[[], object]

    def __str__(self) -> str:
        return f"{self.at:7.2f}–{self.at + self.lasts:<7.2f} {self.what}"


def _nothing() -> None:
    """It was over at once."""


class Faults:
    """Plans and plays faults for the hosts of a network.

    ``kinds`` are names of ``KINDS``; all but those that kill, by default, and those of ``DATAGRAMS``
    only where a host has QUIC. ``restarted(host)`` is
    awaited after a killed host is back, in the test's context: it starts the program again.
    """

    KINDS = (
        "cut",
        "cut_one_way",
        "stale_route",
        "refuse",
        "blackhole",
        "break_links",
        "silence",
        "forget",
        "freeze",
        "sleep",
        "jump_clock",
        "slow",
        "narrow",
        "swallow",
        "block_udp",
        "lose",
        "kill",
        "power_off",
    )
    KILLING = ("kill", "power_off")
    # Of no consequence where no host has QUIC.
    DATAGRAMS = ("block_udp", "lose")

    def __init__(
        self,
        network: Network,
        seed: int,
        *,
        hosts: Sequence[Host] | None = None,
        kinds: Iterable[str] | None = None,
        restarted: Callable[[Host], Awaitable[object]] | None = None,
    ) -> None:
        self.network = network
        self.random = Random(seed)
        self.hosts = list(network.hosts if hosts is None else hosts)
        quic = any("quic" in host.offers for host in self.hosts)
        without = self.KILLING if quic else (*self.KILLING, *self.DATAGRAMS)
        harmless = (kind for kind in self.KINDS if kind not in without)
        self.kinds = tuple(harmless if kinds is None else kinds)
        self._restarted = restarted

    def plan(self, seconds: float, number: int) -> list[Fault]:
        """``number`` faults that begin within ``seconds``, in order; some of them overlap."""
        faults = [self._one(self.random.uniform(0, seconds)) for _ in range(number)]
        return sorted(faults, key=lambda fault: fault.at)

    async def play(self, plan: Iterable[Fault]) -> None:
        """Let a plan happen. At its end everything is healed and all hosts are up."""
        start = self.network.now
        running = [asyncio.ensure_future(self._play(fault, start)) for fault in plan]
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await self._heal_all()

    async def _play(self, fault: Fault, start: float) -> None:
        await asyncio.sleep(start + fault.at - self.network.now)
        fault.begin()
        await asyncio.sleep(fault.lasts)
        ended = fault.end()
        if isinstance(ended, Awaitable):
            await ended

    async def _heal_all(self) -> None:
        self.network.heal()
        for host in self.hosts:
            host.thaw()
            if not host.process.alive:
                await self.restart(host)

    async def restart(self, host: Host) -> None:
        """Bring a killed host back, and its program."""
        if not host.process.alive:
            host.restart()
            if self._restarted is not None:
                await self._restarted(host)

    # One of each kind ----------------------------------------------------------------------------

    def _one(self, at: float) -> Fault:
        kind = self.random.choice(self.kinds)
        lasts = self.random.uniform(*(SHORT if self.random.randrange(LONG_ONES) else LONG))
        fault: Fault = getattr(self, f"_{kind}")(at, lasts)
        return fault

    def _pair(self) -> tuple[Host, Host]:
        a, b = self.random.sample(self.hosts, 2)
        return a, b

    def _between(self, at: float, lasts: float, what: str, begin: Callable[[Host, Host], object]) -> Fault:
        a, b = self._pair()
        return Fault(
            at, lasts, f"{what} {a.name} {b.name}", lambda: begin(a, b), lambda: self.network.heal(a, b)
        )

    def _at_once(self, at: float, what: str, begin: Callable[[Host, Host], object]) -> Fault:
        a, b = self._pair()
        return Fault(at, 0.0, f"{what} {a.name} {b.name}", lambda: begin(a, b), _nothing)

    def _cut(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "cut", self.network.cut)

    def _cut_one_way(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "cut one way", self.network.cut_one_way)

    def _stale_route(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "stale route", self.network.stale_route)

    def _refuse(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "refuse", self.network.refuse)

    def _blackhole(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "black hole", self.network.blackhole)

    def _break_links(self, at: float, lasts: float) -> Fault:
        spread = self.random.choice([0.0, 0.01, 1.0])
        return self._at_once(at, "break links", lambda a, b: self.network.break_links(a, b, spread))

    def _silence(self, at: float, lasts: float) -> Fault:
        return self._at_once(at, "silence links", self.network.silence)

    def _forget(self, at: float, lasts: float) -> Fault:
        return self._at_once(at, "forget links", self.network.forget)

    def _freeze(self, at: float, lasts: float) -> Fault:
        host = self.random.choice(self.hosts)
        return Fault(at, lasts, f"freeze {host.name}", host.freeze, host.thaw)

    def _sleep(self, at: float, lasts: float) -> Fault:
        host = self.random.choice(self.hosts)
        return Fault(at, lasts, f"sleep {host.name}", lambda: host.sleep(lasts), _nothing)

    def _jump_clock(self, at: float, lasts: float) -> Fault:
        # Far ahead would be a sleep longer than peers remember each other.
        host, seconds = self.random.choice(self.hosts), self.random.choice([-3600.0, -1.0, 1.0, 10.0])
        return Fault(at, 0.0, f"clock of {host.name}", lambda: host.jump_clock(seconds), _nothing)

    def _slow(self, at: float, lasts: float) -> Fault:
        """Latency, and much jitter."""
        a, b = self._pair()
        high = self.random.choice([0.02, 0.2, 1.0])
        low, usual = high * self.random.random(), self.network.default_latency
        return Fault(
            at,
            lasts,
            f"slow {a.name} {b.name}",
            lambda: self.network.latency(a, b, low, high),
            lambda: self.network.latency(a, b, *usual),
        )

    def _narrow(self, at: float, lasts: float) -> Fault:
        """Little bandwidth."""
        a, b = self._pair()
        rate, usual = self.random.choice([5_000.0, 20_000.0, 200_000.0]), self.network.path(a, b).bandwidth
        return Fault(
            at,
            lasts,
            f"narrow {a.name} {b.name}",
            lambda: self.network.bandwidth(a, b, rate),
            lambda: self.network.bandwidth(a, b, usual),
        )

    def _swallow(self, at: float, lasts: float) -> Fault:
        """Whatever is not small, of TCP or of UDP."""
        over, protocol = self.random.choice([1300, 4000]), self.random.choice(["tcp", "udp"])
        return self._between(
            at,
            lasts,
            f"swallow {protocol} over {over}",
            lambda a, b: self.network.swallow(a, b, over, protocol),
        )

    def _block_udp(self, at: float, lasts: float) -> Fault:
        return self._between(at, lasts, "block UDP", self.network.block_udp)

    def _lose(self, at: float, lasts: float) -> Fault:
        """Datagrams, some or many of them."""
        a, b = self._pair()
        share = self.random.choice([0.02, 0.1, 0.4])
        return Fault(
            at,
            lasts,
            f"lose {share:g} {a.name} {b.name}",
            lambda: self.network.lose(a, b, share),
            lambda: self.network.lose(a, b, 0.0),
        )

    def _kill(self, at: float, lasts: float) -> Fault:
        host = self.random.choice(self.hosts)
        return Fault(at, lasts, f"kill {host.name}", host.kill, lambda: self.restart(host))

    def _power_off(self, at: float, lasts: float) -> Fault:
        host = self.random.choice(self.hosts)
        return Fault(at, lasts, f"power off {host.name}", host.power_off, lambda: self.restart(host))
