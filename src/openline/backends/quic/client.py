"""The way of a client: its socket, and a fresh one when the address that it is sent from is gone."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from typing import Generic, Protocol

from ...core.frames import Malformed
from ...errors import Unreachable
from ..sockets import SockAddr, describe
from .engine import Engine
from .limits import least_mtu
from .link import QuicLink
from .parts import Addr, ClientSocket, D, Parts

log = logging.getLogger("openline")

# The far end, or what is in front of it, says that nobody listens there.
REFUSED = (errno.ECONNREFUSED, *((10054,) if sys.platform == "win32" else ()))
# This host has no room for a datagram just now.
TRANSIENT = (errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
# So many datagrams in a row that were answered by "nobody listens there", and nothing in between:
# then it is true. One alone may be forged, or be another host's for a moment.
REFUSALS = 3
# A client takes a fresh socket when the system will not send from the one it has: its address is
# gone. Not more often than this.
REBIND_EVERY = 0.2
_CANNOT_SEND = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


class Waiting(Protocol):
    """A dial that is told when its way has come to nothing."""

    @property
    def settled(self) -> bool: ...
    def settle(self, error: Exception) -> None: ...


class ClientPath(Generic[D]):
    """Keeps one connection: its engine's owner, and the inlet of its sockets."""

    __slots__ = (
        "_family",
        "_loop",
        "_moved_at",
        "_moving",
        "_parts",
        "_process",
        "_refusals",
        "_sock",
        "_sockaddr",
        "engine",
        "link",
        "waiting",
    )

    engine: Engine[D]
    link: QuicLink

    def __init__(
        self, parts: Parts[D], sock: ClientSocket[D], family: socket.AddressFamily, sockaddr: SockAddr
    ) -> None:
        self._parts = parts
        self._sock = sock
        self._family = family
        self._sockaddr = sockaddr
        self._loop = asyncio.get_running_loop()
        # The dial, as long as there is one.
        self.waiting: Waiting | None = None
        self._refusals = 0
        self._process = os.getpid()
        self._moved_at = 0.0
        self._moving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Raises ``OSError``."""
        await self._sock.start(self)

    def close(self) -> None:
        self._sock.close()

    @property
    def _settled(self) -> bool:
        return self.waiting is None or self.waiting.settled

    def _settle(self, error: Exception) -> None:
        if self.waiting is not None:
            self.waiting.settle(error)

    # From the engine -----------------------------------------------------------------------------

    def on_id(self, cid: bytes, issued: bool) -> None:
        """Whatever comes to its socket is its own."""

    def on_silence(self) -> None:
        """Nothing comes back. IPv6 goes on sending from an address that the host has no more."""
        if self._settled and not self.engine.over:
            self._move("no answer", only_elsewhere=True)

    def on_finished(self) -> None:
        """Over: a goodbye has been said, or nobody is there to hear one."""
        self.engine.forget()
        self._sock.close()
        self._settle(Malformed("the connection ended during the handshake"))
        self.waiting = None  # it keeps this

    def on_gone(self) -> None:
        """Nothing else is kept of it."""

    # From the socket -----------------------------------------------------------------------------

    def on_datagrams(self, batch: list[D], addr: Addr) -> None:
        self._refusals = 0
        self.engine.received(batch, addr)

    def on_full(self, full: bool) -> None:
        self.engine.set_blocked(full)

    def on_error(self, error: OSError) -> None:
        if self.engine.over:
            return
        if error.errno in TRANSIENT:
            return  # as good as a lost packet, which is sent again
        if error.errno == errno.EMSGSIZE:
            self._on_mtu()
        elif error.errno in REFUSED:
            self._refusals += 1
            if not self._settled:
                self._settle(error)
            elif self._refusals >= REFUSALS:
                self.link.lose(describe(error))
        elif not self._settled:
            self._settle(error)
        elif error.errno in _CANNOT_SEND:
            self._move(describe(error), only_elsewhere=False)

    def _on_mtu(self) -> None:
        """A router has said what it carries at most: smaller datagrams leave, as long as QUIC can do with it.

        One such message may be forged.
        """
        mtu = self._sock.path_mtu()
        if mtu is not None and mtu < least_mtu(self._family):
            self._refusals += 1
            if self._refusals >= REFUSALS:
                self.too_narrow(f"the MTU of the path is {mtu}")
        elif self._settled:
            self.engine.shrink("a router says that the path takes no larger ones")

    def too_narrow(self, what: str) -> None:
        why = f"EMSGSIZE: {what}; QUIC needs {least_mtu(self._family)}"
        endpoint = self.link.endpoint
        self._settle(Unreachable(str(endpoint.target), [(f"quic {endpoint.remote}", why)]))

    # Another socket ------------------------------------------------------------------------------

    def _move(self, why: str, *, only_elsewhere: bool) -> None:
        """Try a fresh socket, with whatever address this host has now."""
        now = self._loop.time()
        if now < self._moved_at + REBIND_EVERY or os.getpid() != self._process:
            return  # a child that came by fork has no part in this connection
        self._moved_at = now
        log.debug("%r: %s; trying a fresh socket", self.link, why)
        self._moving = self._loop.create_task(self._rebind(only_elsewhere))

    async def _rebind(self, only_elsewhere: bool) -> None:
        try:
            sock = await self._parts.reopen(self._family, self._sockaddr)
        except OSError as error:
            log.debug("%r: no fresh socket: %s", self.link, describe(error))
            return
        if self.engine.over or (only_elsewhere and sock.local_ip == self._sock.local_ip):
            sock.close()
            return
        await sock.start(self)
        if self.engine.over:
            sock.close()
            return
        old, self._sock = self._sock, sock
        self.engine.outlet = sock
        self.engine.blocked = False
        old.close()
        # So that nobody who sees both paths can tell that they are one connection's (RFC 9000
        # section 9.5); and a packet, so that the peer learns the new one.
        self.engine.move()
