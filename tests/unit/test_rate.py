"""How often a peer may ask for something (core/rate.py)."""

from __future__ import annotations

import pytest

from openline.core.frames import Malformed
from openline.core.rate import (
    CHANGE_BURST,
    CONTROL_BURST,
    CONTROL_EXCESS,
    CONTROL_RATE,
    Allowance,
    TokenBucket,
)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [2, 1, 0, -1]
    assert bucket.take(10.5) == -1
    assert bucket.take(1000.0) == 2


def test_a_clock_that_stands_still_gives_nothing() -> None:
    bucket = TokenBucket(rate=1000.0, burst=1.0, now=0.0)
    bucket.take(0.0)
    assert all(bucket.take(0.0) < 0 for _ in range(10))


def test_frames_within_the_rate_are_let_through_for_ever() -> None:
    allowance = Allowance(0.0)
    assert all(allowance.frame(n / CONTROL_RATE) for n in range(20_000))


def test_too_many_are_put_off_first_and_then_cost_the_connection() -> None:
    allowance = Allowance(0.0)
    taken = [allowance.frame(0.0) for _ in range(int(CONTROL_BURST + CONTROL_EXCESS))]
    assert taken == [True] * int(CONTROL_BURST) + [False] * int(CONTROL_EXCESS)
    with pytest.raises(Malformed):
        allowance.frame(0.0)


def test_what_waits_for_each_answer_is_slowed_down_and_never_cut() -> None:
    """Put off by 0.1 s each time it has been too fast."""
    allowance, now = Allowance(0.0), 0.0
    for _ in range(50_000):
        now += 0.00005 if allowance.frame(now) else 0.1


def test_changes_come_one_by_one_at_first_and_are_put_off_then() -> None:
    allowance = Allowance(0.0)
    assert [allowance.change(0.0) for _ in range(20)] == [n < CHANGE_BURST for n in range(20)]
    assert allowance.change(1.0)
    assert not allowance.change(1.0)
