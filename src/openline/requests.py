"""Which message answers which request. Never somebody else's answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .message import Message, StreamId

if TYPE_CHECKING:
    from .connection import Connection


class Pending:
    """One request that is out."""

    __slots__ = ("answer", "connection", "id", "stream_id")

    def __init__(self, message: Message, answer: asyncio.Future[Message]) -> None:
        self.id = message.id
        self.stream_id: StreamId = message.stream_id
        self.answer = answer
        self.connection: Connection | None = None


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
