"""Accepting TCP connections with a bound on unfinished handshakes.

The bound covers TLS and the WebSocket upgrade alike. At the bound the oldest unfinished one makes
room: an honest client is done in milliseconds, a flood of silent ones only pushes out itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger("openline")

# Out of file descriptors: let some close before accepting again, instead of spinning.
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_ACCEPT = 0.5
BACKLOG = 1024

ProtocolFactory = Callable[[Callable[[], None]], asyncio.BaseProtocol]


class Acceptor:
    """Listening sockets of one port. ``factory(done)`` makes a protocol that calls ``done`` once
    its handshake has ended, well or badly."""

    def __init__(
        self,
        factory: ProtocolFactory,
        context: ssl.SSLContext | None,
        handshake_timeout: float,
        max_pending: int,
    ) -> None:
        self._factory = factory
        self._context = context
        self._timeout = handshake_timeout
        self._max_pending = max_pending
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._pending: dict[_Pending, None] = {}
        self.evicted = 0

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def pending(self) -> int:
        return len(self._pending)

    def start(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        self._accepting = [asyncio.ensure_future(self._accept(sock)) for sock in sockets]

    async def close(self) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        tasks = [pending.task for pending in self._pending]
        for pending in list(self._pending):
            pending.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    log.error("cannot accept: %s; trying again in %s s", error, _RETRY_ACCEPT)
                    await asyncio.sleep(_RETRY_ACCEPT)
                continue  # else the client was gone before we came to it
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        if len(self._pending) >= self._max_pending:
            self.evicted += 1
            next(iter(self._pending)).abort()
        sock.setblocking(False)
        pending = _Pending(sock)
        self._pending[pending] = None
        pending.task = asyncio.ensure_future(self._handshake(pending))

    async def _handshake(self, pending: _Pending) -> None:
        def done() -> None:
            self._pending.pop(pending, None)

        try:
            pending.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._factory(done),
                pending.sock,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout if self._context else None,
            )
        except (OSError, asyncio.CancelledError) as error:
            # ssl.SSLError is an OSError: a failed TLS handshake costs its own connection only.
            done()
            pending.sock.close()
            log.debug("handshake failed: %s", error)


class _Pending:
    """One accepted socket whose handshake is not finished."""

    __slots__ = ("sock", "task", "transport")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.task: asyncio.Task[None]
        self.transport: Any = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self.task.cancel()


async def bind(host: str | None, port: int) -> list[socket.socket]:
    """Listening sockets on ``port`` of ``host``, or of all interfaces; port 0 picks one for all.

    Raises ``OSError``.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, sockaddr in dict.fromkeys((item[0], item[4]) for item in found):
            if port == 0 and sockets:
                sockaddr = (sockaddr[0], sockets[0].getsockname()[1], *sockaddr[2:])
            sockets += _bind_one(family, sockaddr, required=host is not None or not sockets)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_one(family: int, sockaddr: Any, required: bool) -> list[socket.socket]:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if required:
            raise
        return []  # a kernel without IPv6
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if not required and error.errno == errno.EADDRNOTAVAIL:
            return []
        raise
    return [sock]
