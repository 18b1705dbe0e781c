"""Messages that have been sent together, and who waits for them; a request is one of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ..address import Address
from ..core.session import Numbered
from ..errors import InvalidMessage, NotConfirmed
from ..message import BY_NODE_ID, Message, Receipt, Receipts, StreamId
from ..runtime.inline_future import Waiter

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection

T = TypeVar("T")


class InFlight(Numbered, Waiter[T]):
    """Consecutive messages of one stream, written together; awaiting it waits for what was asked for.

    ``address`` is where they were sent to, None for a peer in hand. ``deadline`` is when the
    sender stops waiting, on the loop's clock, ``limit`` seconds after it began; the messages are sent again
    all the same, as long as their session lives.
    """

    # Connections it was written to.
    attempts = 1
    # How the peer was recognised; a peer in hand is known by its node id.
    matched = BY_NODE_ID

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        messages: list[Message],
        address: Address | None,
        limit: float,
        deadline: float,
    ) -> None:
        self._loop = loop
        self.messages = messages
        self.address = address
        self.limit = limit
        self.deadline = deadline

    def acknowledged(self, receipts: Receipts) -> None:
        """The peer has it; ``receipts`` are those of the connection that says so."""

    def overdue(self) -> None:
        """No acknowledgement has come in time."""

    def moved(self, old: Remote, new: Remote) -> None:
        """Another node has it to confirm now."""

    def written(self, attempts: int, matched: str) -> None:
        """To so many connections now, the last one's peer being recognised like that."""
        self.attempts, self.matched = attempts, matched

    def rewritten(self) -> None:
        """To one connection more."""
        self.attempts += 1

    def unconfirmed(self, why: str) -> NotConfirmed:
        messages = self.messages
        what = f"message {messages[0].id!r}"
        if len(messages) > 1:
            what += f" and {len(messages) - 1} more"
        where = self.address or "the peer"
        ways = "one connection" if self.attempts == 1 else f"{self.attempts} connections in turn"
        return NotConfirmed(
            f"{what} to {where}: written to {ways}, then {why}; the peer may have it or get it yet",
            attempts=self.attempts,
            acked=max(0, self.out.acked - self.first) if self.out is not None else 0,
        )


class Send(InFlight[Receipt]):
    """Waits for the acknowledgement."""

    def acknowledged(self, receipts: Receipts) -> None:
        if self.attempts == 1:
            self.set_result(receipts[self.matched])
        else:
            self.set_result(receipts.after(self.attempts, self.matched))

    def overdue(self) -> None:
        self.expire()

    def expire(self) -> None:
        """Nobody waits any longer."""
        if not self.done():
            self.set_exception(self.unconfirmed(f"no acknowledgement within {self.limit:g} s"))


class Request(InFlight[Message]):
    """Waits for the answer, which says as much as an acknowledgement."""

    # Who has it, and over which connection it went.
    remote: Remote | None = None
    connection: RemoteConnection | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        message: Message,
        address: Address | None,
        to: object,
        limit: float,
    ) -> None:
        super().__init__(loop, [message], address, limit, 0.0)
        self.id = message.id
        self.stream_id: StreamId = message.stream_id
        self._to = to

    def expire(self) -> None:
        if not self.done():
            text = f"no answer from {self._to} to request {self.id!r} within {self.limit:g} s"
            self.set_exception(TimeoutError(text))

    def asked(self, remote: Remote, connection: RemoteConnection, now: float) -> None:
        self.remote, self.connection = remote, connection
        self.deadline = now + self.limit

    def not_asked(self) -> None:
        """It could not be written."""
        self.remote = self.connection = None

    def moved(self, old: Remote, new: Remote) -> None:
        """The answer will come from the other node."""
        old.requests.remove(self)
        if self.done():
            return
        self.remote = new
        try:
            new.requests.add(self)
        except InvalidMessage as error:
            self.set_exception(error)
        else:
            self.connection = new.paths.carrier
