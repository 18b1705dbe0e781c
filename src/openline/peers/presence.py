"""Whether a peer is there: looks at its connections, and tells what has changed (``core/presence.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lifecycle import State
from ..core.presence import CONNECTED, NEXT, Look, Standing
from ..peer import PeerEventKind
from .part import Part

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection
    from .services import Services


class PeerPresence(Part):
    """Of one peer."""

    __slots__ = ("_ended", "_services", "_standing")

    def __init__(self, remote: Remote, services: Services) -> None:
        super().__init__(remote)
        self._services = services
        self._standing = Standing()
        # How what last reached it has ended, if nothing else is good since.
        self._ended = ""

    def lost(self, connection: RemoteConnection, why: str) -> None:
        """A connection to it has ended, or is used no more."""
        if _way(connection) == self._standing.way:
            self._ended = why
        self.look(why)

    def look(self, ended: str = "") -> None:
        """Connections to it have come, changed or ended (how: ``ended``)."""
        standing = self._standing
        before, process, way = standing.state, standing.process, standing.way
        seen = self._seen()
        told = standing.look(seen)
        if told and self._services.watching.watched:
            other = seen.connected and seen.process != process
            for kind in told:
                why = self._why(kind, way, other, ended)
                self._services.watching.tell(self.remote, kind, why, before)
                before = NEXT[before][kind]
        if standing.state is CONNECTED:
            self._ended = ""

    def _seen(self) -> Look:
        remote = self.remote
        session, carrier = remote.outstanding.session, remote.paths.carrier
        good: list[str] = []
        doubted: list[str] = []
        for connection in remote.connections:
            # One of another session is an older process's, or somebody's who only says that he is this one.
            if connection.session is not session:
                continue
            if connection.state is State.LIVE:
                good.insert(0 if connection is carrier else len(good), _way(connection))
            elif connection.state is State.SUSPECT:
                doubted.append(_way(connection))
        process = session.process if session is not None else ""
        return Look(process, good, doubted, remote.connected)

    def _why(self, kind: PeerEventKind, before: str, other_process: bool, ended: str) -> str:
        """A text for people. ``before``: what reached it until now."""
        way = self._standing.way
        if kind == "gone":
            return (
                "its process is another one than before" if other_process else self._ended or ended or "lost"
            )
        if kind == "suspect":
            return f"{self._ended}; {self._doubt()}" if self._ended else self._doubt()
        if kind == "moved":
            return f"reached by {way} now, by {before} before"
        if kind == "connected":
            return f"{'dialed' if self._dialed(way) else 'it came in'}: {way}"
        return f"reached by {way}"

    def _dialed(self, way: str) -> bool:
        return any(_way(c) == way and c.endpoint.direction == "outbound" for c in self.remote.connections)

    def _doubt(self) -> str:
        doubted = [c for c in self.remote.connections if c.state is State.SUSPECT]
        stuck = next((_way(connection) for connection in doubted if connection.stuck), None)
        if stuck is not None:
            return f"what is sent by {stuck} does not get through"
        return f"no answer by {_way(doubted[0])}"


def _way(connection: RemoteConnection) -> str:
    return f"{connection.link.backend} {connection.endpoint.remote}"
