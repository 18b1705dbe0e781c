"""Which message answers which request. Never somebody else's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..errors import Closed, InvalidMessage
from ..message import Message, StreamId
from ..runtime.inline_future import Waiter

# How long a request that was given up may still be answered, and how many are remembered.
LATE_FOR = 60.0
MAX_LATE = 256

if TYPE_CHECKING:
    from ..connection.connection import Connection
    from .table import Peer


class Pending:
    """One request that is out."""

    __slots__ = ("answer", "connection", "id", "label", "limit", "peer", "stream_id")

    def __init__(self, message: Message, answer: Waiter[Message], label: object, limit: float) -> None:
        # Where to, and how many seconds the answer may take.
        self.label = label
        self.limit = limit
        self.id = message.id
        self.stream_id: StreamId = message.stream_id
        self.answer = answer
        # Who has it, and over which connection it went.
        self.peer: Peer | None = None
        self.connection: Connection | None = None

    def done(self) -> bool:
        return self.answer.done()

    def set_exception(self, error: BaseException) -> None:
        self.answer.set_exception(error)

    def expire(self) -> None:
        if not self.answer.done():
            text = f"no answer from {self.label} to request {self.id!r} within {self.limit:g} s"
            self.answer.set_exception(TimeoutError(text))


class Expiring(Protocol):
    """Something that waits for ``limit`` seconds at most."""

    limit: float

    def expire(self) -> None: ...
    def done(self) -> bool: ...
    def set_exception(self, error: BaseException) -> None: ...


class Deadlines:
    """Time-outs of many on one timer; a timer each would cost more than a request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Expiring, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def add(self, pending: Expiring, when: float | None = None) -> None:
        """``when`` it expires on the loop's clock; else ``limit`` seconds from now."""
        if when is None:
            when = self._loop.time() + pending.limit
        self._due[pending] = when
        if self._timer is None or when < self._at:
            self._arm(when)

    def remove(self, pending: Expiring) -> None:
        """The timer stays: it finds nothing due, and is set for whoever is next."""
        self._due.pop(pending, None)

    def close(self) -> None:
        """Nobody will answer any more."""
        if self._timer is not None:
            self._timer.cancel()
        for pending in self._due:
            if not pending.done():
                pending.set_exception(Closed("the transport is closed"))

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


class Asked:
    """Requests out to plain peers, by IP: some answer over a socket of their own making.

    Only a message that names its request counts there, and only on a socket that rule 3.1 takes
    for the peer that was asked.
    """

    def __init__(self) -> None:
        self._by_ip: dict[str, dict[object, list[Pending]]] = {}

    def __contains__(self, ip: str) -> bool:
        return ip in self._by_ip

    def add(self, ip: str, pending: Pending) -> None:
        self._by_ip.setdefault(ip, {}).setdefault(pending.id, []).append(pending)

    def remove(self, ip: str, pending: Pending) -> None:
        by_id = self._by_ip.get(ip, {})
        same = by_id.get(pending.id, [])
        if pending in same:
            same.remove(pending)
        if not same:
            by_id.pop(pending.id, None)
        if not by_id:
            self._by_ip.pop(ip, None)

    def claim(self, ip: str, message: Message, is_peer_of: Callable[[Pending], bool]) -> bool:
        for pending in self._by_ip.get(ip, {}).get(_named(message, plain=True), []):
            if not pending.answer.done() and is_peer_of(pending):
                pending.answer.set_result(message)
                return True
        return False


_ID_TYPES = frozenset({str, int, float})


def _named(message: Message, plain: bool) -> object:
    """The request a message says it answers; a plain peer may say so by giving its id back."""
    metadata = message.metadata
    if metadata is not None:
        reply_to = metadata.get("replyTo")
        if type(reply_to) in _ID_TYPES:
            return reply_to
    return message.id if plain else None


class Requests:
    """The requests out to one peer, and those given up whose answer may still come."""

    __slots__ = ("_late", "out")

    def __init__(self) -> None:
        self.out: dict[object, Pending] = {}
        # Newest last: id → (stream, when to forget it).
        self._late: dict[object, tuple[StreamId, float]] = {}

    def add(self, pending: Pending) -> None:
        if pending.id in self.out:
            raise InvalidMessage(f"a request with id {pending.id!r} is already out to this peer")
        self.out[pending.id] = pending

    def remove(self, pending: Pending, now: float | None = None) -> None:
        """It is over. With ``now`` it went unanswered, and its answer may come late."""
        if self.out.get(pending.id) is not pending:
            return
        del self.out[pending.id]
        if now is not None:
            self._late[pending.id] = pending.stream_id, now + LATE_FOR
            if len(self._late) > MAX_LATE:
                del self._late[next(iter(self._late))]

    def awaits(self, message: Message) -> bool:
        """Does an openline peer's message answer one that is out?"""
        return message.metadata is not None and _named(message, plain=False) in self.out

    def claim(self, message: Message, plain: bool, now: float) -> bool:
        """Give ``message`` to the request it answers; False if it answers none.

        By ``metadata.replyTo``; from a plain peer also by the same id, or as the only one out.
        """
        pending = self.out.pop(_named(message, plain), None)
        if pending is None:
            return plain and self._claim_only_one(message, now)
        if not pending.answer.done():
            pending.answer.set_result(message)
        return True

    def _claim_only_one(self, message: Message, now: float) -> bool:
        """The next message on a stream where exactly one request is out.

        Not one that says it answers something else, and not while an earlier request there was
        given up: the message may be its answer, coming late.
        """
        if message.reply_to is not None or self._is_late(message, now):
            return False
        on_stream = [p for p in self.out.values() if p.stream_id == message.stream_id]
        if len(on_stream) != 1:
            return False
        del self.out[on_stream[0].id]
        if not on_stream[0].answer.done():
            on_stream[0].answer.set_result(message)
        return True

    def _is_late(self, message: Message, now: float) -> bool:
        """Takes one message for each request that was given up, the oldest first."""
        if message.id in self._late:
            del self._late[message.id]
            return True
        for key, (stream_id, forget_at) in list(self._late.items()):
            if forget_at < now:
                del self._late[key]
            elif stream_id == message.stream_id:
                del self._late[key]
                return True
        return False

    def fail_all(self, error: Exception) -> None:
        """No answer can come any more."""
        for pending in list(self.out.values()):
            pending.answer.set_exception(error)
        self.out.clear()

    def fail(self, connection: Connection, error: Exception) -> None:
        """The connection of a plain peer is gone: its answers cannot come any more."""
        for pending in [p for p in self.out.values() if p.connection is connection]:
            del self.out[pending.id]
            if not pending.answer.done():
                pending.answer.set_exception(error)
