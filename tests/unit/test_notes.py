"""What a connection owes its peer and cannot write (core/notes.py)."""

from __future__ import annotations

from openline.core.frames import HEADROOM, Batched, Flow, Listening, decode_frame
from openline.core.notes import PENDING_BYTES, Acks, Owed, Stops
from openline.message import StreamId


def all_of(acks: Acks, expected: dict[StreamId, int]) -> list[dict[StreamId, int]]:
    frames = []
    while acks:
        frames.append(acks.take(expected))
    return frames


def test_of_each_stream_the_newest_acknowledgement_is_kept() -> None:
    acks = Acks()
    positions: dict[StreamId, int] = {"a": 9, 3: 2}
    for number in range(2, 10):
        acks.add({"a": number}, positions)
    acks.add({3: 2}, positions)
    assert all_of(acks, {"a": 9, 3: 2}) == [{"a": 9, 3: 2}]


def test_too_many_names_become_an_acknowledgement_of_all_that_is_open() -> None:
    acks = Acks()
    names = [chr(0x10000 + n) * 1024 for n in range(100)]
    positions: dict[StreamId, int] = dict.fromkeys(names, 1)
    for number in range(2, 50):
        for name in names:
            positions[name] = number
            acks.add({name: number}, positions)
    kept = [name for name in names if name in acks._pending]
    assert sum(4 * len(name) for name in kept) <= PENDING_BYTES
    told: dict[StreamId, int] = {}
    for taken in all_of(acks, dict(positions)):
        assert sum(4 * len(str(name)) for name in taken) < 3 * PENDING_BYTES
        told |= taken
    assert told == positions


def test_what_has_come_over_another_connection_is_not_acknowledged_over_this_one() -> None:
    acks = Acks()
    positions: dict[StreamId, int] = dict.fromkeys(range(10000), 5)
    acks.add(dict.fromkeys(range(10000), 5), positions)
    told: dict[StreamId, int] = {}
    for taken in all_of(acks, dict.fromkeys(range(10000), 8)):
        told |= taken
    assert set(told.values()) == {5}


def test_a_connection_that_takes_in_no_more_keeps_all_of_them() -> None:
    acks = Acks()
    acks.add(dict.fromkeys(range(10000), 2), None)
    told: dict[StreamId, int] = {}
    for taken in all_of(acks, {}):
        told |= taken
    assert len(told) == 10_000


def test_a_stop_that_was_taken_back_before_it_was_said_is_not_said() -> None:
    stops = Stops()
    stops.set("a", True, False)
    stops.set("a", False, False)
    stops.set("b", False, False)
    assert not stops


def test_stops_are_said_once_each_and_in_their_last_form() -> None:
    stops = Stops()
    stops.set("a", True, False)
    stops.set("b", True, False)
    stops.set("a", True, True)
    assert sorted([stops.take(), stops.take()]) == [("a", True, True), ("b", True, False)]
    stops.set("a", True, True)
    assert not stops
    stops.set("a", False, False)
    assert stops.take() == ("a", False, False)


def test_all_that_is_owed_has_its_frame() -> None:
    owed = Owed()
    assert not owed
    owed.acks.add({"a": 7}, {"a": 7})
    owed.stops.set("a", True, False)
    owed.listen((1, 2))
    frames = []
    while owed:
        frame = owed.frame({"a": 7})
        assert frame is not None
        frames.append(decode_frame(memoryview(frame)[HEADROOM:]))
    assert frames == [Batched([], (("a", 7),)), Flow("a", True), Listening((1, 2))]
