"""UDP sockets: opened, bound, and with datagrams in batches where the system has that."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from qh3.asyncio._transport import OptimizedDatagramTransport, enable_gro, has_gso

from ..sockets import SockAddr, opened, prepare_udp
from .datagram_size import MIN_DATAGRAM

Addr = tuple[Any, ...]
# Opens one connected, non-blocking UDP socket. Tests and the demo put faults in here.
UdpOpener = Callable[[socket.AddressFamily, SockAddr], Awaitable[socket.socket]]


async def open_udp(family: socket.AddressFamily, sockaddr: SockAddr) -> socket.socket:
    """A fresh UDP socket, connected: so the system tells of an ICMP error. Raises ``OSError``."""
    sock = opened(socket.socket(family, socket.SOCK_DGRAM))
    try:
        prepare_udp(sock)
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


# The size that qh3 takes for that of received segments where the system does not say.
GRO_SEGMENT = 1280


class _Transport(OptimizedDatagramTransport):
    """qh3's, with less work per datagram: it reads until there is nothing more, which costs a call
    and an exception each time, where the loop would call again anyway. And it says what was too large."""

    # Bytes of the largest datagram that this host would not send, since that was last looked at.
    too_large = 0

    def _recv_rust(self, state: Any) -> None:
        try:
            received = state.recv()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._report_error(error)
            return
        protocol: Any = self._protocol
        batch: list[bytes] = []
        sender: Any = None
        for data, addr in received:
            if addr != sender and batch:
                protocol.datagrams_received(batch, sender)
                batch = []
            sender = addr
            batch.append(data)
        if batch and not self._closing:
            protocol.datagrams_received(batch, sender)

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self._closing or not self._write_ready or self._send_queue:
            super().sendto(data, addr)
            return
        try:
            self._send_one(data, addr)
        except (BlockingIOError, InterruptedError):
            super().sendto(data, addr)
        except OSError as error:
            self._send_again(error, data, addr)

    def _send_again(self, error: OSError, data: Any, addr: Any) -> None:
        """What ICMP says of one datagram comes as the error of the next one, which is not sent then."""
        try:
            self._send_one(data, addr)
        except (BlockingIOError, InterruptedError):
            super().sendto(data, addr)
        except OSError as again:
            if again.errno == errno.EMSGSIZE:
                self.too_large = max(self.too_large, len(data))
                return
            error = again
        self._report_error(error)

    def _send_one(self, data: Any, addr: Any) -> None:
        if self._connected_addr is not None:
            self._sock.send(data)
        else:
            self._sock.sendto(data, addr)


class Datagrams(asyncio.DatagramProtocol):
    """One UDP socket in use. ``on_datagrams(batch, addr)``, ``on_error(error)``, ``on_full(is_it)``."""

    def __init__(
        self,
        on_datagrams: Callable[[list[bytes], Addr], None],
        on_error: Callable[[OSError], None],
        on_full: Callable[[bool], None],
    ) -> None:
        self._on_datagrams = on_datagrams
        self._on_error = on_error
        # The system takes no more just now; and then it does again.
        self._on_full = on_full
        self._transport: Any = None
        self._connected = False
        self._tells_size = False

    async def start(self, sock: socket.socket) -> None:
        """From now on it is this object's to close. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        if sys.platform != "linux":
            with contextlib.suppress(OSError):
                self._connected = bool(sock.getpeername())  # then BSD wants no address with what is sent
            await loop.create_datagram_endpoint(lambda: self, sock=sock)
            return
        self._tells_size = True
        transport = _Transport(loop, sock, self, None, enable_gro(sock), has_gso(sock), GRO_SEGMENT)
        started = loop.create_future()
        transport._start(started)
        try:
            await started
        except BaseException:
            transport.abort()
            raise

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
        self._on_full(True)

    def resume_writing(self) -> None:
        self._on_full(False)

    def send(self, batch: Sequence[bytes], addr: Addr) -> int:
        """Returns the size of the largest datagram that is too large for this host's way there; else 0."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return 0
        if len(batch) == 1:
            transport.sendto(batch[0], None if self._connected else addr)
        elif hasattr(transport, "sendto_many"):
            transport.sendto_many(list(batch), addr)
        else:
            for data in batch:
                transport.sendto(data, None if self._connected else addr)
        if self._tells_size and transport.too_large:
            too_large, transport.too_large = int(transport.too_large), 0
            return too_large
        return 0

    def close(self) -> None:
        """What has been sent leaves all the same."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
        # Whom it tells may hold it.
        self._on_datagrams, self._on_error, self._on_full = _ignore, _ignore, _ignore

    @property
    def socket(self) -> socket.socket:
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock


def _ignore(*news: object) -> None:
    """Of a socket that is closed."""


# The far end, or what is in front of it, says that nobody listens there.
REFUSED = (errno.ECONNREFUSED, *((10054,) if sys.platform == "win32" else ()))


# This host has no room for a datagram just now.
TRANSIENT = (errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EINTR)


# The size of a path ------------------------------------------------------------------------------

# Linux: what is known of the path that a connected socket's datagrams take.
_IP_MTU, _IPV6_MTU = 14, 24
# IP's and UDP's headers.
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}


def path_mtu(sock: socket.socket) -> int | None:
    """In bytes, as routers have told this host; None where the system does not say."""
    if sys.platform != "linux":
        return None
    level, name = (
        (socket.IPPROTO_IPV6, _IPV6_MTU) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_MTU)
    )
    try:
        return sock.getsockopt(level, name)
    except OSError:
        return None


def least_mtu(family: int) -> int:
    """What QUIC needs: its smallest datagrams, and their headers."""
    return MIN_DATAGRAM + _HEADERS.get(socket.AddressFamily(family), 48)


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
