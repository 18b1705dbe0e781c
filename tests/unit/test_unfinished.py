"""One limit for what strangers have begun and not finished (rule 3.10)."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

import pytest

from openline.backends.base import Link
from openline.backends.pages import give_back, trim
from openline.backends.unfinished import FREE, Unfinished
from openline.config import Config

LIMIT = 1_000_000


class Holder:
    """As much of a link as counts."""

    def __init__(self, name: str = "", known: bool = False, ip: str = "10.0.0.1") -> None:
        self.endpoint = self
        self.ip = ip
        self.remote = name
        self.events = self
        self.known = known
        self.cuts: list[tuple[int, str]] = []

    def cut(self, code: int, reason: str) -> None:
        self.cuts.append((code, reason))


def holds(unfinished: Unfinished, holder: Holder, size: int) -> None:
    unfinished.set(cast(Link, holder), size)


async def test_within_the_limit_nobody_is_cut() -> None:
    unfinished, one, other = Unfinished(LIMIT), Holder(), Holder()
    holds(unfinished, one, LIMIT - 200_000)
    holds(unfinished, other, 200_000)
    assert unfinished.used == LIMIT
    assert not one.cuts + other.cuts
    holds(unfinished, one, 0)
    assert unfinished.used == 200_000
    unfinished.remove(cast(Link, other))
    assert unfinished.used == 0


async def test_whoever_holds_the_most_is_cut_and_of_several_the_one_that_came_first() -> None:
    unfinished = Unfinished(LIMIT)
    small, first, second = Holder(), Holder(), Holder()
    holds(unfinished, small, 50_000)
    holds(unfinished, first, 400_000)
    holds(unfinished, second, 450_000)
    holds(unfinished, small, 150_001)
    assert [len(holder.cuts) for holder in (small, first, second)] == [0, 1, 0]
    code, reason = first.cuts[0]
    assert code == 1009
    assert str(LIMIT) in reason
    assert (unfinished.used, unfinished.cut) == (600_001, 1)


async def test_many_from_one_place_do_not_have_those_of_others_cut() -> None:
    unfinished, honest = Unfinished(LIMIT), Holder(ip="10.0.0.2")
    holds(unfinished, honest, LIMIT // 3)
    crowd = [Holder() for _ in range(100)]
    for holder in crowd:
        holds(unfinished, holder, LIMIT // 50)
    assert not honest.cuts
    assert sum(len(holder.cuts) for holder in crowd) == unfinished.cut > 0


async def test_who_has_become_known_meanwhile_is_not_cut() -> None:
    unfinished, met = Unfinished(LIMIT), Holder()
    holds(unfinished, met, 900_000)
    met.known = True
    other = Holder()
    holds(unfinished, other, 500_000)
    assert not met.cuts + other.cuts
    assert unfinished.used == 500_000


async def test_a_little_is_free_and_a_known_peer_is_not_counted() -> None:
    unfinished, known = Unfinished(LIMIT), Holder(known=True)
    for _ in range(100):
        holds(unfinished, Holder(), FREE)
    holds(unfinished, known, 100 * LIMIT)
    assert unfinished.used == 0
    stranger = Holder()
    holds(unfinished, stranger, 500_000)
    stranger.known = True
    holds(unfinished, stranger, 600_000)
    assert unfinished.used == 0


async def test_many_cuts_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    unfinished = Unfinished(LIMIT)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            holds(unfinished, Holder(f"10.0.0.{number}:1"), LIMIT // 2)
    assert unfinished.cut == 98
    [record] = caplog.records
    assert "10.0.0.0:1" in record.getMessage()


def test_the_default_is_four_messages_of_full_size_and_their_overhead() -> None:
    config = Config(max_message_size=1000)
    assert 4 * 1000 < config.stranger_buffer <= 4 * (1000 + 65_536)
    assert Config(stranger_buffer_bytes=5).stranger_buffer == 5
    with pytest.raises(ValueError, match="stranger_buffer_bytes"):
        Config(stranger_buffer_bytes=0)


@pytest.mark.skipif(sys.platform != "linux", reason="others may take their time")
def test_pages_that_are_given_back_are_empty_and_can_be_used() -> None:
    buffer = bytearray(b"x" * 1_000_000)
    view: Any = memoryview(buffer)
    give_back(view[100_000:900_000])
    assert buffer[:100_000] == b"x" * 100_000
    assert buffer[900_000:] == b"x" * 100_000
    assert buffer.count(0) >= 780_000
    view[:] = b"y" * 1_000_000
    assert buffer.count(b"y") == 1_000_000
    for size in (0, 1, 4095, 8192):
        give_back(memoryview(bytearray(size)))
    trim()
