"""One connection per pair of processes, and one process per identity (rule 3.3)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .backends.base import CONFLICT, NORMAL, REPLACED
from .connection import Connection, State
from .core.collision import DRAIN_GRACE
from .errors import IdentityConflict
from .identity import public_key_of
from .peers import Peer

if TYPE_CHECKING:
    from .switchboard import Switchboard

log = logging.getLogger("openline")

# Two processes with one identity: how long neither may connect, and its limit, as it doubles each
# time the conflict comes back. Long enough that it is no fight, short enough to recover by itself.
CONFLICT_HOLD = 30.0
MAX_CONFLICT_HOLD = 3600.0
MAX_CONFLICTS = 1024


class Pairing:
    """Ends what is one too many. The rule itself is ``core/collision.py``'s."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        # Node id → until when, and how long it was held.
        self._conflicts: dict[str, tuple[float, float]] = {}

    def joined(self, connection: Connection, lost: list[bytes]) -> None:
        """A connection to a proven node is open. ``lost``: those that its far end says are dead."""
        peer = connection.peer
        self.far_end_lost(peer, lost)
        for other in list(peer.connections):
            if other.session is not peer.session and other.state is not State.DRAINING:
                # A process that is gone, or one too many. Only its answer to this tells.
                other.set_state(State.DRAINING)
                other.challenge()
                other.set_aside = True
            elif other.session is peer.session and other.set_aside:
                # It was taken for an older process's, by a connection that came late. It cannot be
                # taken up again, and its far end has to know.
                other.set_aside = False
                self._board.loop.call_later(DRAIN_GRACE, _close, other)
        self.settle(peer)

    def settle(self, peer: Peer) -> None:
        """Keep one of the good connections; the node with the greater key ends the others."""
        surplus = self._board.delivery.settle(peer)
        best = peer.carrier
        if best is None:
            return
        for connection in surplus:
            if connection is not best and self._decides(connection):
                self.retire(connection, best)
        if best.state is State.LIVE:
            for other in list(peer.connections):
                if other.state is State.SUSPECT and other.session is peer.session:
                    self.retire(other, best)

    def _decides(self, connection: Connection) -> bool:
        """Of two nodes that may see things differently for a moment, one acts."""
        assert connection.peer.node_id is not None
        return public_key_of(self._board.node_id) >= public_key_of(connection.peer.node_id)

    def retire(self, connection: Connection, best: Connection | None) -> None:
        """No new sends; read on for a while; then close it."""
        if connection.state is State.DRAINING:
            return
        self._board.counters.replaced += 1
        if best is not None:
            self._inherit(connection, best)
        log.debug("replaced: %r by %r", connection, best)
        connection.set_state(State.DRAINING)
        connection.flush()
        self._board.loop.call_later(DRAIN_GRACE, _close, connection)

    def _inherit(self, old: Connection, new: Connection) -> None:
        """What was dialed to reach the old one is reached by the new one."""
        targets = (*old.endpoint.aliases, *((old.endpoint.target,) if old.endpoint.target else ()))
        for target in targets:
            self._board.table.alias(new, target)
        self._board.delivery.carry_on(new)

    def far_end_lost(self, peer: Peer, lost: list[bytes]) -> None:
        """The far ends of these connections are gone, which this side may not have noticed."""
        for connection in list(peer.connections):
            if connection.endpoint.connection_id in lost:
                self.retire(connection, None)

    def replaced(self, connection: Connection) -> None:
        """The peer has closed it because another connection stays."""
        carrier = connection.peer.carrier
        if carrier is not None and carrier is not connection:
            self._inherit(connection, carrier)

    # Identity conflicts --------------------------------------------------------------------------

    def in_conflict(self, node_id: str) -> bool:
        until, _ = self._conflicts.get(node_id, (0.0, 0.0))
        return self._board.loop.time() < until

    def second_process(self, connection: Connection) -> None:
        """A process has answered the question whether it is still there.

        First the one that seemed to have been replaced is asked; then the newcomer, which may
        have died since. Both answers together are a conflict.
        """
        peer = connection.peer
        if peer.node_id is None:
            return
        if connection.session is not peer.session:
            peer.witness = connection
            if peer.carrier is not None:
                peer.carrier.challenge()
            return
        witness = peer.witness
        if witness is None or witness.state is State.CLOSED or witness.session is peer.session:
            return
        self._remember(peer.node_id)
        self._board.counters.conflicts += 1
        log.error("two processes present node id %s (%r): closing both", peer.node_id, peer)
        for each in list(peer.connections):
            each.set_state(State.DRAINING)
            each.link.close(CONFLICT, "identity conflict: another process has this key")
        self._fail(peer, f"two processes present node id {peer.node_id}")

    def orphaned(self, peer: Peer) -> None:
        """What has replaced an older process is gone: if that one is still connected, it may begin anew."""
        if any(c.session is peer.session for c in peer.connections):
            return
        for connection in list(peer.connections):
            connection.link.close(NORMAL, "the process that replaced you is gone")

    def told_of_conflict(self, connection: Connection) -> None:
        """The peer has closed it because another process presents our identity."""
        peer, own = connection.peer, self._board.node_id
        log.error("%r says that another process has our key, node id %s", peer, own)
        self._board.counters.conflicts += 1
        self._fail(peer, f"another process presents our node id {own}")

    def _fail(self, peer: Peer, why: str) -> None:
        peer.not_before = self._board.loop.time() + CONFLICT_HOLD
        if peer.session is not None:
            self._board.delivery.drop(peer, lambda _: IdentityConflict(why), why)
        peer.requests.fail_all(IdentityConflict(why))

    def _remember(self, node_id: str) -> None:
        now = self._board.loop.time()
        until, hold = self._conflicts.pop(node_id, (0.0, 0.0))
        again = hold and now < until + hold
        hold = min(2 * hold, MAX_CONFLICT_HOLD) if again else CONFLICT_HOLD
        self._conflicts[node_id] = now + hold, hold
        if len(self._conflicts) > MAX_CONFLICTS:
            del self._conflicts[next(iter(self._conflicts))]


def _close(connection: Connection) -> None:
    if connection.state is not State.CLOSED:
        connection.flush()
        connection.link.close(REPLACED, "another connection stays")
