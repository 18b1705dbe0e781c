"""Names to addresses, and addresses to connected sockets (RFC 8305, staggered)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import traceback
import weakref
from collections.abc import Awaitable, Callable, Sequence

from ..address import Address, canonical_ip, join
from ..errors import Unreachable
from .race import AllFailed, Race, merged

# Room for a burst while our loop is busy: 4 MiB is some 3,000 full packets. The system may allow less.
UDP_BUFFER = 4 * 1024 * 1024

# Of TCP on a path whose MTU is less than its ends think: packets of 1,200 bytes over IPv4, as QUIC's.
NARROW_SEGMENT = 1160

# There is no way to that host now: what a stale route, a firewall on the way or of this host, or an
# interface that is down make of a dial. A refusal is another matter: somebody is there.
NO_ROUTE = (
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
    errno.EADDRNOTAVAIL,
    errno.EACCES,  # a route of type prohibit; ICMPv6: administratively prohibited
    errno.EPERM,  # this host's firewall drops what leaves
    errno.EINVAL,  # a route of type blackhole
)

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Resolved = tuple[socket.AddressFamily, SockAddr]
# Opens one connected, non-blocking socket. Tests and the demo put faults in here.
Opener = Callable[[socket.AddressFamily, SockAddr], Awaitable[socket.socket]]


# All that are open, of all transports. A child that came by fork has them too, which it must not: what it
# writes, and what a destructor or its copy of the loop does to them, would be the parent's doing; and a
# connection that the parent closes would not end as long as the child lives.
_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def opened(sock: socket.socket) -> socket.socket:
    """Whoever opens a socket for a transport says so here."""
    _open.add(sock)
    return sock


def _cut_off() -> None:
    """After fork, in the child: each descriptor becomes that of a socket which is closed at its far end.

    Not simply closed: the copies of whatever owns them would close the number once more, when it is
    something else's. The parent notices nothing, as its own descriptors stay open.
    """
    socks = [sock for sock in list(_open) if sock.fileno() >= 0]
    if not socks:
        return
    numbers = {sock.fileno() for sock in socks}
    numbers |= _copies([sock for sock in socks if sock.type == socket.SOCK_DGRAM])
    dead, far = socket.socketpair()
    far.close()
    dead.setblocking(False)
    for number in numbers:
        os.dup2(dead.fileno(), number, inheritable=False)
    dead.close()


def _copies(socks: Sequence[socket.socket]) -> set[int]:
    """All descriptors of these: qh3 makes itself one for each UDP socket, on Linux."""
    found: set[int] = set()
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")] if socks else []
    except OSError:
        return found
    wanted = {os.fstat(sock.fileno()).st_ino for sock in socks}
    for number in numbers:
        with contextlib.suppress(OSError):  # that of the listing is closed by now
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode) and status.st_ino in wanted:
                found.add(number)
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cut_off)


async def resolve(address: Address, kind: int = socket.SOCK_STREAM) -> list[Resolved]:
    """Look the host up. Raises ``OSError``, which ``describe`` turns into words."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=kind)
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


async def open_socket(
    family: socket.AddressFamily, sockaddr: SockAddr, segment: int | None = None
) -> socket.socket:
    """A fresh connected TCP socket. ``segment``: no larger ones, in either direction. Raises ``OSError``."""
    sock = opened(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        if segment is not None:
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def open_narrow(family: socket.AddressFamily, sockaddr: SockAddr) -> socket.socket:
    return await open_socket(family, sockaddr, NARROW_SEGMENT)


def prepare_udp(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER)


async def connect(address: Address, opener: Opener = open_socket) -> socket.socket:
    """Race all addresses of the host. Raises ``Unreachable`` with the reason for each path."""
    try:
        found = await resolve(address)
    except OSError as error:
        raise Unreachable(str(address), [(f"look-up of {address.host}", describe(error))]) from None
    race: Race[socket.socket] = Race(lambda sock: sock.close())  # a simulated one, too
    try:
        _, sock = await race.run([_Path(address, opener, family, sockaddr) for family, sockaddr in found])
    except AllFailed as failed:
        raise merged(address, failed.errors) from None
    return sock


class _Path:
    """One of the host's addresses."""

    def __init__(
        self, address: Address, opener: Opener, family: socket.AddressFamily, sockaddr: SockAddr
    ) -> None:
        self._address = address
        self._opener = opener
        self._where = family, sockaddr

    async def __call__(self) -> socket.socket:
        try:
            return opened(await self._opener(*self._where))
        except OSError as error:
            _, sockaddr = self._where
            path = f"tcp {join(ip_of(sockaddr), sockaddr[1])}"
            raise Unreachable(
                str(self._address), [(path, describe(error))], no_route=error.errno in NO_ROUTE
            ) from None


def forget_frames(error: BaseException | None) -> None:
    """What failed is over: its traceback shall not keep the variables of the calls that were under way.

    A future keeps the error it has raised, and a call that waited for it, the future: a circle.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def describe(error: BaseException) -> str:
    """An OS error in words, with its symbolic name: ``EHOSTUNREACH: No route to host``."""
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return f"name not found ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return f"{errno.errorcode[error.errno]}: {os.strerror(error.errno)}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
