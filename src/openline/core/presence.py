"""Whether a peer is there, as its connections show it: a table of what follows on what. Pure."""

from __future__ import annotations

from enum import Enum

import msgspec

from ..peer import PeerEventKind as Kind


class Presence(Enum):
    """Of a peer, as seen from here."""

    ABSENT = "absent"
    CONNECTED = "connected"
    # It has connections, none of which is good.
    SUSPECT = "suspect"


ABSENT, CONNECTED, SUSPECT = Presence

# What can be told of a peer in a state, and in which state it is then.
NEXT: dict[Presence, dict[Kind, Presence]] = {
    ABSENT: {"connected": CONNECTED},
    CONNECTED: {"moved": CONNECTED, "suspect": SUSPECT, "gone": ABSENT},
    SUSPECT: {"recovered": CONNECTED, "gone": ABSENT},
}

# The shortest way from one state to another.
SHORTEST: dict[tuple[Presence, Presence], tuple[Kind, ...]] = {
    (ABSENT, CONNECTED): ("connected",),
    (ABSENT, SUSPECT): ("connected", "suspect"),
    (CONNECTED, SUSPECT): ("suspect",),
    (CONNECTED, ABSENT): ("gone",),
    (SUSPECT, CONNECTED): ("recovered",),
    (SUSPECT, ABSENT): ("gone",),
}


class Look(msgspec.Struct, frozen=True):
    """What there is of a peer's connections now.

    ``process`` tells the processes of one node apart. ``good`` and ``doubted`` are the ways (backend and
    remote address) of its connections that are live or suspect, the one that messages take first.
    ``connected``: is there any, be it one that is only read until it ends?
    """

    process: str
    good: list[str]
    doubted: list[str]
    connected: bool


class Standing:
    """What has been told of one peer: its state, in which process, and what reached it."""

    __slots__ = ("process", "state", "way")

    def __init__(self) -> None:
        self.state = ABSENT
        self.process = ""
        self.way = ""

    def look(self, seen: Look) -> list[Kind]:
        """What is to be told now; this counts as told.

        What reaches a peer stays the same as long as a connection there is good, also where a better one
        has come beside it. One that is only read until it ends makes nobody connected, and nobody gone.
        """
        told: list[Kind] = []
        if self.state is not ABSENT and (not seen.connected or seen.process != self.process):
            self._tell(told, "gone")
        if self.state is ABSENT and (seen.good or seen.doubted):
            self.process, self.way = seen.process, (seen.good or seen.doubted)[0]
            self._tell(told, "connected")
        if seen.good:
            if self.state is SUSPECT:
                self._tell(told, "recovered")
            if self.way not in seen.good:
                self.way = seen.good[0]
                self._tell(told, "moved")
        elif seen.doubted and self.state is CONNECTED:
            self._tell(told, "suspect")
        return told

    def _tell(self, told: list[Kind], kind: Kind) -> None:
        self.state = NEXT[self.state][kind]
        told.append(kind)
