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
    from ..peers.remote import Remote

# So many times the limit is what all may hold, also those that were told to stop and have more on its
# way than they can take back.
PATIENCE = 3


class Throttle:
    """``drop(peer)`` throws away what one that is gone has waiting."""

    def __init__(self, limit: int, drop: Callable[[Remote], None]) -> None:
        self._limit = limit
        self._drop = drop
        # Those who may send; those who were told to stop; those who are not read, or gone.
        self._flowing: FairShare[Remote] = FairShare(limit)
        self._stopped: FairShare[Remote] = FairShare(limit)
        self._unread: FairShare[Remote] = FairShare(limit)
        self._busy = False

    @property
    def used(self) -> int:
        return self._flowing.used + self._stopped.used + self._unread.used

    @property
    def exceeded(self) -> bool:
        """Do all of them hold even more than those who go on after they were told to stop may?"""
        return self.used > (PATIENCE + 1) * self._limit

    def note(self, remote: Remote) -> None:
        """It holds more or less than before, has gone, or is a stranger no more."""
        noted = remote.mailboxes.look()
        pool = next((pool for pool in (self._stopped, self._unread) if remote in pool), self._flowing)
        if noted or remote in pool:
            pool.set(remote, "" if remote in pool else origin(remote.endpoint.ip), noted)
        if remote.mailboxes.throttled and noted <= GRAIN:
            self._release(remote)
        if not self._busy:
            self._settle()

    def gone(self, remote: Remote) -> None:
        """Nothing more comes of it; it may be made to pay by losing what waits."""
        self._release(remote)
        self.note(remote)

    def back(self, remote: Remote) -> None:
        self._release(remote)

    def _settle(self) -> None:
        self._busy = True
        try:
            while (remote := self._flowing.excess()) is not None:
                self._hold_back(remote)
            for pool in (self._stopped, self._flowing):
                while (remote := self._largest(pool)) is not None:
                    self._shut(remote)
            self._flowing.limit = self._limit
        finally:
            self._busy = False
        if self.used <= self._limit // 2:
            for remote in [*self._stopped, *self._unread]:
                if remote.connections:
                    self._release(remote)

    def _largest(self, pool: FairShare[Remote]) -> Remote | None:
        """Who of the pool pays where all of them together hold too much."""
        pool.limit = PATIENCE * self._limit - (self.used - pool.used)
        remote = pool.excess()
        return remote if remote is not None and remote.mailboxes.noted > GRAIN else None

    def _hold_back(self, remote: Remote) -> None:
        remote.mailboxes.throttle()
        if not remote.connections:
            self._drop(remote)
        elif not remote.plain:
            _move(remote, self._flowing, self._stopped)
            remote.mailboxes.stop()
            return
        self._shut(remote)

    def _shut(self, remote: Remote) -> None:
        _move(remote, self._flowing, self._unread)
        _move(remote, self._stopped, self._unread)
        remote.mailboxes.shut()

    def _release(self, remote: Remote) -> None:
        if not remote.mailboxes.throttled:
            return
        for pool in (self._stopped, self._unread):
            _move(remote, pool, self._flowing)
        remote.mailboxes.let_go()


def _move(remote: Remote, source: FairShare[Remote], target: FairShare[Remote]) -> None:
    size = source.held_by(remote)
    if size:
        place = source.origin_of(remote)
        source.remove(remote)
        target.set(remote, place, size)
