"""NATS: nats-py on both ends and the nats-server binary between them, in a process of its own."""

import asyncio
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send, free_port
from benchmarks.messages import decode, encode

SUBJECT = "bench"


class Nats(Contender):
    async def echo(self) -> int:
        async def answer(message: Msg) -> None:
            await message.respond(encode(decode(message.data)))

        return await self._subscribe(answer)

    async def asker(self, port: int) -> Ask:
        client = await self._client(port)

        async def ask(message: Any) -> None:
            decode((await client.request(SUBJECT, encode(message))).data)

        return ask

    async def receive(self, seen: Seen) -> int:
        async def count(message: Msg) -> None:
            decode(message.data)
            seen()

        return await self._subscribe(count)

    async def sender(self, port: int) -> Send:
        client = await self._client(port)

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                await client.publish(SUBJECT, encode(message))
            await client.flush()

        return send

    async def _subscribe(self, handler: Any) -> int:
        port = await self._server()
        client = await self._client(port)
        # Without limits: by default it drops what a slow subscriber has not taken yet.
        await client.subscribe(SUBJECT, cb=handler, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        return port

    async def _client(self, port: int) -> Client:
        client = await nats.connect(f"nats://{HOST}:{port}")
        self.exits.push_async_callback(client.close)
        return client

    async def _server(self) -> int:
        port = free_port()
        arguments = ("-a", HOST, "-p", str(port))
        quiet = asyncio.subprocess.DEVNULL
        server = await asyncio.create_subprocess_exec(_binary(), *arguments, stdout=quiet, stderr=quiet)
        self.exits.push_async_callback(server.wait)
        self.exits.callback(server.terminate)
        await _accepts(port)
        return port


def _binary() -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(beside_python) if beside_python.exists() else shutil.which("nats-server") or "nats-server"


async def _accepts(port: int) -> None:
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except ConnectionError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise RuntimeError("nats-server did not start")
