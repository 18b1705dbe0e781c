"""One limit, shared between origins first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openline.core.fairshare import FairShare


def test_a_crowd_of_one_place_pays_before_a_larger_one_of_another() -> None:
    share: FairShare[str] = FairShare(1000)
    share.set("honest", "10.0.0.1", 300)
    for number in range(100):
        share.set(f"key {number}", "10.6.6.6", 10)
    assert share.excess() == "key 0"
    share.remove("key 0")
    share.set("honest", "", 400)
    assert share.excess() == "key 1"


def test_of_one_place_the_largest_pays_first_and_then_the_oldest() -> None:
    share: FairShare[str] = FairShare(100)
    for name, size in (("first", 40), ("large", 90), ("last", 40)):
        share.set(name, "here", size)
    paid = []
    while (holder := share.excess()) is not None:
        paid.append(holder)
        share.remove(holder)
    assert paid == ["large"]
    share.set("large", "here", 63)
    assert share.excess() == "first"


def test_nobody_pays_within_the_limit_and_it_can_change() -> None:
    share: FairShare[str] = FairShare(100)
    share.set("a", "x", 100)
    assert share.excess() is None
    share.limit = 99
    assert share.excess() == "a"
    share.remove("a")
    assert share.excess() is None
    assert (len(share), share.used, list(share), "a" in share) == (0, 0, [], False)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 100))))
def test_it_always_adds_up(steps: list[tuple[int, int, int]]) -> None:
    share: FairShare[int] = FairShare(150)
    model: dict[int, int] = {}
    for holder, origin, size in steps:
        share.set(holder, str(origin), size)
        model.pop(holder, None)
        if size:
            model[holder] = size
        assert share.used == sum(model.values())
        assert set(share) == set(model)
        assert all(share.held_by(each) == model[each] for each in model)
        assert (share.excess() in model) == (share.used > 150)
