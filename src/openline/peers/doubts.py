"""Connections on which what is sent does not get through: found, helped, and passed by (rule 3.1).

What is looked at is in ``core/doubt.py``. A doubted connection is suspect, whatever liveness says: so it
carries nothing new, other ways are dialed for what is stranded on it, and the proof of such a dial
names it to the far side, which gives it up as well (rule 3.3 is computed alike on both sides).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..connection.connection import Connection, State
from ..core.doubt import SMALL, Doubt
from ..message import StreamId
from .in_flight import Parcel
from .table import Peer

if TYPE_CHECKING:
    from ..node import Switchboard


class Doubts:
    """Looked at with every tick of the liveness clock, for peers with something unacknowledged."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._seen: dict[Connection, Doubt] = {}

    def look(self, peer: Peer, now: float) -> None:
        """Is its carrier to be doubted, or one that was doubted to be trusted again?"""
        for connection in list(peer.connections):
            if connection is peer.carrier or connection.stuck:
                self._look_at(connection, now)

    def _look_at(self, connection: Connection, now: float) -> None:
        head = _head(connection)
        if head is None:
            sending = None
        else:
            stream_id, parcel = head
            sending = connection.link.sending(connection.track_of(stream_id))
        if sending is None:
            self._seen.pop(connection, None)
            self._trust(connection)
            return
        doubt = self._seen.get(connection)
        if doubt is None:
            doubt = self._seen[connection] = Doubt()
        if not doubt.look(now, parcel, sending):
            self._trust(connection)
        elif not connection.stuck and connection.state is not State.DRAINING:
            self._suspect(connection)

    def _suspect(self, connection: Connection) -> None:
        connection.stuck = True
        self._board.counters.suspects += 1
        text = "suspect: %r is alive, but what is sent over it does not get through"
        self._board.log.about(connection.peer, logging.INFO, text, connection)
        connection.link.relieve()
        target = connection.endpoint.target
        if target is not None:
            self._board.backends.distrust(target, connection.link.backend)
        connection.set_state(State.SUSPECT)

    def _trust(self, connection: Connection) -> None:
        if connection.stuck and connection.state is State.SUSPECT:  # else it has been given up
            connection.stuck = False
            if not connection.liveness.suspect:
                self._board.watch.trust(connection)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self._seen.pop(connection, None)


def _head(connection: Connection) -> tuple[StreamId, Parcel] | None:
    """What was sent first, of all that is large and not acknowledged; and its stream."""
    session = connection.session
    waiting = list(session.unacked()) if session is not None else []
    size = sum(out.size for _, out in waiting)
    if connection.link.multiplexed:  # streams get on by themselves
        waiting = [(stream_id, out) for stream_id, out in waiting if out.size > SMALL]
    if not waiting or size <= SMALL:
        return None
    stream_id, out = min(waiting, key=lambda item: item[1].unacked[0].deadline - item[1].unacked[0].limit)
    return stream_id, out.unacked[0]
