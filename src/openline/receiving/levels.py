"""How full lanes are, and when their senders are told to stop and to go on (rule 3.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import Config
from ..peers.mailbox import Lane
from .throttle import GRAIN, Throttle

if TYPE_CHECKING:
    from ..peers.table import Peer

# A peer that fills this many streams is stopped as a whole, by not reading from it.
FULL_LANES_PER_PEER = 16
# So is one that goes on after "stop". An honest one's bytes in flight fit in here: a full send
# buffer and a full receive buffer of the kernel are about 10 MB on Linux.
OVERRUN_BYTES = 16 * 1024 * 1024


class Levels:
    """``flow(peer, lane)`` is called when a lane, or the peer as a whole (lane None), has become full or
    roomy; ``drop(peer)`` throws away what a stranger that is gone has waiting."""

    def __init__(
        self, config: Config, flow: Callable[[Peer, Lane | None], None], drop: Callable[[Peer], None]
    ) -> None:
        self._config = config
        self._flow = flow
        limit = config.strangers_inbox_bytes
        self.throttle = Throttle(limit, self._hold_back, self._regulate, self._let_go, drop)

    def charge(self, lane: Lane, size: int) -> None:
        peer = lane.peer
        lane.count += 1
        lane.bytes += size
        peer.held += size
        peer.load += size
        if peer.load > peer.noted + GRAIN and not peer.known:
            self.throttle.note(peer)
        config = self._config
        if not lane.paused:
            if (
                peer.throttled
                or lane.count >= config.inbox_messages
                or lane.bytes >= config.inbox_bytes
                or peer.held > FULL_LANES_PER_PEER * config.inbox_bytes
            ):
                lane.paused = True
                self._flow(peer, lane)
        elif not lane.overrun and lane.bytes > config.inbox_bytes + OVERRUN_BYTES:
            lane.overrun = True
            self._flow(peer, lane)

    def release(self, lane: Lane, size: int) -> None:
        peer = lane.peer
        lane.count -= 1
        lane.bytes -= size
        peer.held -= size
        peer.load -= size
        if peer.noted and (peer.load + GRAIN < peer.noted or not peer.load):
            self.throttle.note(peer)
        if lane.paused and not peer.throttled:
            self._reopen(lane)

    def _reopen(self, lane: Lane) -> None:
        """Half empty: its sender may go on."""
        if lane.count <= self._config.inbox_messages // 2 and lane.bytes <= self._config.inbox_bytes // 2:
            lane.paused = lane.overrun = False
            self._flow(lane.peer, lane)

    def occupy(self, lane: Lane, size: int) -> None:
        """A handler is at work on a large message, which is in no queue any more."""
        peer = lane.peer
        lane.busy += size
        peer.load += size
        if peer.load > peer.noted + GRAIN and not peer.known:
            self.throttle.note(peer)

    def vacate(self, lane: Lane) -> None:
        peer, busy = lane.peer, lane.busy
        lane.busy = 0
        peer.load -= busy
        if peer.noted and (peer.load + GRAIN < peer.noted or not peer.load):
            self.throttle.note(peer)

    def _hold_back(self, peer: Peer) -> None:
        """Strangers hold too much, and this one the most: all of its streams are full."""
        for lane in list(peer.lanes.values()):
            if lane.count and not lane.paused:
                lane.paused = True
                self._flow(peer, lane)

    def _let_go(self, peer: Peer) -> None:
        for lane in list(peer.full):
            self._reopen(lane)
        self._regulate(peer)

    def _regulate(self, peer: Peer) -> None:
        self._flow(peer, None)
