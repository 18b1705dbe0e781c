"""What peers that are gone have left behind for ``receive()``, within bounds (rules 3.5 and 3.10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.fairshare import FairShare
from ..core.origin import origin

if TYPE_CHECKING:
    from ..peers.table import Peer

# Of peers that this program knows; beyond it the oldest is dropped.
LEFT_BEHIND_BYTES = 64 * 1024 * 1024
LEFT_BEHIND_PEERS = 1024
# Of all strangers together; beyond it the largest goes first, of the origin that holds the most.
STRANGERS_LEFT_BEHIND = 16 * 1024 * 1024


class LeftBehind:
    """``drop(peer)`` throws away what nobody has taken yet."""

    def __init__(self, drop: Callable[[Peer], None]) -> None:
        self._drop = drop
        self._known: dict[Peer, None] = {}
        self._strangers: FairShare[Peer] = FairShare(STRANGERS_LEFT_BEHIND)

    def add(self, peer: Peer) -> None:
        if peer.known:
            self._known[peer] = None
        else:
            boxes = peer.mailboxes
            self._strangers.set(peer, origin(peer.endpoint.ip), boxes.load + boxes.weight)
        while len(self._known) > LEFT_BEHIND_PEERS or self._held() > LEFT_BEHIND_BYTES:
            self._end(next(iter(self._known)))
        while (stranger := self._strangers.excess()) is not None:
            self._end(stranger)

    def _held(self) -> int:
        return sum(peer.mailboxes.held for peer in self._known)

    def remove(self, peer: Peer) -> None:
        self._known.pop(peer, None)
        self._strangers.remove(peer)

    def _end(self, peer: Peer) -> None:
        self.remove(peer)
        self._drop(peer)
