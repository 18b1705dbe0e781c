"""UDP between the hosts of a network: datagrams are lost, overtake each other, and nobody is told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...backends.sockets import SockAddr, ip_of
from .loop import Process
from .path import Path, Place

if TYPE_CHECKING:
    from .network import Host

# Bytes that a kernel keeps for a program that does not read; beyond that it drops.
RECEIVE_BUFFER = 256 * 1024
# Seconds of bytes that a path with little bandwidth keeps; beyond that it drops.
QUEUE_SECONDS = 1.0
ANY = ("0.0.0.0", "::")


class Datagram(Protocol):
    """What travels; whoever sends it knows what else it is."""

    @property
    def size(self) -> int: ...
    @property
    def kind(self) -> str:
        """``initial``: it begins something, so that firewalls and routes treat it as new."""
        ...


class UdpUser(Protocol):
    """Told out of callbacks of the loop."""

    def on_datagram(self, packet: Any, source: Place, to: Place) -> None: ...
    def on_error(self, error: OSError) -> None: ...


class _Nobody:
    def on_datagram(self, packet: Any, source: Place, to: Place) -> None: ...
    def on_error(self, error: OSError) -> None: ...


NOBODY: UdpUser = _Nobody()


class Flow(Protocol):
    """One end of a connection over datagrams."""

    near: Place
    far: Place

    def drop(self) -> None:
        """It is over, and only its own program is told."""
        ...


class UdpSocket:
    """Bound to a port; what is sent from it may come back as an error, if it is ``connected``."""

    def __init__(self, stack: UdpStack, local: Place, user: UdpUser, remote: Place | None) -> None:
        self.local, self.remote = local, remote
        self.user = user
        self.open = True
        self.stack = stack
        self._process: Process = stack.host.process
        self._buffer: deque[tuple[Any, Place, Place]] = deque()
        self._buffered = 0

    def __repr__(self) -> str:
        return f"<udp {self.local[0]}:{self.local[1]}>"

    @property
    def now(self) -> float:
        """Of the network."""
        return self.stack.host.network.now

    def send(self, packet: Datagram, to: Place, source: Place | None = None) -> None:
        if self.open:
            self.stack.send(self, packet, to, source or self.local)

    def rate(self, to: Place) -> float:
        """Bytes per second of the path, which real ones find out by themselves."""
        path = self.stack.path(to[0])
        return path.bandwidth if path is not None else float("inf")

    def close(self) -> None:
        if self.open:
            self.open = False
            self._buffer.clear()
            self.stack.forget(self)
            self.user = NOBODY  # who was told may hold this

    # The kernel's side ---------------------------------------------------------------------------

    def take_in(self, packet: Any, source: Place, to: Place) -> None:
        """It has arrived."""
        if self._process.running and not self._buffer:
            self._process.context.run(self.user.on_datagram, packet, source, to)
        elif self._process.alive and self._buffered + packet.size <= RECEIVE_BUFFER:
            self._buffered += packet.size
            self._buffer.append((packet, source, to))

    def read_on(self) -> None:
        """The program runs again."""
        while self._buffer and self.open:
            packet, source, to = self._buffer.popleft()
            self._buffered -= packet.size
            self.user.on_datagram(packet, source, to)

    def fail(self, number: int) -> None:
        """An ICMP error has come, or the system will not send."""
        if self.open and self.remote is not None:
            self.stack.soon(self._tell, number)

    def _tell(self, number: int) -> None:
        if self.open:
            self.user.on_error(OSError(number, os.strerror(number)))


class UdpStack:
    """A host's."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._sockets: dict[Place, UdpSocket] = {}
        # Connections that programs of this host have.
        self.live: dict[Flow, None] = {}
        self._connections = host.network.connections

    def number(self) -> int:
        """Of a new connection, the only one in the network with it."""
        return next(self._connections)

    def sockets(self) -> list[UdpSocket]:
        return list(dict.fromkeys(self._sockets.values()))

    def bind(self, host: str | None, port: int, user: UdpUser) -> UdpSocket:
        """Raises ``OSError``."""
        ip = "" if host is None or host in ANY else host
        if any(used == port and (ip in ("", there) or there == "") for there, used in self._sockets):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        sock = self._sockets[ip, port] = UdpSocket(self, (ip, port), user, None)
        return sock

    async def connect(self, sockaddr: SockAddr, user: UdpUser) -> UdpSocket:
        """A client's, on a port of its own. Raises ``OSError``."""
        remote = ip_of(sockaddr), int(sockaddr[1])
        path = self.path(remote[0])
        await asyncio.sleep(0)
        if path is None or path.no_route:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        local = self.host.address_for(remote[0]), self.host.free_port()
        sock = self._sockets[local] = UdpSocket(self, local, user, remote)
        self.note("udp to %s:%d from port %d", *remote, local[1])
        return sock

    def forget(self, sock: UdpSocket) -> None:
        self._sockets.pop(sock.local, None)

    def vanish(self) -> None:
        """The process has ended."""
        for sock in self.sockets():
            sock.close()
        self.live.clear()

    def flows(self, other: Host) -> list[Flow]:
        """Connections to that host, oldest first."""
        return [flow for flow in self.live if flow.far[0] in other.ips]

    def read_on(self) -> None:
        for sock in self.sockets():
            sock.read_on()

    def soon(self, callback: Callable[[int], object], number: int) -> None:
        self.host.network.clock.call_soon(lambda: callback(number), self.host.process)

    def note(self, what: str, *details: object) -> None:
        self.host.network.trace.note(self.host.name, what, *details)

    # The way -------------------------------------------------------------------------------------

    def path(self, ip: str) -> Path | None:
        target = self.host.target(ip)
        return self.host.network.path(self.host, target) if target is not None else None

    def send(self, sock: UdpSocket, packet: Datagram, to: Place, source: Place) -> None:
        path = self.path(to[0])
        if path is None:
            return
        trace = self.host.network.trace
        fresh = packet.kind == "initial"
        if trace.frames:
            trace.frame(self.host.name, "%r sends %s", sock, packet)
        if fresh and path.no_route:
            sock.fail(errno.EHOSTUNREACH)
        elif not path.passes_udp(fresh, source, to, packet.size) or path.queued > QUEUE_SECONDS:
            if trace.frames:
                self.note("%r: lost", sock)
        else:
            when = self.arrival(path, packet)
            self.host.network.clock.call_at(when, lambda: self._arrive(sock, path, packet, to, source))

    def arrival(self, path: Path, packet: Datagram) -> float:
        """When it will be there."""
        return path.leave(packet.size) + path.delay()

    def _arrive(self, sock: UdpSocket, path: Path, packet: Datagram, to: Place, source: Place) -> None:
        target: Any = path.target
        if not path.up or (source, to) in path.muted:
            return
        there = target.udp.at(to)
        if there is None or (path.refused and packet.kind == "initial"):
            back = target.network.path(target, self.host)
            if back.passes_udp(False, to, source, 0):
                clock = self.host.network.clock
                clock.call_at(clock.now() + back.delay(), lambda: sock.fail(errno.ECONNREFUSED))
            return
        if target.network.trace.frames:
            target.network.trace.frame(target.name, "%r receives %s", there, packet)
        there.take_in(packet, source, to)

    def at(self, place: Place) -> UdpSocket | None:
        return self._sockets.get(place) or self._sockets.get(("", place[1]))
