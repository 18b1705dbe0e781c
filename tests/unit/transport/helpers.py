"""Waits, messages, boxes and sockets for tests of transports on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline

DEADLINE = 5.0
POLL = 0.005


async def eventually(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until ``condition()`` holds; fail with its name where it does not."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline
    while not condition():
        assert loop.time() < until, f"not within {deadline} s: {condition.__qualname__}"
        await asyncio.sleep(POLL)


async def within(work: Awaitable[Any], deadline: float = DEADLINE) -> Any:
    async with asyncio.timeout(deadline):
        return await work


async def again(times: int, work: Callable[[int], Awaitable[Any]], pause: float | None = None) -> None:
    """``await work(0)``, ``work(1)`` and so on, until one raises."""
    for number in range(times):
        await work(number)
        if pause is not None:
            await asyncio.sleep(pause)


def task(payload: Any = None, **fields: Any) -> openline.Message:
    return openline.Message(payload=payload, **fields)


def tasks(count: int, **fields: Any) -> list[openline.Message]:
    return [task(number, **fields) for number in range(count)]


class Box(list[openline.Message]):
    """The messages that a handler of ``transport`` has got, in order."""

    def __init__(self, transport: openline.Transport, **scope: Any) -> None:
        super().__init__()
        self.peers: list[openline.Peer] = []
        transport.on_message(**scope)(self._add)

    def _add(self, peer: openline.Peer, message: openline.Message) -> None:
        self.peers.append(peer)
        self.append(message)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self]


async def serve(transport: openline.Transport, host: str = "127.0.0.1") -> str:
    """Make ``transport`` listen; its address."""
    listener = await transport.listen(0, host=host)
    return f"[{host}]:{listener.port}" if ":" in host else f"{host}:{listener.port}"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Dials:
    """Replaces how sockets are dialed: remembers every dial, and fails or hangs where told to."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.error: OSError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
        loop = asyncio.get_running_loop()
        self.made.append(sockaddr)
        self.times.append(loop.time())
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
        except BaseException:
            sock.close()
            raise
        return sock


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ips: str) -> list[str]:
    """Make every name resolve to ``ips``; the list may change later."""
    found = list(ips)

    async def look_up(host: str, port: int, **kwargs: Any) -> Any:
        here = [host] if host[0].isdigit() else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in here]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    return found
