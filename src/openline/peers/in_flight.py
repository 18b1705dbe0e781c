"""Messages that have been sent together, and who waits for them; a request is one of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ..address import Address
from ..core.pieces import Cancel
from ..core.session import Numbered
from ..errors import InvalidMessage, NotConfirmed
from ..message import BY_NODE_ID, Message, Receipt, Receipts, StreamId
from ..runtime.inline_future import InlineFuture

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection

T = TypeVar("T")


class InFlight(Numbered, InlineFuture[T]):
    """Consecutive messages of one stream, written together; awaiting it waits for what was asked for.

    ``address`` is where they were sent to, None for a peer in hand. ``deadline`` is when the
    sender stops waiting, on the loop's clock, ``limit`` seconds after it began; the messages are sent again
    all the same, as long as their session lives.
    """

    # Connections it was written to.
    attempts = 1
    # Is it another process's, where the one that it was sent to is gone?
    moves = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        messages: list[Message],
        address: Address | None,
        limit: float,
        deadline: float,
        matched: str = BY_NODE_ID,
    ) -> None:
        self._loop = loop  # as its base does, without the call: one is made for every message
        self.messages = messages
        self.address = address
        self.limit = limit
        self.deadline = deadline
        # How the peer was recognised; a peer in hand is known by its node id.
        self.matched = matched

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
        """What its sender is told: whether they have arrived is not known."""
        acked = max(0, self.out.acked - self.first) if self.out is not None else 0
        return self._not_confirmed(self.messages, why, acked)

    def _not_confirmed(self, messages: list[Message], why: str, acked: int) -> NotConfirmed:
        what = f"message {messages[0].id!r}"
        if len(messages) > 1:
            what += f" and {len(messages) - 1} more"
        where = self.address or "the peer"
        ways = "one connection" if self.attempts == 1 else f"{self.attempts} connections in turn"
        text = f"{what} to {where}: written to {ways}, then {why}; the peer may have it or get it yet"
        return NotConfirmed(text, attempts=self.attempts, acked=acked)


class Send(InFlight[Receipt]):
    """Waits for the acknowledgement. Messages that are sent right behind it may share its way.

    Whoever sent them knows nothing of each other: each has a future, and an error, of its own.
    """

    # Who waits for the last ones of ``messages``, in order; and the receipts of their connection.
    _joined: list[asyncio.Future[Receipt]] | None = None
    _receipts: Receipts
    # Why nothing will confirm them.
    _why = ""

    def join(self, message: Message, receipts: Receipts) -> asyncio.Future[Receipt]:
        """A message that has been written behind these, in the same frame."""
        self.messages.append(message)
        future: asyncio.Future[Receipt] = self._loop.create_future()
        if self._joined is None:
            self._joined, self._receipts = [], receipts
        self._joined.append(future)
        return future

    def acknowledged(self, receipts: Receipts) -> None:
        if self.attempts == 1:
            receipt = receipts[self.matched]
        else:
            receipt = receipts.after(self.attempts, self.matched)
        self.settle(receipt)
        if self._joined is not None:
            _settle(self._joined, receipt)

    def overdue(self) -> None:
        self.expire()

    def expire(self) -> None:
        """Nobody waits any longer."""
        self.fail(self.unconfirmed(f"no acknowledgement within {self.limit:g} s"))

    def unconfirmed(self, why: str) -> NotConfirmed:
        if self._joined is None:
            return super().unconfirmed(why)
        self._why = why
        return self._not_confirmed(self.messages[:1], why, 0)

    def fail(self, error: BaseException) -> None:
        if self._joined is None:
            super().fail(error)
            return
        self.confirm_first(max(0, self.out.acked - self.first) if self.out is not None else 0)
        super().fail(error)
        messages = self.messages[len(self.messages) - len(self._joined) :]
        for message, future in zip(messages, self._joined, strict=True):
            if not future.done():
                future.set_exception(self._error_of(message, error))

    def _error_of(self, message: Message, error: BaseException) -> BaseException:
        if isinstance(error, NotConfirmed):
            return self._not_confirmed([message], self._why, 0)
        return type(error)(*error.args)

    def confirm_first(self, count: int) -> None:
        """The peer has so many of the messages, though not all."""
        joined = self._joined
        if not count or joined is None:
            return
        receipt = self._receipts.after(self.attempts, self.matched)
        own = len(self.messages) - len(joined)  # one, until it has been confirmed and taken off
        if own:
            self.settle(receipt)
        _settle(joined[: count - own], receipt)
        del joined[: count - own]


def _settle(futures: list[asyncio.Future[Receipt]], receipt: Receipt) -> None:
    for future in futures:
        if not future.done():
            future.set_result(receipt)


class Request(InFlight[Message]):
    """Waits for the answer, which says as much as an acknowledgement."""

    # Who has it, and over which connection it went.
    remote: Remote | None = None
    connection: RemoteConnection | None = None
    # Does its answer come as several messages?
    in_pieces = False
    # Nobody waits for it any more, and its handler is to know as soon as the peer has it.
    _withdrawn = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        message: Message,
        address: Address | None,
        to: object,
        limit: float,
    ) -> None:
        self._loop = loop
        self.messages = [message]
        self.address = address
        self.limit = limit
        self.deadline = 0.0
        self.matched = BY_NODE_ID
        self.id = message.id
        self.stream_id: StreamId = message.stream_id
        self._to = to

    def expire(self) -> None:
        if not self.done():
            text = f"no answer from {self._to} to request {self.id!r} within {self.limit:g} s"
            self.fail(TimeoutError(text))

    @property
    def arrived(self) -> bool:
        """Has the peer acknowledged it?"""
        return self.out is not None and self.end <= self.out.acked

    def acknowledged(self, receipts: Receipts) -> None:
        if self._withdrawn:
            self._cancel_there()

    def rename(self) -> None:
        """Its id is another's that nobody reads any more."""

    def settle_run(self, messages: list[Message]) -> int:
        """Parts of its answer that ``messages`` begins with, where it comes in pieces; how many."""
        return 0

    def withdraw(self) -> None:
        """Nobody waits for it any more: cancel its handler. Not before the peer has it, so that what is
        cancelled has always come before."""
        if self.arrived:
            self._cancel_there()
        elif self.out is not None:
            self._withdrawn = True

    def _cancel_there(self) -> None:
        self._withdrawn = False
        if self.remote is not None:
            self.remote.control.tell(Cancel(self.stream_id, self.id))

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
            self.fail(error)
        else:
            self.connection = new.paths.carrier
