"""zmq.asyncio: REQ and REP for the echo, PUSH and PULL for the stream."""

import asyncio
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio

from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send
from benchmarks.messages import decode, encode


class Zmq(Contender):
    async def echo(self) -> int:
        socket, port = self._bind(zmq.REP)

        async def answer() -> None:
            while True:
                await socket.send(encode(decode(await socket.recv())))

        self._run(answer())
        return port

    async def asker(self, port: int) -> Ask:
        socket = self._connect(zmq.REQ, port)

        async def ask(message: Any) -> None:
            await socket.send(encode(message))
            decode(await socket.recv())

        return ask

    async def receive(self, seen: Seen) -> int:
        socket, port = self._bind(zmq.PULL)

        async def count() -> None:
            while True:
                decode(await socket.recv())
                seen()

        self._run(count())
        return port

    async def sender(self, port: int) -> Send:
        socket = self._connect(zmq.PUSH, port)

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                await socket.send(encode(message))

        return send

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = zmq.asyncio.Context.instance().socket(kind)
        self.exits.callback(socket.close, linger=0)
        return socket

    def _bind(self, kind: int) -> tuple[zmq.asyncio.Socket, int]:
        socket = self._socket(kind)
        return socket, socket.bind_to_random_port(f"tcp://{HOST}")

    def _connect(self, kind: int, port: int) -> zmq.asyncio.Socket:
        socket = self._socket(kind)
        socket.connect(f"tcp://{HOST}:{port}")
        return socket

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.exits.callback(task.cancel)
