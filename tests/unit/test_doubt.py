"""When a connection is doubted on which small things get through."""

import pytest

from openline.core.doubt import AGAIN, PATIENCE, ROUNDS, Doubt, Sending

HEAD, OTHER = object(), object()


def looks(*seen: tuple[float, object, int, int], rtt: float = 0.0) -> list[bool]:
    """Time, what waits longest, what has moved, and how often something was sent again."""
    doubt = Doubt()
    return [doubt.look(now, head, Sending(moved, again, rtt)) for now, head, moved, again in seen]


def test_nothing_moves_and_it_is_sent_again_and_again() -> None:
    assert looks((0, HEAD, 5, 0), (PATIENCE / 2, HEAD, 5, AGAIN), (PATIENCE, HEAD, 5, AGAIN)) == [
        False,
        False,
        True,
    ]


def test_a_peer_that_is_slow_is_not_doubted() -> None:
    """Its kernel has taken everything in."""
    assert looks((0, HEAD, 5, 0), (1000, HEAD, 5, 0), (2000, HEAD, 5, AGAIN - 1)) == [False] * 3


def test_losses_before_it_was_sent_do_not_count() -> None:
    assert looks((0, HEAD, 5, 100), (1000, HEAD, 5, 100 + AGAIN - 1)) == [False, False]


def test_bytes_that_move_below_are_progress() -> None:
    """A long message on a slow and lossy link."""
    assert not any(looks(*[(now, HEAD, now, 10 * now) for now in range(100)]))


def test_an_acknowledgement_is_progress() -> None:
    assert not any(looks(*[(now, (HEAD, OTHER)[now % 2], 5, 10 * now) for now in range(100)]))


def test_what_rises_and_falls_is_no_progress_until_it_is_above_what_it_was_last() -> None:
    """More has been written behind what does not get through."""
    assert looks((0, HEAD, -10, 0), (1, HEAD, -20, 5), (2, HEAD, -30, 9))[-1]
    assert not looks((0, HEAD, -10, 0), (1, HEAD, -30, 5), (2, HEAD, -20, 9))[-1]


def test_it_is_trusted_again_as_soon_as_something_moves() -> None:
    seen = [(0, HEAD, 5, 0), (2, HEAD, 5, 9), (3, HEAD, 6, 10), (3.5, HEAD, 6, 20)]
    assert looks(*seen) == [False, True, False, False]


@pytest.mark.parametrize("rtt", [0.5, 3.0])
def test_long_round_trips_have_more_time(rtt: float) -> None:
    seen = [(0, HEAD, 5, 0), (ROUNDS * rtt - 0.01, HEAD, 5, 50), (ROUNDS * rtt, HEAD, 5, 50)]
    assert looks(*seen, rtt=rtt) == [False, False, True]
