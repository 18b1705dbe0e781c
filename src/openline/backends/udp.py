"""UDP sockets: opened, bound, and with datagrams in batches where the system has that."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from qh3.asyncio._transport import create_optimized_datagram_transport

from .sockets import SockAddr, prepare_udp

Addr = tuple[Any, ...]
# Opens one connected, non-blocking UDP socket. Tests and the demo put faults in here.
UdpOpener = Callable[[socket.AddressFamily, SockAddr], Awaitable[socket.socket]]


async def open_udp(family: socket.AddressFamily, sockaddr: SockAddr) -> socket.socket:
    """A fresh UDP socket, connected: so the system tells of an ICMP error. Raises ``OSError``."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        prepare_udp(sock)
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


class Datagrams(asyncio.DatagramProtocol):
    """One UDP socket in use. ``on_datagrams(batch, addr)``, ``on_error(error)``, ``on_writable()``."""

    def __init__(
        self,
        on_datagrams: Callable[[list[bytes], Addr], None],
        on_error: Callable[[OSError], None],
        on_writable: Callable[[], None],
    ) -> None:
        self._on_datagrams = on_datagrams
        self._on_error = on_error
        self._on_writable = on_writable
        self._transport: Any = None
        # The system takes no more just now.
        self.blocked = False

    async def start(self, sock: socket.socket) -> None:
        """From now on it is this object's to close. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        await create_optimized_datagram_transport(loop, lambda: self, sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Addr) -> None:
        self._on_datagrams([data], addr)

    def datagrams_received(self, batch: list[bytes], addr: Addr) -> None:
        self._on_datagrams(batch, addr)

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, OSError):
            # Its traceback holds the frame that holds it, and with that the socket.
            self._on_error(exc.with_traceback(None))

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self._on_writable()

    def send(self, batch: Sequence[bytes], addr: Addr) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(batch) == 1:
            transport.sendto(batch[0], addr)
        elif hasattr(transport, "sendto_many"):
            transport.sendto_many(list(batch), addr)
        else:
            for data in batch:
                transport.sendto(data, addr)

    def close(self) -> None:
        """What has been sent leaves all the same."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    @property
    def socket(self) -> socket.socket:
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock


# The far end, or what is in front of it, says that nobody listens there.
REFUSED = (errno.ECONNREFUSED, *((10054,) if sys.platform == "win32" else ()))


# Of this host ------------------------------------------------------------------------------------

_FIB_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


def local_addresses(family: int) -> set[str]:
    """IP addresses of this host, but link-local ones; empty where the system does not tell (Linux does).

    A socket bound to all of them answers from whichever the route prefers, which need not be the
    one that was dialed: then the client takes the answer for somebody else's.
    """
    try:
        if family == socket.AF_INET:
            return set(_FIB_LOCAL.findall(Path("/proc/net/fib_trie").read_text()))
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return set()
    found = {str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines}
    return {ip for ip in found if not ip.startswith("fe80")}
