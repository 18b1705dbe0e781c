from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

import openline

from .node_peer import NodePeer, PeerError

DEADLINE = 10.0
POLL = 0.01

Json = dict[str, Any]


class Heard(NamedTuple):
    peer: openline.Peer
    message: openline.Message


class Mailbox:
    """What one handler of a transport has heard, in order."""

    def __init__(self, transport: openline.Transport, **scope: Any) -> None:
        self._queue: asyncio.Queue[Heard] = asyncio.Queue()
        register = transport.on_message(**scope) if scope else transport.on_message
        register(lambda peer, message: self._queue.put_nowait(Heard(peer, message)))

    async def take(self, deadline: float = DEADLINE) -> Heard:
        async with asyncio.timeout(deadline):
            return await self._queue.get()

    async def messages(self, count: int, deadline: float = DEADLINE) -> list[openline.Message]:
        async with asyncio.timeout(deadline):
            return [(await self._queue.get()).message for _ in range(count)]

    def empty(self) -> bool:
        return self._queue.empty()


def free_port() -> int:
    """agentic-flow needs the number beforehand: its listen() keeps the port it was asked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def listening(node: NodePeer, scheme: str = "ws") -> str:
    """Makes the node listen; where to dial it."""
    try:
        await node.listen(free_port())
    except PeerError:
        # Somebody else has taken the port since.
        await node.listen(free_port())
    return f"{scheme}://127.0.0.1:{node.port}" if scheme == "wss" else f"127.0.0.1:{node.port}"


async def serving(transport: openline.Transport, scheme: str = "ws") -> str:
    """Makes the transport listen; where to dial it."""
    listener = await transport.listen(0, host="127.0.0.1")
    return f"{scheme}://127.0.0.1:{listener.port}"


def stat(transport: openline.Transport, name: str) -> int:
    value: int = transport.stats()[name]
    return value


async def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    async with asyncio.timeout(deadline):
        # The counters that tests wait for announce nothing.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(POLL)


async def finished(work: Coroutine[Any, Any, Any], deadline: float = DEADLINE) -> Any:
    async with asyncio.timeout(deadline):
        return await work


def task(payload: Any = None, **fields: Any) -> Json:
    """A message as agentic-flow programs write it."""
    return {"id": "m", "type": "task", "payload": payload, **fields}


def stream_of(message: Json) -> Any:
    return message.get("streamId", "default")


Dial = Callable[..., Awaitable[ClientConnection]]


async def heard(connection: ClientConnection | ServerConnection) -> Json:
    async with asyncio.timeout(10.0):
        message: Json = json.loads(await connection.recv())
        return message
