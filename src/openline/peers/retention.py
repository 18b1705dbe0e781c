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
    from .table import Peer

# A peer without any stream: itself, its session, its hello.
PEER_BYTES = 4096
# What all strangers together make us remember, connected or gone: 16,000 that have used a few streams.
STRANGERS_BYTES = 64 * 1024 * 1024
# The same of those for whom answers of this program are unacknowledged; the answers are counted.
ANSWERS_BYTES = 64 * 1024 * 1024
# Peers that this program knows. They push out only each other, and only once they are gone.
KNOWN_BYTES = 256 * 1024 * 1024
# A node at the default time-outs comes back within that time or not at all. Strangers that ask to be
# remembered for longer are, as long as there is room: beyond the limit they go first.
STRANGER_MEMORY = 300.0


class Retention:
    """Sessions by what they take. ``push_out(peer, why)`` ends one that has to make room."""

    def __init__(
        self, push_out: Callable[[Peer, str], None], call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._push_out = push_out
        self._call_soon = call_soon
        self._strangers: FairShare[Peer] = FairShare(STRANGERS_BYTES)
        self._answers: FairShare[Peer] = FairShare(ANSWERS_BYTES)
        self._known: FairShare[Peer] = FairShare(KNOWN_BYTES)
        # Since when peers are gone, the one gone longest first.
        self.gone: dict[Peer, float] = {}
        # Bytes unacknowledged by strangers, when last looked.
        self._owed: dict[Peer, int] = {}
        self._due = False
        self._now = 0.0

    def left(self, peer: Peer, now: float) -> None:
        """Its last connection has ended."""
        self.gone[peer] = self._now = now
        self.look(peer)

    def back(self, peer: Peer) -> None:
        self.gone.pop(peer, None)
        self.weigh(peer)

    def ended(self, peer: Peer) -> None:
        """Nothing is remembered of it any more."""
        self.gone.pop(peer, None)
        self._owed.pop(peer, None)
        for tier in (self._strangers, self._answers, self._known):
            tier.remove(peer)

    def tick(self, now: float) -> None:
        self._now = now

    def look(self, peer: Peer) -> None:
        """Weigh it with what it has not acknowledged."""
        owed = peer.session.unacked_size if peer.session is not None and not peer.known else 0
        if owed:
            self._owed[peer] = owed
        else:
            self._owed.pop(peer, None)
        self.weigh(peer)

    def weigh(self, peer: Peer) -> None:
        """It holds more, or less, or this program has come to know it."""
        if peer.session is None and not peer.connections and not peer.mailboxes.by_stream:
            self.ended(peer)
            return
        tier, size = self._tier(peer)
        for other in (self._strangers, self._answers, self._known):
            if other is not tier and peer in other:
                other.remove(peer)
        if tier is None:
            return
        tier.set(peer, origin(peer.endpoint.ip), size)
        if tier.used > tier.limit and not self._due:
            self._due = True
            self._call_soon(self._make_room)

    def _tier(self, peer: Peer) -> tuple[FairShare[Peer] | None, int]:
        session = peer.session
        size = PEER_BYTES + peer.mailboxes.weight
        if session is not None:
            # Each connection has positions, too.
            size += session.out_weight + session.weight * max(1, len(peer.connections))
        size += sum(former.out_weight + former.weight for former in peer.former.values())
        if peer.known:
            return (self._known if peer in self.gone else None), size
        owed = self._owed.get(peer, 0)
        return (self._answers if owed else self._strangers), size + owed

    def _make_room(self) -> None:
        self._due = False
        for tier in (self._strangers, self._answers, self._known):
            if tier is not self._known and tier.used > tier.limit:
                self._end_overstayers(tier)
            while (peer := tier.excess()) is not None:
                if self._tier(peer)[0] is not tier:
                    self.weigh(peer)
                    continue
                tier.remove(peer)
                why = "too many peers are gone" if peer.known else "strangers take too much"
                self._push_out(peer, why)

    def _end_overstayers(self, tier: FairShare[Peer]) -> None:
        for peer, since in list(self.gone.items()):
            if self._now - since <= STRANGER_MEMORY or tier.used <= tier.limit:
                break
            if peer in tier:
                self._push_out(peer, "gone for longer than strangers are remembered at the least")
