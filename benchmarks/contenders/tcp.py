"""The floor: bare bytes on a uvloop TCP socket, and the same with the JSON that all others pay for."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from benchmarks.contenders.base import HOST, Contender, Seen, Send
from benchmarks.measure import Rally
from benchmarks.messages import Plain, decode, encode

LENGTH = struct.Struct("!I")


class Bytes(asyncio.Protocol):
    """No framing: whoever reads knows how long a message is."""

    def __init__(self, got: Callable[["Bytes", Any], None]) -> None:
        self._got = got
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._got(self, data)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def drain(self) -> None:
        await self._writable.wait()


class Framed(Bytes):
    """Four bytes of length, then the message as JSON."""

    _rest = b""

    def put(self, message: Plain) -> None:
        body = encode(message)
        self._transport.write(LENGTH.pack(len(body)) + body)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while at + 4 <= len(data) and (end := at + 4 + LENGTH.unpack_from(data, at)[0]) <= len(data):
            self._got(self, decode(data[at + 4 : end]))
            at = end
        self._rest = data[at:]


class TcpJson(Contender):
    protocol: type[Bytes] = Framed

    async def echo(self) -> int:
        return await self._listen(lambda line, message: line.put(message))

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        rally = Rally(messages)

        def answered(line: Any, _: Any) -> None:
            if (following := rally.answered()) is not None:
                line.put(following)

        line = await self._connect(port, answered)
        line.put(rally.serve())
        return await rally.finished

    async def receive(self, seen: Seen) -> int:
        return await self._listen(lambda _, message: seen())

    async def sender(self, port: int) -> Send:
        line = await self._connect(port, lambda line, message: None)

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                line.put(message)
            await line.drain()

        return send

    async def _listen(self, got: Callable[[Any, Any], None]) -> int:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: self.protocol(got), HOST, 0)
        self.exits.callback(server.close)
        return server.sockets[0].getsockname()[1]

    async def _connect(self, port: int, got: Callable[[Any, Any], None]) -> Any:
        loop = asyncio.get_running_loop()
        transport, line = await loop.create_connection(lambda: self.protocol(got), HOST, port)
        self.exits.callback(transport.close)
        return line


class Unframed(Bytes):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.put = self._transport.write


class Tcp(TcpJson):
    protocol = Unframed
    _size = 240

    def native(self, message: Plain) -> bytes:
        body = encode(message)
        self._size = len(body)
        return body

    async def receive(self, seen: Seen) -> int:
        bytes_in = 0

        def got(_: Any, data: bytes) -> None:
            nonlocal bytes_in
            whole, bytes_in = divmod(bytes_in + len(data), self._size)
            seen(whole)

        return await self._listen(got)
