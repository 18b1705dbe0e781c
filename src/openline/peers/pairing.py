"""One connection per pair of processes, and one process per identity (rule 3.3)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..address import Address
from ..backends.base import CONFLICT, NORMAL, REPLACED
from ..connection.connection import Connection, State
from ..core.collision import DRAIN_GRACE
from ..core.handshake import Hello
from ..errors import IdentityConflict
from ..identity import public_key_of
from .table import Peer

if TYPE_CHECKING:
    from ..node import Switchboard

log = logging.getLogger("openline")

# Two processes with one identity: how long neither may connect, and its limit, as it doubles each
# time the conflict comes back. Long enough that it is no fight, short enough to recover by itself.
CONFLICT_HOLD = 30.0
MAX_CONFLICT_HOLD = 3600.0
MAX_CONFLICTS = 1024
_CUT = "identity conflict"


class Pairing:
    """Ends what is one too many. The rule itself is ``core/collision.py``'s."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        # Node id → until when, and how long it was held.
        self._conflicts: dict[str, tuple[float, float]] = {}

    def joined(self, connection: Connection, lost: list[bytes]) -> None:
        """A connection to a proven node is open. ``lost``: those that its far end says are dead."""
        peer = connection.peer
        if connection.session is not peer.session:
            self._expose(connection)
            return
        self.far_end_lost(peer, lost)
        for other in list(peer.connections):
            if _is_copy(other, connection):
                self._expose(other)
            elif other.session is not peer.session and other.state is not State.DRAINING:
                # A process that is gone, or one too many. Only its answer to this tells.
                other.set_state(State.DRAINING)
                other.challenge()
                other.set_aside = True
            elif other.session is peer.session and other.set_aside:
                # It was taken for an older process's, by a connection that came late. It cannot be
                # taken up again, and its far end has to know.
                other.set_aside = False
                self._board.loop.call_later(DRAIN_GRACE, _close, other)
            elif other is not connection and _dialed_twice(other, connection):
                other.double = connection
                other.challenge()
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
            if self._may_answer(target, new):
                self._board.table.alias(new, target)
        self._board.delivery.carry_on(new)

    def _may_answer(self, target: Address, connection: Connection) -> bool:
        """Never weaker than asked (rule 3.1): the certificate that ``target`` asks for has to have been
        shown on this very connection. That the node has shown it on another is not enough."""
        config, end = self._board.config, connection.endpoint
        if not target.tls:
            return True
        if target.scheme == "quic" and not config.certified:
            return end.secure
        if not end.certified or end.target is None:
            return False
        # A pin holds for every host; what a CA has signed names one.
        return bool(config.tls and config.tls.pins) or end.target.host == target.host

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
        double, connection.double = connection.double, None
        if double is not None and double.state is not State.CLOSED:
            self._conflict(peer)
            return
        if connection.session is not peer.session:
            peer.witness = connection
            if peer.carrier is not None:
                peer.carrier.challenge()
            return
        witness = peer.witness
        if witness is None or witness.state is State.CLOSED or witness.session is peer.session:
            return
        self._conflict(peer)

    def _conflict(self, peer: Peer) -> None:
        """Two processes are there, and nobody can tell which of them it should be."""
        assert peer.node_id is not None
        self._remember(peer.node_id)
        self._board.counters.conflicts += 1
        text = "two processes present node id %s (%r): closing both"
        self._board.log.about(peer, logging.ERROR, text, peer.node_id, peer)
        for each in list(peer.connections):
            each.set_state(State.DRAINING)
            each.link.close(CONFLICT, f"{_CUT}: another process has this key")
        self._fail(peer, f"two processes present node id {peer.node_id}")

    def is_copy(self, hello: Hello) -> bool:
        """Does it repeat the instance of a process whose session is here, though that may be gone?"""
        peer = self._board.table.node(hello.node_id)
        return (
            peer is not None
            and peer.session is not None
            and hello.is_copy(peer.session.process, *peer.former)
        )

    def on_copy(self, node_id: str, where: str) -> None:
        """Somebody at ``where`` has that node's key and repeats the instance of a process that he is not.

        Here it is certain who is genuine, so nothing happens to that one.
        """
        self._board.counters.conflicts += 1
        text = (
            "%s has the key of node %s and pretends to be a process of it that is known here: turned away. "
            "That key is stolen: replace it"
        )
        known = self._board.table.knows(node_id)
        self._board.log.line(node_id, known, logging.ERROR, text, where, node_id, most=1)

    def _expose(self, connection: Connection) -> None:
        """It was up, or nearly, before the process whose instance it repeats had signed for that."""
        peer, hello = connection.peer, connection.endpoint.hello
        assert hello is not None
        peer.former.pop(hello.process, None)
        self.on_copy(hello.node_id, connection.endpoint.remote)
        connection.set_state(State.DRAINING)

        def cut() -> None:
            connection.link.close(CONFLICT, f"{_CUT}: another process has signed for this instance")
            connection.link.abort()

        self._board.loop.call_soon(cut)  # its link may be on its way up

    def orphaned(self, peer: Peer) -> None:
        """What has replaced an older process is gone: if that one is still connected, it may begin anew."""
        if any(c.session is peer.session for c in peer.connections):
            return
        for connection in list(peer.connections):
            connection.link.close(NORMAL, "the process that replaced you is gone")

    def told_of_conflict(self, connection: Connection) -> None:
        """The peer has closed it because another process presents our identity."""
        peer, own = connection.peer, self._board.node_id
        text = "%r says that another process has our key, node id %s"
        self._board.log.about(peer, logging.ERROR, text, peer, own)
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
            # Whoever has keys can make conflicts: those of strangers go first.
            knows = self._board.table.knows
            strangers = (each for each in self._conflicts if not knows(each) and each != node_id)
            del self._conflicts[next(strangers, next(iter(self._conflicts)))]


def _is_copy(one: Connection, other: Connection) -> bool:
    """Does ``one`` only say that it is the process that ``other`` has proven to be?"""
    claimed, proven = one.endpoint.hello, other.endpoint.hello
    assert claimed is not None
    assert proven is not None
    return claimed.is_copy(proven.process)


def _dialed_twice(one: Connection, other: Connection) -> bool:
    """Are these two connections of a process that cannot prove itself (an older version) with one number?

    A process never uses a number of its dials again, so if both are there, they are two processes.
    """
    before, now = one.endpoint.hello, other.endpoint.hello
    assert before is not None
    assert now is not None
    inbound = one.endpoint.direction == other.endpoint.direction == "inbound"
    return inbound and not now.proven and before.process == now.process and before.dial == now.dial > 0


def _close(connection: Connection) -> None:
    if connection.stuck:
        connection.link.abort()  # a goodbye would not get through, either
    elif connection.state is not State.CLOSED:
        connection.flush()
        connection.link.close(REPLACED, "another connection stays")
