"""What stands for a cable on loopback: relays, one for each backend, that can keep still."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

CHUNK = 65536
HERE = "127.0.0.1"

Place = tuple[str, int]


class Relay(Protocol):
    """Passes on to one target what comes in, while `flowing` is set."""

    flowing: asyncio.Event

    async def open(self, target: Place) -> Place:
        """From now on; where to dial it."""
        ...

    async def close(self) -> None: ...


class TcpRelay:
    """What comes during a cut waits, as it does in the kernel of whoever sends it."""

    def __init__(self) -> None:
        self.flowing = flowing()
        self._target = ("", 0)
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self, target: Place) -> Place:
        self._target = target
        self._server = await asyncio.start_server(self._accept, HERE, 0)
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            await self.flowing.wait()
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
            with contextlib.closing(onward_writer):
                await first_done(self._copy(reader, onward_writer), self._copy(onward_reader, writer))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            await self.flowing.wait()
            sink.write(data)
            await sink.drain()
        await self.flowing.wait()


class UdpRelay:
    """What comes during a cut is lost. Each client has a socket of its own toward the target."""

    def __init__(self) -> None:
        self.flowing = flowing()
        self._target = ("", 0)
        self._near: asyncio.DatagramTransport | None = None
        self._clients: dict[Place, _Client] = {}

    async def open(self, target: Place) -> Place:
        self._target = target
        loop = asyncio.get_running_loop()
        self._near, _ = await loop.create_datagram_endpoint(lambda: _Near(self), (HERE, 0))
        host, port = self._near.get_extra_info("sockname")
        return host, port

    async def close(self) -> None:
        if self._near is not None:
            self._near.close()
        for client in self._clients.values():
            await client.close()

    def from_client(self, data: bytes, addr: Place) -> None:
        if not self.flowing.is_set():
            return
        if addr not in self._clients:
            self._clients[addr] = _Client(self, addr, self._target)
        self._clients[addr].send(data)

    def to_client(self, data: bytes, addr: Place) -> None:
        if self.flowing.is_set() and self._near is not None:
            self._near.sendto(data, addr)


class _Near(asyncio.DatagramProtocol):
    """The relay's side toward its clients."""

    def __init__(self, relay: UdpRelay) -> None:
        self._relay = relay

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.from_client(data, addr)


class _Client(asyncio.DatagramProtocol):
    """One client, seen from the target: a socket of its own, as behind a NAT."""

    def __init__(self, relay: UdpRelay, addr: Place, target: Place) -> None:
        self._relay = relay
        self._addr = addr
        self._onward: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._opening = asyncio.create_task(self._open(target))

    async def _open(self, target: Place) -> None:
        loop = asyncio.get_running_loop()
        self._onward, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=target)
        for data in self._waiting:
            self._onward.sendto(data)

    def send(self, data: bytes) -> None:
        if self._onward is None:
            self._waiting.append(data)
        else:
            self._onward.sendto(data)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.to_client(data, self._addr)

    async def close(self) -> None:
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        if self._onward is not None:
            self._onward.close()


def flowing() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def first_done(*coroutines: Any) -> None:
    """Run all until one ends, then stop the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
