"""A network of hosts in one process, for whole transports: virtual time, seeded chance, faults.

    def test_it() -> None:
        async def scenario() -> None:
            network = Network(seed=7)
            a, b = network.host("10.0.0.1", name="a"), network.host("10.0.0.2", name="b")
            async with a.load_transport() as alice, b.load_transport() as bob:
                await b.run(bob.listen(8770))
                network.stale_route(b, a)
                await a.run(alice.send("10.0.0.2:8770", Message(payload=1)))

        run(scenario())

What a program does must run *on its host* (``host.run``, ``host.spawn``), to be frozen and killed with it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import socket
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...address import canonical_ip
from ...backends.base import Backend, Doorkeeper, OnBad
from ...backends.memory.backend import MemoryBackend
from ...backends.sockets import SockAddr, ip_of
from ...config import Config
from ...identity import Identity
from ...transport import Transport, load_transport
from .loop import Process
from .path import NetworkClock, Path
from .quicnet import simulated_quic
from .trace import LINES, Trace
from .udp import ANY, UdpStack
from .wire import Socket, connected

T = TypeVar("T")

# Seconds after which a SYN is sent again, and again; after that Linux gives up (tcp_syn_retries 6).
SYN_RETRIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# A host that does not answer to ARP is given up after this long.
ARP_TIMEOUT = 3.0
FIRST_EPHEMERAL = 32768
LOOPBACK = ("127.0.0.1", "::1")


class Network:
    """Hosts, and what goes on between them. Make it inside the running loop.

    The same ``seed`` gives the same run, on a ``VirtualLoop``. On any other loop there is no
    freezing, sleeping or killing; all else works in real time.
    """

    def __init__(self, seed: int = 0, trace_lines: int = LINES) -> None:
        self.random = random.Random(seed)
        self.clock = NetworkClock()
        self.trace = Trace(self.clock.now, trace_lines)
        self.hosts: list[Host] = []
        # Numbers of connections over UDP.
        self.connections = itertools.count(1)
        # Set it before hosts are made: seconds at least and at most, per frame.
        self.default_latency = (0.0005, 0.001)
        # And this: what hosts have, the preferred one first. With "quic" as well as "memory" a bare
        # address is raced, as with UDP and TCP; "memory" stands for WebSocket.
        self.default_backends: tuple[str, ...] = ("memory",)
        self._by_ip: dict[str, Host] = {}
        self._paths: dict[tuple[Host, Host], Path] = {}

    @property
    def now(self) -> float:
        """Seconds since the start, above all hosts' clocks."""
        return self.clock.now()

    def host(self, *ips: str, name: str = "") -> Host:
        """A new host. Its ``name`` can be looked up, too."""
        host = Host(self, name or f"h{len(self.hosts) + 1}", [canonical_ip(ip) or ip for ip in ips])
        self.hosts.append(host)
        for ip in host.ips:
            if ip in self._by_ip:
                raise ValueError(f"{ip} is {self._by_ip[ip].name}'s already")
            self._by_ip[ip] = host
        if name and self.clock.virtual is not None:
            self.clock.virtual.names[name] = list(host.ips)
        return host

    def alias(self, name: str, *ips: str) -> None:
        """Names look up to these IPs from now on, to nothing if none is given."""
        if self.clock.virtual is None:
            raise RuntimeError("only a VirtualLoop looks names up here")
        self.clock.virtual.names[name] = list(ips)

    def at(self, ip: str) -> Host | None:
        """The host with this IP."""
        return self._by_ip.get(ip)

    def path(self, a: Host, b: Host) -> Path:
        """The way from ``a`` to ``b``; the way back is another one."""
        found = self._paths.get((a, b))
        if found is None:
            found = Path(self.clock, random.Random(self.random.random()), a, b)
            found.latency = (0.00001, 0.00002) if a is b else self.default_latency
            self._paths[a, b] = found
        return found

    def sockets(self, a: Host, b: Host) -> list[Socket]:
        """What ``a``'s kernel has open toward ``b``, oldest first."""
        return [sock for sock in a.sockets if sock.remote[0] in b.ips]

    # Properties of the way between two hosts, both ways unless said --------------------------------

    def latency(self, a: Host, b: Host, low: float, high: float) -> None:
        """Seconds from end to end, drawn for each frame; frames of one connection stay in order."""
        for path in self._both(a, b):
            path.latency = low, high
        self.trace.note("-", "latency %s–%s %.4f–%.4f s", a.name, b.name, low, high)

    def bandwidth(self, a: Host, b: Host, bytes_per_second: float) -> None:
        """For all connections between them together, each way."""
        for path in self._both(a, b):
            path.bandwidth = bytes_per_second
        self.trace.note("-", "bandwidth %s–%s %g", a.name, b.name, bytes_per_second)

    def cut(self, a: Host, b: Host) -> None:
        """Nothing gets through any more, and nobody is told."""
        self.cut_one_way(a, b)
        self.cut_one_way(b, a)

    def cut_one_way(self, a: Host, b: Host) -> None:
        """Nothing from ``a`` gets to ``b``, not even acknowledgements."""
        self._set(a, b, "cut")

    def stale_route(self, a: Host, b: Host) -> None:
        """New connections from ``a`` to ``b`` fail with ``EHOSTUNREACH``; those that are open go on."""
        self._set(a, b, "no_route")

    def refuse(self, a: Host, b: Host) -> None:
        """New connections from ``a`` to ``b`` fail with ``ECONNREFUSED``."""
        self._set(a, b, "refused")

    def blackhole(self, a: Host, b: Host) -> None:
        """New connections from ``a`` to ``b`` are never answered; those that are open go on."""
        self._set(a, b, "blackhole")

    def heal(self, a: Host | None = None, b: Host | None = None) -> None:
        """End cuts, stale routes, refusals, black holes and UDP blocks: between two hosts, of one, or all."""
        self.trace.note("-", "heal %s", " ".join(host.name for host in (a, b) if host) or "all")
        for (source, target), path in self._paths.items():
            if {host for host in (a, b) if host is not None} <= {source, target}:
                path.heal()

    def block_udp(self, a: Host, b: Host) -> None:
        """No datagram gets through, whether it begins something or not; TCP goes on."""
        for path in self._both(a, b):
            path.udp_blocked = True
        self.trace.note("-", "udp blocked %s–%s", a.name, b.name)

    def lose(self, a: Host, b: Host, share: float) -> None:
        """So many datagrams of a hundred percent, 1.0, are lost. TCP does not show it here."""
        for path in self._both(a, b):
            path.loss = share
        self.trace.note("-", "loses %g of the datagrams %s–%s", share, a.name, b.name)

    def swallow(self, a: Host, b: Host, over: int, protocol: str = "both") -> None:
        """What is longer than so many bytes never arrives, whatever is sent again; ``heal`` ends it."""
        for path in self._both(a, b):
            path.swallow(over, protocol)
        self.trace.note("-", "swallows %s over %d %s–%s", protocol, over, a.name, b.name)

    def _set(self, a: Host, b: Host, what: str) -> None:
        self.trace.note("-", "%s %s→%s", what, a.name, b.name)
        setattr(self.path(a, b), what, True)
        self.path(a, b).changed()

    def _both(self, a: Host, b: Host) -> tuple[Path, Path]:
        return self.path(a, b), self.path(b, a)

    # What can happen to connections that are open ---------------------------------------------------

    def break_links(self, a: Host, b: Host, spread: float = 0.05) -> int:
        """Reset every connection between them; returns how many.

        What was under way is lost from some frame on, and the two ends notice at different times.
        """
        sockets = self.sockets(a, b)
        self.trace.note("-", "break %d links %s–%s", len(sockets), a.name, b.name)
        for sock in sockets:
            for end in (sock, sock.peer):
                end.out.lose_after(self.random.randint(0, end.out.under_way))
                when = self.now + self.random.uniform(0, spread)
                self.clock.call_at(when, end.drop)
        for flow in (*a.udp.flows(b), *b.udp.flows(a)):
            self.clock.call_at(self.now + self.random.uniform(0, spread), flow.drop)
        return len(sockets)

    def forget(self, a: Host, b: Host) -> int:
        """``a`` loses its connections to ``b``, and ``b`` is not told: half-open; returns how many."""
        sockets = self.sockets(a, b)
        self.trace.note("-", "%s forgets %d links to %s", a.name, len(sockets), b.name)
        for sock in sockets:
            sock.out.interrupt()
            sock.drop()
        for flow in a.udp.flows(b):
            flow.drop()
        return len(sockets)

    def silence(self, a: Host, b: Host) -> int:
        """Connections between them that are open now carry nothing any more, and nobody is told.

        As when a NAT or firewall between them forgets. New connections work.
        """
        sockets = self.sockets(a, b)
        self.trace.note("-", "silence %d links %s–%s", len(sockets), a.name, b.name)
        for sock in sockets:
            sock.out.mute()
            sock.into.mute()
        for flow in a.udp.flows(b):
            self.path(a, b).muted.add((flow.near, flow.far))
            self.path(b, a).muted.add((flow.far, flow.near))
        return len(sockets)


class Host:
    """A machine with its IPs, running one process at a time. Also the ``Environment`` of its transports."""

    def __init__(self, network: Network, name: str, ips: list[str]) -> None:
        self.network = network
        self.name = name
        self.ips = ips
        self.random = random.Random(network.random.random())
        self.on = True
        self.sockets: dict[Socket, None] = {}
        self.udp = UdpStack(self)
        self.offers = network.default_backends
        self._bound: dict[tuple[str, int], _Bound] = {}
        self._ports = itertools.count(FIRST_EPHEMERAL + self.random.randrange(10_000))
        self._clock_offset = self.random.uniform(1.5e9, 1.9e9)
        self._identity_key = self.random.randbytes(32)
        self.process = self._boot()

    def __repr__(self) -> str:
        return f"<host {self.name} {', '.join(self.ips)}, {self.process}>"

    def _boot(self) -> Process:
        loop = self.network.clock.virtual
        process = loop.process(self.name) if loop is not None else Process(None, self.name)
        process.on_thaw.append(self._read_on)
        return process

    def _read_on(self) -> None:
        for sock in list(self.sockets):
            sock.read_on()
        self.udp.read_on()

    # Programs --------------------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task on this host."""
        return self.process.spawn(coroutine)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on this host, and wait for the result. Raises ``Killed`` if the host dies meanwhile."""
        return await self.process.run(coroutine)

    def load_transport(self, config: Config | None = None) -> _Loading:
        """``openline.load_transport`` on this host, with ``await`` or ``async with``.

        Its identity is the host's own, now and after a restart, unless the config has one.
        """
        return _Loading(self, config or Config(name=self.name))

    @property
    def identity(self) -> Identity:
        """This host's own, the same for the same seed."""
        return Identity(Ed25519PrivateKey.from_private_bytes(self._identity_key))

    # Environment -----------------------------------------------------------------------------------

    def backends(
        self, config: Config, door: Doorkeeper, on_bad: OnBad
    ) -> tuple[list[Backend], dict[str, str]]:
        made: list[Backend] = []
        for name in self.offers:
            if name == "memory":
                made.append(MemoryBackend(config, door, on_bad, self))
            else:
                made.append(simulated_quic(config, door, on_bad, self.udp))
        return made, {}

    def stopwatch(self) -> float:
        return self.network.clock.loop.time()

    def wall_clock(self) -> float:
        return self._clock_offset + self.network.now

    unix_time = wall_clock

    # Its life --------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP: the program stands still, the kernel goes on."""
        self._note("freeze")
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self._note("thaw")
        self.process.thaw()

    def sleep(self, seconds: float) -> None:
        """The machine sleeps: as ``freeze``, and its monotonic clock stands still, unlike its wall clock."""
        self._note("sleep %.3f s", seconds)
        self.process.sleep(seconds)

    def jump_clock(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self._note("clock jumps %.3f s", seconds)
        self._clock_offset += seconds

    def kill(self) -> None:
        """SIGKILL: no more code runs; the kernel closes the sockets and tells the far ends."""
        self._note("kill")
        self.process.kill()
        self._bound.clear()
        self.udp.vanish()
        for sock in list(self.sockets):
            # Linux: a reset where something had not been read, else an end behind the data.
            sock.reset() if self.random.random() < 0.5 else sock.close()

    def power_off(self) -> None:
        """The plug is pulled: far ends hear nothing. After ``restart`` they get a reset on what they send."""
        self._note("power off")
        self.process.kill()
        self._bound.clear()
        self.udp.vanish()
        self.on = False
        self._paths_changed()
        for sock in list(self.sockets):
            sock.vanish()

    def restart(self) -> None:
        """A new process, after ``kill`` or ``power_off``; kills a running one."""
        if self.process.alive:
            self.kill()
        self._note("restart")
        self.process = self._boot()
        self.on = True
        self._paths_changed()

    def _paths_changed(self) -> None:
        for other in self.network.hosts:
            self.network.path(self, other).changed()
            self.network.path(other, self).changed()

    def _note(self, what: str, *details: object) -> None:
        self.network.trace.note(self.name, what, *details)

    # The network stack of the memory backend ---------------------------------------------------------

    async def open(self, family: socket.AddressFamily, sockaddr: SockAddr) -> Socket:
        """Connect. Raises ``OSError``."""
        ip, port = ip_of(sockaddr), sockaddr[1]
        target = self.target(ip)
        there = self.network.path(self, target) if target is not None else None
        if there is not None and there.no_route:
            raise _error(errno.EHOSTUNREACH)
        if target is None or there is None or not target.on:
            await asyncio.sleep(ARP_TIMEOUT)
            raise _error(errno.EHOSTUNREACH)
        back = self.network.path(target, self)
        for wait in SYN_RETRIES:
            self._note("syn to %s:%d", ip, port)
            if there.up and back.up and not there.blackhole:
                await asyncio.sleep(there.delay())
                if there.up:
                    return await self._connect(there, back, target, ip, port)
            await asyncio.sleep(wait)
        raise _error(errno.ETIMEDOUT)

    async def _connect(self, there: Path, back: Path, target: Host, ip: str, port: int) -> Socket:
        if there.refused or target.listening(ip, port) is None:
            await asyncio.sleep(back.delay())
            raise _error(errno.ECONNREFUSED)
        near = self._socket((self.address_for(ip), self.free_port()), (ip, port))
        far = target._socket(near.remote, near.local)
        connected(self.network.clock, near, far, there, back)
        self._note("connects to %s:%d from port %d", ip, port, near.local[1])
        target._arrived(far)
        try:
            await asyncio.sleep(back.delay())
        except BaseException:
            near.reset()
            raise
        return near

    def _socket(self, local: tuple[str, int], remote: tuple[str, int]) -> Socket:
        sock = Socket(self.network.clock, self.process, local, remote)
        self.sockets[sock] = None
        sock.on_shut = self._shut
        if self.network.trace.frames:
            sock.note = lambda *what: self.network.trace.frame(self.name, *what)
        return sock

    def _shut(self, sock: Socket) -> None:
        if self.sockets.pop(sock, sock) is None:
            self._note("has no more %r", sock)

    def _arrived(self, sock: Socket) -> None:
        """A client has connected; the program learns of it in its time."""
        bound = self.listening(*sock.local)
        if bound is None:
            sock.reset()
        else:
            sock.soon(lambda: bound.on_accept(sock))

    def target(self, ip: str) -> Host | None:
        """Who is at that IP, as seen from here."""
        return self if ip in LOOPBACK or ip in self.ips else self.network.at(ip)

    def free_port(self) -> int:
        return next(self._ports)

    def address_for(self, ip: str) -> str:
        if ip in LOOPBACK or ip in self.ips:
            return ip
        return next((own for own in self.ips if (":" in own) == (":" in ip)), self.ips[0])

    def listening(self, ip: str, port: int) -> _Bound | None:
        """Who listens there, if anybody."""
        return self._bound.get((ip, port)) or self._bound.get(("", port))

    async def bind(self, host: str | None, port: int, on_accept: Callable[[Any], None]) -> _Bound:
        """Listen. Raises ``OSError``."""
        ips = [""] if host is None or host in ANY else await self._own(host)
        taken = {used for _, used in self._bound}
        port = port or next(number for number in self._ports if number not in taken)
        for ip, used in self._bound:
            if used == port and (ip == "" or ips == [""] or ip in ips):
                raise _error(errno.EADDRINUSE)
        bound = _Bound(self, port, on_accept)
        for ip in ips:
            self._bound[ip, port] = bound
        return bound

    async def _own(self, host: str) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        ips = [ip_of(sockaddr) for *_, sockaddr in found]
        if any(ip not in self.ips and ip not in LOOPBACK for ip in ips):
            raise _error(errno.EADDRNOTAVAIL)
        return ips

    def unbind(self, bound: _Bound) -> None:
        """Stop listening there."""
        self._bound = {key: value for key, value in self._bound.items() if value is not bound}


class _Bound:
    def __init__(self, host: Host, port: int, on_accept: Callable[[Any], None]) -> None:
        self._host = host
        self.port = port
        self.on_accept = on_accept

    def close(self) -> None:
        self._host.unbind(self)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _Loading:
    def __init__(self, host: Host, config: Config) -> None:
        self._host = host
        if config.identity is None:
            config = msgspec.structs.replace(config, identity=host.identity)
        self._config = config
        self._process = host.process
        self._transport: Transport | None = None

    async def _load(self) -> Transport:
        return await load_transport(self._config, environment=self._host)

    def __await__(self) -> Generator[Any, None, Transport]:
        return self._process.run(self._load()).__await__()

    async def __aenter__(self) -> Transport:
        self._transport = await self
        return self._transport

    async def __aexit__(self, *exc: object) -> None:
        assert self._transport is not None
        if self._process.alive:
            await self._process.run(self._transport.close())
