"""The UDP sockets of one port, and which connection a datagram belongs to (RFC 9000 section 5.2)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

from qh3._hazmat import pull_quic_header
from qh3.quic.packet import QuicPacketType, encode_quic_retry, encode_quic_version_negotiation

from ...address import join
from ..binding import Bound
from ..certificates import Made
from ..sockets import ip_of, opened, prepare_udp
from .core import Handshake, Qh3Core
from .parts import Accepted, Accepts, Addr
from .tls import RetryTokens, Shown
from .udp import Datagrams, local_addresses

log = logging.getLogger("openline")

CID_BYTES = 8
# The smallest datagram that may begin a connection (RFC 9000 section 14.1).
MIN_INITIAL = 1200
_LONG_HEADER = 0x80
# How often at most this host's addresses are looked up again.
LOOK_EVERY = 1.0


class UdpPorts:
    """All sockets of one port."""

    def __init__(self, listener: Accepts[bytes], shown: Made[Shown], bound: Bound) -> None:
        self.listener = listener
        self._shown = shown
        self.supported_versions = shown.now.quic.supported_versions
        self.tokens = RetryTokens()
        # Connections by the ids that their packets may carry, on whatever socket they come.
        self.connections: dict[bytes, Accepted[bytes]] = {}
        self.hosts, self.failed = bound.hosts, bound.failed
        self._bound = bound
        self.sockets: list[ListeningSocket] = []
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ``OSError``."""
        try:
            for sock in self._bound.sockets:
                await self._open(sock)
            await self.look_around()
        except BaseException:
            self.close()
            for sock in self._bound.sockets:
                sock.close()
            raise

    async def _open(self, sock: socket.socket) -> None:
        listening = ListeningSocket(self, sock)
        await listening.start()
        self.sockets.append(listening)

    async def look_around(self) -> None:
        """Where all addresses are listened on: a socket for each that this host has now."""
        self._looked_at = asyncio.get_running_loop().time()
        for wildcard in [each for each in self.sockets if each.wildcard]:
            bound = {other.ip for other in self.sockets}
            for ip in sorted(local_addresses(wildcard.family) - bound):
                try:
                    sock = _bind_beside(wildcard.socket, (ip, wildcard.number))
                except OSError as error:
                    log.debug("udp %s: %s", join(ip, wildcard.number), error)
                    continue
                await self._open(sock)

    def came_to_all(self) -> None:
        """A new client has dialed an address that had no socket of its own: it may be new here."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._looked_at + LOOK_EVERY and (self._looking is None or self._looking.done()):
            self._looking = loop.create_task(self.look_around())

    @property
    def number(self) -> int:
        return self.sockets[0].number

    @property
    def shown(self) -> Shown:
        """What the next new connection is shown."""
        return self._shown.current()

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for connection in set(self.connections.values()):
            connection.forget()
        self.connections.clear()
        for each in self.sockets:
            each.close()


def _bind_beside(wildcard: socket.socket, sockaddr: tuple[str, int]) -> socket.socket:
    """One address of a port that ``wildcard`` has for all. Raises ``OSError``.

    Others may not do the same: the permission to share lasts only as long as this.
    """
    sock = opened(socket.socket(wildcard.family, socket.SOCK_DGRAM))
    both = (wildcard, sock)
    try:
        prepare_udp(sock)
        for each in both:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
    except OSError:
        sock.close()
        raise
    finally:
        for each in both:
            if each.fileno() >= 0:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


class Ids:
    """Owner of one accepted connection: keeps the ids by which its packets are found."""

    __slots__ = ("_ids", "_ports", "connection")

    connection: Accepted[bytes]

    def __init__(self, ports: UdpPorts, ids: set[bytes]) -> None:
        self._ports = ports
        self._ids = ids

    def start(self, connection: Accepted[bytes]) -> None:
        self.connection = connection
        for cid in self._ids:
            self._ports.connections[cid] = connection

    def on_id(self, cid: bytes, issued: bool) -> None:
        if issued:
            self._ids.add(cid)
            self._ports.connections[cid] = self.connection
        else:
            self._ids.discard(cid)
            self._ports.connections.pop(cid, None)

    def on_silence(self) -> None:
        """A server stays where it is."""

    def on_finished(self) -> None:
        self._ports.listener.ended(self.connection)

    def on_gone(self) -> None:
        for cid in self._ids:
            self._ports.connections.pop(cid, None)


class ListeningSocket:
    """One UDP socket of a port."""

    def __init__(self, ports: UdpPorts, sock: socket.socket) -> None:
        self._ports = ports
        self.socket = sock
        self.datagrams = Datagrams(sock)
        self.ip, self.number = ip_of(sock.getsockname()), int(sock.getsockname()[1])
        self.family = sock.family
        self.wildcard = self.ip in ("0.0.0.0", "::")

    async def start(self) -> None:
        await self.datagrams.start(self)

    def close(self) -> None:
        self.datagrams.close()

    def on_error(self, error: OSError) -> None:
        log.debug("udp port %d: %s", self.number, error)

    def on_full(self, full: bool) -> None:
        for connection in set(self._ports.connections.values()):
            connection.set_blocked(full)

    def on_datagrams(self, batch: list[bytes], addr: Addr) -> None:
        """Nearly always all are one connection's."""
        if len(batch) == 1:
            data = batch[0]
            if data and not data[0] & _LONG_HEADER:
                only = self._ports.connections.get(data[1 : 1 + CID_BYTES])
            else:
                only = self._find(data, addr)
            if only is not None:
                only.outlet = self.datagrams
                only.received(batch, addr)
            return
        connection: Accepted[bytes] | None = None
        run: list[bytes] = []
        for data in batch:
            owner = self._find(data, addr)
            if owner is not connection and run and connection is not None:
                connection.received(run, addr)
                run = []
            connection = owner
            if owner is not None:
                run.append(data)
        if connection is not None:
            # The answer comes from where the question went.
            connection.outlet = self.datagrams
            connection.received(run, addr)

    def _find(self, data: bytes, addr: Addr) -> Accepted[bytes] | None:
        if not data:
            return None
        if not data[0] & _LONG_HEADER:
            return self._ports.connections.get(data[1 : 1 + CID_BYTES])
        try:
            header = pull_quic_header(data, 0, CID_BYTES)
        except ValueError:
            return None
        connection = self._ports.connections.get(header[3])
        if connection is not None or self._ports.listener.closed:
            return connection
        return self._begin(data, addr, header)

    def _begin(self, data: bytes, addr: Addr, header: Any) -> Accepted[bytes] | None:
        """The first of a new client's; None where nothing begins."""
        version, kind, _, destination, source, token = header[:6]
        if not version or len(data) < MIN_INITIAL or len(destination) < CID_BYTES:
            return None
        versions = self._ports.supported_versions
        if version not in versions:
            answer = encode_quic_version_negotiation(
                source_cid=destination, destination_cid=source, supported_versions=versions
            )
            self.datagrams.send([answer], addr)
            return None
        if kind != int(QuicPacketType.INITIAL):
            return None
        if not token:
            if self._ports.listener.wary:
                self._ask_to_retry(version, destination, source, addr)
                return None
            return self._accept(destination, destination, None, addr)
        try:
            original, chosen = self._ports.tokens.read(addr, token)
        except ValueError:
            return None
        return self._accept(destination, original, chosen, addr)

    def _ask_to_retry(self, version: int, destination: bytes, source: bytes, addr: Addr) -> None:
        chosen = os.urandom(CID_BYTES)
        packet = encode_quic_retry(
            version=version,
            source_cid=chosen,
            destination_cid=source,
            original_destination_cid=destination,
            retry_token=self._ports.tokens.make(addr, destination, chosen),
        )
        self.datagrams.send([packet], addr)

    def _accept(
        self, destination: bytes, original: bytes, chosen: bytes | None, addr: Addr
    ) -> Accepted[bytes]:
        ports, listener = self._ports, self._ports.listener
        listener.make_room()
        shown = ports.shown
        if self.wildcard:
            ports.came_to_all()
        quic = Handshake(
            configuration=shown.quic,
            original_destination_connection_id=original,
            retry_source_connection_id=chosen,
            session_ticket_fetcher=shown.tickets.take,
            session_ticket_handler=shown.tickets.add,
        )
        ids = Ids(ports, {destination, quic.host_cid})
        connection = listener.accept(Qh3Core(quic), self.datagrams, ids, addr, shown.certificate)
        ids.start(connection)
        return connection
