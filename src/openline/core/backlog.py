"""Events of peers that wait for one consumer: bounded, and a whole story of each peer all the same. Pure.

Beyond the bound an event is not told but noted: in which state the consumer has its peer, and in which it
is. When there is room again, the shortest way from one to the other is told, which is nothing where
a peer has come and gone meanwhile. So what is left out cancels out, and nobody has to begin anew. That a
peer was gone in between, and perhaps is another process now, is told all the same.

What is noted is bounded by who is connected: an entry ends with its peer, unless the consumer has heard, or
is going to hear, that it is there.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ..peer import Peer, PeerEvent, PeerEventKind
from .presence import NEXT, SHORTEST, Presence

# The part of the bound that strangers share: whoever comes and goes must not hide what peers do that the
# program knows.
STRANGERS_PART = 4


class _PutOff:
    """Events of one peer that were not told."""

    __slots__ = ("_was_gone", "count", "last", "state", "view")

    def __init__(self, view: Presence) -> None:
        # In which state the consumer has the peer, and in which it is.
        self.view = self.state = view
        self.count = 0
        self.last: PeerEvent
        self._was_gone = False

    def add(self, event: PeerEvent) -> None:
        self.count += 1
        self.state = NEXT[self.state][event.kind]
        self.last = event
        self._was_gone |= event.kind == "gone"

    @property
    def void(self) -> bool:
        """Has it come and gone without the consumer having heard of it?"""
        return self.state is self.view is Presence.ABSENT

    @property
    def kinds(self) -> tuple[PeerEventKind, ...]:
        """What is to be told of it."""
        if self._was_gone and self.view is not Presence.ABSENT:
            return ("gone", *SHORTEST.get((Presence.ABSENT, self.state), ()))
        return SHORTEST.get((self.view, self.state), ())


class Backlog:
    """Of one consumer; ``limit`` is its number of events."""

    __slots__ = ("_dropped", "_known", "_limit", "_missed", "_of_strangers", "_queue", "_strangers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Each with whether it is of a peer that the program knows; and how many are not.
        self._queue: deque[tuple[PeerEvent, bool]] = deque()
        self._of_strangers = 0
        # What was put off, of peers that were known then, and of the others.
        self._known: dict[Peer, _PutOff] = {}
        self._strangers: dict[Peer, _PutOff] = {}
        # Never told: since the last one that was, and since somebody took the count.
        self._missed = 0
        self._dropped = 0

    def __bool__(self) -> bool:
        """Does anything wait, or may it?"""
        return bool(self._queue or self._known or self._strangers)

    @property
    def size(self) -> int:
        """Events, and peers with events that were put off."""
        return len(self._queue) + len(self._known) + len(self._strangers)

    @property
    def behind(self) -> bool:
        """Has something been put off?"""
        return bool(self._known or self._strangers)

    def add(self, event: PeerEvent, before: Presence, known: bool) -> None:
        """It has happened to a peer that was in the state ``before``; is that one that the program knows?"""
        peer = event.peer
        waiting = (
            self._known if peer in self._known or (known and peer not in self._strangers) else self._strangers
        )
        put_off = waiting.get(peer)
        if put_off is None:
            # What was put off comes first, so that it has its turn.
            if not waiting and self._has_room(known, self._limit):
                self._append(event, known)
                return
            put_off = waiting[peer] = _PutOff(before)
        put_off.add(event)
        if put_off.void:
            del waiting[peer]
            self._drop(put_off.count)

    def take(self) -> PeerEvent | None:
        """The next event, if there is one."""
        self._catch_up(self._known, known=True)
        self._catch_up(self._strangers, known=False)
        if not self._queue:
            return None
        event, known = self._queue.popleft()
        self._of_strangers -= not known
        if self._missed:
            event = msgspec.structs.replace(event, missed=self._missed)
            self._missed = 0
        return event

    def take_dropped(self) -> int:
        """How many more are never told."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def clear(self) -> int:
        """The consumer takes nothing any more. How many events it has not had."""
        left = len(self._queue)
        for waiting in (self._known, self._strangers):
            left += sum(put_off.count for put_off in waiting.values())
            waiting.clear()
        self._queue.clear()
        self._of_strangers = 0
        return left

    def _catch_up(self, waiting: dict[Peer, _PutOff], *, known: bool) -> None:
        """Half of the room is for what happens from now on."""
        while waiting and self._has_room(known, max(1, self._limit // 2)):
            put_off = waiting.pop(next(iter(waiting)))
            self._drop(put_off.count - len(put_off.kinds))
            for kind in put_off.kinds:
                self._append(msgspec.structs.replace(put_off.last, kind=kind), known)

    def _has_room(self, known: bool, limit: int) -> bool:
        return len(self._queue) < limit and (known or self._of_strangers < max(1, limit // STRANGERS_PART))

    def _append(self, event: PeerEvent, known: bool) -> None:
        self._queue.append((event, known))
        self._of_strangers += not known

    def _drop(self, count: int) -> None:
        self._missed += count
        self._dropped += count
