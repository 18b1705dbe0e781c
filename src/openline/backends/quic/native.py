"""The parts of a real machine: qh3's connection, the monotonic clock and the system's UDP sockets."""

from __future__ import annotations

import socket
import time
from functools import partial

from qh3._hazmat import X25519KeyExchange

from ...address import Address
from ...config import Config
from ...identity import Identity
from ..base import Doorkeeper, OnBad
from ..binding import Where, bind
from ..certificates import TlsFiles
from ..sockets import SockAddr, opened
from .backend import QuicBackend
from .client_core import Qh3ClientCore
from .clock import Clock
from .core import Handshake
from .parts import Accepts
from .ports import UdpPorts
from .tls import ClientTickets, Trust, client_configuration, shown_by
from .udp import Datagrams, UdpOpener, open_udp


class NativeParts:
    """``opener`` makes the sockets of dials."""

    def __init__(self, config: Config, identity: Identity, opener: UdpOpener, files: TlsFiles) -> None:
        self.files: TlsFiles | None = files
        self.clock = Clock(time.monotonic, config.max_idle_timeout)
        self.tickets = ClientTickets()
        self._config = config
        self._opener = opener
        self._trust = files.trusted.use(lambda contents: Trust(config.tls, contents))
        X25519KeyExchange()  # the first one of a process takes 30 ms, which the first dial would wait for
        self._shown = files.shown.use(lambda contents: shown_by(config, identity, contents))

    async def dial(
        self, address: Address, family: socket.AddressFamily, sockaddr: SockAddr
    ) -> tuple[Datagrams, Qh3ClientCore]:
        sock = await self.reopen(family, sockaddr)
        return sock, self._client(address)

    async def reopen(self, family: socket.AddressFamily, sockaddr: SockAddr) -> Datagrams:
        return Datagrams(opened(await self._opener(family, sockaddr)))

    def _client(self, address: Address) -> Qh3ClientCore:
        # Tickets are for what was asked for: what is held to pins or a CA resumes only what was.
        dialed = address.host, address.port, address.scheme == "quic", address.node_id
        resumed = self.tickets.take(dialed)
        configuration = client_configuration(self._config, resumed.ticket if resumed else None)
        return Qh3ClientCore(
            Handshake(configuration=configuration),
            resumed,
            self._trust.current,
            partial(self.tickets.add, dialed),
        )

    async def listen(self, listener: Accepts[bytes], where: Where, port: int) -> UdpPorts:
        bound = await bind(where, port, socket.SOCK_DGRAM)
        ports = UdpPorts(listener, self._shown, bound)
        await ports.start()
        return ports


def quic_backend(
    config: Config,
    doorkeeper: Doorkeeper,
    on_bad: OnBad,
    opener: UdpOpener = open_udp,
    files: TlsFiles | None = None,
) -> QuicBackend[bytes]:
    """QUIC over this machine's network."""
    parts = NativeParts(config, doorkeeper.identity, opener, files or TlsFiles(config.tls))
    return QuicBackend(config, doorkeeper, on_bad, parts)
