"""The interface of a contender: both ends of an echo, and both ends of a one-way stream."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from benchmarks.measure import ask_each
from benchmarks.messages import Plain

HOST = "127.0.0.1"

Seen = Callable[..., None]
Send = Callable[[Sequence[Any]], Awaitable[None]]
Ask = Callable[[Any], Awaitable[Any]]


class Dialed(NamedTuple):
    """Seconds since the dial began."""

    connected: float
    answered: float


class Contender(ABC):
    # The ways it can dial: "cold", "resumed" by a session ticket, "early" with its data in the first flight.
    dials: tuple[str, ...] = ()
    # Of the addresses that an openline dials.
    scheme = ""

    def __init__(self) -> None:
        self.exits = AsyncExitStack()

    def native(self, message: Plain) -> Any:
        """The message as a program would hold it before it sends; not part of the measured time."""
        return message

    @abstractmethod
    async def echo(self) -> int:
        """Start the end that answers; its port."""

    async def asker(self, port: int) -> Ask:
        """Connect; the returned function asks one question, and is over when its answer is in."""
        raise NotImplementedError

    async def rtt(self, port: int, messages: Sequence[Any]) -> list[float]:
        """Seconds from each message to its answer."""
        return await ask_each(await self.asker(port), messages)

    @abstractmethod
    async def receive(self, seen: Seen) -> int:
        """Start the end that counts; its port."""

    @abstractmethod
    async def sender(self, port: int) -> Send:
        """Connect; the returned function sends one chunk, in order."""

    async def dial(self, port: int, how: str, message: Any) -> Dialed:
        """Connect to the end that answers, ask one question, wait for its answer, and hang up."""
        raise NotImplementedError

    async def join(self, port: int, number: int) -> None:
        """Connect, as one of many, and stay."""
        raise NotImplementedError

    def connected(self) -> int:
        """How many are connected to the end that listens."""
        raise NotImplementedError

    def closed(self) -> int | None:
        """Connections that the sending end lost, where the contender can tell."""
        return None

    def acked(self) -> bool:
        """Did the receiver confirm every message that the sending end has sent?"""
        return False


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
