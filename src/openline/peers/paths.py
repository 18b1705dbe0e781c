"""The connections of one peer: which of them carries its session, which are one too many (rule 3.3)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..address import Address
from ..backends.base import CONFLICT, NORMAL, REPLACED
from ..core.collision import DRAIN_GRACE, surplus, winner
from ..core.lifecycle import State
from ..core.selection import Rank, Want, match
from ..errors import IdentityConflict
from ..identity import public_key_of
from . import conflicts
from .in_flight import InFlight
from .part import Part

if TYPE_CHECKING:
    from .outstanding import Sent
    from .remote import Remote, RemoteConnection
    from .services import Services

log = logging.getLogger("openline")

# Connections named as lost when a peer is dialed again: what may have died unnoticed by the other
# side within its 15 s of patience.
MAX_LOST = 8


class Paths(Part):
    """Of one peer. ``connections`` are those that are live, in the order in which they opened."""

    __slots__ = (
        "_aside",
        "_double",
        "_services",
        "_witness",
        "carrier",
        "connections",
        "lost",
        "not_before",
    )

    def __init__(self, remote: Remote, services: Services) -> None:
        super().__init__(remote)
        self._services = services
        self.connections: list[RemoteConnection] = []
        # The one that carries the session.
        self.carrier: RemoteConnection | None = None
        # Connections to it that we have lost without a goodbye, by id; it may not have noticed.
        self.lost: tuple[bytes, ...] = ()
        # It said goodbye: nothing dials it by itself before then, on the loop's clock.
        self.not_before = 0.0
        # Those not used any more because another process with that key has come; and others that cannot
        # be of the same process, if the process behind the first one is still there.
        self._aside: set[RemoteConnection] = set()
        self._double: dict[RemoteConnection, RemoteConnection] = {}
        # A connection of an older process with its key, which has answered that it is still there.
        self._witness: RemoteConnection | None = None

    # What the carrier is -------------------------------------------------------------------------

    def no_carrier(self) -> None:
        """The one that was carries nothing any more."""
        self.carrier = None

    def carrier_for(self, chosen: RemoteConnection, sent: Sent) -> RemoteConnection:
        """Who is to take this: the carrier where it may, else ``chosen``, which becomes the carrier."""
        carrier = self.carrier
        good = carrier is not None and carrier.usable and not carrier.link.closing
        if carrier is not None and good and self.may_carry(sent, carrier):
            return carrier
        self._carry(chosen)
        return chosen

    def choose(self) -> list[RemoteConnection]:
        """Choose the carrier among the good connections; returns those that are one too many."""
        remote = self.remote
        mine = [c for c in self.connections if c.session is remote.outstanding.session]
        rivals = [c for c in mine if c.state is State.LIVE and not c.link.closing]
        if not rivals:
            return []
        # What asks for a certificate may leave only over one that we have asked for it.
        own = [c for c in rivals if c.endpoint.certified]
        best = winner(self._services.context.node_id, remote.node_id or "", own or rivals)
        if best is not self.carrier:
            self._carry(best)
        self._services.routing.look(remote)
        return surplus(best, rivals)

    def _carry(self, connection: RemoteConnection) -> None:
        """``connection`` is the carrier from now on."""
        remote = self.remote
        if self.carrier is not None and self.carrier is not connection:
            self.carrier.writer.pin_unacked()
        self.carrier = connection
        # It says what it has stopped over each connection, and again over each new one.
        for stream_id in [*remote.outstanding.gates, *connection.halts]:
            remote.outstanding.gates.heed(connection.halts, stream_id)
        remote.outstanding.resume(connection)
        if connection.writer.barred:
            self._services.routing.stranded(remote)

    def may_carry(self, sent: InFlight[object], connection: RemoteConnection) -> bool:
        """Never weaker than asked (rule 3.1)."""
        address, end = sent.address, connection.endpoint
        if address is None:
            return True
        if not address.tls:
            return not end.steps_down(address)
        want = Want(address, (end.ip,), certified=self._services.context.config.certified)
        return isinstance(match(want, end, [end]), Rank)

    def check(self) -> None:
        """The carrier is gone, or not what it was: does something wait for another?"""
        if self.remote.outstanding.stranded:
            self._services.routing.stranded(self.remote)

    # Connections come and go ---------------------------------------------------------------------

    def joined(self, connection: RemoteConnection, lost: list[bytes]) -> None:
        """A connection to a proven node is open. ``lost``: those that its far end says are dead."""
        session = self.remote.outstanding.session
        if connection.session is not session:
            self._expose(connection)
            return
        self.far_end_lost(lost)
        for other in list(self.connections):
            if _is_copy(other, connection):
                self._expose(other)
            elif other.session is not session and other.state is not State.DRAINING:
                # A process that is gone, or one too many. Only its answer to this tells.
                other.set_state(State.DRAINING)
                other.challenge()
                self._aside.add(other)
            elif other.session is session and other in self._aside:
                # It was taken for an older process's, by a connection that came late. It cannot be
                # taken up again, and its far end has to know.
                self._aside.discard(other)
                self._services.context.loop.call_later(DRAIN_GRACE, _close, other)
            elif other is not connection and _dialed_twice(other, connection):
                self._double[other] = connection
                other.challenge()
        self.settle()

    def settle(self) -> None:
        """Keep one of the good connections; the node with the greater key ends the others."""
        too_many = self.choose()
        best = self.carrier
        if best is None:
            return
        for connection in too_many:
            if connection is not best and self._decides():
                self.retire(connection, best)
        if best.state is State.LIVE:
            for other in list(self.connections):
                if other.state is State.SUSPECT and other.session is self.remote.outstanding.session:
                    self.retire(other, best)

    def _decides(self) -> bool:
        """Of two nodes that may see things differently for a moment, one acts."""
        assert self.remote.node_id is not None
        return public_key_of(self._services.context.node_id) >= public_key_of(self.remote.node_id)

    def retire(self, connection: RemoteConnection, best: RemoteConnection | None) -> None:
        """No new sends; read on for a while; then close it."""
        if connection.state is State.DRAINING:
            return
        context = self._services.context
        context.counters.replaced += 1
        if best is not None:
            self._inherit(connection, best)
        log.debug("replaced: %r by %r", connection, best)
        connection.set_state(State.DRAINING)
        connection.writer.flush()
        context.loop.call_later(DRAIN_GRACE, _close, connection)

    def _inherit(self, old: RemoteConnection, new: RemoteConnection) -> None:
        """What was dialed to reach the old one is reached by the new one."""
        targets = (*old.endpoint.aliases, *((old.endpoint.target,) if old.endpoint.target else ()))
        for target in targets:
            if self._may_answer(target, new):
                self._services.alias(new, target)
        if new is self.carrier and new.writer.barred:
            self._carry(new)  # it answers for more than before: what was barred may travel now

    def _may_answer(self, target: Address, connection: RemoteConnection) -> bool:
        """Never weaker than asked (rule 3.1): the certificate that ``target`` asks for has to have been
        shown on this very connection. That the node has shown it on another is not enough."""
        config, end = self._services.context.config, connection.endpoint
        if not target.tls:
            return True
        if target.scheme == "quic" and not config.certified:
            return end.secure
        if not end.certified or end.target is None:
            return False
        # A pin holds for every host; what a CA has signed names one.
        return bool(config.tls and config.tls.pins) or end.target.host == target.host

    def far_end_lost(self, lost: list[bytes]) -> None:
        """The far ends of these connections are gone, which this side may not have noticed."""
        for connection in list(self.connections):
            if connection.endpoint.connection_id in lost:
                self.retire(connection, None)

    def replaced(self, connection: RemoteConnection) -> None:
        """The peer has closed it because another connection stays."""
        if self.carrier is not None and self.carrier is not connection:
            self._inherit(connection, self.carrier)

    def lost_unnoticed(self, connection: RemoteConnection) -> None:
        """It has ended without a goodbye: its far end may still hold it."""
        if connection.endpoint.connection_id is not None:
            self.lost = (*self.lost, connection.endpoint.connection_id)[-MAX_LOST:]

    @property
    def dead_ends(self) -> list[bytes]:
        """Ids of connections that we have lost, or give up now, and that the peer may still hold."""
        suspects = [c.endpoint.connection_id for c in self.connections if c.state is State.SUSPECT]
        return [*self.lost, *(connection_id for connection_id in suspects if connection_id is not None)]

    def stay_away(self, until: float) -> None:
        """Nothing dials it by itself before then."""
        self.not_before = max(self.not_before, until)

    def ended(self, connection: RemoteConnection) -> None:
        """A connection of a session has ended: another one carries it, if there is one."""
        self._aside.discard(connection)
        self._double.pop(connection, None)
        if self.carrier is connection:
            self.carrier = None
            self.choose()
        if not self.connections:
            self._services.sessions.left(self.remote)
        if self.carrier is None:
            self.check()
        if self._witness is connection:
            self._witness = None
        self._orphaned()

    def gave_up_carrier(self) -> None:
        """The carrier is draining."""
        self.carrier = None
        self.choose()

    # Two processes with one key ------------------------------------------------------------------

    def challenge_met(self, connection: RemoteConnection) -> None:
        """A process has answered the question whether it is still there.

        First the one that seemed to have been replaced is asked; then the newcomer, which may
        have died since. Both answers together are a conflict.
        """
        if self.remote.node_id is None:
            return
        double = self._double.pop(connection, None)
        if double is not None and double.state is not State.CLOSED:
            self._conflict()
            return
        session = self.remote.outstanding.session
        if connection.session is not session:
            self._witness = connection
            if self.carrier is not None:
                self.carrier.challenge()
            return
        witness = self._witness
        if witness is None or witness.state is State.CLOSED or witness.session is session:
            return
        self._conflict()

    def _conflict(self) -> None:
        """Two processes are there, and nobody can tell which of them it should be."""
        remote = self.remote
        assert remote.node_id is not None
        self._services.conflicts.begin(remote.node_id)
        text = "two processes present node id %s (%r): closing both"
        self._services.context.log.about(remote, logging.ERROR, text, remote.node_id, remote)
        for each in list(self.connections):
            each.set_state(State.DRAINING)
            each.link.close(CONFLICT, f"{conflicts.CUT}: another process has this key")
        self._fail(f"two processes present node id {remote.node_id}")

    def told_of_conflict(self) -> None:
        """The peer has closed a connection because another process presents our identity."""
        context, own = self._services.context, self._services.context.node_id
        text = "%r says that another process has our key, node id %s"
        context.log.about(self.remote, logging.ERROR, text, self.remote, own)
        context.counters.conflicts += 1
        self._fail(f"another process presents our node id {own}")

    def _fail(self, why: str) -> None:
        self.not_before = self._services.context.loop.time() + conflicts.CONFLICT_HOLD
        if self.remote.outstanding.session is not None:
            self.remote.outstanding.drop(lambda _: IdentityConflict(why), why)
        self.remote.requests.fail_all(IdentityConflict(why))

    def _expose(self, connection: RemoteConnection) -> None:
        """It was up, or nearly, before the process whose instance it repeats had signed for that."""
        hello = connection.endpoint.hello
        assert hello is not None
        self.remote.outstanding.disown(hello.process)
        self._services.conflicts.on_copy(hello.node_id, connection.endpoint.remote)
        connection.set_state(State.DRAINING)

        def cut() -> None:
            connection.link.close(CONFLICT, f"{conflicts.CUT}: another process has signed for this instance")
            connection.link.abort()

        self._services.context.loop.call_soon(cut)  # its link may be on its way up

    def _orphaned(self) -> None:
        """What has replaced an older process is gone: if that one is still connected, it may begin anew."""
        session = self.remote.outstanding.session
        if any(c.session is session for c in self.connections):
            return
        for connection in list(self.connections):
            connection.link.close(NORMAL, "the process that replaced you is gone")


def _is_copy(one: RemoteConnection, other: RemoteConnection) -> bool:
    """Does ``one`` only say that it is the process that ``other`` has proven to be?"""
    claimed, proven = one.endpoint.hello, other.endpoint.hello
    assert claimed is not None
    assert proven is not None
    return claimed.is_copy(proven.process)


def _dialed_twice(one: RemoteConnection, other: RemoteConnection) -> bool:
    """Are these two connections of a process that cannot prove itself (an older version) with one number?

    A process never uses a number of its dials again, so if both are there, they are two processes.
    """
    before, now = one.endpoint.hello, other.endpoint.hello
    assert before is not None
    assert now is not None
    inbound = one.endpoint.direction == other.endpoint.direction == "inbound"
    return inbound and not now.proven and before.process == now.process and before.dial == now.dial > 0


def _close(connection: RemoteConnection) -> None:
    if connection.stuck:
        connection.link.abort()  # a goodbye would not get through, either
    elif connection.state is not State.CLOSED:
        connection.writer.flush()
        connection.link.close(REPLACED, "another connection stays")
