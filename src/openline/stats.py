"""Counters. ``Stats`` is the snapshot users get, readable as attributes and as a mapping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec


class Counters(msgspec.Struct):
    """What a transport counts since it was made."""

    created: int = 0  # outbound connections that opened
    accepted: int = 0  # inbound connections that opened
    closed: int = 0  # connections of either kind that ended
    dials: int = 0
    dial_failures: int = 0
    reuses: int = 0  # sends that rode a connection which was already there
    retries: int = 0  # sends that needed another connection
    evictions: int = 0  # connections taken out because they failed or were dead
    suspects: int = 0
    recoveries: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0  # of encoded messages
    bytes_received: int = 0
    malformed: int = 0  # messages and connections dropped for bad input
    turned_away: int = 0  # clients that found no room, because strangers have all of theirs
    crowded_out: int = 0  # connections closed to make room, or because their node had too many
    handler_errors: int = 0
    resent: int = 0  # messages written again, because their connection died before the acknowledgement
    forgotten: int = 0  # peers of which nothing is remembered any more, because others had no room
    duplicates_suppressed: int = 0  # messages that came again and were not handed over again
    replaced: int = 0  # connections closed because another one reaches the same process
    migrations: int = 0  # times that a connection went on from another address of the peer's
    conflicts: int = 0  # times that two processes presented one identity
    in_doubt: int = 0  # messages that left, or may have, and that nothing will ever confirm
    undelivered: int = 0  # received, but never taken by the program before close
    peer_events_missed: int = 0  # left out for an on_peer handler or peer_events() that was too slow


class Stats(Counters):
    """A snapshot: ``stats.created`` and ``stats["created"]`` are the same.

    ``active`` is the number of live connections, ``idle`` how many of them have carried nothing
    since the last liveness tick, ``pending_handshakes`` connections that are not open yet and
    ``handshakes_evicted`` those pushed out by a flood. ``strangers_cut`` counts connections cut because
    strangers together held too much that was not finished. ``backends`` counts the live connections by
    what really carries them. ``certificate_days`` is how long the certificate of ``Config.tls`` is
    good for, less than 0 when it has expired; None without one.
    """

    active: int = 0
    idle: int = 0
    pending_handshakes: int = 0
    handshakes_evicted: int = 0
    strangers_cut: int = 0
    backends: dict[str, int] = {}
    certificate_days: float | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__struct_fields__)

    def keys(self) -> tuple[str, ...]:
        """The names, so that ``dict(stats)`` works."""
        return self.__struct_fields__
