"""The QUIC backend on a simulated network: the real link, engine and handshakes over simulated packets.

Another one is only what is below: qh3's connection, which needs real time and real chance
(``tinyquic`` stands in for it), and the sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from ...address import Address, join
from ...backends.base import Doorkeeper, Link, OnBad
from ...backends.quic.backend import _Call
from ...backends.quic.engine import _SLACK, STALL, Engine
from ...backends.quic.link import QuicLink
from ...backends.quic.listener import _Visit
from ...backends.race import AllFailed, Race, merged
from ...backends.sockets import NO_ROUTE, SockAddr, describe, ip_of, resolve
from ...config import Config
from ...core.frames import Malformed
from ...core.selection import Endpoint
from ...errors import Unreachable
from .path import Place
from .tinyquic import INITIAL, RESET, Packet, TinyQuic
from .udp import UdpSocket, UdpStack

# What both sides take for the server's.
CERTIFICATE = b"a certificate"


class SimulatedEngine(Engine):
    """Drives one connection by the loop's time."""

    def __init__(
        self, link: int, client: bool, config: Config, sock: UdpSocket, near: Place, far: Place
    ) -> None:
        core: Any = TinyQuic(link, client, config.max_idle_timeout, partial(sock.rate, far))
        super().__init__(core, lambda batch, addr: 0)
        self.near, self.far = near, far
        # When a packet last came, above the clocks of all processes.
        self.heard = sock.now
        self._link = link
        self._tiny: TinyQuic = core
        self._sock = sock
        self._stack = sock.stack
        self._stack.live[self] = None

    def _now(self) -> float:
        """As the real one's, by the loop's clock."""
        now = self._loop.time() - self._stalled
        if self._timer is not None and now > self._timer_at + STALL:
            self._stalled += now - self._timer_at
            now = self._timer_at
        return now

    def connect(self, addr: Any) -> None:
        self._tiny.begin(self._now())
        self.transmit()

    def take_in(self, packet: Packet) -> None:
        self.heard = self._sock.now
        alive = self._tiny.receive(packet, self._now())
        self._tiny._drain_core()
        self._handle(alive)

    def drop(self) -> None:
        """It is over, and only this program is told."""
        self._sock.take_in(Packet(self._link, RESET, (0, "reset"), 0, None), self.far, self.near)

    def _transmit(self) -> None:
        now = self._now()
        while (packet := self._tiny.poll(now)) is not None:
            self._sock.send(packet, self.far, self.near)
        self._arm(now)

    def _on_timer(self) -> None:
        now = self._now()
        self._timer = None
        when = self._tiny.get_timer()
        if when is not None and when <= now + _SLACK:
            self._tiny.handle_timer(max(now, when))
            self._handle()
        elif when is not None:
            self._arm(now)

    def _finish(self) -> None:
        self._stack.live.pop(self, None)
        super()._finish()


# Listening ------------------------------------------------------------------------------------------


class SimulatedDoor:
    """A UDP port that is listened on: finds out which connection a packet belongs to."""

    certificate = CERTIFICATE

    def __init__(
        self,
        config: Config,
        doorkeeper: Doorkeeper,
        on_bad: OnBad,
        stack: UdpStack,
        host: str | None,
        port: int,
    ) -> None:
        """Raises ``OSError``."""
        self.config = config
        self.doorkeeper = doorkeeper
        self.on_bad = on_bad
        self.evicted = 0
        self.visits: dict[_Visit, None] = {}
        self.port = port or stack.host.free_port()
        self._closed = False
        self._engines: dict[int, SimulatedEngine] = {}
        self._live: dict[SimulatedEngine, None] = {}
        self._sock = stack.bind(host, self.port, self)

    @property
    def pending(self) -> int:
        return len(self.visits)

    async def close(self) -> None:
        self._closed = True
        for visit in list(self.visits):
            visit.cut()
        self._close_if_unused()

    def on_datagram(self, packet: Packet, source: Place, to: Place) -> None:
        engine = self._engines.get(packet.link)
        if engine is None and packet.kind == INITIAL and not self._closed:
            engine = self._accept(packet.link, source, to)
        if engine is not None:
            engine.take_in(packet)

    def on_error(self, error: OSError) -> None:
        """Not for a socket that is not connected."""

    def _accept(self, link: int, source: Place, to: Place) -> SimulatedEngine:
        if len(self.visits) >= self.config.max_pending_handshakes:
            self.evicted += 1
            next(iter(self.visits)).cut()
        engine = SimulatedEngine(link, False, self.config, self._sock, to, source)

        def finished() -> None:
            self._live.pop(engine, None)
            self._close_if_unused()

        def gone() -> None:
            self._engines.pop(link, None)

        engine.on_finished, engine.on_gone = finished, gone
        self._engines[link] = engine
        self._live[engine] = None
        likeness: Any = self
        _Visit(likeness, engine, source, CERTIFICATE)
        return engine

    def _close_if_unused(self) -> None:
        """Connections that were accepted here keep the socket."""
        if self._closed and not self._live:
            for engine in list(self._engines.values()):
                engine.forget()
            self._engines.clear()
            self._sock.close()


# Dialing --------------------------------------------------------------------------------------------


class _SimulatedCall(_Call):
    """One dial, from the first packet on."""

    def __init__(self, backend: SimulatedQuic, address: Address, sockaddr: SockAddr) -> None:
        likeness: Any = backend
        self._backend = likeness
        self._address = address
        self._sockaddr = sockaddr
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[None] = self._loop.create_future()
        self._resumed = self._ticket = self._moving = None
        self._certificate = b""
        self._hello = backend.doorkeeper.hello()
        self._refusals = 0

    def open(self, sock: UdpSocket) -> None:
        backend, address = self._backend, self._address
        socket: Any = sock
        self._datagrams = socket
        assert sock.remote is not None
        self._engine = SimulatedEngine(
            sock.stack.number(), True, backend.config, sock, sock.local, sock.remote
        )
        self._engine.on_finished = self._finished
        endpoint = Endpoint("outbound", *sock.remote, target=address, secure=True, backend="quic")
        self._link = link = QuicLink(
            self._engine, endpoint, backend.config, True, backend.doorkeeper.unfinished
        )
        link.on_connected, link.on_hello, link.on_failed = self._connected, self._greeted, self._failed
        self._engine.connect(sock.remote)

    def on_datagram(self, packet: Packet, source: Place, to: Place) -> None:
        self._refusals = 0
        engine: Any = self._engine
        engine.take_in(packet)

    def on_error(self, error: OSError) -> None:
        self._on_error(error)

    def _shown(self, event: object) -> bytes:
        return CERTIFICATE

    def _move(self, why: str, *, only_elsewhere: bool) -> None:
        """There is no other address to go on from."""


class SimulatedQuic:
    """Opens and accepts QUIC links on one simulated host."""

    name = "quic"
    schemes: tuple[str, ...] = ("quic",)
    secure = True

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, stack: UdpStack) -> None:
        self.config = config
        self.doorkeeper = doorkeeper
        self._on_bad = on_bad
        self._stack = stack

    def distrust(self, address: Address) -> None:
        """Every dial begins with the smallest datagrams anyway."""

    async def listen(self, host: str | None, port: int) -> SimulatedDoor:
        """Raises ``OSError``."""
        return SimulatedDoor(self.config, self.doorkeeper, self._on_bad, self._stack, host, port)

    async def dial(self, address: Address) -> Link:
        try:
            found = await resolve(address)
        except OSError as error:
            raise Unreachable(str(address), [(f"look-up of {address.host}", describe(error))]) from None
        race: Race[_SimulatedCall] = Race(_SimulatedCall.hang_up)
        try:
            _, call = await race.run([partial(self._try, address, sockaddr) for _, sockaddr in found])
        except AllFailed as failed:
            raise merged(address, failed.errors) from None
        return call.enter()

    async def _try(self, address: Address, sockaddr: SockAddr) -> _SimulatedCall:
        """One address of the host: a link whose far end's hello is good."""
        path = f"quic {join(ip_of(sockaddr), sockaddr[1])}"
        call = _SimulatedCall(self, address, sockaddr)
        hang_up: Callable[[], object] | None = None
        try:
            sock = await self._stack.connect(sockaddr, call)
            call.open(sock)
            hang_up = call.hang_up
            await call.answered
            return call
        except (OSError, Malformed) as error:
            if hang_up is not None:
                hang_up()
            no_route = isinstance(error, OSError) and error.errno in NO_ROUTE
            raise Unreachable(str(address), [(path, describe(error))], no_route=no_route) from None
        except BaseException:
            if hang_up is not None:
                hang_up()
            raise
