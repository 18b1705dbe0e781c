"""What the bare QUIC contenders share: one stream that stays, four bytes of length before each message.

qh3 grew out of aioquic: the protocol class, its callback and its events are of the same shape in both.
"""

import asyncio
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from benchmarks.contenders.base import Contender, Dialed, Seen, Send
from benchmarks.measure import Rally
from benchmarks.messages import Plain, encode

LENGTH = struct.Struct("!I")
STREAM = 0
ALPN = "bench"
# What a sender may leave unsent: about what openline allows (`Config.write_high_water`).
HIGH_WATER = 256 * 1024

Got = Callable[["Framed", bytes], None]


class Framed:
    """Mixed into a `QuicConnectionProtocol`: whole messages in and out of its one stream."""

    _quic: Any
    _rest = b""
    _blocked: asyncio.Future[None] | None = None
    got: Got
    transmit: Callable[[], None]
    unsent: Callable[[], int]

    def put(self, body: bytes) -> None:
        """Queue only: inside the callback the protocol transmits by itself, elsewhere see `flush`."""
        self._quic.send_stream_data(STREAM, LENGTH.pack(len(body)) + body)

    def put_each(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self.put(body)

    def put_all(self, bodies: Sequence[bytes]) -> None:
        """In one write."""
        parts = [part for body in bodies for part in (LENGTH.pack(len(body)), body)]
        self._quic.send_stream_data(STREAM, b"".join(parts))

    async def flush(self) -> None:
        self.transmit()
        if self.unsent() > HIGH_WATER:
            self._blocked = asyncio.get_running_loop().create_future()
            await self._blocked

    def wake(self) -> None:
        """After every transmission."""
        if self._blocked is not None and self.unsent() <= HIGH_WATER:
            self._blocked.set_result(None)
            self._blocked = None

    def take(self, data: bytes) -> None:
        data = self._rest + data
        at, size, got = 0, len(data), self.got
        while at + 4 <= size and (end := at + 4 + LENGTH.unpack_from(data, at)[0]) <= size:
            got(self, data[at + 4 : end])
            at = end
        self._rest = data[at:]


class Bare(Contender):
    """Bare bytes, as in *raw uvloop TCP*: no codec on either end."""

    dials = ("cold", "resumed", "early")
    # One way: many messages in one write.
    joined = False

    def __init__(self) -> None:
        super().__init__()
        # Session tickets: what the server gave out, and the newest that the client was given.
        self.issued: dict[bytes, Any] = {}
        self.ticket: Any = None

    def native(self, message: Plain) -> bytes:
        return encode(message)

    async def echo(self) -> int:
        return await self.listen(lambda line, body: line.put(body))

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        rally = Rally(messages)

        def answered(line: Framed, _: bytes) -> None:
            if (following := rally.answered()) is not None:
                line.put(following)

        line = await self.connect(port, answered)
        line.put(rally.serve())
        line.transmit()
        return await rally.finished

    async def receive(self, seen: Seen) -> int:
        return await self.listen(lambda line, body: seen())

    async def sender(self, port: int) -> Send:
        line = await self.connect(port, lambda line, body: None)

        async def send(chunk: Sequence[Any]) -> None:
            line.put_all(chunk) if self.joined else line.put_each(chunk)
            await line.flush()

        return send

    async def dial(self, port: int, how: str, message: Any) -> Dialed:
        first = asyncio.get_running_loop().create_future()
        ticket = self._ticket_for(how)
        start = perf_counter()
        line = await self.start(port, lambda line, body: first.set_result(perf_counter()), ticket)
        if how == "early":
            line.put(message)
            line.transmit()
        await line.wait_connected()
        connected = perf_counter()
        if how != "early":
            line.put(message)
            line.transmit()
        answered = await first
        check_resumed(line._quic.tls, how)
        await self.hang_up(line)
        return Dialed(connected - start, answered - start)

    def _ticket_for(self, how: str) -> Any:
        if how == "cold":
            return None
        return self.ticket if how == "early" else replace(self.ticket, max_early_data_size=None)

    def keep_issued(self, ticket: Any) -> None:
        self.issued[ticket.ticket] = ticket

    def keep(self, ticket: Any) -> None:
        self.ticket = ticket

    async def connect(self, port: int, got: Got) -> Any:
        line = await self.start(port, got, None)
        await line.wait_connected()
        self.exits.push_async_callback(self.hang_up, line)
        return line

    async def hang_up(self, line: Any) -> None:
        line.close()
        await line.wait_closed()
        line._transport.close()

    @abstractmethod
    async def listen(self, got: Got) -> int: ...

    @abstractmethod
    async def start(self, port: int, got: Got, ticket: Any) -> Any:
        """Begin to dial; the handshake may not be over. With a ticket, early data may be sent at once."""


def check_resumed(tls: Any, how: str) -> None:
    """What the tables call resumed was, and what they call early did not wait."""
    if tls.session_resumed != (how != "cold"):
        raise RuntimeError(f"{how}: the session was {'' if tls.session_resumed else 'not '}resumed")
    if how == "early" and not tls.early_data_accepted:
        raise RuntimeError("early data was not accepted")
