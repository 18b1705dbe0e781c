"""Who sends next: messages to one place on one stream leave in the order in which they were sent.

Sends that cannot leave at once (no connection yet, no room) stand in line. Without it, one that has
to try another connection would come out behind those that began after it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..message import Message, StreamId

# Destination, stream, and whether it is for answers.
Key = tuple[object, StreamId, bool]


class Turns:
    """One line per (destination, stream) with somebody in it; answers have a line of their own.

    They may pass where others have to wait, and what they answer waits for them.
    """

    def __init__(self) -> None:
        # Empty where nobody waits.
        self.lines: dict[Key, deque[Place]] = {}

    def has(self, to: object, message: Message) -> bool:
        """Is somebody waiting there?"""
        return (to, message.stream_id, message.reply_to is not None) in self.lines

    def enter(self, to: object, stream_id: StreamId, answer: bool = False) -> Place:
        """A place at the end of the line."""
        key = to, stream_id, answer
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = deque()
        place = Place(self, key, line)
        line.append(place)
        return place

    def left(self, key: Key, line: deque[Place]) -> None:
        if not line:
            del self.lines[key]


class Place:
    """One place in a line."""

    __slots__ = ("_key", "_line", "_turns", "_waiter")

    def __init__(self, turns: Turns, key: Key, line: deque[Place]) -> None:
        self._turns = turns
        self._key = key
        self._line = line
        self._waiter: asyncio.Future[None] | None = None

    @property
    def answer(self) -> bool:
        return self._key[2]

    @property
    def first(self) -> bool:
        return self._line[0] is self

    async def turn(self) -> None:
        """Wait until all before have left."""
        while not self.first:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def pause(self, seconds: float) -> None:
        """At the head of the line: until somebody calls, for so long at most."""
        self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._waiter], timeout=seconds)

    def wake_first(self) -> None:
        """One behind it knows that there is a connection: it need not pause any longer."""
        self._line[0].wake()

    def leave(self) -> None:
        """Written, or given up: the next one, please."""
        line = self._line
        if line[0] is self:
            line.popleft()
            if line:
                line[0].wake()
        else:
            line.remove(self)
        self._turns.left(self._key, line)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
