"""The QUIC backend on qh3: dialing and listening, with the hello as the first unit each way."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from typing import Any

from qh3._hazmat import X25519KeyExchange
from qh3.quic import events

from ...address import Address, join
from ...config import Config
from ...core.frames import Malformed
from ...core.selection import Endpoint
from ...errors import Error, IdentityConflict, Refused, Unreachable
from ..base import CONFLICT, REFUSED, Doorkeeper, Link, OnBad
from ..binding import Where, bind
from ..certificates import TlsFiles
from ..race import AllFailed, Race, merged
from ..sockets import NO_ROUTE, SockAddr, describe, ip_of, opened, resolve
from .core import Quic
from .engine import IDLE, Engine
from .link import QuicLink
from .listener import QuicDoor
from .tls import ClientTickets, Trust, client_configuration, shown_by
from .udp import REFUSED as PORT_CLOSED
from .udp import TRANSIENT, Addr, Datagrams, UdpOpener, least_mtu, open_udp, path_mtu

log = logging.getLogger("openline")

# So many datagrams in a row that were answered by "nobody listens there", and nothing in between:
# then it is true. One alone may be forged, or be another host's for a moment.
REFUSALS = 3
# A client takes a fresh socket when the system will not send from the one it has: its address is
# gone. Not more often than this.
REBIND_EVERY = 0.2
_CANNOT_SEND = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


class QuicBackend:
    """Opens and accepts QUIC links for one transport."""

    name = "quic"
    schemes: tuple[str, ...] = ("quic",)
    secure = True

    def __init__(
        self,
        config: Config,
        doorkeeper: Doorkeeper,
        on_bad: OnBad,
        opener: UdpOpener = open_udp,
        files: TlsFiles | None = None,
    ) -> None:
        self.config = config
        self.doorkeeper = doorkeeper
        self.opener = opener
        self.tickets = ClientTickets()
        self.files = files or TlsFiles(config.tls)
        self._trust = self.files.trusted.use(lambda contents: Trust(config.tls, contents))
        self._on_bad = on_bad
        X25519KeyExchange()  # the first one of a process takes 30 ms, which the first dial would wait for
        identity = doorkeeper.identity
        self._shown = self.files.shown.use(lambda contents: shown_by(config, identity, contents))

    @property
    def trust(self) -> Trust:
        return self._trust.current()

    # Listening -----------------------------------------------------------------------------------

    async def listen(self, host: Where, port: int) -> QuicDoor:
        """Raises ``OSError`` where the port cannot be had."""
        bound = await bind(host, port, socket.SOCK_DGRAM)
        door = QuicDoor(self.config, self._shown, self.doorkeeper, self._on_bad)
        try:
            await door.start(bound)
        except BaseException:
            await door.close()
            for sock in bound.sockets:
                sock.close()
            raise
        return door

    def distrust(self, address: Address) -> None:
        """Every dial begins with the smallest datagrams anyway."""

    # Dialing -------------------------------------------------------------------------------------

    async def dial(self, address: Address) -> Link:
        """Open a link to any of the host's addresses, staggered; the caller bounds the time."""
        try:
            found = await resolve(address, socket.SOCK_DGRAM)
        except OSError as error:
            raise Unreachable(str(address), [(f"look-up of {address.host}", describe(error))]) from None
        race: Race[_Call] = Race(_Call.hang_up)
        try:
            _, call = await race.run([_Attempt(self, address, family, addr) for family, addr in found])
        except AllFailed as failed:
            raise merged(address, failed.errors) from None
        return call.enter()


class _Attempt:
    """One address of the host."""

    def __init__(self, backend: QuicBackend, address: Address, family: Any, sockaddr: SockAddr) -> None:
        self._backend = backend
        self._address = address
        self._where = family, sockaddr

    async def __call__(self) -> _Call:
        """A link whose far end's hello is good. Raises ``OSError``, ``Malformed`` and ``Error``."""
        family, sockaddr = self._where
        path = f"quic {join(ip_of(sockaddr), sockaddr[1])}"
        call: _Call | None = None
        try:
            sock = opened(await self._backend.opener(family, sockaddr))
            call = _Call(self._backend, self._address, family, sockaddr)
            await call.begin(sock)
            await call.answered
            return call
        except (OSError, Malformed) as error:
            if call is not None:
                call.hang_up()
            call = None  # it holds the error, whose traceback holds this frame
            no_route = isinstance(error, OSError) and error.errno in NO_ROUTE
            tried = [(path, describe(error))]
            raise Unreachable(str(self._address), tried, no_route=no_route) from None
        except BaseException:
            if call is not None:
                call.hang_up()
            call = None
            raise


class _Call:
    """One dial, from the first packet on; later what keeps the link's socket."""

    def __init__(self, backend: QuicBackend, address: Address, family: Any, sockaddr: SockAddr) -> None:
        self._backend = backend
        self._address = address
        self._family = family
        self._sockaddr = sockaddr
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[None] = self._loop.create_future()
        # Pins and a CA are asked for by the scheme; a bare address takes whatever node it is.
        named = address.scheme == "quic"
        self._key = address.host, address.port, named, address.node_id
        self._resumed = backend.tickets.take(self._key)
        self._certificate = b""
        self._ticket: Any = None
        ticket = self._resumed.ticket if self._resumed else None
        quic = Quic(
            configuration=client_configuration(backend.config, ticket),
            session_ticket_handler=self._on_ticket,
        )
        self._engine = Engine(quic, self._send)
        self._engine.on_finished, self._engine.on_silence = self._finished, self._on_silence
        ip, port = ip_of(sockaddr), sockaddr[1]
        endpoint = Endpoint("outbound", ip, port, target=address, secure=True, backend="quic")
        self._link = link = QuicLink(
            self._engine, endpoint, backend.config, True, backend.doorkeeper.unfinished
        )
        link.on_connected, link.on_hello, link.on_failed = self._connected, self._greeted, self._failed
        link.on_narrow = self._too_narrow
        self._hello = backend.doorkeeper.hello(named and backend.config.certified)
        self._refusals = 0
        self._process = os.getpid()
        self._moved_at = 0.0
        self._moving: asyncio.Task[None] | None = None
        self._datagrams = self._new_datagrams()

    def _new_datagrams(self) -> Datagrams:
        return Datagrams(self._on_datagrams, self._on_error, self._engine.set_blocked)

    async def begin(self, sock: socket.socket) -> None:
        await self._datagrams.start(sock)
        if self._resumed is not None and self._backend.config.zero_rtt:
            # Nothing but the hello goes early: it opens nothing, however often it is replayed.
            self._link.say_hello(self._hello)
        self._engine.connect(self._sockaddr)

    # The handshake -------------------------------------------------------------------------------

    def _connected(self, event: events.HandshakeCompleted) -> None:
        try:
            self._certificate = self._shown(event)
        except Refused as error:
            self._settle(error)
            return
        if self._ticket is not None:
            self._on_ticket(self._ticket)
        if not self._link.has_written:
            self._link.say_hello(self._hello)

    def _shown(self, event: events.HandshakeCompleted) -> bytes:
        """The server's certificate, if it will do. Raises ``Refused``."""
        if event.session_resumed and self._resumed is not None:
            shown = self._resumed.certificate
        else:
            certificate = self._engine.quic.get_peercert()
            shown = bytes(certificate.public_bytes()) if certificate is not None else b""
        if self._address.scheme == "quic":
            self._backend.trust.check(self._address, shown, self._engine.quic.get_issuercerts())
            self._link.endpoint.certified = self._backend.config.certified
        return shown

    def _greeted(self, text: str) -> None:
        link, address = self._link, self._address
        doorkeeper = self._backend.doorkeeper
        try:
            hello = doorkeeper.greeted(address, self._hello, text, self._certificate)
        except (Malformed, Error) as error:
            self._settle(error)
            return
        if hello is None:
            self._settle(Malformed("no hello"))
            return
        link.endpoint.hello = hello
        self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if self.answered.done():
            return
        if error is None:
            self.answered.set_result(None)
        else:
            # Its traceback holds frames that hold the socket.
            self.answered.set_exception(error.with_traceback(None))
            _ = self.answered.exception()  # nobody may be waiting any more

    def _failed(self, code: int, by_program: bool, reason: str) -> None:
        self._settle(self._why(code, by_program, reason))

    def _why(self, code: int, by_program: bool, reason: str) -> Exception:
        address = self._address
        if by_program and code == REFUSED:
            return Refused(f"{address} refuses this node: {reason}")
        if reason == IDLE:
            return TimeoutError(errno.ETIMEDOUT, "no answer")
        if by_program and code == CONFLICT:
            return IdentityConflict(f"{address} refuses this node: {reason}")
        what = reason or f"error {code:#x}"
        return Malformed(f"the peer ended the handshake: {what}")

    def enter(self) -> Link:
        """Take the link up. Raises ``Unreachable`` where it has ended meanwhile."""
        link = self._link
        if link.closing:
            path = f"quic {link.endpoint.remote}"
            raise Unreachable(str(self._address), [(path, "the peer closed the connection at once")])
        link.go_up(self._backend.doorkeeper.enter)
        self._loop.call_soon(link.entered)
        return link

    def hang_up(self) -> None:
        self._link.abort()
        self._datagrams.close()

    # Datagrams -----------------------------------------------------------------------------------

    def _send(self, batch: list[bytes], addr: Addr) -> int:
        return self._datagrams.send(batch, addr)

    def _on_datagrams(self, batch: list[bytes], addr: Addr) -> None:
        self._refusals = 0
        self._engine.received(batch, addr)

    def _on_error(self, error: OSError) -> None:
        if self._engine.over:
            return
        if error.errno in TRANSIENT:
            return  # as good as a lost packet, which is sent again
        if error.errno == errno.EMSGSIZE:
            self._on_mtu()
        elif error.errno in PORT_CLOSED:
            self._refusals += 1
            if not self.answered.done():
                self._settle(error)
            elif self._refusals >= REFUSALS:
                self._link.lose(describe(error))
        elif not self.answered.done():
            self._settle(error)
        elif error.errno in _CANNOT_SEND:
            self._move(describe(error), only_elsewhere=False)

    def _on_mtu(self) -> None:
        """A router has said what it carries at most: smaller datagrams leave, as long as QUIC can do with it.

        One such message may be forged.
        """
        mtu = path_mtu(self._datagrams.socket)
        if mtu is not None and mtu < least_mtu(self._family):
            self._refusals += 1
            if self._refusals >= REFUSALS:
                self._too_narrow(f"the MTU of the path is {mtu}")
        elif self.answered.done():
            self._engine.shrink("a router says that the path takes no larger ones")

    def _too_narrow(self, what: str = "the MTU of this host's way there is too small") -> None:
        why = f"EMSGSIZE: {what}; QUIC needs {least_mtu(self._family)}"
        self._settle(Unreachable(str(self._address), [(f"quic {self._link.endpoint.remote}", why)]))

    def _on_silence(self) -> None:
        """Nothing comes back. IPv6 goes on sending from an address that the host has no more."""
        if self.answered.done() and not self._engine.over:
            self._move("no answer", only_elsewhere=True)

    def _move(self, why: str, *, only_elsewhere: bool) -> None:
        """Try a fresh socket, with whatever address this host has now."""
        now = self._loop.time()
        if now < self._moved_at + REBIND_EVERY or os.getpid() != self._process:
            return  # a child that came by fork has no part in this connection
        self._moved_at = now
        log.debug("%r: %s; trying a fresh socket", self._link, why)
        self._moving = self._loop.create_task(self._rebind(only_elsewhere))

    async def _rebind(self, only_elsewhere: bool) -> None:
        try:
            sock = opened(await self._backend.opener(self._family, self._sockaddr))
        except OSError as error:
            log.debug("%r: no fresh socket: %s", self._link, describe(error))
            return
        if self._engine.over or (only_elsewhere and self._is_from_here(sock)):
            sock.close()
            return
        datagrams = self._new_datagrams()
        await datagrams.start(sock)
        if self._engine.over:
            datagrams.close()
            return
        old, self._datagrams = self._datagrams, datagrams
        old.close()
        # So that nobody who sees both paths can tell that they are one connection's (RFC 9000
        # section 9.5); and a packet, so that the peer learns the new one.
        self._engine.move()

    def _is_from_here(self, sock: socket.socket) -> bool:
        """Would it send from the address that the present one sends from?"""
        return ip_of(sock.getsockname()) == ip_of(self._datagrams.socket.getsockname())

    def _on_ticket(self, ticket: Any) -> None:
        if self._certificate:
            self._backend.tickets.add(self._key, ticket, self._certificate)
        else:
            self._ticket = ticket

    def _finished(self) -> None:
        """Over: a goodbye has been said, or nobody is there to hear one."""
        self._engine.forget()
        self._datagrams.close()
        self._settle(Malformed("the connection ended during the handshake"))
