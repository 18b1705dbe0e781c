"""Names to addresses, and addresses to connected sockets (RFC 8305, staggered)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from ..address import Address, canonical_ip, join
from ..errors import Unreachable

# The head start of one address over the next: RFC 8305 section 5 recommends 250 ms.
STAGGER = 0.25

_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT)

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Resolved = tuple[socket.AddressFamily, SockAddr]
# Opens one connected, non-blocking socket. Tests and the demo put faults in here.
Opener = Callable[[socket.AddressFamily, SockAddr], Awaitable[socket.socket]]


async def resolve(address: Address) -> list[Resolved]:
    """Look the host up. Raises ``OSError``, which ``describe`` turns into words."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # from the IDNA codec
        raise OSError(f"not a name that can be looked up: {error}") from None
    return _interleave([(family, sockaddr) for family, _, _, _, sockaddr in found])  # type: ignore[misc]


def numeric(address: Address) -> tuple[str, ...]:
    """The IP of an address that has one, as ``ip_of`` writes it: interface names become numbers.

    Empty where there is no such interface.
    """
    if "%" not in address.host:
        return (address.host,)
    try:
        found = socket.getaddrinfo(address.host, address.port, flags=socket.AI_NUMERICHOST)
    except OSError:
        return ()
    return tuple(dict.fromkeys(ip_of(sockaddr) for *_, sockaddr in found))


def ip_of(sockaddr: Sequence[object]) -> str:
    """The canonical IP of a socket address; a link-local one keeps its scope as a number."""
    base = str(sockaddr[0]).partition("%")[0]
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    text = f"{base}%{scope}" if scope and base.lower().startswith("fe80") else base
    return canonical_ip(text) or text


def _interleave(found: list[Resolved]) -> list[Resolved]:
    """Alternate families, the resolver's first one first (RFC 8305 section 4)."""
    unique = list(dict.fromkeys(found))
    first = [item for item in unique if item[0] == unique[0][0]]
    second = [item for item in unique if item[0] != unique[0][0]]
    mixed: list[Resolved] = []
    for index in range(max(len(first), len(second))):
        mixed += first[index : index + 1] + second[index : index + 1]
    return mixed


async def open_socket(family: socket.AddressFamily, sockaddr: SockAddr) -> socket.socket:
    """A fresh connected TCP socket. Raises ``OSError``."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(address: Address, opener: Opener = open_socket) -> socket.socket:
    """Race all addresses of the host. Raises ``Unreachable`` with the reason for each path."""
    try:
        found = await resolve(address)
    except OSError as error:
        raise Unreachable(str(address), [(f"look-up of {address.host}", describe(error))]) from None
    race = _Race(address, opener)
    try:
        return await race.run(found)
    finally:
        race.cancel()


class _Race:
    """One staggered race; the winner's socket stays, all others are closed."""

    def __init__(self, address: Address, opener: Opener) -> None:
        self._address = address
        self._opener = opener
        self._tasks: dict[asyncio.Task[socket.socket], str] = {}
        self._failed: list[tuple[str, str]] = []
        self._no_route = True

    async def run(self, found: list[Resolved]) -> socket.socket:
        waiting = list(found)
        while waiting or self._tasks:
            if waiting:
                self._start(waiting.pop(0))
            winner = await self._next(STAGGER if waiting else None)
            if winner is not None:
                return winner
        raise Unreachable(str(self._address), self._failed, no_route=self._no_route)

    def _start(self, item: Resolved) -> None:
        family, sockaddr = item
        task = asyncio.ensure_future(self._opener(family, sockaddr))
        self._tasks[task] = f"tcp {join(ip_of(sockaddr), sockaddr[1])}"

    async def _next(self, timeout: float | None) -> socket.socket | None:
        done, _ = await asyncio.wait(self._tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        winner: socket.socket | None = None
        for task in done:
            path = self._tasks.pop(task)
            error = task.exception()
            if isinstance(error, OSError):
                self._failed.append((path, describe(error)))
                self._no_route = self._no_route and error.errno in _NO_ROUTE
            elif error is not None:
                raise error
            elif winner is None:
                winner = task.result()
            else:
                task.result().close()
        return winner

    def cancel(self) -> None:
        for task in self._tasks:
            task.add_done_callback(_close_late)
            task.cancel()
        self._tasks.clear()


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """A loser that connected in the moment it was cancelled must not leak its socket."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def describe(error: BaseException) -> str:
    """An OS error in words, with its symbolic name: ``EHOSTUNREACH: No route to host``."""
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return f"name not found ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return f"{errno.errorcode[error.errno]}: {os.strerror(error.errno)}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
