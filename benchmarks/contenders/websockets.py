"""websockets, its asyncio implementation. Compression is off: it would only slow it down here."""

from collections.abc import Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send
from benchmarks.messages import decode, encode


class Websockets(Contender):
    async def echo(self) -> int:
        async def answer(line: ServerConnection) -> None:
            async for raw in line:
                await line.send(encode(decode(raw)), text=True)

        return await self._listen(answer)

    async def asker(self, port: int) -> Ask:
        line = await self._connect(port)

        async def ask(message: Any) -> None:
            await line.send(encode(message), text=True)
            decode(await line.recv(decode=False))

        return ask

    async def receive(self, seen: Seen) -> int:
        async def count(line: ServerConnection) -> None:
            async for raw in line:
                decode(raw)
                seen()

        return await self._listen(count)

    async def sender(self, port: int) -> Send:
        line = await self._connect(port)

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                await line.send(encode(message), text=True)

        return send

    async def _listen(self, handler: Any) -> int:
        server = await self.exits.enter_async_context(serve(handler, HOST, 0, compression=None))
        return next(iter(server.sockets)).getsockname()[1]

    async def _connect(self, port: int) -> ClientConnection:
        return await self.exits.enter_async_context(connect(f"ws://{HOST}:{port}", compression=None))
