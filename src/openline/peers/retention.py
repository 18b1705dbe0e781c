"""Which peers are forgotten so that others can be remembered (rule 3.10).

A session outlives its connections, so whoever connects makes this side remember something: names,
numbers, answers that nobody has acknowledged. There are three tiers, and none pushes out what is in
another: strangers; strangers for whom answers are unacknowledged; and peers that this program has a
reason to know. Within a tier, what is over the limit is paid by the origin that holds the most, and
there by the largest, then by the one that is gone longest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.fairshare import FairShare
from ..core.origin import origin

if TYPE_CHECKING:
    from .remote import Remote

# A remote without any stream: itself, its session, its hello.
PEER_BYTES = 4096
# What all strangers together make us remember, connected or gone: 16,000 that have used a few streams.
STRANGERS_BYTES = 64 * 1024 * 1024
# The same of those for whom answers of this program are unacknowledged; the answers are counted.
ANSWERS_BYTES = 64 * 1024 * 1024
# Remotes that this program knows. They push out only each other, and only once they are gone.
KNOWN_BYTES = 256 * 1024 * 1024
# A node at the default time-outs comes back within that time or not at all. Strangers that ask to be
# remembered for longer are, as long as there is room: beyond the limit they go first.
STRANGER_MEMORY = 300.0


class Retention:
    """Sessions by what they take. ``push_out(remote, why)`` ends one that has to make room."""

    def __init__(
        self, push_out: Callable[[Remote, str], None], call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._push_out = push_out
        self._call_soon = call_soon
        self._strangers: FairShare[Remote] = FairShare(STRANGERS_BYTES)
        self._answers: FairShare[Remote] = FairShare(ANSWERS_BYTES)
        self._known: FairShare[Remote] = FairShare(KNOWN_BYTES)
        # Since when peers are gone, the one gone longest first.
        self.gone: dict[Remote, float] = {}
        # Bytes unacknowledged by strangers, when last looked.
        self._owed: dict[Remote, int] = {}
        self._due = False
        self._now = 0.0

    def left(self, remote: Remote, now: float) -> None:
        """Its last connection has ended."""
        self.gone[remote] = self._now = now
        self.look(remote)

    def back(self, remote: Remote) -> None:
        self.gone.pop(remote, None)
        self.weigh(remote)

    def ended(self, remote: Remote) -> None:
        """Nothing is remembered of it any more."""
        self.gone.pop(remote, None)
        self._owed.pop(remote, None)
        for tier in (self._strangers, self._answers, self._known):
            tier.remove(remote)

    def tick(self, now: float) -> None:
        self._now = now

    def look(self, remote: Remote) -> None:
        """Weigh it with what it has not acknowledged."""
        owed = (
            remote.outstanding.session.unacked_size
            if remote.outstanding.session is not None and not remote.known
            else 0
        )
        if owed:
            self._owed[remote] = owed
        else:
            self._owed.pop(remote, None)
        self.weigh(remote)

    def weigh(self, remote: Remote) -> None:
        """It holds more, or less, or this program has come to know it."""
        if remote.outstanding.session is None and not remote.connections and not remote.mailboxes.by_stream:
            self.ended(remote)
            return
        tier, size = self._tier(remote)
        for other in (self._strangers, self._answers, self._known):
            if other is not tier and remote in other:
                other.remove(remote)
        if tier is None:
            return
        tier.set(remote, origin(remote.endpoint.ip), size)
        if tier.used > tier.limit and not self._due:
            self._due = True
            self._call_soon(self._make_room)

    def _tier(self, remote: Remote) -> tuple[FairShare[Remote] | None, int]:
        session = remote.outstanding.session
        size = PEER_BYTES + remote.mailboxes.weight
        if session is not None:
            # Each connection has positions, too.
            size += session.out_weight + session.weight * max(1, len(remote.connections))
        size += sum(former.out_weight + former.weight for former in remote.outstanding.former.values())
        if remote.known:
            return (self._known if remote in self.gone else None), size
        owed = self._owed.get(remote, 0)
        return (self._answers if owed else self._strangers), size + owed

    def _make_room(self) -> None:
        self._due = False
        for tier in (self._strangers, self._answers, self._known):
            if tier is not self._known and tier.used > tier.limit:
                self._end_overstayers(tier)
            while (remote := tier.excess()) is not None:
                if self._tier(remote)[0] is not tier:
                    self.weigh(remote)
                    continue
                tier.remove(remote)
                why = "too many peers are gone" if remote.known else "strangers take too much"
                self._push_out(remote, why)

    def _end_overstayers(self, tier: FairShare[Remote]) -> None:
        for remote, since in list(self.gone.items()):
            if self._now - since <= STRANGER_MEMORY or tier.used <= tier.limit:
                break
            if remote in tier:
                self._push_out(remote, "gone for longer than strangers are remembered at the least")
