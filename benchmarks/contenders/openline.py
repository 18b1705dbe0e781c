"""openline to openline, by its public API: `request()`, handler echo, `send()`, and `send_batch()`."""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

import openline
from benchmarks.contenders.base import HOST, Ask, Contender, Dialed, Seen, Send
from benchmarks.measure import Rally, ask_each
from benchmarks.messages import Plain

# Of those that dial by the thousand, on a machine that may be busy.
PATIENT = 60.0


class OpenlineRequest(Contender):
    scheme = "ws"
    dials: tuple[str, ...] = ("cold",)
    _client: openline.Transport | None = None
    _server: openline.Transport | None = None

    def __init__(self) -> None:
        super().__init__()
        self._receipts: list[openline.Receipt] = []
        self._sent = 0
        self._dialing: dict[str, openline.Transport] = {}

    def native(self, message: Plain) -> openline.Message:
        return openline.Message(id=message.id, type=message.type, payload=message.payload)

    async def echo(self) -> int:
        async def answer(peer: openline.Peer, message: openline.Message) -> None:
            await peer.reply(message, message.payload)

        return await self._listen(answer)

    async def asker(self, port: int) -> Ask:
        client = await self._transport("client")
        return partial(client.request, self._address(port))

    async def receive(self, seen: Seen) -> int:
        def count(peer: openline.Peer, message: openline.Message) -> None:
            seen()

        return await self._listen(count)

    async def sender(self, port: int) -> Send:
        client = self._client = await self._transport("client")
        address = self._address(port)
        await client.connect(address)

        async def send(chunk: Sequence[Any]) -> None:
            self._sent += len(chunk)
            self._receipts += await client.send_batch(address, chunk)

        return send

    async def dial(self, port: int, how: str, message: Any) -> Dialed:
        client, address = await self._dialer(how), self._address(port)
        start = perf_counter()
        await client.connect(address)
        connected = perf_counter()
        await client.request(address, message)
        answered = perf_counter()
        self.check(client, how)
        # The answer's acknowledgement is in by then; else it would be sent again over the next connection.
        await client.ping(address)
        await (client.close() if how == "cold" else hang_up(client))
        return Dialed(connected - start, answered - start)

    async def join(self, port: int, number: int) -> None:
        """From a node of its own: two connections of the same node would become one."""
        client = await self._transport(f"client-{number}", dial_timeout=PATIENT)
        await client.connect(self._address(port))

    def connected(self) -> int:
        return len(self._server.peers()) if self._server else 0

    def check(self, client: openline.Transport, how: str) -> None:
        """Was it dialed as the tables say?"""

    async def _dialer(self, how: str) -> openline.Transport:
        """A new node for each cold dial; otherwise the one that has been there before."""
        if how == "cold":
            return await openline.load_transport(openline.Config(name=how))
        if how not in self._dialing:
            self._dialing[how] = await self._transport(how, zero_rtt=how == "early")
        return self._dialing[how]

    def _address(self, port: int) -> str:
        return f"{self.scheme}://{HOST}:{port}"

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
        server = self._server = await self._transport("server")
        server.on_message(handler)
        return (await server.listen(0, host=HOST)).port

    async def _transport(self, name: str, **options: Any) -> openline.Transport:
        config = openline.Config(name=name, **options)
        return await self.exits.enter_async_context(openline.load_transport(config))


async def hang_up(transport: openline.Transport) -> None:
    """By the connections themselves: a program closes its transport, and that would forget the tickets."""
    # Here, for nothing else in this file needs more than the public names.
    from openline.backends.base import GOING_AWAY

    for connection in list(transport._table.connections):
        connection.link.close(GOING_AWAY, "to be dialed again")
        await transport._lost(connection)


class OpenlineSend(OpenlineRequest):
    """Nobody answers: what is timed is one `await send()` after another, until the ack of each."""

    async def echo(self) -> int:
        return await self._listen(lambda peer, message: None)

    async def asker(self, port: int) -> Ask:
        client = await self._transport("client")
        return partial(client.send, self._address(port))

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        send = await self.asker(port)

        async def keep_receipt(message: openline.Message) -> None:
            self._receipts.append(await send(message))

        return self._checked(await ask_each(keep_receipt, messages))


class OpenlineGather(OpenlineRequest):
    """Each message by a `send()` of its own, many at once: a program has no batch, it has many tasks."""

    async def sender(self, port: int) -> Send:
        client = self._client = await self._transport("client")
        send_one = partial(client.send, self._address(port))
        await client.connect(self._address(port))

        async def send(chunk: Sequence[Any]) -> None:
            self._sent += len(chunk)
            self._receipts += await asyncio.gather(*map(send_one, chunk))

        return send


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

        self._receipts.append(await client.send(self._address(port), rally.serve()))
        return self._checked(await rally.finished)
