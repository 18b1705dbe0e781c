"""Connections on which what is sent does not get through: found, helped, and passed by (rule 3.1).

What is looked at is in ``core/doubt.py``. A doubted connection is suspect, whatever liveness says: so it
carries nothing new, other ways are dialed for what is stranded on it, and the proof of such a dial
names it to the far side, which gives it up as well (rule 3.3 is computed alike on both sides).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..address import Address
from ..connection.context import Context
from ..connection.events import Liveness
from ..core.doubt import SMALL, Doubt
from ..core.lifecycle import State
from ..message import StreamId
from .outstanding import Sent
from .remote import Remote, RemoteConnection


class Doubts:
    """Looked at with every tick of the liveness clock, for peers with something unacknowledged."""

    def __init__(
        self, context: Context, liveness: Liveness[Remote], distrust: Callable[[Address, str], None]
    ) -> None:
        """``distrust(address, backend)``: another backend is to be tried first where it was dialed."""
        self._context = context
        self._liveness = liveness
        self._distrust = distrust
        self._seen: dict[RemoteConnection, Doubt] = {}

    def look(self, remote: Remote, now: float) -> None:
        """Is its carrier to be doubted, or one that was doubted to be trusted again?"""
        for connection in list(remote.connections):
            if connection is remote.paths.carrier or connection.stuck:
                self._look_at(connection, now)

    def _look_at(self, connection: RemoteConnection, now: float) -> None:
        head = _head(connection)
        if head is None:
            sending = None
        else:
            stream_id, sent = head
            sending = connection.link.sending(connection.writer.track_of(stream_id))
        if sending is None:
            self._seen.pop(connection, None)
            self._trust(connection)
            return
        doubt = self._seen.get(connection)
        if doubt is None:
            doubt = self._seen[connection] = Doubt()
        if not doubt.look(now, sent, sending):
            self._trust(connection)
        elif not connection.stuck and connection.state is not State.DRAINING:
            self._suspect(connection)

    def _suspect(self, connection: RemoteConnection) -> None:
        connection.set_stuck(True)
        self._context.counters.suspects += 1
        text = "suspect: %r is alive, but what is sent over it does not get through"
        self._context.log.about(connection.remote, logging.INFO, text, connection)
        connection.link.relieve()
        target = connection.endpoint.target
        if target is not None:
            self._distrust(target, connection.link.backend)
        connection.set_state(State.SUSPECT)

    def _trust(self, connection: RemoteConnection) -> None:
        if connection.stuck and connection.state is State.SUSPECT:  # else it has been given up
            connection.set_stuck(False)
            if not connection.liveness.suspect:
                self._liveness.trust(connection)

    def forget(self, connection: RemoteConnection) -> None:
        """It has ended."""
        self._seen.pop(connection, None)


def _head(connection: RemoteConnection) -> tuple[StreamId, Sent] | None:
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
