"""Accepting QUIC connections, with a bound on unfinished handshakes.

The bound is the same as for TCP: at it the oldest one makes room. Well before it, clients have to
show that they receive what is sent to their address (RFC 9000 section 8.1), so that a flood with
made-up addresses costs a retry packet each and no memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from typing import Any

from qh3._hazmat import pull_quic_header
from qh3.quic.packet import QuicPacketType, encode_quic_retry, encode_quic_version_negotiation

from ...address import join
from ...config import Config
from ...core.frames import Malformed
from ...core.origin import origin
from ...core.selection import Endpoint
from ...errors import Error, IdentityConflict
from ..base import CONFLICT, PROTOCOL_ERROR, REFUSED, TRY_AGAIN, Doorkeeper, End, OnBad
from ..binding import Bound
from ..certificates import Made
from ..sockets import ip_of, opened, prepare_udp
from .core import Quic
from .engine import IDLE, Engine
from .link import QuicLink
from .tls import RetryTokens, ServerTickets, Shown
from .udp import Addr, Datagrams, least_mtu, local_addresses

log = logging.getLogger("openline")

CID_BYTES = 8
# The smallest datagram that may begin a connection (RFC 9000 section 14.1).
MIN_INITIAL = 1200
# Unfinished handshakes beyond which new clients are asked to come again with a token.
RETRY_ABOVE = 32
_LONG_HEADER = 0x80
# APPLICATION_ERROR (RFC 9000 section 10.2.3): a program ended it before the handshake was over.
_CLIENT_GONE = 0xC
# How often at most this host's addresses are looked up again.
LOOK_EVERY = 1.0


class QuicDoor:
    """UDP sockets of one port."""

    def __init__(
        self,
        config: Config,
        shown: Made[Shown],
        doorkeeper: Doorkeeper,
        on_bad: OnBad,
    ) -> None:
        self.config = config
        self._shown = shown
        self.supported_versions = shown.now.quic.supported_versions
        self.doorkeeper = doorkeeper
        self.on_bad = on_bad
        self.evicted = 0
        self.tokens = RetryTokens()
        self.closed = False
        self.visits: dict[_Visit, None] = {}
        # Connections by the ids that their packets may carry, on whatever socket they come; and
        # those that are not over.
        self.engines: dict[bytes, Engine] = {}
        self.live: dict[Engine, None] = {}
        self._ports: list[_Port] = []
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def start(self, bound: Bound) -> None:
        self.hosts, self.failed = bound.hosts, bound.failed
        for sock in bound.sockets:
            await self._open(sock)
        await self.look_around()

    async def _open(self, sock: socket.socket) -> _Port:
        port = _Port(self)
        await port.start(sock)
        self._ports.append(port)
        return port

    async def look_around(self) -> None:
        """Where all addresses are listened on: a socket for each that this host has now."""
        self._looked_at = asyncio.get_running_loop().time()
        for port in [port for port in self._ports if port.wildcard]:
            bound = {other.ip for other in self._ports}
            for ip in sorted(local_addresses(port.family) - bound):
                try:
                    sock = _bind_beside(port.socket, (ip, port.number))
                except OSError as error:
                    log.debug("udp %s: %s", join(ip, port.number), error)
                    continue
                await self._open(sock)

    def came_to_all(self) -> None:
        """A new client has dialed an address that had no socket of its own: it may be new here."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._looked_at + LOOK_EVERY and (self._looking is None or self._looking.done()):
            self._looking = loop.create_task(self.look_around())

    @property
    def shown(self) -> Shown:
        """What the next new connection is shown."""
        return self._shown.current()

    @property
    def certificate(self) -> bytes:
        return self._shown.now.certificate

    @property
    def tickets(self) -> ServerTickets:
        return self._shown.now.tickets

    @property
    def port(self) -> int:
        return self._ports[0].number

    @property
    def pending(self) -> int:
        return len(self.visits)

    def make_room(self) -> None:
        """At the limit the oldest of the origin that has the most goes."""
        if len(self.visits) >= self.config.max_pending_handshakes:
            self.evicted += 1
            places = Counter(visit.origin for visit in self.visits)
            crowd, _ = places.most_common(1)[0]
            next(visit for visit in self.visits if visit.origin == crowd).cut()

    @property
    def wary(self) -> bool:
        """So many handshakes are unfinished that clients have to show their address first."""
        return len(self.visits) >= min(RETRY_ABOVE, max(1, self.config.max_pending_handshakes // 2))

    async def close(self) -> None:
        self.closed = True
        if self._looking is not None:
            self._looking.cancel()
        for visit in list(self.visits):
            visit.cut()
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Connections that were accepted here keep the sockets."""
        if self.closed and not self.live:
            for engine in set(self.engines.values()):
                engine.forget()
            self.engines.clear()
            for port in self._ports:
                port.close()


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


class _Port:
    """One UDP socket: finds out which connection a datagram belongs to."""

    def __init__(self, door: QuicDoor) -> None:
        self._door = door
        self._datagrams = Datagrams(self._on_datagrams, self._on_error, self._on_full)

    async def start(self, sock: socket.socket) -> None:
        self.socket = sock
        self.ip, self.number = ip_of(sock.getsockname()), int(sock.getsockname()[1])
        self.family = sock.family
        self.wildcard = self.ip in ("0.0.0.0", "::")
        await self._datagrams.start(sock)

    def _on_datagrams(self, batch: list[bytes], addr: Addr) -> None:
        """Nearly always all are one connection's."""
        if len(batch) == 1:
            only = self._find(batch[0], addr)
            if only is not None:
                only.send = self._datagrams.send
                only.received(batch, addr)
            return
        engine: Engine | None = None
        run: list[bytes] = []
        for data in batch:
            owner = self._find(data, addr)
            if owner is not engine and run and engine is not None:
                engine.received(run, addr)
                run = []
            engine = owner
            if owner is not None:
                run.append(data)
        if engine is not None:
            # The answer comes from where the question went.
            engine.send = self._datagrams.send
            engine.received(run, addr)

    def close(self) -> None:
        self._datagrams.close()

    def _find(self, data: bytes, addr: Addr) -> Engine | None:
        if not data:
            return None
        if not data[0] & _LONG_HEADER:
            return self._door.engines.get(data[1 : 1 + CID_BYTES])
        try:
            header = pull_quic_header(data, 0, CID_BYTES)
        except ValueError:
            return None
        engine = self._door.engines.get(header[3])
        if engine is not None or self._door.closed:
            return engine
        return self._greet(data, addr, header)

    def _greet(self, data: bytes, addr: Addr, header: Any) -> Engine | None:
        """The first of a new client's; None where nothing begins."""
        version, kind, _, destination, source, token = header[:6]
        if not version or len(data) < MIN_INITIAL or len(destination) < CID_BYTES:
            return None
        versions = self._door.supported_versions
        if version not in versions:
            answer = encode_quic_version_negotiation(
                source_cid=destination, destination_cid=source, supported_versions=versions
            )
            self._datagrams.send([answer], addr)
            return None
        if kind != int(QuicPacketType.INITIAL):
            return None
        if not token:
            if self._door.wary:
                self._ask_to_retry(version, destination, source, addr)
                return None
            return self._accept(destination, destination, None, addr)
        try:
            original, chosen = self._door.tokens.read(addr, token)
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
            retry_token=self._door.tokens.make(addr, destination, chosen),
        )
        self._datagrams.send([packet], addr)

    def _accept(self, destination: bytes, original: bytes, chosen: bytes | None, addr: Addr) -> Engine:
        door = self._door
        door.make_room()
        shown = door.shown
        if self.wildcard:
            door.came_to_all()
        quic = Quic(
            configuration=shown.quic,
            original_destination_connection_id=original,
            retry_source_connection_id=chosen,
            session_ticket_fetcher=shown.tickets.take,
            session_ticket_handler=shown.tickets.add,
        )
        engine = Engine(quic, self._datagrams.send)
        ids = {destination, quic.host_cid}
        engines = door.engines
        for cid in ids:
            engines[cid] = engine

        def on_id(cid: bytes, issued: bool) -> None:
            if issued:
                ids.add(cid)
                engines[cid] = engine
            else:
                ids.discard(cid)
                engines.pop(cid, None)

        def finished() -> None:
            door.live.pop(engine, None)
            door.close_if_unused()

        def gone() -> None:
            for cid in ids:
                engines.pop(cid, None)

        engine.on_id, engine.on_finished, engine.on_gone = on_id, finished, gone
        door.live[engine] = None
        _Visit(door, engine, addr, shown.certificate)
        return engine

    def _on_error(self, error: OSError) -> None:
        log.debug("udp port %d: %s", self.number, error)

    def _on_full(self, full: bool) -> None:
        for engine in list(self._door.live):
            engine.set_blocked(full)


class _Visit:
    """One client whose handshake is not finished."""

    def __init__(self, door: QuicDoor, engine: Engine, addr: Addr, certificate: bytes) -> None:
        self._door = door
        # That of its own handshake, whatever is shown to others by the time its hello comes.
        self._certificate = certificate
        self._engine = engine
        self._over = False
        self._family = socket.AF_INET if ":" not in ip_of(addr) else socket.AF_INET6
        self.origin = origin(ip_of(addr))
        endpoint = Endpoint("inbound", ip_of(addr), addr[1], secure=True, backend="quic")
        self._link = link = QuicLink(engine, endpoint, door.config, False, door.doorkeeper.unfinished)
        link.on_hello = self._on_hello
        link.on_failed, link.on_ended = self._on_failed, self._on_ended
        link.on_narrow = self._on_narrow
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(door.config.handshake_timeout, self._late)
        door.visits[self] = None

    @property
    def _peer(self) -> str:
        return join(self._link.endpoint.ip, self._link.endpoint.port)

    def _on_hello(self, text: str) -> None:
        door, link = self._door, self._link
        try:
            visitor = door.doorkeeper.answer(text, self._certificate)
        except Malformed as error:
            self._turn_away(PROTOCOL_ERROR, error)
            return
        except Error as error:
            self._turn_away(CONFLICT if isinstance(error, IdentityConflict) else REFUSED, error)
            return
        assert visitor is not None
        crowded = visitor.crowded(link.endpoint.ip, "quic")
        if crowded is not None:
            self._done()
            link.refuse(TRY_AGAIN, f"there is no room just now: {crowded}")
            return
        self._timer.cancel()  # from now on the doorkeeper has one
        door.visits[self] = door.visits.pop(self, None)  # not the first to be pushed out by a flood
        link.say_hello(visitor.answer)
        link.go_up(lambda link: door.doorkeeper.admit(link, visitor, self._entered))

    def _turn_away(self, code: int, error: Exception) -> None:
        self._done()
        self._link.refuse(code, str(error))
        self._door.on_bad(self._peer, str(error))

    def _on_failed(self, code: int, by_program: bool, reason: str) -> None:
        """It has gone, or could not do TLS, before its hello."""
        if self._over:
            return
        self._done()
        if by_program or code in (0, _CLIENT_GONE) or reason == IDLE:
            log.debug("gone during the handshake: %s: %s", self._peer, reason or f"error {code:#x}")
        else:
            self._door.on_bad(self._peer, f"handshake failed: {reason or f'error {code:#x}'}")

    def _on_narrow(self) -> None:
        """What would answer it does not leave this host."""
        if not self._over:
            why = f"the MTU of this host's way to it is less than QUIC needs, {least_mtu(self._family)}"
            self._turn_away(PROTOCOL_ERROR, Malformed(why))

    def _on_ended(self, end: End) -> None:
        """After its hello, and before it was in."""
        if not self._over:
            self._done()
            self._door.on_bad(self._peer, end.text)

    def _late(self) -> None:
        if not self._over:
            self.cut()
            self._door.on_bad(self._peer, "unfinished handshake")

    def _entered(self) -> None:
        """In, or gone; that has been told."""
        if not self._over:
            self._done()
            self._link.entered()

    def cut(self) -> None:
        """Nothing more is owed to it, and nothing of it is kept."""
        self._done()
        self._link.abort()
        self._engine.forget()

    def _done(self) -> None:
        self._over = True
        self._timer.cancel()
        self._link.on_failed = self._link.on_ended = self._link.on_narrow = None
        self._door.visits.pop(self, None)
