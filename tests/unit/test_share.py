"""Bytes that many holders take from one limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openline.core.share import Share


def test_nobody_pays_within_the_limit() -> None:
    share: Share[str] = Share(100)
    share.set("a", 60)
    share.set("b", 40)
    assert share.excess() is None
    assert share.used == 100


def test_the_largest_pays_first() -> None:
    share: Share[str] = Share(100)
    share.set("old and small", 10)
    share.set("large", 90)
    share.set("new", 20)
    assert share.excess() == "large"
    share.remove("large")
    assert share.excess() is None


def test_of_about_equal_ones_the_one_that_came_first_pays() -> None:
    share: Share[str] = Share(100)
    for name in ("first", "second", "third"):
        share.set(name, 40)
    share.set("second", 41)
    assert share.excess() == "first"


def test_nothing_held_is_nothing_remembered() -> None:
    share: Share[str] = Share(0)
    share.set("a", 5)
    share.set("a", 0)
    share.remove("never there")
    assert (len(share), share.used, share.excess()) == (0, 0, None)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5000))))
def test_it_counts_right_and_names_one_of_the_largest(changes: list[tuple[int, int]]) -> None:
    share: Share[int] = Share(1000)
    model: dict[int, int] = {}
    for holder, size in changes:
        share.set(holder, size)
        model[holder] = size
        assert share.used == sum(model.values())
        assert len(share) == sum(size > 0 for size in model.values())
        chosen = share.excess()
        if share.used > 1000:
            assert chosen is not None
            assert model[chosen].bit_length() == max(model.values()).bit_length()
        else:
            assert chosen is None
