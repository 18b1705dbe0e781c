"""Whether a peer is there: the table, and what follows from a look at its connections (core/presence.py)."""

from __future__ import annotations

from typing import get_args

import pytest

from openline.core.presence import ABSENT, CONNECTED, NEXT, SHORTEST, SUSPECT, Look, Presence, Standing
from openline.peer import PeerEventKind

A, B = "websocket 10.0.0.2:8770", "quic 10.0.0.2:8770"
NOBODY = Look("", [], [], connected=False)


def seen(*good: str, doubted: tuple[str, ...] = (), process: str = "one", connected: bool = True) -> Look:
    return Look(process, list(good), list(doubted), connected)


def told(*looks: Look) -> list[list[PeerEventKind]]:
    standing = Standing()
    return [standing.look(look) for look in looks]


def test_the_table_has_every_kind_and_leads_everywhere() -> None:
    assert {kind for row in NEXT.values() for kind in row} == set(get_args(PeerEventKind))
    assert {state for row in NEXT.values() for state in row.values()} == set(Presence)


@pytest.mark.parametrize("start", Presence)
@pytest.mark.parametrize("end", Presence)
def test_the_shortest_way_leads_there_by_the_table(start: Presence, end: Presence) -> None:
    state = start
    for kind in SHORTEST.get((start, end), ()):
        state = NEXT[state][kind]
    assert state is end


def test_it_comes_and_goes() -> None:
    assert told(NOBODY, seen(A), seen(A), NOBODY, NOBODY, seen(A)) == [
        [],
        ["connected"],
        [],
        ["gone"],
        [],
        ["connected"],
    ]


def test_it_is_suspect_once_nothing_good_is_left_and_recovers() -> None:
    assert told(seen(A, B), seen(A, doubted=(B,)), seen(doubted=(A, B)), seen(doubted=(B,)), seen(B)) == [
        ["connected"],
        [],
        ["suspect"],
        [],
        ["recovered", "moved"],
    ]
    assert told(seen(A), seen(doubted=(A,)), NOBODY) == [["connected"], ["suspect"], ["gone"]]


def test_a_better_way_beside_one_that_is_good_is_nothing_to_tell() -> None:
    assert told(seen(A), seen(B, A), seen(B), seen(B)) == [["connected"], [], ["moved"], []]


def test_what_is_only_read_until_it_ends_makes_nobody_come_or_go() -> None:
    only_read = seen()
    assert told(only_read, seen(A), only_read, seen(A), NOBODY) == [[], ["connected"], [], [], ["gone"]]
    assert told(seen(A), seen(doubted=(A,)), only_read, NOBODY) == [["connected"], ["suspect"], [], ["gone"]]


@pytest.mark.parametrize("before", [seen(A), seen(doubted=(A,))])
def test_another_process_is_gone_and_connected(before: Look) -> None:
    assert told(seen(A), before, seen(B, process="two"))[-1] == ["gone", "connected"]


def test_another_process_that_is_not_good_at_once() -> None:
    assert told(seen(A), seen(doubted=(B,), process="two")) == [
        ["connected"],
        ["gone", "connected", "suspect"],
    ]


def test_another_process_after_it_was_gone_is_just_connected() -> None:
    assert told(seen(A), NOBODY, seen(A, process="two"))[-1] == ["connected"]


def test_the_state_is_what_was_told() -> None:
    standing = Standing()
    states = [standing.state]
    for look in (seen(A), seen(doubted=(A,)), seen(A), NOBODY):
        standing.look(look)
        states.append(standing.state)
    assert states == [ABSENT, CONNECTED, SUSPECT, CONNECTED, ABSENT]
