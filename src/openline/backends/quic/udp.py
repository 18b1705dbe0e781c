"""UDP sockets: opened, bound, and with datagrams in batches where the system has that."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from qh3.asyncio._transport import OptimizedDatagramTransport, enable_gro, has_gso

from ..sockets import SockAddr, ip_of, opened, prepare_udp
from .parts import Addr, Inlet

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
    # Told of what comes with no step between, as long as this is open.
    inlet: Inlet[bytes]

    def _on_readable(self) -> None:
        state = self._udp_state
        if state is None or self._closing or self._paused:
            super()._on_readable()
            return
        try:
            received = state.recv()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._report_error(error)
            return
        if len(received) == 1:
            data, sender = received[0]
            self.inlet.on_datagrams([data], sender)
        else:
            self._hand_out(received)

    def _hand_out(self, received: list[tuple[bytes, Addr]]) -> None:
        """One call for each run of datagrams from one address."""
        batch: list[bytes] = []
        sender: Addr = ()
        for data, addr in received:
            if addr != sender and batch:
                self.inlet.on_datagrams(batch, sender)
                batch = []
            sender = addr
            batch.append(data)
        if batch:
            self.inlet.on_datagrams(batch, sender)

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
    """One UDP socket in use, which is this object's to close. A ``ClientSocket``, and one of a port."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._inlet: Inlet[bytes] = _NOBODY
        self._transport: Any = None
        self._connected = False
        self._tells_size = False

    async def start(self, inlet: Inlet[bytes]) -> None:
        """Tell ``inlet`` what comes. Raises ``OSError``."""
        self._inlet = inlet
        loop, sock = asyncio.get_running_loop(), self.socket
        if sys.platform != "linux":
            with contextlib.suppress(OSError):
                self._connected = bool(sock.getpeername())  # then BSD wants no address with what is sent
            await loop.create_datagram_endpoint(lambda: self, sock=sock)
            return
        self._tells_size = True
        transport = _Transport(loop, sock, self, None, enable_gro(sock), has_gso(sock), GRO_SEGMENT)
        transport.inlet = inlet
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
        self._inlet.on_datagrams([data], addr)

    def datagrams_received(self, batch: list[bytes], addr: Addr) -> None:
        self._inlet.on_datagrams(batch, addr)

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, OSError):
            # Its traceback holds the frame that holds it, and with that the socket.
            self._inlet.on_error(exc.with_traceback(None))

    def pause_writing(self) -> None:
        self._inlet.on_full(True)

    def resume_writing(self) -> None:
        self._inlet.on_full(False)

    def send(self, batch: list[bytes], addr: Addr) -> int:
        """Returns the size of the largest datagram that is too large for this host's way there; else 0."""
        transport = self._transport
        if transport is None:
            return 0
        if len(batch) == 1:
            transport.sendto(batch[0], None if self._connected else addr)
        elif hasattr(transport, "sendto_many"):
            transport.sendto_many(batch, addr)
        else:
            for data in batch:
                transport.sendto(data, None if self._connected else addr)
        if self._tells_size and transport.too_large:
            too_large, transport.too_large = int(transport.too_large), 0
            return too_large
        return 0

    def close(self) -> None:
        """What has been sent leaves all the same."""
        if self._transport is None:
            self.socket.close()
        elif not self._transport.is_closing():
            self._transport.close()
        self._inlet = _NOBODY  # whom it tells may hold it
        if self._tells_size and self._transport is not None:
            self._transport.inlet = _NOBODY

    @property
    def local_ip(self) -> str:
        return ip_of(self.socket.getsockname())

    def path_mtu(self) -> int | None:
        return path_mtu(self.socket)


class _Nobody:
    """Of a socket that is closed."""

    def on_datagrams(self, batch: list[bytes], addr: Addr) -> None: ...
    def on_error(self, error: OSError) -> None: ...
    def on_full(self, full: bool) -> None: ...


_NOBODY: Inlet[bytes] = _Nobody()

# The size of a path ------------------------------------------------------------------------------

# Linux: what is known of the path that a connected socket's datagrams take.
_IP_MTU, _IPV6_MTU = 14, 24


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
