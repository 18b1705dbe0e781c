"""Who sends and does not read (core/unread.py), and portions of what one brings (core/portion.py)."""

from __future__ import annotations

from openline.core.portion import FIRST, LEAST, MOST, TARGET, Portion
from openline.core.unread import Unread, Verdict


def looks(unread: Unread, taken: list[int], *, heard: bool = True) -> list[Verdict]:
    return [unread.look(each, heard) for each in taken]


def test_nothing_taken_stops_the_reading_and_then_cuts() -> None:
    found = looks(Unread(3, 6), [5] * 7)
    assert found == [Verdict.NONE] * 3 + [Verdict.STOP, Verdict.NONE, Verdict.NONE, Verdict.CUT]


def test_whoever_takes_a_little_now_and_then_is_read() -> None:
    assert set(looks(Unread(3, 6), [n // 3 for n in range(300)])) == {Verdict.NONE}


def test_whoever_reads_again_is_read_again() -> None:
    unread = Unread(3, 6)
    assert looks(unread, [5] * 5)[-2] is Verdict.STOP
    assert unread.look(6, True) is Verdict.GO
    assert looks(unread, [6] * 3) == [Verdict.NONE] * 2 + [Verdict.NONE]
    assert unread.look(6, True) is Verdict.STOP


def test_a_silent_peer_is_left_to_liveness() -> None:
    assert Verdict.STOP not in looks(Unread(3, 6), [5] * 6, heard=False)


def test_a_portion_finds_a_size_that_takes_its_time() -> None:
    portion = Portion()
    assert portion.size == FIRST
    for _ in range(20):
        portion.took(TARGET / 10)
    assert portion.size == MOST
    for _ in range(20):
        portion.took(TARGET * 10)
    assert portion.size == LEAST
    portion.took(TARGET / 2)
    assert portion.size == LEAST
