"""iroh by its Python binding: one stream of one connection between two endpoints, without relays."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

import iroh

from benchmarks.contenders.base import HOST, Ask, Contender, Dialed, Seen, Send
from benchmarks.messages import Plain, encode

ALPN = b"bench"
LENGTH = struct.Struct("!I")
READ = 64 * 1024

Serve = Callable[[iroh.BiStream], Awaitable[None]]


class Iroh(Contender):
    """Bare bytes, four bytes of length before each message, as the other bare ones."""

    # It keeps session tickets to itself, and cannot be told to use one.
    dials = ("cold",)

    def __init__(self) -> None:
        super().__init__()
        self._address: Any = None

    def native(self, message: Plain) -> bytes:
        body = encode(message)
        return LENGTH.pack(len(body)) + body

    async def echo(self) -> int:
        async def answer(stream: iroh.BiStream) -> None:
            reading, writing = stream.recv(), stream.send()
            while True:
                await writing.write_all(await message_from(reading))

        return await self._listen(answer)

    async def asker(self, port: int) -> Ask:
        return asking(await self._connect())

    async def receive(self, seen: Seen) -> int:
        async def count(stream: iroh.BiStream) -> None:
            reading, rest = stream.recv(), b""
            while True:
                number, rest = whole(rest + await reading.read(READ))
                seen(number)

        return await self._listen(count)

    async def sender(self, port: int) -> Send:
        writing = (await self._connect()).send()

        async def send(chunk: Sequence[Any]) -> None:
            # Each call crosses into its own threads and back: one for each message would measure that only.
            await writing.write_all(b"".join(chunk))

        return send

    async def dial(self, port: int, how: str, message: Any) -> Dialed:
        endpoint = await bind()
        start = perf_counter()
        connection = await endpoint.connect(self._address, ALPN)
        connected = perf_counter()
        await asking(await connection.open_bi())(message)
        answered = perf_counter()
        connection.close(0, b"")
        await endpoint.close()
        return Dialed(connected - start, answered - start)

    async def _connect(self) -> iroh.BiStream:
        endpoint = await bind()
        self.exits.push_async_callback(endpoint.close)
        connection = await endpoint.connect(self._address, ALPN)
        return await connection.open_bi()

    async def _listen(self, serve: Serve) -> int:
        endpoint = await bind()
        self._address = iroh.EndpointAddr(endpoint.id(), None, endpoint.bound_sockets()[:1])
        self.exits.push_async_callback(endpoint.close)
        accepting = asyncio.ensure_future(accept(endpoint, serve))
        self.exits.callback(accepting.cancel)
        return int(endpoint.bound_sockets()[0].rpartition(":")[2])


async def bind() -> iroh.Endpoint:
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(),
        bind_addr=f"{HOST}:0",
        alpns=[ALPN],
        relay_mode=iroh.RelayMode.disabled(),
    )
    return await iroh.Endpoint.bind(options)


async def accept(endpoint: iroh.Endpoint, serve: Serve) -> None:
    async with asyncio.TaskGroup() as serving:
        while (incoming := await endpoint.accept_next()) is not None:
            connection = await (await incoming.accept()).connect()
            serving.create_task(to_the_end(connection, serve))


async def to_the_end(connection: iroh.Connection, serve: Serve) -> None:
    try:
        await serve(await connection.accept_bi())
    except iroh.IrohError:
        # That is how it tells that the other end has hung up.
        return


def asking(stream: iroh.BiStream) -> Ask:
    reading, writing = stream.recv(), stream.send()

    async def ask(message: bytes) -> bytes:
        await writing.write_all(message)
        return await message_from(reading)

    return ask


async def message_from(reading: iroh.RecvStream) -> bytes:
    """In one read where it came in one, as a small message does."""
    data = await reading.read(READ)
    while len(data) < 4 or len(data) < (size := 4 + LENGTH.unpack_from(data)[0]):
        data += await reading.read(READ)
    assert len(data) == size, "one message at a time"
    return data


def whole(data: bytes) -> tuple[int, bytes]:
    """How many whole messages there are, and what is left."""
    at = count = 0
    while at + 4 <= len(data) and (end := at + 4 + LENGTH.unpack_from(data, at)[0]) <= len(data):
        at, count = end, count + 1
    return count, data[at:]
