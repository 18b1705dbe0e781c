"""The parts of a simulated host for the QUIC backend: ``tinyquic``, the loop's clock, simulated sockets.

Everything above is the real thing: links, engines, dials, listeners and the handshakes of openline.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from socket import AddressFamily

from ...address import Address
from ...backends.base import Doorkeeper, OnBad
from ...backends.binding import Where
from ...backends.certificates import TlsFiles
from ...backends.quic.backend import QuicBackend
from ...backends.quic.clock import Clock
from ...backends.quic.parts import Accepted, Accepts, Addr, Inlet
from ...backends.sockets import SockAddr
from ...config import Config
from .path import Place
from .tinyquic import CERTIFICATE, INITIAL, RESET, Packet, TinyQuic
from .udp import NOBODY, UdpSocket, UdpStack


class SimulatedFlow:
    """One end of a connection: what its packets leave by, and what happens to it on its way."""

    def __init__(self, sock: UdpSocket, link: int, near: Place, far: Place) -> None:
        self.near, self.far = near, far
        # When a packet last came, above the clocks of all processes.
        self.heard = sock.now
        self._link = link
        self._sock = sock
        sock.stack.live[self] = None

    def send(self, batch: list[Packet], addr: Addr) -> int:
        for packet in batch:
            self._sock.send(packet, self.far, self.near)
        return 0

    def drop(self) -> None:
        self._sock.take_in(Packet(self._link, RESET, (0, "reset"), 0, None), self.far, self.near)

    def end(self) -> None:
        """Its program knows that it is over."""
        self._sock.stack.live.pop(self, None)


# Listening ------------------------------------------------------------------------------------------


class AcceptedFlow(SimulatedFlow):
    """One that has come to a port: the owner of its connection."""

    connection: Accepted[Packet]

    def __init__(self, ports: SimulatedPorts, link: int, near: Place, far: Place) -> None:
        super().__init__(ports.sock, link, near, far)
        self._ports = ports

    def on_id(self, cid: bytes, issued: bool) -> None:
        """Packets carry the number of their connection."""

    def on_silence(self) -> None:
        """That is for liveness to find."""

    def on_finished(self) -> None:
        self.end()
        self._ports.listener.ended(self.connection)

    def on_gone(self) -> None:
        self._ports.flows.pop(self._link, None)


class SimulatedPorts:
    """A UDP port that is listened on."""

    def __init__(self, listener: Accepts[Packet], stack: UdpStack, host: str | None, port: int) -> None:
        """Raises ``OSError``."""
        self.listener = listener
        self.number = port or stack.host.free_port()
        self.hosts: tuple[str, ...] = ()
        self.failed: dict[str, str] = {}
        self.flows: dict[int, AcceptedFlow] = {}
        self.sock = stack.bind(host, self.number, self)

    def close(self) -> None:
        for flow in list(self.flows.values()):
            flow.connection.forget()
        self.flows.clear()
        self.sock.close()

    def on_datagram(self, packet: Packet, source: Place, to: Place) -> None:
        flow = self.flows.get(packet.link)
        if flow is None and packet.kind == INITIAL and not self.listener.closed:
            flow = self._accept(packet.link, to, source)
        if flow is not None:
            flow.heard = self.sock.now
            flow.connection.received([packet], source)

    def on_error(self, error: OSError) -> None:
        """Not for a socket that is not connected."""

    def _accept(self, link: int, near: Place, far: Place) -> AcceptedFlow:
        listener = self.listener
        listener.make_room()
        core = TinyQuic(link, False, listener.config.max_idle_timeout, partial(self.sock.rate, far))
        flow = self.flows[link] = AcceptedFlow(self, link, near, far)
        flow.connection = listener.accept(core, flow, flow, far, CERTIFICATE)
        return flow


# Dialing --------------------------------------------------------------------------------------------


class SimulatedSocket:
    """A client's, with the one connection that it carries."""

    def __init__(self, udp: UdpSocket, flow: SimulatedFlow) -> None:
        self._udp = udp
        self._flow = flow
        # None before the start, and once it is closed: no circle keeps the connection.
        self._inlet: Inlet[Packet] | None = None

    @property
    def local_ip(self) -> str:
        return self._udp.local[0]

    @property
    def heard(self) -> float:
        return self._flow.heard

    async def start(self, inlet: Inlet[Packet]) -> None:
        self._inlet = inlet
        self._udp.user = self

    def send(self, batch: list[Packet], addr: Addr) -> int:
        return self._flow.send(batch, addr)

    def path_mtu(self) -> int | None:
        return None

    def close(self) -> None:
        self._flow.end()
        self._udp.close()  # which tells nobody any more
        self._inlet = None

    def on_datagram(self, packet: Packet, source: Place, to: Place) -> None:
        self._flow.heard = self._udp.now
        if self._inlet is not None:
            self._inlet.on_datagrams([packet], source)

    def on_error(self, error: OSError) -> None:
        if self._inlet is not None:
            self._inlet.on_error(error)


class SimulatedParts:
    """Of one host."""

    files: TlsFiles | None = None

    def __init__(self, config: Config, stack: UdpStack) -> None:
        self._config = config
        self._stack = stack
        self.clock = Clock(asyncio.get_running_loop().time, config.max_idle_timeout)

    async def dial(
        self, address: Address, family: AddressFamily, sockaddr: SockAddr
    ) -> tuple[SimulatedSocket, TinyQuic]:
        udp = await self._stack.connect(sockaddr, NOBODY)
        assert udp.remote is not None
        link = self._stack.number()
        core = TinyQuic(link, True, self._config.max_idle_timeout, partial(udp.rate, udp.remote))
        return SimulatedSocket(udp, SimulatedFlow(udp, link, udp.local, udp.remote)), core

    async def reopen(self, family: AddressFamily, sockaddr: SockAddr) -> SimulatedSocket:
        raise OSError(errno.EADDRNOTAVAIL, "there is no other address to go on from")

    async def listen(self, listener: Accepts[Packet], where: Where, port: int) -> SimulatedPorts:
        host = where if where is None or isinstance(where, str) else where[0]
        return SimulatedPorts(listener, self._stack, host, port)


def simulated_quic(
    config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, stack: UdpStack
) -> QuicBackend[Packet]:
    """QUIC over a simulated host's network."""
    return QuicBackend(config, doorkeeper, on_bad, SimulatedParts(config, stack))
