"""Binding a port: one number on every address of a host name, or on all interfaces."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..address import canonical_ip, join
from .sockets import describe, ip_of, opened, prepare_udp

log = logging.getLogger("openline")

BACKLOG = 1024
# Ports tried where any will do, until one is free on all addresses.
PICKS = 5
# This host has no such address, or not that kind of addresses.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)

# What to listen on: a name or an IP; several IPs, of which all are needed; or None for all interfaces.
Where = str | Sequence[str] | None
_Place = tuple[int, Any]


class Bound(NamedTuple):
    """Sockets on one port. ``failed`` tells, by address, what could not be had."""

    sockets: list[socket.socket]
    # The IPs that a name stood for and that are bound; empty where all interfaces are.
    hosts: tuple[str, ...]
    failed: dict[str, str]


async def bind(where: Where, port: int, kind: int = socket.SOCK_STREAM) -> Bound:
    """Of a name's addresses all that can be had, one at least; port 0 picks one for all. TCP listens.

    Raises ``OSError``, which says of each address why it could not be had.
    """
    places = await _look_up(where or None, port, kind)
    for pick in range(1, PICKS + 1):
        sockets, errors = _bind_each(places, kind)
        taken = any(error.errno == errno.EADDRINUSE for error in errors.values())
        # A number picked for one address that is somebody's on another one: the next one, please.
        if taken and port == 0 and sockets and pick < PICKS:
            _close(sockets)
            continue
        break
    if errors and not (sockets and _may_lack(where or None, errors)):
        _close(sockets)
        raise _cannot(kind, errors)
    number = sockets[0].getsockname()[1]
    failed = {_name(kind, at, number): describe(error) for at, error in errors.items()} if where else {}
    for place, why in failed.items():
        log.warning("not listening on %s: %s", place, why)
    hosts = tuple(ip_of(sock.getsockname()) for sock in sockets) if where else ()
    return Bound(sockets, hosts, failed)


def _may_lack(where: Where, errors: dict[_Place, OSError]) -> bool:
    """May it do without those? Of all interfaces only those of a kind that this host does not have."""
    return isinstance(where, str) or (
        where is None and all(error.errno in _NOT_HERE for error in errors.values())
    )


async def _look_up(where: Where, port: int, kind: int) -> list[_Place]:
    loop = asyncio.get_running_loop()
    hosts = [where] if where is None or isinstance(where, str) else where
    found: dict[_Place, None] = {}
    for host in hosts:
        host = host and (canonical_ip(host) or host)  # ::ffff:10.0.0.1 is an IPv4 address here, too
        try:
            for item in await loop.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE):
                found[item[0], item[4]] = None
        except socket.gaierror as error:
            raise socket.gaierror(error.errno, f"look-up of {host}: {error.strerror}") from None
        except UnicodeError as error:  # from the IDNA codec
            text = f"look-up of {host!r}: not a name that can be looked up: {error}"
            raise OSError(errno.EINVAL, text) from None
    return list(found)


def _bind_each(places: Sequence[_Place], kind: int) -> tuple[list[socket.socket], dict[_Place, OSError]]:
    sockets: list[socket.socket] = []
    errors: dict[_Place, OSError] = {}
    for family, sockaddr in places:
        if sockaddr[1] == 0 and sockets:
            sockaddr = (sockaddr[0], sockets[0].getsockname()[1], *sockaddr[2:])
        try:
            sockets.append(_bind_one(family, sockaddr, kind))
        except OSError as error:
            errors[family, sockaddr] = error
    return sockets, errors


def _bind_one(family: int, sockaddr: Any, kind: int) -> socket.socket:
    sock = opened(socket.socket(family, kind))
    try:
        if kind == socket.SOCK_DGRAM:
            prepare_udp(sock)
        elif sys.platform != "win32":  # there it would let two processes share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _name(kind: int, place: _Place, number: int = 0) -> str:
    sockaddr = place[1]
    return f"{'udp' if kind == socket.SOCK_DGRAM else 'tcp'} {join(ip_of(sockaddr), sockaddr[1] or number)}"


def _cannot(kind: int, errors: dict[_Place, OSError]) -> OSError:
    numbers = [error.errno for error in errors.values()]
    number = errno.EADDRINUSE if errno.EADDRINUSE in numbers else numbers[0]
    return OSError(number, "; ".join(f"{_name(kind, at)}: {describe(e)}" for at, e in errors.items()))


def why(error: OSError, host: Where) -> str:
    """In words; without the address where ``host`` is that, and has been named already."""
    named = canonical_ip(host) is not None if isinstance(host, str) else host is None or len(host) == 1
    return describe(error) if named else error.strerror or describe(error)
