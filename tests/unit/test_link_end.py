"""How a link ended: who ended it, the code, and what people read."""

from __future__ import annotations

import pytest

from openline.backends.base import By, End


def test_the_texts_say_who_and_why() -> None:
    assert End.by_us(1001).text == "closed by this side"
    assert End.by_us(4001, "crowded").text == "closed by this side: crowded"
    assert End.by_peer(1001, "closing").text == "the peer closed it (1001: closing)"
    assert End.by_peer(0, "").text == "the peer closed it (0)"
    assert End.bad_input(1002, "nonsense").text == "bad input: nonsense"
    assert End.lost("connection lost").text == "connection lost"


def test_a_text_is_not_what_it_is_known_by() -> None:
    """A peer may write what it likes into its goodbye."""
    end = End.by_peer(4002, "bad input: closed by this side")
    assert (end.by, end.code) == (By.PEER, 4002)
    assert End.lost("the peer closed it (1001)").code is None


@pytest.mark.parametrize(
    ("end", "clean"),
    [
        (End.by_us(4001), True),
        (End.by_peer(0, ""), True),
        (End.by_peer(1000, ""), True),
        (End.by_peer(1009, "too big"), True),
        (End.by_peer(1013, "no room"), False),
        (End.by_peer(4001, "replaced"), False),
        (End.bad_input(1002, "nonsense"), False),
        (End.lost("connection lost"), False),
    ],
)
def test_after_a_clean_end_nothing_is_in_doubt(end: End, clean: bool) -> None:
    assert end.clean is clean
