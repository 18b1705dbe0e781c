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
from collections.abc import Callable

from ..backends.base import REPLACED, TRY_AGAIN, End
from ..backends.descriptors import descriptors, max_pending
from ..config import Config
from ..connection.context import Context
from ..core.fairshare import FairShare
from ..core.origin import origin
from .remote import RemoteConnection
from .table import Table

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

    def __init__(self, context: Context, inbox_full: Callable[[], bool]) -> None:
        """``inbox_full()``: do strangers have more waiting in the inbox than they may?"""
        self._context = context
        self._table: Table
        self._inbox_full = inbox_full
        self._strangers = {
            name: FairShare[RemoteConnection](max_strangers(context.config, name)) for name in ("tcp", "quic")
        }
        self._unproven: FairShare[RemoteConnection] = FairShare(sys.maxsize)
        self._swept_at = float("-inf")

    def bind(self, table: Table) -> None:
        """Before there is any connection."""
        self._table = table

    def crowded(self, ip: str, backend: str, node_id: str | None = None) -> str | None:
        """Why there is no room for a client; None where there is, perhaps because another has made it.

        ``node_id`` is what it says, and has not proven yet.
        """
        if node_id is not None and self._knows(node_id):
            return None
        place = origin(ip)
        why = self._objection(place, backend, node_id)
        if why is not None:
            self._context.counters.turned_away += 1
            self._context.log.line(place, False, logging.WARNING, "no room for %s: %s", ip, why)
        return why

    def _knows(self, node_id: str) -> bool:
        return node_id in (self._context.config.allow or ()) or self._table.knows(node_id)

    def _objection(self, place: str, backend: str, node_id: str | None) -> str | None:
        if self._inbox_full():
            return "too much that strangers have sent waits here"
        limit = self._context.config.max_connections_per_ip
        if node_id is None and self._unproven.used_by(place) >= limit:
            return f"{limit} connections from there that prove no node id"
        share = self._share(backend)
        if share.used < share.limit or self._end_spare(node_id):
            return None
        if self._make_room(share, place, node_id is not None):
            return None
        return f"{share.used} connections of strangers, and nobody elsewhere has more of them"

    def _share(self, backend: str) -> FairShare[RemoteConnection]:
        share = self._strangers["quic" if backend == "quic" else "tcp"]
        share.limit = max_strangers(self._context.config, backend)
        return share

    def _end_spare(self, node_id: str | None) -> bool:
        """Room for another connection of a node that has several."""
        remote = self._table.node(node_id) if node_id is not None else None
        spare = (
            next((c for c in remote.connections if c is not remote.paths.carrier), None) if remote else None
        )
        if spare is not None:
            self._end(spare, REPLACED, "another connection stays")
        return spare is not None

    def _make_room(self, share: FairShare[RemoteConnection], place: str, proves: bool) -> bool:
        """By a connection of the origin that has the most. A newcomer from there takes the place of one
        that has never brought a message, if it proves itself."""
        self._sweep(share)
        if share.used < share.limit:
            return True
        largest = share.largest_origin()
        members = list(itertools.islice(share.of(largest), LOOKED_AT))
        silent = next((each for each in members if not each.remote.mailboxes.by_stream), None)
        fuller = share.used_by(largest) > share.used_by(place) + 1
        victim = (silent or members[0]) if fuller else silent if proves else None
        if victim is None:
            return False
        self._end(victim, TRY_AGAIN, "others need the room")
        return True

    def _sweep(self, share: FairShare[RemoteConnection]) -> None:
        """Those of peers that have become known do not count."""
        now = self._context.loop.time()
        if now >= self._swept_at + SWEEP_EVERY:
            self._swept_at = now
            for connection in [each for each in share if each.remote.known]:
                share.remove(connection)

    def opened(self, connection: RemoteConnection) -> None:
        """Counted from now on; several may have come in at once for the last place."""
        end, remote = connection.endpoint, connection.remote
        if end.direction == "inbound" and not remote.known:
            place, share = origin(end.ip), self._share(connection.link.backend)
            share.set(connection, place, 1)
            if connection.plain:
                self._unproven.set(connection, place, 1)
            if share.used > share.limit:
                self._context.loop.call_soon(self._make_room, share, place, False)
        if len(remote.connections) > 1 + MAX_SURPLUS:
            self._context.loop.call_soon(self._thin, connection)

    def closed(self, connection: RemoteConnection) -> None:
        for share in (*self._strangers.values(), self._unproven):
            share.remove(connection)

    def _thin(self, newest: RemoteConnection) -> None:
        """A node with too many connections loses the oldest, except for the best and the newest."""
        remote = newest.remote
        spare = [c for c in remote.connections if c is not remote.paths.carrier and c is not newest]
        for connection in spare[: max(0, len(remote.connections) - 1 - MAX_SURPLUS)]:
            self._end(connection, REPLACED, "another connection stays")

    def _end(self, connection: RemoteConnection, code: int, why: str) -> None:
        self._context.counters.crowded_out += 1
        self._context.log.about(connection.remote, logging.INFO, "closed %r: %s", connection, why)
        connection.link.close(code, why)
        connection.link.abort()
        connection.on_closed(End.by_us(code, why))
