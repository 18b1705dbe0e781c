"""In which states a connection and a transport can be, and what follows on what: tables. Pure."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Of a connection."""

    LIVE = "live"
    # Does not answer, or what is sent over it does not get through: not chosen while there is another.
    SUSPECT = "suspect"
    # No new sends; read until it ends.
    DRAINING = "draining"
    CLOSED = "closed"


# Whoever is draining has been given up for good: its far end may know.
NEXT: dict[State, frozenset[State]] = {
    State.LIVE: frozenset({State.SUSPECT, State.DRAINING, State.CLOSED}),
    State.SUSPECT: frozenset({State.LIVE, State.DRAINING, State.CLOSED}),
    State.DRAINING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


class Phase(Enum):
    """Of a transport; each is followed by the next one."""

    OPEN = 1
    # Nothing new is sent, dialed or let in; what is under way may end.
    CLOSING = 2
    # What openline peers send from now on is the next process's.
    LEAVING = 3
    # Nothing is sent or taken in.
    CLOSED = 4

    def __lt__(self, other: Phase) -> bool:
        return self.value < other.value
