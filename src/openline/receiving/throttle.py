"""What strangers have waiting in the inboxes, all of them together (rule 3.10).

Those who may send have one limit. Beyond it the one that holds the most is told to stop, stream by
stream, as with any full inbox; a plain peer, which cannot be told, is not read any more. Where all of
them, told or not, hold a multiple of it, those that were told and went on are not read either. Whoever
holds next to nothing goes on all the same, and peers that this program knows are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.fairshare import FairShare
from ..core.origin import origin
from ..peers.mailbox import GRAIN

if TYPE_CHECKING:
    from ..peers.table import Peer

# So many times the limit is what all may hold, also those that were told to stop and have more on its
# way than they can take back.
PATIENCE = 3


class Throttle:
    """``drop(peer)`` throws away what one that is gone has waiting."""

    def __init__(self, limit: int, drop: Callable[[Peer], None]) -> None:
        self._limit = limit
        self._drop = drop
        # Those who may send; those who were told to stop; those who are not read, or gone.
        self._flowing: FairShare[Peer] = FairShare(limit)
        self._stopped: FairShare[Peer] = FairShare(limit)
        self._unread: FairShare[Peer] = FairShare(limit)
        self._busy = False

    @property
    def used(self) -> int:
        return self._flowing.used + self._stopped.used + self._unread.used

    def note(self, peer: Peer) -> None:
        """It holds more or less than before, has gone, or is a stranger no more."""
        noted = peer.mailboxes.look()
        pool = next((pool for pool in (self._stopped, self._unread) if peer in pool), self._flowing)
        if noted or peer in pool:
            pool.set(peer, "" if peer in pool else origin(peer.endpoint.ip), noted)
        if peer.mailboxes.throttled and noted <= GRAIN:
            self._release(peer)
        if not self._busy:
            self._settle()

    def gone(self, peer: Peer) -> None:
        """Nothing more comes of it; it may be made to pay by losing what waits."""
        self._release(peer)
        self.note(peer)

    def back(self, peer: Peer) -> None:
        self._release(peer)

    def _settle(self) -> None:
        self._busy = True
        try:
            while (peer := self._flowing.excess()) is not None:
                self._hold_back(peer)
            for pool in (self._stopped, self._flowing):
                while (peer := self._largest(pool)) is not None:
                    self._shut(peer)
            self._flowing.limit = self._limit
        finally:
            self._busy = False
        if self.used <= self._limit // 2:
            for peer in [*self._stopped, *self._unread]:
                if peer.connections:
                    self._release(peer)

    def _largest(self, pool: FairShare[Peer]) -> Peer | None:
        """Who of the pool pays where all of them together hold too much."""
        pool.limit = PATIENCE * self._limit - (self.used - pool.used)
        peer = pool.excess()
        return peer if peer is not None and peer.mailboxes.noted > GRAIN else None

    def _hold_back(self, peer: Peer) -> None:
        peer.mailboxes.throttle()
        if not peer.connections:
            self._drop(peer)
        elif not peer.plain:
            _move(peer, self._flowing, self._stopped)
            peer.mailboxes.stop()
            return
        self._shut(peer)

    def _shut(self, peer: Peer) -> None:
        _move(peer, self._flowing, self._unread)
        _move(peer, self._stopped, self._unread)
        peer.mailboxes.shut()

    def _release(self, peer: Peer) -> None:
        if not peer.mailboxes.throttled:
            return
        for pool in (self._stopped, self._unread):
            _move(peer, pool, self._flowing)
        peer.mailboxes.let_go()


def _move(peer: Peer, source: FairShare[Peer], target: FairShare[Peer]) -> None:
    size = source.held_by(peer)
    if size:
        place = source.origin_of(peer)
        source.remove(peer)
        target.set(peer, place, size)
