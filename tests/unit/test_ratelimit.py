"""Which log lines are written, and what is said of those that are not."""

from __future__ import annotations

import pytest

from openline.core.origin import origin
from openline.core.ratelimit import LINES_PER_KIND, MAX_SOURCES, STRANGERS_LINES, WINDOW, LogLimit, Sum
from openline.core.text import printable, printable_lines


def test_a_few_of_a_kind_and_then_their_number() -> None:
    limit: LogLimit[str] = LogLimit()
    written = [limit.allows(at / 1000, "10.0.0.5", "bad frame", False) for at in range(2438)]
    assert written == [True] * LINES_PER_KIND + [False] * (2438 - LINES_PER_KIND)
    assert limit.sums(WINDOW - 0.001) == []
    assert limit.sums(WINDOW) == [Sum("bad frame", 2438 - LINES_PER_KIND, "10.0.0.5")]
    assert limit.sums(10 * WINDOW) == []
    assert limit.allows(10 * WINDOW, "10.0.0.5", "bad frame", False)


def test_kinds_and_sources_do_not_use_up_each_others() -> None:
    limit: LogLimit[str] = LogLimit()
    for _ in range(100):
        limit.allows(0.0, "a", "one", True)
    assert limit.allows(0.0, "a", "other", True)
    assert limit.allows(0.0, "b", "one", True)


def test_strangers_have_one_limit_together_and_those_who_are_known_do_not_share_it() -> None:
    limit: LogLimit[str] = LogLimit()
    written = sum(limit.allows(0.0, f"key {number}", "gone", False) for number in range(100_000))
    assert written == STRANGERS_LINES
    assert limit.allows(0.0, "friend", "gone", True)
    [told] = limit.sums(WINDOW)
    assert told.count == 100_000 - STRANGERS_LINES
    assert told.source == "others"


def test_the_tables_are_bounded_and_the_counts_exact() -> None:
    limit: LogLimit[str] = LogLimit()
    for known in (True, False):
        for number in range(10 * MAX_SOURCES):
            for _ in range(10):
                limit.allows(0.0, f"source {number}", "x", known)
        assert len(limit._counts[known]) <= MAX_SOURCES + 1
    written = MAX_SOURCES * LINES_PER_KIND + LINES_PER_KIND + STRANGERS_LINES
    assert sum(each.count for each in limit.sums(WINDOW)) == 200 * MAX_SOURCES - written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bob", "bob"),
        ("Müller 東京", "Müller 東京"),
        ("a\x1b[2J\r\nERROR b", "a[2JERROR b"),
        ("a\u202eb\u2066c\u200bd\x9be\u2028f", "abcdef"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_what_a_peer_writes_is_fit_to_be_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_breaks_are_spaces_where_they_separate() -> None:
    assert printable_lines("not\r\nallowed\x07\n") == "not allowed"


@pytest.mark.parametrize(
    ("ip", "payer"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("a client that has gone", "a client that has gone"),
        ("no:address", "no:address"),
    ],
)
def test_who_pays_for_an_address(ip: str, payer: str) -> None:
    assert origin(ip) == payer
