"""Accepting TCP connections with a bound on unfinished handshakes.

The bound covers TLS and the WebSocket upgrade alike. At the bound the oldest unfinished one makes
room: an honest client is done in milliseconds, a flood of silent ones only pushes out itself.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from ...address import join
from ...core.fairshare import FairShare
from ...core.origin import origin
from ...core.rate import TokenBucket
from ...runtime.ratelog import process_log
from ..binding import Bound
from ..sockets import forget_frames, ip_of, opened
from .tunnel import READ_SIZE, Tunnel

log = logging.getLogger("openline")

# The client was gone before we came to it, or its network was: what Linux tells of a connection that it
# hands out (accept(2)). It says nothing of the listening socket.
_CLIENT_FAILED = (
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.ETIMEDOUT,
    errno.EINTR,
)
# Anything else, as that there are no file descriptors: let some close before accepting again, instead of
# spinning.
_RETRY_ACCEPT = 0.5

# Connections accepted in a row before the loop gets a turn: a flood must not keep it.
ACCEPTS_PER_TURN = 64
# Turns of the loop that an honest handshake takes on our side, and as many again: while it lasts, no more
# may be accepted than push it out.
HANDSHAKE_TURNS = 16

# Where a crowd comes at once, all of them honest, the next one waits in the kernel's queue until others
# are done: for as long as some are done at least every ``PROGRESS`` seconds, looked at every ``STEP``. A
# flood that does finish handshakes makes others wait so many seconds at once, then a tenth of the time.
STEP, PROGRESS = 0.005, 0.25
PATIENCE_RATE, PATIENCE_BURST = 0.1, 2.0

# The first byte of a TLS handshake record (RFC 8446 section 5.1).
_TLS_HANDSHAKE = 0x16
_SPEAKS_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 37\r\n\r\nThis port speaks TLS: dial wss:// it.\n"
)

# Called with whether the handshake has become a connection; with None when it has come a step further.
Done = Callable[[bool | None], None]
ProtocolFactory = Callable[[Done], asyncio.BufferedProtocol]


class Acceptor:
    """Listening sockets of one port.

    ``factory(done)`` makes a protocol that calls ``done`` once its handshake has ended. ``context()`` is
    asked for each TLS handshake, as certificates may be renewed. ``plain``: may a client speak HTTP
    without TLS? The first byte tells them apart. ``on_bad(peer, reason)`` is told of every handshake that
    brought something else than one.
    """

    def __init__(
        self,
        factory: ProtocolFactory,
        context: Callable[[], ssl.SSLContext],
        plain: bool,
        handshake_timeout: float,
        max_pending: int,
        on_bad: Callable[[str, str], None],
    ) -> None:
        self._factory = factory
        self._context = context
        self._plain = plain
        # Where all TLS of this port is read to.
        self._shared = memoryview(bytearray(READ_SIZE))
        self._timeout = handshake_timeout
        self._on_bad = on_bad
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        # At the limit the oldest of the origin that has the most makes room.
        self._pending: FairShare[_Pending] = FairShare(max_pending)
        self._per_turn = max(1, min(ACCEPTS_PER_TURN, max_pending // HANDSHAKE_TURNS))
        self.evicted = 0
        # Handshakes that have become connections; and how long may still be waited for such.
        self._done = 0
        # So many were done when waiting for more had been of no use.
        self._gave_up_at = -1
        self._patience = TokenBucket(PATIENCE_RATE, PATIENCE_BURST, asyncio.get_running_loop().time())

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def pending(self) -> int:
        return len(self._pending)

    def start(self, bound: Bound) -> None:
        self._sockets = bound.sockets
        self.hosts, self.failed = bound.hosts, bound.failed
        self._accepting = [asyncio.ensure_future(self._accept(sock)) for sock in bound.sockets]

    async def close(self) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        tasks = [task for pending in list(self._pending) for task in self._cut(pending)]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for count in itertools.count(1):
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                if not _listens(listening):
                    return
                if error.errno in _CLIENT_FAILED:
                    await asyncio.sleep(0)
                else:
                    text = "cannot accept: %s; trying again in %s s"
                    process_log.line("accept", True, logging.ERROR, text, error, _RETRY_ACCEPT)
                    await asyncio.sleep(_RETRY_ACCEPT)
                continue
            opened(sock)
            if len(self._pending) >= self._pending.limit:
                try:
                    await self._let_some_finish()
                except asyncio.CancelledError:
                    sock.close()
                    raise
            self._begin(sock)
            if not count % self._per_turn:
                await asyncio.sleep(0)

    async def _let_some_finish(self) -> None:
        loop = asyncio.get_running_loop()
        done, since = self._done, loop.time()
        while len(self._pending) >= self._pending.limit and self._done != self._gave_up_at:
            now = loop.time()
            if self._done != done:
                done, since = self._done, now
            if now > since + PROGRESS:
                self._gave_up_at = done
                return
            if self._patience.take(now, STEP) < 0:
                self._patience.give_back(STEP)  # it is not waited for
                return
            await asyncio.sleep(STEP)

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        pending = _Pending(sock)
        self._pending.set(pending, pending.origin, 1)
        pending.task = asyncio.ensure_future(self._handshake(pending))
        pending.task.add_done_callback(pending.close)
        while (oldest := self._pending.excess()) is not None:
            self.evicted += 1
            self._cut(oldest)

    def _cut(self, pending: _Pending) -> list[asyncio.Task[None]]:
        """End a handshake now, also where its task has not had a turn yet. Returns what is to end."""
        self._pending.remove(pending)
        if pending.transport is not None:
            pending.transport.abort()
        if pending.task is None:
            return []
        pending.task.cancel()
        return [pending.task]

    def _end(self, pending: _Pending, good: bool | None, reason: str = "no WebSocket upgrade") -> None:
        """A handshake is over; once for each, and not for those that we have cut."""
        if pending in self._pending:
            self._pending.remove(pending)
            self._done += bool(good)
            if good is None:
                self._pending.set(pending, pending.origin, 1)  # not the first to be pushed out by a flood
            elif not good:
                self._on_bad(pending.peer, reason)

    async def _handshake(self, pending: _Pending) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                speaks = await self._speaks(pending)
                if speaks is not None:
                    pending.handed_over = True
                    await speaks(pending)
        except TimeoutError as error:
            forget_frames(error)
            if pending.transport is not None:
                pending.transport.abort()
            self._end(pending, False, "unfinished handshake")
        except OSError as error:
            forget_frames(error)
            # ssl.SSLError is one: a failed TLS handshake costs its own connection only.
            why = str(error) or "ended by the client, which may not trust this certificate"
            self._end(pending, False, f"handshake failed: {why}")

    async def _speaks(self, pending: _Pending) -> Callable[[_Pending], Awaitable[None]] | None:
        """Look at the first byte: TLS, or HTTP? None where it is neither, or may not be.

        Until there is one, a silent client costs a socket and nothing else.
        """
        first = await _peek(pending.sock)
        if not first:
            self._pending.remove(pending)  # it went without a word: a port scan, a health check
            return None
        if first[0] == _TLS_HANDSHAKE:
            return self._begin_tls
        if not first.isalpha():
            self._end(pending, False, "neither HTTP nor TLS")
        elif self._plain:
            return self._begin_plain
        else:
            pending.sock.send(_SPEAKS_TLS)
            self._end(pending, False, "no TLS, where it is spoken")
        return None

    async def _begin_plain(self, pending: _Pending) -> None:
        loop = asyncio.get_running_loop()
        pending.transport, _ = await loop.connect_accepted_socket(
            lambda: self._factory(lambda good: self._end(pending, good)), pending.sock
        )

    async def _begin_tls(self, pending: _Pending) -> None:
        loop = asyncio.get_running_loop()
        pending.transport, tunnel = await loop.connect_accepted_socket(
            lambda: Tunnel(self._context(), self._shared, server=True), pending.sock
        )
        await tunnel.established()
        tunnel.begin(self._factory(lambda good: self._end(pending, good)))


def _listens(sock: socket.socket) -> bool:
    """No longer in the copy of a loop in a child that came by fork, which has another socket in its place."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ENOTSOCK)  # else the system does not tell


async def _peek(sock: socket.socket) -> bytes:
    """The first byte, which stays to be read; empty at the end of the stream."""
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await _readable(sock)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


class _Pending:
    """One accepted socket whose handshake is not finished."""

    __slots__ = ("handed_over", "origin", "peer", "sock", "task", "transport")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.origin, self.peer = _peer_of(sock)
        self.task: asyncio.Task[None] | None = None
        self.transport: Any = None
        # A transport owns the socket now, and closes it when the task is cancelled.
        self.handed_over = False

    def close(self, task: asyncio.Task[None]) -> None:
        """The task is over, or was cancelled before it began."""
        self.task = None  # it may keep an error, whose traceback keeps this
        if not self.handed_over:
            self.sock.close()


def _peer_of(sock: socket.socket) -> tuple[str, str]:
    """Whom it is counted as, and what it is called."""
    try:
        name = sock.getpeername()
    except OSError:
        return "", "a client that has gone"
    return origin(ip_of(name)), join(ip_of(name), name[1])
