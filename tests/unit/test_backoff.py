"""How long to wait before dialing again: exponential, full jitter, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.core.backoff import full_jitter

LOW, HIGH = 0.2, 30.0
failures = st.integers(0, 10**9)
chance = st.floats(0, 1, exclude_max=True)


@given(failures, chance)
def test_always_between_the_two_limits(count: int, random: float) -> None:
    assert LOW <= full_jitter(count, LOW, HIGH, random) <= HIGH


@given(failures, failures, chance)
def test_more_failures_never_wait_less(one: int, other: int, random: float) -> None:
    fewer, more = sorted((one, other))
    assert full_jitter(fewer, LOW, HIGH, random) <= full_jitter(more, LOW, HIGH, random)


@pytest.mark.parametrize(
    ("count", "ceiling"), [(0, 0.2), (1, 0.4), (2, 0.8), (7, 25.6), (8, 30), (10**9, 30)]
)
def test_the_ceiling_doubles_up_to_the_limit(count: int, ceiling: float) -> None:
    assert full_jitter(count, LOW, HIGH, 1.0) == pytest.approx(ceiling)


def test_the_jitter_is_full() -> None:
    """A fleet that lost the same peer spreads over the whole range, not just its upper end."""
    assert full_jitter(20, LOW, HIGH, 0.0) == LOW
    assert full_jitter(20, LOW, HIGH, 0.5) == pytest.approx((LOW + HIGH) / 2)


def test_equal_limits_leave_one_value() -> None:
    assert {full_jitter(n, 3.0, 3.0, 0.7) for n in range(5)} == {3.0}
