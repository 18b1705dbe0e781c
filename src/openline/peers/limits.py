"""How many connections others may have here, and who makes room (rule 3.10).

A connection costs a file descriptor, over QUIC some 55 KB. Strangers have a part of what there is, by
backend; the rest is for peers that this program knows, whoever dials, and for its own files. Where
strangers have all of theirs, the origin that has the most makes room for a newcomer from elsewhere, and
one of its own is turned away. What proves nothing is bounded per IP, too, and what does per node.
"""

from __future__ import annotations

import itertools
import logging
import sys
from typing import TYPE_CHECKING

from ..backends.base import REPLACED, TRY_AGAIN, End
from ..backends.descriptors import descriptors, max_pending
from ..config import Config
from ..core.fairshare import FairShare
from ..core.origin import origin
from ..receiving.throttle import PATIENCE

if TYPE_CHECKING:
    from ..connection.connection import Connection
    from ..node import Switchboard

# File descriptors that strangers leave alone: half of what there is, and no more than this.
RESERVE = 2048
# A QUIC connection takes four times the memory of another, and has no descriptor to bound it.
QUIC_PART = 4
# Connections of one node beside the best. Two nodes settle on one within a second or so (rule 3.3), and
# networks that come and go leave a few dead ones for a while. What is beyond ends the oldest of them,
# whichever side decides otherwise.
MAX_SURPLUS = 8
# Connections looked at for one that may go: rather one that has never brought a message than another.
LOOKED_AT = 32
# How often at most those are looked for that have become known meanwhile.
SWEEP_EVERY = 1.0


def max_strangers(config: Config, backend: str) -> int:
    if backend == "quic":
        return max(1, config.max_strangers // QUIC_PART)
    there = descriptors()
    return max(1, min(config.max_strangers, there - min(there // 2, RESERVE) - max_pending(config)))


class Limits:
    """Inbound connections that are no known peer's."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._strangers = {
            name: FairShare["Connection"](max_strangers(board.config, name)) for name in ("tcp", "quic")
        }
        self._unproven: FairShare[Connection] = FairShare(sys.maxsize)
        self._swept_at = float("-inf")

    def crowded(self, ip: str, backend: str, node_id: str | None = None) -> str | None:
        """Why there is no room for a client; None where there is, perhaps because another has made it.

        ``node_id`` is what it says, and has not proven yet.
        """
        if node_id is not None and self._knows(node_id):
            return None
        place = origin(ip)
        why = self._objection(place, backend, node_id)
        if why is not None:
            self._board.counters.turned_away += 1
            self._board.log.line(place, False, logging.WARNING, "no room for %s: %s", ip, why)
        return why

    def _knows(self, node_id: str) -> bool:
        return node_id in (self._board.config.allow or ()) or self._board.table.knows(node_id)

    def _objection(self, place: str, backend: str, node_id: str | None) -> str | None:
        board = self._board
        if board.inbox.waiting_of_strangers > (PATIENCE + 1) * board.config.strangers_inbox_bytes:
            return "too much that strangers have sent waits here"
        limit = board.config.max_connections_per_ip
        if node_id is None and self._unproven.used_by(place) >= limit:
            return f"{limit} connections from there that prove no node id"
        share = self._share(backend)
        if share.used < share.limit or self._end_spare(node_id):
            return None
        if self._make_room(share, place, node_id is not None):
            return None
        return f"{share.used} connections of strangers, and nobody elsewhere has more of them"

    def _share(self, backend: str) -> FairShare[Connection]:
        share = self._strangers["quic" if backend == "quic" else "tcp"]
        share.limit = max_strangers(self._board.config, backend)
        return share

    def _end_spare(self, node_id: str | None) -> bool:
        """Room for another connection of a node that has several."""
        peer = self._board.table.node(node_id) if node_id is not None else None
        spare = next((c for c in peer.connections if c is not peer.carrier), None) if peer else None
        if spare is not None:
            self._end(spare, REPLACED, "another connection stays")
        return spare is not None

    def _make_room(self, share: FairShare[Connection], place: str, proves: bool) -> bool:
        """By a connection of the origin that has the most. A newcomer from there takes the place of one
        that has never brought a message, if it proves itself."""
        self._sweep(share)
        if share.used < share.limit:
            return True
        largest = share.largest_origin()
        members = list(itertools.islice(share.of(largest), LOOKED_AT))
        silent = next((each for each in members if not each.peer.lanes), None)
        fuller = share.used_by(largest) > share.used_by(place) + 1
        victim = (silent or members[0]) if fuller else silent if proves else None
        if victim is None:
            return False
        self._end(victim, TRY_AGAIN, "others need the room")
        return True

    def _sweep(self, share: FairShare[Connection]) -> None:
        """Those of peers that have become known do not count."""
        now = self._board.loop.time()
        if now >= self._swept_at + SWEEP_EVERY:
            self._swept_at = now
            for connection in [each for each in share if each.peer.known]:
                share.remove(connection)

    def opened(self, connection: Connection) -> None:
        """Counted from now on; several may have come in at once for the last place."""
        end, peer = connection.endpoint, connection.peer
        if end.direction == "inbound" and not peer.known:
            place, share = origin(end.ip), self._share(connection.link.backend)
            share.set(connection, place, 1)
            if connection.plain:
                self._unproven.set(connection, place, 1)
            if share.used > share.limit:
                self._board.loop.call_soon(self._make_room, share, place, False)
        if len(peer.connections) > 1 + MAX_SURPLUS:
            self._board.loop.call_soon(self._thin, connection)

    def closed(self, connection: Connection) -> None:
        for share in (*self._strangers.values(), self._unproven):
            share.remove(connection)

    def _thin(self, newest: Connection) -> None:
        """A node with too many connections loses the oldest, except for the best and the newest."""
        peer = newest.peer
        spare = [c for c in peer.connections if c is not peer.carrier and c is not newest]
        for connection in spare[: max(0, len(peer.connections) - 1 - MAX_SURPLUS)]:
            self._end(connection, REPLACED, "another connection stays")

    def _end(self, connection: Connection, code: int, why: str) -> None:
        self._board.counters.crowded_out += 1
        self._board.log.about(connection.peer, logging.INFO, "closed %r: %s", connection, why)
        connection.link.close(code, why)
        connection.link.abort()
        connection.on_closed(End.by_us(code, why))
