"""Bare qh3, as fast as its own layers allow: its asyncio protocol over its batching UDP transport."""

import asyncio
import socket
import ssl
from functools import partial
from typing import Any

from qh3.asyncio._transport import create_optimized_datagram_transport
from qh3.asyncio.protocol import QuicConnectionProtocol
from qh3.asyncio.server import QuicServer
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.events import QuicEvent, StreamDataReceived

from benchmarks.certificate import NAME, self_signed
from benchmarks.contenders.base import HOST
from benchmarks.contenders.quic import ALPN, Bare, Framed, Got

LONG_HEADER = 0x80
# Idle ones stay for as long as they are looked at.
IDLE_TIMEOUT = 600.0


class Line(Framed, QuicConnectionProtocol):
    def __init__(self, got: Got, quic: QuicConnection, stream_handler: Any = None) -> None:
        QuicConnectionProtocol.__init__(self, quic)
        self.got = got
        self.unsent = quic.get_send_buffer_size

    def quic_event_received(self, event: QuicEvent) -> None:
        if type(event) is StreamDataReceived:
            self.take(event.data)

    def transmit(self) -> None:
        super().transmit()
        self.wake()


class Door(QuicServer):
    """qh3's own server takes datagrams one by one; this one passes whole batches on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lines: dict[Any, QuicConnectionProtocol] = {}

    def count(self) -> int:
        return len(set(self._protocols.values()))

    def datagrams_received(self, data: list[bytes], addr: Any) -> None:
        line = self._lines.get(addr)
        # A handshake may come from the address of a connection that is over.
        if line is not None and not data[0][0] & LONG_HEADER:
            line.datagrams_received(data, addr)
            return
        for datagram in data:
            self.datagram_received(datagram, addr)
        # The newest comes last.
        self._lines[addr] = next(reversed(self._protocols.values()))


class Qh3(Bare):
    _door: Door

    async def listen(self, got: Got) -> int:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN], idle_timeout=IDLE_TIMEOUT)
        configuration.load_cert_chain(*self_signed())
        make = partial(
            Door,
            configuration=configuration,
            create_protocol=partial(Line, got),
            session_ticket_fetcher=self.issued.get,
            session_ticket_handler=self.keep_issued,
        )
        transport, self._door = await self._open(make)
        self.exits.callback(self._door.close)
        return int(transport.get_extra_info("sockname")[1])

    async def join(self, port: int, number: int) -> None:
        await self.connect(port, lambda line, body: None)

    def connected(self) -> int:
        return self._door.count()

    async def start(self, port: int, got: Got, ticket: Any) -> Line:
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            server_name=NAME,
            verify_mode=ssl.CERT_NONE,
            session_ticket=ticket,
            idle_timeout=IDLE_TIMEOUT,
        )
        quic = QuicConnection(configuration=configuration, session_ticket_handler=self.keep)
        line: Line
        _, line = await self._open(partial(Line, got, quic))
        line.connect((HOST, port))
        return line

    async def _open(self, make: Any) -> tuple[asyncio.DatagramTransport, Any]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        return await create_optimized_datagram_transport(asyncio.get_running_loop(), make, sock)


class Qh3Joined(Qh3):
    joined = True
