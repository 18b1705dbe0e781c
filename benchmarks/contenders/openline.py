"""openline to openline, by its public API: `request()`, handler echo, `send()`, and `send_batch()`."""

from collections.abc import Sequence
from typing import Any

import openline
from benchmarks.contenders.base import HOST, Contender, Seen, Send
from benchmarks.measure import Rally, ask_each
from benchmarks.messages import Plain


class OpenlineRequest(Contender):
    _client: openline.Transport | None = None

    def __init__(self) -> None:
        super().__init__()
        self._receipts: list[openline.Receipt] = []
        self._sent = 0

    def native(self, message: Plain) -> openline.Message:
        return openline.Message(id=message.id, type=message.type, payload=message.payload)

    async def echo(self) -> int:
        async def answer(peer: openline.Peer, message: openline.Message) -> None:
            await peer.reply(message, message.payload)

        return await self._listen(answer)

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        client = await self._transport("client")
        address = f"{HOST}:{port}"
        return await ask_each(lambda message: client.request(address, message), messages)

    async def receive(self, seen: Seen) -> int:
        def count(peer: openline.Peer, message: openline.Message) -> None:
            seen()

        return await self._listen(count)

    async def sender(self, port: int) -> Send:
        client = self._client = await self._transport("client")
        address = f"{HOST}:{port}"
        await client.connect(address)

        async def send(chunk: Sequence[Any]) -> None:
            self._sent += len(chunk)
            self._receipts += await client.send_batch(address, chunk)

        return send

    def closed(self) -> int | None:
        return self._client.stats()["closed"] if self._client else None

    def acked(self) -> bool:
        return len(self._receipts) == self._sent and all(receipt.acked for receipt in self._receipts)

    def _checked(self, times: list[float]) -> list[float]:
        """What the tables call acked was."""
        self._sent = len(times)
        if not self.acked():
            raise RuntimeError("the receiver has not confirmed every message")
        return times

    async def _listen(self, handler: Any) -> int:
        server = await self._transport("server")
        server.on_message(handler)
        return (await server.listen(0, host=HOST)).port

    async def _transport(self, name: str) -> openline.Transport:
        return await self.exits.enter_async_context(openline.load_transport(openline.Config(name=name)))


class OpenlineSend(OpenlineRequest):
    """Nobody answers: what is timed is one `await send()` after another, until the ack of each."""

    async def echo(self) -> int:
        return await self.receive(lambda: None)

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        client = await self._transport("client")
        address = f"{HOST}:{port}"

        async def send(message: openline.Message) -> None:
            self._receipts.append(await client.send(address, message))

        return self._checked(await ask_each(send, messages))


class OpenlineHandler(OpenlineRequest):
    """Both ends only ever send from a handler, as agentic-flow's do."""

    async def echo(self) -> int:
        async def answer(peer: openline.Peer, message: openline.Message) -> None:
            await peer.send(message)

        return await self._listen(answer)

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        client = await self._transport("client")
        rally = Rally(messages)

        @client.on_message
        async def answered(peer: openline.Peer, message: openline.Message) -> None:
            if (following := rally.answered()) is not None:
                self._receipts.append(await peer.send(following))

        self._receipts.append(await client.send(f"{HOST}:{port}", rally.serve()))
        return self._checked(await rally.finished)
