"""TCP lines that can be cut, held and throttled, and peers at their ends."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import openline
from openline.core.frames import Batched

from .rawsocket import Raw


class Line:
    """A TCP line to a port, that can be cut, held and throttled."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._open = {True: asyncio.Event(), False: asyncio.Event()}
        for event in self._open.values():
            event.set()
        self.port = 0
        self.connections = 0
        self.passed = 0
        # Reset by itself after so many bytes upward.
        self.cut_after: int | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        for running in list(self._tasks):
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all that is open."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    def hold(self, upward: bool = True, downward: bool = True) -> None:
        """Nothing gets through from now on, and nobody is told."""
        for direction, held in ((True, upward), (False, downward)):
            if held:
                self._open[direction].clear()

    def let_go(self) -> None:
        for event in self._open.values():
            event.set()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        running = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(OSError):
            onward = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(onward[1])
            await asyncio.gather(
                self._pump(reader, onward[1], True),
                self._pump(onward[0], writer, False),
                return_exceptions=True,
            )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upward: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self._open[upward].wait()
                if upward:
                    self.passed += len(data)
                    if self.cut_after is not None and self.passed > self.cut_after:
                        self.cut_after = None
                        self.cut()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


Lay = Callable[[str], Awaitable[Line]]


async def heard(end: Raw) -> list[openline.Message]:
    """The next messages, which are not acknowledged."""
    while True:
        found = await end.decoded()
        if isinstance(found, Batched) and found.messages:
            return found.messages


def answering(transport: openline.Transport, pause: float | None = None) -> list[Any]:
    """Answers every message with its payload; what it was asked."""
    asked: list[Any] = []

    @transport.on_message
    async def answer(peer: openline.Peer, message: openline.Message) -> None:
        asked.append(message.payload)
        if pause is not None:
            await asyncio.sleep(pause)
        await peer.reply(message, message.payload)

    return asked
