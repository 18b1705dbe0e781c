"""Events of peers that wait for a consumer which is too slow (core/backlog.py)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Peer, PeerEvent
from openline.core.backlog import STRANGERS_PART, Backlog
from openline.core.presence import NEXT, Presence
from openline.peer import PeerEventKind

LIMIT = 8
SHARE = LIMIT // STRANGERS_PART


class Crowd:
    """Peers in their states, and a consumer."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.backlog = Backlog(limit)
        self.peers: dict[str, Peer] = {}
        self.names: dict[Peer, str] = {}
        self.states: dict[str, Presence] = {}
        self.told: list[tuple[str, PeerEventKind]] = []
        self.taken: list[tuple[str, PeerEventKind]] = []
        self.missed = 0
        self.at = 0.0

    def tell(self, kind: PeerEventKind, *names: str) -> None:
        """Peers whose names are capitals are known."""
        nothing: Any = None
        for name in names:
            peer = self.peers.setdefault(name, Peer(nothing, nothing))
            self.names[peer] = name
            before = self.states.get(name, Presence.ABSENT)
            self.states[name] = NEXT[before][kind]
            self.at += 1.0
            self.told.append((name, kind))
            self.backlog.add(PeerEvent(kind, peer, "why", self.at), before, name.isupper())

    def take(self, count: int = 10_000) -> list[tuple[str, PeerEventKind]]:
        found = []
        while len(found) < count and (event := self.backlog.take()) is not None:
            found.append((self.names[event.peer], event.kind))
            self.missed += event.missed
        self.taken += found
        return found


def test_what_has_room_is_told_in_order() -> None:
    crowd = Crowd()
    crowd.tell("connected", "A", "B", "x")
    crowd.tell("suspect", "B")
    crowd.tell("gone", "A")
    assert crowd.take() == crowd.told
    assert not crowd.backlog
    assert crowd.backlog.take_dropped() == crowd.missed == 0


def test_who_comes_and_goes_unseen_is_not_told_of_and_leaves_nothing() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"abcdefgh")
    assert crowd.backlog.size == 8
    crowd.tell("gone", *"abcdefgh")
    assert crowd.backlog.size == SHARE * 2
    for _ in range(1000):
        crowd.tell("connected", "y")
        crowd.tell("gone", "y")
    assert crowd.backlog.size == SHARE * 2
    assert crowd.take() == [("a", "connected"), ("b", "connected"), ("a", "gone"), ("b", "gone")]
    assert crowd.missed == crowd.backlog.take_dropped() == 2 * 6 + 2000
    assert not crowd.backlog


def test_strangers_do_not_take_the_room_of_the_known() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"abcdefghijkl")
    crowd.tell("connected", *"ABC")
    crowd.tell("gone", *"CAB")
    assert [name for name, _ in crowd.take() if name.isupper()] == list("ABCCAB")


def test_the_outcome_is_made_up_for_when_there_is_room() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"ABCDEFGH")
    crowd.tell("connected", "I")
    crowd.tell("suspect", "I", "A")
    crowd.tell("recovered", "I")
    crowd.tell("moved", "I")
    assert crowd.backlog.behind
    assert crowd.take()[LIMIT:] == [("I", "connected"), ("A", "suspect")]
    assert crowd.missed == crowd.backlog.take_dropped() == 3
    assert not crowd.backlog.behind


def test_the_event_after_the_gap_says_how_many_are_missing() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"ABCDEFGHI")
    crowd.tell("gone", "I")
    first, second = crowd.backlog.take(), crowd.backlog.take()
    assert first is not None
    assert second is not None
    assert (first.missed, second.missed) == (2, 0)


def test_that_a_peer_was_gone_in_between_is_told() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"ABCDEFGH")
    crowd.tell("gone", "A")
    crowd.tell("connected", "A")
    crowd.tell("suspect", "A")
    crowd.tell("suspect", "B")
    crowd.tell("recovered", "B")
    assert crowd.take()[LIMIT:] == [("A", "gone"), ("A", "connected"), ("A", "suspect")]
    assert crowd.missed == 2


def test_strangers_that_go_on_coming_do_not_keep_back_what_was_put_off() -> None:
    crowd = Crowd()
    crowd.tell("connected", *"abc")
    for number in range(100):
        crowd.tell("connected" if number % 2 else "gone", "a")
        crowd.take(1)
    assert ("c", "connected") in crowd.taken


@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_who_is_no_longer_asked_has_nothing_left(limit: int) -> None:
    crowd = Crowd(limit)
    crowd.tell("connected", *"ABCDEabcde")
    assert crowd.backlog.clear() == 10
    assert not crowd.backlog
    assert crowd.backlog.take() is None


KINDS: list[PeerEventKind] = ["connected", "suspect", "recovered", "moved", "gone"]


def states(told: list[tuple[str, PeerEventKind]]) -> dict[str, Presence]:
    found: dict[str, Presence] = {}
    for name, kind in told:
        found[name] = NEXT[found.get(name, Presence.ABSENT)][kind]
    return found


def there(found: dict[str, Presence]) -> dict[str, Presence]:
    return {name: state for name, state in found.items() if state is not Presence.ABSENT}


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from("ABCDEFGHabcdefgh"), st.integers(0, 4)) | st.integers(1, 5)),
)
def test_each_peers_story_follows_the_table_and_ends_where_it_is(limit: int, steps: list[Any]) -> None:
    crowd = Crowd(limit)
    for step in steps:
        if isinstance(step, int):
            crowd.take(step)
        else:
            name, choice = step
            kinds = list(NEXT[crowd.states.get(name, Presence.ABSENT)])
            crowd.tell(kinds[choice % len(kinds)], name)
        # What waits, at most; and an entry for each peer that is there, or that it has been told of.
        known = len(there(crowd.states)) + len(there(states(crowd.taken))) + limit
        assert crowd.backlog.size <= limit + 2 + known
    crowd.take()
    assert not crowd.backlog
    assert there(states(crowd.taken)) == there(crowd.states)
    assert len(crowd.told) - len(crowd.taken) == crowd.backlog.take_dropped() >= crowd.missed
