"""Where the demo plays: two hosts in network namespaces, or loopback with the faults injected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from openline.config import BackendName
from openline.testing.lab.netns import ADDRESS, HostName, TwoHosts

from .program import Pair, Program, end_all, node_command
from .relay import HERE, Relay, TcpRelay, UdpRelay

PORTS: dict[BackendName, int] = {"websocket": 8770, "quic": 8771}
RELAYS: dict[BackendName, type[TcpRelay] | type[UdpRelay]] = {"websocket": TcpRelay, "quic": UdpRelay}
HOSTS: tuple[HostName, HostName] = ("A", "B")


class Stage(Protocol):
    """Two places to run programs, a line between them for each backend, and what can go wrong with these."""

    injected: bool
    pairs: tuple[Pair, ...]

    async def open(self) -> None: ...
    async def close(self) -> None:
        """End and undo everything; also right after an `open` that failed halfway."""
        ...

    async def break_route(self) -> None:
        """For all new connections from B to A."""
        ...

    def cut(self) -> None:
        """All lines at once."""
        ...

    def heal(self) -> None: ...


class Namespaces:
    """Two network namespaces and a virtual cable."""

    injected = False

    def __init__(self, idle_timeout: float, backends: Sequence[BackendName]) -> None:
        self._idle_timeout = idle_timeout
        self._hosts = TwoHosts()
        self.pairs = tuple(Pair(backend) for backend in backends)
        for pair in self.pairs:
            pair.listening = {name: (ip, PORTS[pair.backend]) for name, ip in ADDRESS.items()}
            pair.b_from_a = pair.listening["B"]

    async def open(self) -> None:
        self._hosts.__enter__()
        for pair in self.pairs:
            for name, (ip, port) in pair.listening.items():
                argv = node_command(name, pair, ip, port, self._idle_timeout)
                pair.programs[name] = await Program.start(self._hosts.command(name, argv))
        for pair in self.pairs:
            for program in pair.programs.values():
                await program.event(event="listening")

    async def close(self) -> None:
        await end_all(self.pairs)
        self._hosts.close()

    async def break_route(self) -> None:
        for pair in self.pairs:
            self._hosts.break_route("B", to="A", port=PORTS[pair.backend])

    def cut(self) -> None:
        self._hosts.cut()

    def heal(self) -> None:
        self._hosts.heal()


class Loopback:
    """One machine: B's dialer is told to fail, and A reaches B through relays that can go silent."""

    injected = True

    def __init__(self, idle_timeout: float, backends: Sequence[BackendName]) -> None:
        self._idle_timeout = idle_timeout
        self.pairs = tuple(Pair(backend) for backend in backends)
        self._relays: list[Relay] = []

    async def open(self) -> None:
        for pair in self.pairs:
            for name in HOSTS:
                argv = node_command(name, pair, HERE, 0, self._idle_timeout)
                pair.programs[name] = await Program.start(argv)
        for pair in self.pairs:
            for name, program in pair.programs.items():
                pair.listening[name] = HERE, (await program.event(event="listening"))["port"]
            relay = RELAYS[pair.backend]()
            self._relays.append(relay)
            pair.b_from_a = await relay.open(pair.listening["B"])

    async def close(self) -> None:
        await end_all(self.pairs)
        for relay in self._relays:
            await relay.close()

    async def break_route(self) -> None:
        for pair in self.pairs:
            host, port = pair.listening["A"]
            await pair.programs["B"].ask("refuse", host=host, port=port)

    def cut(self) -> None:
        for relay in self._relays:
            relay.flowing.clear()

    def heal(self) -> None:
        for relay in self._relays:
            relay.flowing.set()
