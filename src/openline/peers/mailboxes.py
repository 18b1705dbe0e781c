"""All mailboxes of one peer: how many there are, how much waits in them, and when the peer has to stop."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ..core.pieces import RESERVED
from ..core.session import weight
from ..message import StreamId
from .answers import MAX_ANSWERS
from .control import ControlBox
from .mailbox import GRAIN, MAX_FULL, Mailbox
from .owner import Owner
from .part import Part

if TYPE_CHECKING:
    from .remote import Remote

# Mailboxes looked at when there are too many; more at a time would let a peer spend our time.
LOOKED_AT = 16
# A mailbox that nothing waits in, besides its stream's name.
MAILBOX_BYTES = 2048


class Mailboxes(Part):
    """All mailboxes of one peer, and what they hold together."""

    __slots__ = (
        "_owner",
        "by_stream",
        "choked",
        "full",
        "held",
        "load",
        "noted",
        "overfull",
        "throttled",
        "unread",
        "weight",
    )

    def __init__(self, remote: Remote, owner: Owner) -> None:
        super().__init__(remote)
        self._owner = owner
        self.by_stream: dict[StreamId, Mailbox] = {}
        # Bytes received and not taken yet.
        self.held = 0
        # What mailboxes weigh besides: their names, and themselves.
        self.weight = 0
        # ``held`` with large messages that handlers are at work on; and how much of it was counted when
        # it was looked at last.
        self.load = self.noted = 0
        # Where all strangers hold too much: was this one told to stop, or is it not read at all?
        self.throttled = self.unread = False
        # As long as there is a full one, a plain peer is not read.
        self.full: dict[Mailbox, None] = {}
        # Answers in pieces of a plain peer whose readers are behind.
        self.choked = 0
        # Something is under way on more streams than are allowed.
        self.overfull = False

    @property
    def idle(self) -> bool:
        """Is nothing under way on any stream?"""
        return all(mailbox.idle for mailbox in self.by_stream.values())

    @property
    def unreadable(self) -> bool:
        """Is nothing to be read from the peer? A plain one cannot be told to stop a stream, and one that
        fills very many, or goes on all the same, does not listen."""
        unruly = self.remote.plain or self.held > MAX_FULL * self._owner.config.inbox_bytes
        return (
            self.overfull
            or self.unread
            or self.choked > 0
            or any(unruly or full.overrun for full in self.full)
        )

    # Streams -------------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        """Streams with something under way. Answers in pieces are not counted: they wait for what this peer
        says, so it is read on."""
        return self._owner.config.max_streams + min(len(self.remote.answers.by_id), MAX_ANSWERS)

    def waits_for_asker(self) -> None:
        """One more handler answers in pieces."""
        if self.overfull and len(self.by_stream) < self._most:
            self.overfull = False
            self._owner.flow(self.remote, None)

    def open(self, stream_id: StreamId) -> Mailbox:
        remote, most = self.remote, self._most
        if len(self.by_stream) >= most and not self._close_some() and not self.overfull:
            # That many streams, and something is under way on all of them: stop the peer as a whole.
            self.overfull = True
            self._owner.flow(remote, None)
        kind = ControlBox if stream_id in RESERVED and not remote.plain else Mailbox
        mailbox = self.by_stream[stream_id] = kind(remote, stream_id, self, self._owner)
        self.weight += MAILBOX_BYTES + weight(stream_id)
        if not remote.known:
            self._owner.weigh(remote)
        return mailbox

    def _close(self, mailbox: Mailbox) -> None:
        del self.by_stream[mailbox.stream_id]
        mailbox.close()
        self.weight -= MAILBOX_BYTES + weight(mailbox.stream_id)

    def _close_some(self) -> bool:
        """Give up idle ones, looking at a few, oldest first; True if there is room for one more."""
        boxes, most = self.by_stream, self._most
        for stream_id in list(itertools.islice(boxes, LOOKED_AT)):
            mailbox = boxes[stream_id]
            if mailbox.idle and len(boxes) > most // 2:
                self._close(mailbox)
            else:
                boxes[stream_id] = boxes.pop(stream_id)  # to the end
        return len(boxes) < most

    def close_idle(self) -> None:
        for mailbox in [mailbox for mailbox in self.by_stream.values() if mailbox.idle]:
            self._close(mailbox)

    def settled(self, mailbox: Mailbox) -> None:
        """Perhaps nothing is under way on its stream any more: then an overfull peer has one less."""
        if self.overfull and mailbox.idle and self.by_stream.get(mailbox.stream_id) is mailbox:
            self._close(mailbox)
            if len(self.by_stream) < self._most:
                self.overfull = False
                self._owner.flow(self.remote, None)
        if not mailbox.remote.connections:
            self._owner.tidy(mailbox.remote)

    def cancel(self, stream_id: StreamId, id: object) -> bool:
        """Cancel the handler of that message, or do not begin it. False where it is not here."""
        mailbox = self.by_stream.get(stream_id)
        return mailbox is not None and mailbox.cancel(id)

    # How much they hold --------------------------------------------------------------------------

    def charge(self, size: int, known: bool) -> None:
        """So much more waits; of a ``known`` peer that is not looked at."""
        self.held += size
        self.load += size
        if self.load > self.noted + GRAIN and not known:
            self._owner.note(self.remote)

    def release(self, size: int) -> None:
        self.held -= size
        self.load -= size
        if self.noted and (self.load + GRAIN < self.noted or not self.load):
            self._owner.note(self.remote)

    def occupy(self, size: int, known: bool) -> None:
        """A handler is at work on a large message, which waits nowhere any more."""
        self.load += size
        if self.load > self.noted + GRAIN and not known:
            self._owner.note(self.remote)

    def vacate(self, size: int) -> None:
        self.load -= size
        if self.noted and (self.load + GRAIN < self.noted or not self.load):
            self._owner.note(self.remote)

    def look(self) -> int:
        """How much is counted now."""
        self.noted = 0 if self.remote.known else self.load
        return self.noted

    # Stopping the peer ---------------------------------------------------------------------------

    def set_full(self, mailbox: Mailbox, full: bool) -> None:
        if full:
            self.full[mailbox] = None
        else:
            self.full.pop(mailbox, None)
        self._owner.flow(self.remote, mailbox)

    def throttle(self) -> None:
        """Strangers hold too much, and this one the most: until ``let_go`` its streams are full."""
        self.throttled = True

    def stop(self) -> None:
        """All streams that something waits on are full."""
        for mailbox in list(self.by_stream.values()):
            if mailbox.count and not mailbox.paused:
                mailbox.pause()

    def choke(self, chokes: bool) -> None:
        """The reader of an answer in pieces of this plain peer is behind, or is so no more."""
        self.choked += 1 if chokes else -1
        self._owner.flow(self.remote, None)

    def shut(self) -> None:
        """The peer is not read any more."""
        self.throttled = self.unread = True
        self._owner.flow(self.remote, None)

    def let_go(self) -> None:
        """The peer may go on, where there is room."""
        self.throttled = self.unread = False
        for mailbox in list(self.full):
            mailbox.reopen()
        self._owner.flow(self.remote, None)
