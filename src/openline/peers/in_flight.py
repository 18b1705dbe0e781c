"""What has been sent and is not acknowledged: one or several messages, and who waits for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..address import Address
from ..core.session import Outgoing
from ..errors import NotConfirmed
from ..message import BY_NODE_ID, Message, Receipt
from ..runtime.inline_future import Waiter

if TYPE_CHECKING:
    from ..connection.connection import Connection
    from .table import Peer


class Parcel(Waiter[Receipt]):
    """Consecutive messages of one stream, written together. Awaiting it waits for the acknowledgement.

    ``address`` is where they were sent to, None for a peer in hand. ``deadline`` is when the
    sender stops waiting, on the liveness clock; the messages are sent again all the same, as long
    as their session lives.
    """

    # Connections it was written to.
    attempts = 1
    # How the peer was recognised; a peer in hand is known by its node id.
    matched = BY_NODE_ID
    # Its numbers in the stream, and bytes as encoded.
    first = end = size = 0
    out: Outgoing[Parcel] | None = None

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

    def arrived(self, connection: Connection) -> None:
        """The peer has it."""
        if self.attempts == 1:
            self.set_result(connection.receipts[self.matched])
        else:
            self.set_result(connection.receipts.after(self.attempts, self.matched))

    def moved(self, old: Peer, new: Peer) -> None:
        """Another node has it to confirm now."""

    def expire(self) -> None:
        """Nobody waits any longer."""
        if not self.done():
            self.set_exception(self.unconfirmed(f"no acknowledgement within {self.limit:g} s"))

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
