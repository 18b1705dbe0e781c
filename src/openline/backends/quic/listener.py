"""Accepting QUIC connections, with a bound on unfinished handshakes.

The bound is the same as for TCP: at it the oldest one makes room. Well before it, clients have to
show that they receive what is sent to their address (RFC 9000 section 8.1), so that a flood with
made-up addresses costs a retry packet each and no memory.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import Any, Generic

from ...address import join
from ...config import Config
from ...core.frames import Malformed
from ...core.origin import origin
from ...core.selection import Endpoint
from ...errors import Error, IdentityConflict
from ..base import CONFLICT, PROTOCOL_ERROR, REFUSED, TRY_AGAIN, Doorkeeper, End, OnBad
from ..binding import Where
from ..sockets import ip_of
from .engine import IDLE, Engine
from .limits import least_mtu
from .link import QuicLink
from .parts import Accepted, Addr, Core, D, Outlet, Owner, Parts, Ports

log = logging.getLogger("openline")

# Unfinished handshakes beyond which new clients are asked to come again with a token.
RETRY_ABOVE = 32
# APPLICATION_ERROR (RFC 9000 section 10.2.3): a program ended it before the handshake was over.
_CLIENT_GONE = 0xC


class QuicListener(Generic[D]):
    """A port that is listened on, and the connections that have come to it."""

    # The addresses of a name that are listened on, and why not on the others.
    hosts: tuple[str, ...]
    failed: dict[str, str]
    ports: Ports

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, parts: Parts[D]) -> None:
        self.config = config
        self.doorkeeper = doorkeeper
        self.on_bad = on_bad
        self.evicted = 0
        self.closed = False
        # Handshakes that are not finished, the oldest first; and connections that are not over.
        self.handshakes: dict[PendingHandshake, None] = {}
        self.live: dict[Accepted[D], None] = {}
        self._parts = parts

    async def start(self, where: Where, port: int) -> None:
        """Raises ``OSError``."""
        self.ports = await self._parts.listen(self, where, port)
        self.hosts, self.failed = self.ports.hosts, self.ports.failed

    @property
    def port(self) -> int:
        return self.ports.number

    @property
    def pending(self) -> int:
        return len(self.handshakes)

    @property
    def wary(self) -> bool:
        return self.pending >= min(RETRY_ABOVE, max(1, self.config.max_pending_handshakes // 2))

    def make_room(self) -> None:
        """At the limit the oldest of the origin that has the most goes."""
        if self.pending >= self.config.max_pending_handshakes:
            self.evicted += 1
            places = Counter(handshake.origin for handshake in self.handshakes)
            crowd, _ = places.most_common(1)[0]
            next(handshake for handshake in self.handshakes if handshake.origin == crowd).cut()

    def accept(
        self, core: Core[D], outlet: Outlet[D], owner: Owner, addr: Addr, certificate: bytes
    ) -> Engine[D]:
        engine = Engine(core, outlet, owner, self._parts.clock)
        self.live[engine] = None
        PendingHandshake(self, engine, addr, certificate)
        return engine

    def ended(self, connection: Accepted[D]) -> None:
        self.live.pop(connection, None)
        self._close_if_unused()

    async def close(self) -> None:
        self.closed = True
        for handshake in list(self.handshakes):
            handshake.cut()
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        """Connections that were accepted here keep the sockets."""
        if self.closed and not self.live:
            self.ports.close()


class PendingHandshake:
    """One client whose handshake is not finished: it is up, at most, and has not proven itself."""

    def __init__(
        self, listener: QuicListener[Any], engine: Engine[Any], addr: Addr, certificate: bytes
    ) -> None:
        self._listener = listener
        # That of its own handshake, whatever is shown to others by the time its hello comes.
        self._certificate = certificate
        self._engine = engine
        self._over = False
        self._family = socket.AF_INET if ":" not in ip_of(addr) else socket.AF_INET6
        self.origin = origin(ip_of(addr))
        endpoint = Endpoint("inbound", ip_of(addr), addr[1], secure=True, backend="quic")
        self._link = link = QuicLink(engine, endpoint, listener.config, False, listener.doorkeeper.unfinished)
        link.opening = self
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(listener.config.handshake_timeout, self._late)
        listener.handshakes[self] = None

    @property
    def _peer(self) -> str:
        return join(self._link.endpoint.ip, self._link.endpoint.port)

    def on_connected(self) -> None:
        """Its hello is what counts."""

    def on_hello(self, text: str) -> None:
        listener, link = self._listener, self._link
        try:
            visitor = listener.doorkeeper.answer(text, self._certificate)
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
        waiting = listener.handshakes  # not the first to be pushed out by a flood
        waiting[self] = waiting.pop(self, None)
        link.say_hello(visitor.answer)
        link.go_up(lambda link: listener.doorkeeper.admit(link, visitor, self._entered))

    def _turn_away(self, code: int, error: Exception) -> None:
        self._done()
        self._link.refuse(code, str(error))
        self._listener.on_bad(self._peer, str(error))

    def on_failed(self, code: int, by_program: bool, reason: str) -> None:
        """It has gone, or could not do TLS, before its hello."""
        if self._over:
            return
        self._done()
        if by_program or code in (0, _CLIENT_GONE) or reason == IDLE:
            log.debug("gone during the handshake: %s: %s", self._peer, reason or f"error {code:#x}")
        else:
            self._listener.on_bad(self._peer, f"handshake failed: {reason or f'error {code:#x}'}")

    def on_too_small(self) -> None:
        """What would answer it does not leave this host."""
        if not self._over:
            why = f"the MTU of this host's way to it is less than QUIC needs, {least_mtu(self._family)}"
            self._turn_away(PROTOCOL_ERROR, Malformed(why))

    def on_ended(self, end: End) -> None:
        """After its hello, and before it was in."""
        if not self._over:
            self._done()
            self._listener.on_bad(self._peer, end.text)

    def _late(self) -> None:
        if not self._over:
            self.cut()
            self._listener.on_bad(self._peer, "unfinished handshake")

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
        self._link.opening = None
        self._listener.handshakes.pop(self, None)
