"""Sessions over connections (rule 3.4): what is sent stays until it is acknowledged.

Each openline peer has one session per process of it. One of its connections is the *carrier*; when
the carrier changes, what is not acknowledged is sent again over the new one, and the receiving
side hands nothing over twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..address import Address
from ..backends.base import POLICY, End
from ..connection.connection import Connection, State
from ..connection.writer import Outlet
from ..core.collision import surplus, winner
from ..core.frames import Batched
from ..core.selection import Rank, Want, match
from ..core.session import Outgoing, Session
from ..errors import Error
from ..message import Message, StreamId
from .in_flight import Parcel
from .retention import Retention
from .table import Peer

if TYPE_CHECKING:
    from ..node import Switchboard

# Processes with one key that are remembered for a peer: two of them make a conflict soon.
MAX_FORMER = 4
# While closing: how often to look whether everything has been acknowledged.
DRAIN_LOOK = 0.005


class Delivery:
    """All sessions of one transport."""

    def __init__(
        self, board: Switchboard, stranded: Callable[[Peer], None], wall_clock: Callable[[], float]
    ) -> None:
        self._board = board
        # Told of a peer that has unacknowledged messages and no good connection.
        self._stranded = stranded
        self._unacked = board.unacked
        self.retention = Retention(self._push_out, board.loop.call_soon)
        # The last reading of the clock that goes on while the machine sleeps; and its progress.
        self._wall_clock = wall_clock
        self._wall, self._awake = wall_clock(), 0.0
        # New sessions begin above all numbers of those that have been forgotten.
        self._floor = 1
        self._limits = board.config.window_messages, board.config.window_bytes
        self._owing: dict[Connection, None] = {}
        self._flushing = False

    # Connections ---------------------------------------------------------------------------------

    def joined(self, connection: Connection) -> None:
        """A connection to a proven node is open: it belongs to the session with that process."""
        peer, hello = connection.peer, connection.endpoint.hello
        assert hello is not None
        self._look_at_the_clock(self._wall_clock())  # nothing goes out again that peers may have forgotten
        session = peer.session
        if session is not None and hello.is_copy(session.process, *peer.former):
            # Its process has come while it was dialed: this one shares nothing, and is cut (``Pairing``).
            connection.session, connection.positions = Session(hello.process, self._limits), {}
            return
        if session is None:
            session = peer.session = Session(hello.process, self._limits, self._floor)
        elif session.process != hello.process:
            session = self._restarted(peer, session, hello.process)
        # A sender that was cut off for longer than it says has given up.
        session.remembered_for = 2.0 * hello.resume
        connection.session = session
        connection.positions = {}
        self.retention.back(peer)

    def _restarted(self, peer: Peer, old: Session[Parcel], process: str) -> Session[Parcel]:
        """Another process with that identity: what the old one has not acknowledged is the new one's."""
        self._board.log.about(peer, logging.INFO, "%r is another process than before", peer)
        session = peer.former.pop(process, None) or Session(process, self._limits, old.floor)
        peer.former[old.process] = old
        if len(peer.former) > MAX_FORMER:
            del peer.former[next(iter(peer.former))]
        peer.session, peer.carrier = session, None
        for stream_id, out in old.unacked():
            _move(out, list(out.unacked), session.outgoing(stream_id))
            out.unacked.clear()
            out.size, out.acked = 0, out.next
        return session

    def settle(self, peer: Peer) -> list[Connection]:
        """Choose the carrier among the good connections; returns those that are one too many."""
        mine = [c for c in peer.connections if c.session is peer.session]
        rivals = [c for c in mine if c.state is State.LIVE and not c.link.closing]
        if not rivals:
            return []
        # What asks for a certificate may leave only over one that we have asked for it.
        own = [c for c in rivals if c.endpoint.certified]
        best = winner(self._board.node_id, peer.node_id or "", own or rivals)
        if best is not peer.carrier:
            self._carry(best, peer)
        self._board.recovery.waiting.look(peer)
        return surplus(best, rivals)

    def _carry(self, connection: Connection, peer: Peer) -> None:
        """``connection`` is the carrier from now on."""
        if peer.carrier is not None and peer.carrier is not connection:
            peer.carrier.pin_unacked()
        peer.carrier = connection
        # It says what it has stopped over each connection, and again over each new one.
        halts = connection.halts or {}
        for stream_id in [*peer.stopped, *halts]:
            peer.heed(halts, stream_id)
        connection.resume(lambda parcel: self._may_travel(parcel, connection))
        if connection.barred:
            self._stranded(peer)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        peer = connection.peer
        self._owing.pop(connection, None)
        if peer.carrier is connection:
            peer.carrier = None
            self.settle(peer)
        if not peer.connections:
            self._left(peer)
        if peer.carrier is None:
            self.check(peer)

    def _left(self, peer: Peer) -> None:
        """Its last connection has ended; its session waits for it, within bounds."""
        session = peer.session
        if session is None or not (session.out or session.expected or peer.former):
            self.forget(peer, "nothing was exchanged")
            return
        self.retention.left(peer, self._awake)

    def _push_out(self, peer: Peer, why: str) -> None:
        """It has to make room for others."""
        self._board.counters.forgotten += 1
        self._board.log.about(peer, logging.INFO, "forgotten: %r: %s", peer, why)
        for connection in list(peer.connections):
            connection.link.close(POLICY, why)
            connection.link.abort()
            connection.on_closed(End.by_us(POLICY, why))
        self.forget(peer, why)

    def carry_on(self, connection: Connection) -> None:
        """It answers for more than before: what was barred may travel now."""
        if connection is connection.peer.carrier and connection.barred:
            self._carry(connection, connection.peer)

    def check(self, peer: Peer) -> None:
        """Its carrier is gone, or not what it was: does something wait for another?"""
        if stranded(peer):
            self._stranded(peer)

    # Sending -------------------------------------------------------------------------------------

    def divert(self, chosen: Outlet, parcel: Parcel) -> bool:
        """``chosen`` reaches the peer and is not its carrier: the one that is to be takes the parcel."""
        assert isinstance(chosen, Connection)
        return self._carrier_for(chosen.peer, chosen, parcel).post(parcel)

    def _carrier_for(self, peer: Peer, chosen: Connection, parcel: Parcel) -> Connection:
        carrier = peer.carrier
        good = carrier is not None and carrier.usable and not carrier.link.closing
        if carrier is not None and good and self._may_travel(parcel, carrier):
            return carrier
        self._carry(chosen, peer)
        return chosen

    def _may_travel(self, parcel: Parcel, connection: Connection) -> bool:
        """Never weaker than asked (rule 3.1)."""
        return not _picky(parcel.address) or answers(parcel.address, connection, self._board.config.certified)

    def on_notes(self, connection: Connection, batch: Batched) -> bool:
        """Streams that go on over this connection, and acknowledgements. Raises ``Malformed``.

        True where something has been acknowledged that had not been.
        """
        news = False
        session = connection.session
        assert session is not None
        if batch.opens and connection.positions is not None:
            self._opened(connection, session.open(connection.positions, batch.opens))
        for stream_id, upto in batch.acks:
            out = session.out.get(stream_id)
            if out is None:
                continue
            before = out.acked
            done = out.ack(upto)
            if out.acked == before and not done:
                continue
            news = True
            if done and connection.peer.stopped and out.roomy:
                connection.peer.make_room(stream_id)
            for parcel in done:
                parcel.arrived(connection)
        return news

    def _opened(self, connection: Connection, forgotten: list[StreamId]) -> None:
        for other in connection.peer.connections if forgotten else ():
            for stream_id in forgotten if other.session is connection.session else ():
                (other.positions or {}).pop(stream_id, None)
        self.retention.weigh(connection.peer)

    # Receiving -----------------------------------------------------------------------------------

    def take(self, connection: Connection, messages: list[Message]) -> list[Message]:
        """Those that are new; all are to be acknowledged with the next frame. Raises ``Malformed``."""
        session, positions = connection.session, connection.positions
        assert session is not None
        assert positions is not None
        fresh, acks = session.accept(positions, messages)
        if connection.acks is None:
            connection.acks = acks
        else:
            connection.acks.update(acks)
        if len(fresh) != len(messages):
            self._board.counters.duplicates_suppressed += len(messages) - len(fresh)
        return fresh

    def owe(self, connection: Connection) -> None:
        """It has acknowledgements to send: with the next frame, or at the end of this loop turn."""
        self._owing[connection] = None
        if not self._flushing:
            self._flushing = True
            self._board.loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flushing = False
        owing, self._owing = self._owing, {}
        for connection in owing:
            connection.flush()

    # Time ----------------------------------------------------------------------------------------

    def tick(self, now: float, wall: float) -> None:
        """Give up what has waited too long, and forget peers that have been gone too long.

        ``wall`` is the time on the clock that goes on while the machine sleeps.
        """
        self._look_at_the_clock(wall)
        for peer in list(self._unacked):
            session = peer.session
            self._board.doubts.look(peer, now)
            if session is None or not session.has_unacked:
                del self._unacked[peer]
                self.retention.look(peer)
                continue
            if not peer.known:
                self.retention.look(peer)
            # Who waits is told at once, and may send again from there.
            for parcel in [p for _, out in session.unacked() for p in out.unacked if p.deadline <= now]:
                parcel.expire()
        patience = self._board.config.resume_timeout
        self.retention.tick(self._awake)
        for peer, since in list(self.retention.gone.items()):
            gone = self._awake - since
            if gone < patience:
                break  # the one that is gone longest comes first
            self._give_up(peer)
            if peer.session is not None and gone > max(patience, peer.session.remembered_for):
                self.forget(peer, f"gone for {gone:.0f} s")

    def _look_at_the_clock(self, wall: float) -> None:
        away = max(0.0, wall - self._wall)  # one that can be set may go back
        self._wall, self._awake = wall, self._awake + away
        if away > self._board.config.resume_timeout:
            self._was_away(away)

    def _was_away(self, seconds: float) -> None:
        """This process, or its machine, stood still for so long that peers may have forgotten it."""
        why = f"this side stood still for {seconds:.0f} s, longer than peers remember"
        for peer in self.unacked():
            self.drop(peer, lambda parcel: parcel.unconfirmed(why), why)

    def _give_up(self, peer: Peer) -> None:
        """It will not come back in time: its unacknowledged messages are in doubt for good."""
        if peer.session is not None and peer.session.has_unacked:
            why = f"the peer was out of reach for resume_timeout={self._board.config.resume_timeout:g} s"
            self.drop(peer, lambda parcel: parcel.unconfirmed(why), why)

    def drop(self, peer: Peer, error: Callable[[Parcel], Error], why: str) -> None:
        """Fail all that is unacknowledged; a later message to that process begins a new session."""
        session = peer.session
        assert session is not None
        if peer.carrier is not None:
            peer.carrier.pin_unacked()
        for stream_id, out in list(session.unacked()):
            failed = [(parcel, error(parcel), out.pending(parcel)) for parcel in out.unacked]
            out.unacked.clear()
            out.size, out.acked = 0, out.next
            peer.make_room(stream_id)
            for parcel, reason, messages in failed:
                parcel.set_exception(reason)
                self._board.doubt(peer, messages, why)
        self._unacked.pop(peer, None)

    def forget(self, peer: Peer, why: str) -> None:
        """The end of a session: numbers, and what has been received, are no longer known."""
        self.retention.ended(peer)
        if peer.session is None:
            return
        self.drop(peer, lambda parcel: parcel.unconfirmed(why), why)
        self._floor = max(self._floor, peer.session.floor)
        peer.session = None
        peer.former.clear()
        self._board.table.forget(peer)

    def move(self, peer: Peer, target: Address, new: Peer) -> None:
        """A dial of ``target`` has reached another node, and ``peer`` is gone: what was sent there is its.

        Unless both are alive and answer there in turn: then each gets its own.
        """
        if peer.session is None or new.session is None or peer is new or peer.connections:
            return
        if self._board.router.shared(target):
            return
        moved = False
        for stream_id, out in list(peer.session.unacked()):
            mine = [p for p in out.unacked if p.address == target and target.node_id is None]
            if mine:
                moved = True
                out.unacked = deque(p for p in out.unacked if p.address != target)
                out.size = sum(p.size for p in out.unacked)
                into = new.session.outgoing(stream_id)
                _move(out, mine, into)
                if new.carrier is not None:
                    new.carrier.forward(stream_id, into, mine)
                peer.make_room(stream_id)
                for parcel in mine:
                    parcel.moved(peer, new)
        if moved:
            text = "%r answers at %s in place of %r: it gets what was not acknowledged"
            self._board.log.about(new, logging.INFO, text, new, target, peer)
            self._unacked[new] = None
            self._board.recovery.waiting.look(peer)

    async def drain(self) -> None:
        """Wait until everything is acknowledged by the peers that are there; the caller bounds the time."""
        self.flush()
        while any(peer.connections for peer in self.unacked()):  # noqa: ASYNC110 - once, and bounded
            await asyncio.sleep(DRAIN_LOOK)

    def close(self) -> None:
        """Nothing is sent again from now on."""
        for peer in self.unacked():
            self.drop(peer, lambda parcel: parcel.unconfirmed("this side was closed"), "this side was closed")

    def unacked(self) -> list[Peer]:
        """Peers with something unacknowledged."""
        return [peer for peer in self._unacked if peer.session is not None and peer.session.has_unacked]


def stranded(peer: Peer) -> bool:
    """Does something unacknowledged wait for a connection?"""
    session, carrier = peer.session, peer.carrier
    if session is None or not session.has_unacked:
        return False
    if carrier is None or carrier.state is not State.LIVE:
        return True
    return any(stream_id in (carrier.barred or ()) for stream_id, _ in session.unacked())


def _move(old: Outgoing[Parcel], parcels: list[Parcel], new: Outgoing[Parcel]) -> None:
    for parcel in parcels:
        parcel.messages = old.pending(parcel)
        new.add(parcel)


def _picky(address: Address | None) -> bool:
    """Does this address ask for more than any connection to the right node?"""
    return address is not None and address.tls


def answers(address: Address | None, connection: Connection, certified: bool) -> bool:
    """Would a send to ``address`` be allowed to take this connection, as it is?"""
    if address is None:
        return True
    end = connection.endpoint
    return isinstance(match(Want(address, (end.ip,), certified=certified), end, [end]), Rank)
