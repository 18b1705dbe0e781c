"""What a mailbox asks of those that it belongs to: the inbox, and all mailboxes of its peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..config import Config
from ..message import StreamId
from ..runtime.eager import Runner

if TYPE_CHECKING:
    from .mailbox import Consumer, Handler, Mailbox
    from .remote import Remote


class Owner(Protocol):
    """What mailboxes ask of the inbox that they belong to."""

    config: Config
    runner: Runner
    # Handlers of the program, each with its stream, None for all.
    handlers: list[tuple[Handler, StreamId | None]]
    # Changes with who takes what.
    version: int
    closed: bool

    def takers(self, remote: Remote, stream_id: StreamId) -> tuple[list[Handler], list[Consumer]]:
        """Who takes messages of that peer and stream."""

    def flow(self, remote: Remote, mailbox: Mailbox | None) -> None:
        """A mailbox, or the peer as a whole (None), has become full or roomy."""

    def note(self, remote: Remote) -> None:
        """What a stranger holds has grown, or shrunk, by a good deal."""

    def weigh(self, remote: Remote) -> None:
        """A stranger has one more mailbox."""

    def filled(self, mailbox: Mailbox) -> None:
        """Something waits for ``receive()`` there."""

    def emptied(self, mailbox: Mailbox) -> None:
        """Nothing does any more."""

    def discarded(self, mailbox: Mailbox, first: bool) -> None:
        """A message that nobody wants has made room, for the first time in this mailbox or again."""

    def failed(self, remote: Remote, handler: Handler | None, error: BaseException) -> None:
        """A handler has raised an error."""

    def tidy(self, remote: Remote) -> None:
        """Perhaps nothing is left of a peer that is gone."""


class Siblings(Protocol):
    """All mailboxes of one peer, as one of them sees them."""

    # Bytes that wait in them together; is the peer to be stopped on all streams, or does it use too many?
    held: int
    throttled: bool
    overfull: bool

    def charge(self, size: int, known: bool) -> None: ...
    def release(self, size: int) -> None: ...
    def occupy(self, size: int, known: bool) -> None: ...
    def vacate(self, size: int) -> None: ...
    def set_full(self, mailbox: Mailbox, full: bool) -> None: ...
    def settled(self, mailbox: Mailbox) -> None: ...
