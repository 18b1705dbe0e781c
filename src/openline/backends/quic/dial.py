"""One dial of one address, from the first packet until the link is up."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Generic

from ...address import Address, join
from ...config import Config
from ...core.frames import Malformed
from ...core.selection import Endpoint
from ...errors import Error, IdentityConflict, Refused, Unreachable
from ..base import CONFLICT, REFUSED, Doorkeeper, End, Link
from ..sockets import NO_ROUTE, SockAddr, describe, ip_of
from .client import ClientPath
from .engine import IDLE, Engine
from .link import QuicLink
from .parts import ClientCore, D, Parts


class Attempt(Generic[D]):
    """One address of the host that is dialed."""

    def __init__(
        self,
        parts: Parts[D],
        config: Config,
        doorkeeper: Doorkeeper,
        address: Address,
        family: socket.AddressFamily,
        sockaddr: SockAddr,
    ) -> None:
        self._parts = parts
        self._config = config
        self._doorkeeper = doorkeeper
        self._address = address
        self._where = family, sockaddr

    async def __call__(self) -> Dial[D]:
        """A dial whose far end's hello is good. Raises ``OSError``, ``Malformed`` and ``Error``."""
        family, sockaddr = self._where
        path = f"quic {join(ip_of(sockaddr), sockaddr[1])}"
        dial: Dial[D] | None = None
        try:
            dial = await self._open(family, sockaddr)
            await dial.begin()
            await dial.answered
            return dial
        except (OSError, Malformed) as error:
            if dial is not None:
                dial.hang_up()
            dial = None  # it holds the error, whose traceback holds this frame
            no_route = isinstance(error, OSError) and error.errno in NO_ROUTE
            tried = [(path, describe(error))]
            raise Unreachable(str(self._address), tried, no_route=no_route) from None
        except BaseException:
            if dial is not None:
                dial.hang_up()
            dial = None
            raise

    async def _open(self, family: socket.AddressFamily, sockaddr: SockAddr) -> Dial[D]:
        parts, address, config = self._parts, self._address, self._config
        # Pins and a CA are asked for by the scheme; a bare address takes whatever node it is.
        named = address.scheme == "quic"
        hello = self._doorkeeper.hello(named and config.certified)
        sock, core = await parts.dial(address, family, sockaddr)
        path = ClientPath(parts, sock, family, sockaddr)
        engine = path.engine = Engine(core, sock, path, parts.clock)
        ip, port = ip_of(sockaddr), sockaddr[1]
        endpoint = Endpoint("outbound", ip, port, target=address, secure=True, backend="quic")
        link = path.link = QuicLink(engine, endpoint, config, True, self._doorkeeper.unfinished)
        dial = Dial(path, core, link, config, self._doorkeeper, sockaddr, hello)
        path.waiting = link.opening = dial
        return dial


class Dial(Generic[D]):
    """A link on its way up. What comes of it is told by ``answered``."""

    def __init__(
        self,
        path: ClientPath[D],
        core: ClientCore[D],
        link: QuicLink,
        config: Config,
        doorkeeper: Doorkeeper,
        sockaddr: SockAddr,
        hello: str,
    ) -> None:
        assert link.endpoint.target is not None
        self.path = path
        self._core = core
        self._link = link
        self._address = link.endpoint.target
        self._config = config
        self._doorkeeper = doorkeeper
        self._sockaddr = sockaddr
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[None] = self._loop.create_future()
        self._certificate = b""
        self._hello = hello

    async def begin(self) -> None:
        await self.path.begin()
        if self._core.resumes and self._config.zero_rtt:
            # Nothing but the hello goes early: it opens nothing, however often it is replayed.
            self._link.say_hello(self._hello)
        self.path.engine.connect(self._sockaddr)

    # From the link -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        try:
            if self._address.scheme == "quic":
                self._core.check(self._address)
                self._link.endpoint.certified = self._config.certified
        except Refused as error:
            self.settle(error)
            return
        self._certificate = self._core.certificate
        self._core.trust_it()
        if not self._link.has_written:
            self._link.say_hello(self._hello)

    def on_hello(self, text: str) -> None:
        try:
            hello = self._doorkeeper.greeted(self._address, self._hello, text, self._certificate)
        except (Malformed, Error) as error:
            self.settle(error)
            return
        if hello is None:
            self.settle(Malformed("no hello"))
            return
        self._link.endpoint.hello = hello
        if not self.answered.done():
            self.answered.set_result(None)

    def on_failed(self, code: int, by_program: bool, reason: str) -> None:
        self.settle(self._why(code, by_program, reason))

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

    def on_too_small(self) -> None:
        self.path.too_narrow("the MTU of this host's way there is too small")

    def on_ended(self, end: End) -> None:
        """Its path has been told before."""

    # What comes of it ----------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        return self.answered.done()

    def settle(self, error: Exception) -> None:
        if not self.answered.done():
            # Its traceback holds frames that hold the socket.
            self.answered.set_exception(error.with_traceback(None))
            _ = self.answered.exception()  # nobody may be waiting any more

    def enter(self) -> Link:
        """Take the link up. Raises ``Unreachable`` where it has ended meanwhile."""
        link = self._link
        if link.closing:
            path = f"quic {link.endpoint.remote}"
            raise Unreachable(str(self._address), [(path, "the peer closed the connection at once")])
        self.path.waiting = link.opening = None
        link.go_up(self._doorkeeper.enter)
        self._loop.call_soon(link.entered)
        return link

    def hang_up(self) -> None:
        self._link.abort()
        self.path.close()
