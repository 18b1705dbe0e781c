"""openline to openline: one answer in pieces, each message a part that the handler yields."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openline
from benchmarks.contenders.base import HOST, Seen, Send
from benchmarks.contenders.openline import OpenlineRequest

Chunks = asyncio.Queue[tuple[Sequence[openline.Message], asyncio.Future[None]]]


class OpenlineStream(OpenlineRequest):
    """Who listens asks whoever comes, and counts the parts of the answer."""

    _counted = 0
    _reading: asyncio.Task[None] | None = None

    async def receive(self, seen: Seen) -> int:
        server = self._server = await self._transport("server")

        async def read(peer: openline.Peer) -> None:
            async for _ in peer.stream(openline.Message(stream_id="parts")):
                self._counted += 1
                seen()

        @server.on_message(stream_id="begin")
        def begin(peer: openline.Peer, message: openline.Message) -> None:
            self._reading = asyncio.create_task(read(peer))

        self.exits.callback(lambda: self._reading and self._reading.cancel())
        return (await server.listen(0, host=HOST)).port

    async def sender(self, port: int) -> Send:
        client = self._client = await self._transport("client")
        chunks: Chunks = asyncio.Queue()

        @client.on_message(stream_id="parts")
        async def parts(peer: openline.Peer, message: openline.Message) -> AsyncIterator[Any]:
            while True:
                chunk, yielded = await chunks.get()
                for part in chunk:
                    yield part.payload
                yielded.set_result(None)

        async def send(chunk: Sequence[openline.Message]) -> None:
            yielded = asyncio.get_running_loop().create_future()
            self._sent += len(chunk)
            await chunks.put((chunk, yielded))
            await yielded

        await client.send(self._address(port), openline.Message(stream_id="begin"))
        return send

    def acked(self) -> bool:
        """The reader has had all of them."""
        return self._counted == self._sent
