"""Answers in pieces, on the asking side: a request whose answer comes as several messages."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..address import Address
from ..core.pieces import ERROR, MORE, PART_BYTES, REPLY_TO, Grants, Taken, error_in, is_end, is_last
from ..errors import RemoteError
from ..message import STREAM, Message, move_to_stream, new_id
from .in_flight import Request

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection


class Stream(Request):
    """Waits for the parts of an answer. It is out until the last one has come, or nobody will send it."""

    in_pieces = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        message: Message,
        address: Address | None,
        to: object,
        limit: float,
        inbox: tuple[int, int],
        slack: int,
    ) -> None:
        super().__init__(loop, message, address, to, limit)
        self._question = message
        # As much as an inbox holds, in messages and bytes; and bytes that a peer may send beyond its window.
        self._most, self._most_bytes = inbox
        self._slack = slack
        self._parts: deque[Message] = deque()
        # Of those that have come and are not taken: which one came in a large frame, and how large.
        self._sizes: deque[tuple[int, int]] = deque()
        self._bytes = self._arrived = 0
        # So many may have come by now.
        self._limit = 0
        self._grants: Grants | None = None
        self._waiter: asyncio.Future[None] | None = None
        # The last part has come, or none will; nobody reads any more; a plain peer is not read because of it.
        self.over = self.left = self._chokes = False
        self._failure: BaseException | None = None

    # Asking --------------------------------------------------------------------------------------

    def asked(self, remote: Remote, connection: RemoteConnection, now: float) -> None:
        super().asked(remote, connection, now)
        self._release()
        question = self._question
        if not connection.plain and remote.control.spoken:
            self._grants = Grants(remote.requests.allow(self._most), self._most)
            self._limit = self._grants.limit
            metadata = {**(question.metadata or {}), STREAM: self._grants.allowed}
            question = Message(
                question.id, question.type, question.payload, metadata, question.stream_id, question.extra
            )
        self.messages = [question]

    def rename(self) -> None:
        """What is left of an answer to the same message may still come: this is another question."""
        question = self._question
        self.id = new_id()
        self._question = Message(
            self.id,
            question.type,
            question.payload,
            question.metadata,
            question.stream_id,
            question.extra,
        )

    def not_asked(self) -> None:
        self._release()
        super().not_asked()

    def _release(self) -> None:
        """What was allowed is others'."""
        if self._grants is not None and self.remote is not None:
            self.remote.requests.release(self._grants.allowed)
        self._grants = None

    # What comes ----------------------------------------------------------------------------------

    def settle(self, message: Message) -> None:
        """A part, or the end. Nobody has been told yet that it is not out any more."""
        last = is_last(message)
        remote = self.remote
        if not last and remote is not None:
            remote.requests.keep(self)
        if self.left or self.over:
            if last:
                self._release()
            return
        if is_end(message):
            self._end(self._error_in(message) if message.type == ERROR else None)
            return
        move_to_stream([message], self.stream_id)
        self._parts.append(message)
        self._arrive(1)
        if last:
            self._end(None)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def settle_run(self, messages: list[Message]) -> int:
        """Parts of its answer that others follow, as many as ``messages`` begins with; how many."""
        id, parts = self.id, []
        for message in messages:
            metadata = message.metadata
            if metadata is None or metadata.get(MORE) is not True or metadata.get(REPLY_TO) != id:
                break
            parts.append(message)
        if parts and not (self.left or self.over):
            move_to_stream(parts, self.stream_id)
            self._parts.extend(parts)
            self._arrive(len(parts))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        return len(parts)

    def _arrive(self, count: int) -> None:
        """So many parts have come."""
        self._arrived += count
        remote, grants = self.remote, self._grants
        assert remote is not None
        if size := remote.requests.size:
            self._sizes.append((self._arrived, size * count))
            self._bytes += size * count
        if grants is not None:
            grants.came(remote.requests.frame)
        if grants is None:
            full = len(self._parts) >= self._most or self._bytes >= self._most_bytes
            if full and remote.plain and not self._chokes:
                self._choke(True)
        elif self._arrived > self._limit or self._bytes > grants.allowed * PART_BYTES + self._slack:
            self.fail(RemoteError(str(self._to), "Overrun", "it sends more parts than it was allowed"))

    def _choke(self, chokes: bool) -> None:
        """A plain peer cannot be told to stop: it is not read."""
        self._chokes = chokes
        if self.remote is not None:
            self.remote.mailboxes.choke(chokes)

    def _error_in(self, message: Message) -> RemoteError:
        return RemoteError(str(self._to), *error_in(message.payload))

    def _end(self, failure: BaseException | None) -> None:
        self.over, self._failure = True, failure
        self._release()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BaseException) -> None:
        """No part will come any more; those that have come are read first."""
        if not self.over:
            self._end(error)

    def expire(self) -> None:
        self.fail(
            TimeoutError(f"no part from {self._to} of the answer to {self.id!r} within {self.limit:g} s")
        )

    # Reading -------------------------------------------------------------------------------------

    def take(self) -> list[Message]:
        """Parts that have come; some of them where there are many."""
        parts = self._parts
        most = self._grants.chunk if self._grants is not None else len(parts)
        if len(parts) <= most:
            taken = list(parts)
            parts.clear()
            return taken
        return [parts.popleft() for _ in range(most)]

    def took(self, count: int) -> None:
        """So many have been handed out."""
        taken = self._arrived - len(self._parts)
        while self._sizes and self._sizes[0][0] <= taken:
            self._bytes -= self._sizes.popleft()[1]
        if self._chokes and len(self._parts) <= self._most // 2 and self._bytes <= self._most_bytes // 2:
            self._choke(False)
        if self._grants is not None:
            self._grants.took(count)
            self._tell(False)

    def _tell(self, drained: bool) -> None:
        grants, remote = self._grants, self.remote
        if grants is None or remote is None:
            return
        if grants.due(drained):
            remote.requests.spend(grants.tell(drained or not self._parts, remote.requests.budget))
            self._limit = grants.limit
            remote.control.tell(Taken(self.id, grants.taken, grants.allowed))

    async def wait(self) -> None:
        """Until there is something to take, or it is over."""
        self._tell(True)
        if not self._parts and not self.over:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def finish(self) -> None:
        """All parts have been taken. Raises what has ended it."""
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """Nobody reads any more."""
        self.left = True
        self._parts.clear()
        self._sizes.clear()
        if self._chokes:
            self._choke(False)
