"""Which message answers which request. Never somebody else's answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .message import Message, StreamId

if TYPE_CHECKING:
    from .connection import Connection


class Pending:
    """One request that is out."""

    __slots__ = ("answer", "connection", "id", "label", "limit", "stream_id")

    def __init__(self, message: Message, answer: asyncio.Future[Message], label: str, limit: float) -> None:
        # Where to, and how many seconds the answer may take.
        self.label = label
        self.limit = limit
        self.id = message.id
        self.stream_id: StreamId = message.stream_id
        self.answer = answer
        self.connection: Connection | None = None

    def expire(self) -> None:
        if not self.answer.done():
            text = f"no answer from {self.label} to request {self.id!r} within {self.limit:g} s"
            self.answer.set_exception(TimeoutError(text))

    def abandon(self) -> None:
        """Nobody waits any more; an error that came meanwhile is no news."""
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()


class Deadlines:
    """Time-outs of many requests on one timer; a timer each would cost more than the request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Pending, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def add(self, pending: Pending) -> None:
        when = self._due[pending] = self._loop.time() + pending.limit
        if self._timer is None or when < self._at:
            self._arm(when)

    def remove(self, pending: Pending) -> None:
        """The timer stays: it finds nothing due, and is set for whoever is next."""
        self._due.pop(pending, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        self._timer = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        # A timer may fire up to the clock's resolution early.
        now = self._loop.time() + 0.001
        for pending in [pending for pending, when in self._due.items() if when <= now]:
            del self._due[pending]
            pending.expire()
        if self._due:
            self._arm(min(self._due.values()))


class Requests:
    """The requests out to one peer."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out: dict[object, Pending] = {}

    def __len__(self) -> int:
        return len(self._out)

    def add(self, pending: Pending) -> None:
        if pending.id in self._out:
            raise ValueError(f"a request with id {pending.id!r} is already out to this peer")
        self._out[pending.id] = pending

    def remove(self, pending: Pending) -> None:
        if self._out.get(pending.id) is pending:
            del self._out[pending.id]

    def claim(self, message: Message, plain: bool) -> bool:
        """Give ``message`` to the request it answers; False if it answers none."""
        pending = self._find(message, plain)
        if pending is None:
            return False
        del self._out[pending.id]
        if not pending.answer.done():
            pending.answer.set_result(message)
        return True

    def _find(self, message: Message, plain: bool) -> Pending | None:
        """By ``metadata.replyTo``; from a plain peer also by the same id, or the only one out.

        Only-one-out is per stream, and never for a message that says it answers something else.
        """
        reply_to = message.reply_to
        if isinstance(reply_to, str | int | float):
            return self._out.get(reply_to)
        if not plain:
            return None
        if message.id in self._out:
            return self._out[message.id]
        on_stream = [p for p in self._out.values() if p.stream_id == message.stream_id]
        return on_stream[0] if len(on_stream) == 1 else None

    def fail(self, connection: Connection, error: Exception) -> None:
        """The connection of a plain peer is gone: its answers cannot come any more."""
        for pending in [p for p in self._out.values() if p.connection is connection]:
            del self._out[pending.id]
            if not pending.answer.done():
                pending.answer.set_exception(error)
