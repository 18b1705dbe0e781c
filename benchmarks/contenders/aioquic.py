"""aioquic by its own asyncio layer, a protocol class at both ends."""

import asyncio
import ssl
from functools import partial
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates

from benchmarks.certificate import NAME, self_signed
from benchmarks.contenders.base import HOST
from benchmarks.contenders.quic import ALPN, STREAM, Bare, Framed, Got


class Line(Framed, QuicConnectionProtocol):
    def __init__(self, got: Got, quic: QuicConnection, stream_handler: Any = None) -> None:
        QuicConnectionProtocol.__init__(self, quic)
        self.got = got

    def unsent(self) -> int:
        # Not public, and nothing public tells it.
        return len(self._quic._streams[STREAM].sender._buffer)

    def quic_event_received(self, event: QuicEvent) -> None:
        if type(event) is StreamDataReceived:
            self.take(event.data)

    def transmit(self) -> None:
        super().transmit()
        self.wake()


class Aioquic(Bare):
    async def listen(self, got: Got) -> int:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
        certificate, key = self_signed()
        configuration.certificate = load_pem_x509_certificates(certificate)[0]
        configuration.private_key = load_pem_private_key(key)
        server = await serve(
            HOST,
            0,
            configuration=configuration,
            create_protocol=partial(Line, got),
            session_ticket_fetcher=self.issued.get,
            session_ticket_handler=self.keep_issued,
        )
        self.exits.callback(server.close)
        assert server._transport is not None
        return int(server._transport.get_extra_info("sockname")[1])

    async def start(self, port: int, got: Got, ticket: Any) -> Line:
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN], server_name=NAME, verify_mode=ssl.CERT_NONE, session_ticket=ticket
        )
        quic = QuicConnection(configuration=configuration, session_ticket_handler=self.keep)
        loop = asyncio.get_running_loop()
        _, line = await loop.create_datagram_endpoint(partial(Line, got, quic), (HOST, 0))
        # Its first flight leaves with the first `transmit`, so that early data can be in it.
        line.connect((HOST, port), transmit=ticket is None or ticket.max_early_data_size is None)
        return line
