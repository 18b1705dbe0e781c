"""Pages of other sites: what a user's browser sends on their behalf is turned away."""

from __future__ import annotations

import pytest

from openline.backends.websocket.origins import may_connect

HOME = "127.0.0.1:8770"


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, HOME),
        (None, None),
        ("http://127.0.0.1:8000", HOME),
        ("https://127.0.0.1", HOME),
        ("http://localhost:3000", "localhost:8770"),
        ("http://[::1]:3000", "[::1]:8770"),
        ("http://10.0.0.5", "10.0.0.5:8770"),
        ("file://", HOME),
    ],
)
def test_programs_and_pages_of_the_same_host_may(origin: str | None, host: str | None) -> None:
    assert may_connect(origin, host, ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", HOME),
        ("null", HOME),
        ("", HOME),
        ("http://localhost:3000", HOME),
        ("http://10.0.0.5", HOME),
        # Its owner lets the name point here: both headers say the same.
        ("http://evil.example", "evil.example:8770"),
        ("http://127.0.0.1.evil.example", HOME),
        ("http://127.0.0.1@evil.example", HOME),
        ("http://[::1", "[::1]:8770"),
        ("http://127.0.0.1", None),
        ("http://127.0.0.1", ""),
    ],
)
def test_others_may_not(origin: str, host: str | None) -> None:
    assert not may_connect(origin, host, ())
    assert not may_connect(origin, host, ("https://good.example",))
    assert may_connect(origin, host, ("*",))


def test_those_that_are_listed_may() -> None:
    assert may_connect("https://good.example", HOME, ("https://good.example",))
    assert may_connect("null", HOME, ("null",))
    assert not may_connect("http://good.example", HOME, ("https://good.example",))
