"""The yardstick (benchmarks/yardstick.py): the same work as an acked openline, with the fewest layers."""

from collections.abc import Sequence
from typing import Any

from benchmarks import yardstick
from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send
from benchmarks.messages import Plain
from benchmarks.yardstick import Message, Session


class Yardstick(Contender):
    _acked = False

    def native(self, message: Plain) -> Message:
        return Message(message.id, message.type, message.payload)

    async def echo(self) -> int:
        async def answer(session: Session, message: Message) -> None:
            session.reply(message, message.payload)

        return await self._serve(answer)

    async def asker(self, port: int) -> Ask:
        return (await self._connect(port)).request

    async def receive(self, seen: Seen) -> int:
        async def count(session: Session, message: Message) -> None:
            seen()

        return await self._serve(count)

    async def sender(self, port: int) -> Send:
        session = await self._connect(port)

        async def send(chunk: Sequence[Any]) -> None:
            self._acked = await session.send_batch(chunk)

        return send

    def acked(self) -> bool:
        return self._acked

    async def _serve(self, handler: yardstick.Handler) -> int:
        server = await yardstick.serve(HOST, handler)
        self.exits.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def _connect(self, port: int) -> Session:
        session = await yardstick.connect(HOST, port)
        self.exits.callback(session.close)
        return session


class YardstickSend(Yardstick):
    """Nobody answers: one `send()` after another, until the ack of each."""

    async def echo(self) -> int:
        async def take(session: Session, message: Message) -> None:
            return

        return await self._serve(take)

    async def asker(self, port: int) -> Ask:
        return (await self._connect(port)).send
