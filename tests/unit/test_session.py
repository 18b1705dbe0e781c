"""Numbers and acknowledgements between two processes (rule 3.4), without connections or time."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from openline import InvalidMessage, Message
from openline.core import session as module
from openline.core.frames import Malformed
from openline.core.session import MAX_STREAM_NAME, Outgoing, Session, open_at
from openline.message import StreamId

from .memory import traced
from .sessions import LIMITS, SLACK, Parcel, message, sent, session


class Inbound:
    """A receiver's session, and what its program is given, over connections called by number."""

    def __init__(self) -> None:
        self.session = session()
        self.positions: dict[int, dict[StreamId, int]] = {}
        self.got: list[Any] = []

    def open(self, *opens: tuple[StreamId, int], on: int = 1) -> None:
        self.session.open(self.positions.setdefault(on, {}), opens)

    def take(self, *messages: Message, on: int = 1) -> dict[StreamId, int]:
        before = list(messages)
        acks: dict[StreamId, int] = {}
        fresh = self.session.accept(self.positions.setdefault(on, {}), list(messages), acks)
        assert before == list(messages)
        self.got += [each.payload for each in fresh]
        return acks


# Sending ------------------------------------------------------------------------------------------


def test_numbers_follow_one_another() -> None:
    out: Outgoing[Parcel] = Outgoing(7, LIMITS)
    parcels = sent(out, 1, 3, 1)
    assert [(parcel.first, parcel.end) for parcel in parcels] == [(7, 8), (8, 11), (11, 12)]
    assert (out.next, out.acked, out.size) == (12, 7, 50)


@pytest.mark.parametrize(
    ("upto", "complete", "acked", "size"),
    [
        (-(2**63), 0, 1, 60),
        (-1, 0, 1, 60),
        (0, 0, 1, 60),
        (1, 0, 1, 60),
        (2, 1, 2, 50),
        (3, 1, 3, 50),
        (4, 1, 4, 50),
        (5, 2, 5, 20),
        (6, 2, 6, 20),
        (7, 3, 7, 0),
    ],
)
def test_acknowledgements(upto: int, complete: int, acked: int, size: int) -> None:
    out: Outgoing[Parcel] = Outgoing(1, LIMITS)
    parcels = sent(out, 1, 3, 2)
    assert out.ack(upto) == parcels[:complete]
    assert (out.acked, out.size, list(out.unacked)) == (acked, size, parcels[complete:])
    assert out.ack(upto) == []


@pytest.mark.parametrize("upto", [8, 1000, 2**62, 2**63, 2**64 - 1])
def test_what_was_never_sent_cannot_be_acknowledged(upto: int) -> None:
    out: Outgoing[Parcel] = Outgoing(1, LIMITS)
    parcels = sent(out, 1, 3, 2)
    with pytest.raises(Malformed):
        out.ack(upto)
    assert (out.acked, list(out.unacked), out.size) == (1, parcels, 60)


def test_an_old_acknowledgement_is_no_news() -> None:
    out: Outgoing[Parcel] = Outgoing(1, LIMITS)
    parcels = sent(out, 2, 2)
    assert out.ack(3) == parcels[:1]
    assert out.ack(2) == []
    assert (out.acked, list(out.unacked)) == (3, parcels[1:])


def test_a_parcel_that_is_confirmed_in_part() -> None:
    out: Outgoing[Parcel] = Outgoing(1, LIMITS)
    (parcel,) = sent(out, 4)
    out.ack(3)
    assert [each.payload for each in out.pending(parcel)] == [2, 3]
    assert open_at(out) == 3
    out.ack(5)
    assert open_at(out) == 5 == out.next


@pytest.mark.parametrize(
    ("messages", "size", "full", "roomy"),
    [
        (1, 10, False, True),
        (4, 40, False, True),
        (5, 50, False, False),
        (7, 70, False, False),
        (8, 80, True, False),
        (1, 100, True, False),
        (1, 99, False, False),
    ],
)
def test_the_window(messages: int, size: int, full: bool, roomy: bool) -> None:
    out: Outgoing[Parcel] = Outgoing(1, (8, 100))
    out.add(Parcel(*(message() for _ in range(messages)), size=size), size)
    assert out.full == full
    assert out.roomy == (roomy and messages <= 4 and size <= 50)
    out.ack(out.next)
    assert not out.full
    assert out.roomy


def test_a_window_of_one_opens_again() -> None:
    out: Outgoing[Parcel] = Outgoing(1, (1, 1))
    for _ in range(3):
        sent(out, 1)
        assert out.full
        assert not out.roomy
        out.ack(out.next)
        assert out.roomy
        assert not out.full


def test_streams_of_any_kind_are_kept_apart() -> None:
    outgoing = session()
    streams: list[StreamId] = ["42", 42, "", 0, -1, 2**63, "x" * MAX_STREAM_NAME]
    for number, stream in enumerate(streams):
        for _ in range(number):
            outgoing.outgoing(stream).add(Parcel(message()), 1)
    assert [outgoing.outgoing(stream).next for stream in streams] == list(range(1, 8))
    assert dict(outgoing.unacked()).keys() == set(streams[1:])


def test_too_long_a_name() -> None:
    with pytest.raises(InvalidMessage, match=str(MAX_STREAM_NAME)):
        session().outgoing("x" * (MAX_STREAM_NAME + 1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few streams are remembered."""
    monkeypatch.setattr(module, "SENDER_STREAMS", 8)
    monkeypatch.setattr(module, "RECEIVER_STREAMS", 16)


def test_a_stream_that_was_forgotten_begins_above_all_numbers_used(small: None) -> None:
    outgoing = session()
    used: dict[StreamId, int] = {}
    for round in range(20):
        for stream in range(12):
            out = outgoing.outgoing(stream)
            assert out.next >= used.get(stream, 1)
            sent(out, 1 + (stream * 7 + round) % 5)
            out.ack(out.next)
            used[stream] = out.next
            assert len(outgoing.out) <= 8


def test_one_with_something_unacknowledged_is_never_forgotten(small: None) -> None:
    outgoing = session()
    sent(outgoing.outgoing("kept"), 2)
    for stream in range(100):
        out = outgoing.outgoing(stream)
        sent(out, 1)
        out.ack(out.next)
    assert len(outgoing.outgoing("kept").unacked) == 1


def test_when_all_wait_nothing_is_forgotten_and_nothing_added(small: None) -> None:
    outgoing = session()
    for stream in range(8):
        sent(outgoing.outgoing(stream), 1)
    with pytest.raises(module.Blocked):
        outgoing.outgoing("one more")
    assert len(outgoing.out) == 8
    outgoing.outgoing(3).ack(2)
    sent(outgoing.outgoing("one more"), 1)
    assert 3 not in outgoing.out


def test_streams_with_long_names_count_for_more() -> None:
    outgoing = session()
    for number in range(3000):
        out = outgoing.outgoing("東" * 1016 + f"{number:08}")
        sent(out, 1)
        out.ack(out.next)
    most = module.SENDER_STREAMS * module.STREAM_WEIGHT
    assert outgoing.out_weight == sum(map(module.weight, outgoing.out)) <= most
    assert sum(4 * len(str(name)) for name in outgoing.out) <= most
    assert len(outgoing.out) > most // 2 // 4300


def test_the_floor_of_a_session_is_above_all_it_has_used(small: None) -> None:
    outgoing, highest = session(), 1
    assert outgoing.floor == 1
    for stream in range(50):
        out = outgoing.outgoing(stream)
        sent(out, 100 - stream)
        highest = max(highest, out.next)
        out.ack(out.next)
        assert outgoing.floor >= highest
    again: Session[Parcel] = Session("instance", LIMITS, outgoing.floor)
    assert again.outgoing(0).next >= highest


# Receiving ----------------------------------------------------------------------------------------


def test_in_order() -> None:
    inbound = Inbound()
    inbound.open(("s", 1))
    assert inbound.take(message(1)) == {"s": 2}
    assert inbound.take(message(2), message(3)) == {"s": 4}
    assert inbound.got == [1, 2, 3]


def test_several_streams_in_one_frame() -> None:
    inbound = Inbound()
    inbound.open(("s", 1), ("t", 10), (5, 0))
    acks = inbound.take(
        message("a", "s"), message("b", "t"), message("c", "s"), message("d", 5), message("e", "t")
    )
    assert acks == {"s": 3, "t": 12, 5: 1}
    assert inbound.got == ["a", "b", "c", "d", "e"]


def test_what_comes_again_is_dropped_and_acknowledged_again() -> None:
    inbound = Inbound()
    inbound.open(("s", 1))
    inbound.take(*(message(n) for n in (1, 2, 3)))
    inbound.open(("s", 2), on=2)
    assert inbound.take(message(2), on=2) == {"s": 4}
    assert inbound.take(message(3), message(4), on=2) == {"s": 5}
    assert inbound.got == [1, 2, 3, 4]


def test_late_ones_on_the_old_connection() -> None:
    inbound = Inbound()
    inbound.open(("s", 1))
    inbound.open(("s", 1), on=2)
    inbound.take(*(message(n) for n in (1, 2, 3)), on=2)
    assert inbound.take(message(1), message(2)) == {"s": 4}
    assert inbound.take(message(3), message(4)) == {"s": 5}
    assert inbound.got == [1, 2, 3, 4]


def test_an_open_ahead_skips_and_one_back_does_not_go_back() -> None:
    inbound = Inbound()
    inbound.open(("s", 1))
    inbound.take(message(1))
    inbound.open(("s", 5))
    assert inbound.take(message(5)) == {"s": 6}
    inbound.open(("s", 2))
    assert inbound.take(message(2), message(3)) == {"s": 6}
    assert inbound.got == [1, 5]


def test_what_was_given_up_does_not_come_after_what_followed() -> None:
    """The sender gave up 1 and 2 and went on at 3 elsewhere; they may still be under way."""
    inbound = Inbound()
    inbound.open(("s", 1))
    inbound.open(("s", 3), on=2)
    inbound.take(message(3), on=2)
    inbound.take(message(1), message(2))
    assert inbound.got == [3]


@pytest.mark.parametrize("good", [0, 1, 3])
@pytest.mark.parametrize("bad", ["not opened", "a gap"])
def test_a_bad_message_spoils_its_frame_and_nothing_else(bad: str, good: int) -> None:
    """What stood before it in the frame comes again over another connection, and is new then."""
    inbound = Inbound()
    inbound.open(("s", 1), ("t", 1))
    inbound.take(message("t1", "t"))
    if bad == "a gap":
        # Over another connection the receiver has fallen behind this position.
        inbound.positions[1]["u"] = 9
        inbound.session.expected["u"] = 7
    frame = [message(f"s{n}") for n in range(1, good + 1)]
    before = dict(inbound.session.expected)
    with pytest.raises(Malformed):
        inbound.take(*frame, message("x", "u"))
    assert inbound.session.expected == before
    inbound.open(("s", 1), on=2)
    if frame:
        assert inbound.take(*frame, on=2) == {"s": good + 1}
    assert inbound.got == ["t1", *(each.payload for each in frame)]


def test_a_connection_has_to_open_its_own_streams() -> None:
    inbound = Inbound()
    inbound.open(("s", 1))
    with pytest.raises(Malformed):
        inbound.take(message(1), on=2)


@pytest.mark.parametrize("number", [-1, -(2**63), 2**53, 2**63, 2**64 - 1])
def test_a_number_out_of_range(number: int) -> None:
    inbound = Inbound()
    with pytest.raises(Malformed):
        inbound.open(("s", number))


def test_complaints_about_long_names_are_short() -> None:
    name = "x" * 1_000_000
    for act in (lambda: Inbound().open((name, 1)), lambda: Inbound().take(message(1, name))):
        with pytest.raises(Malformed) as caught:
            act()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("first", [0, 1, 2**52, 2**53 - 1])
def test_numbers_begin_anywhere(first: int) -> None:
    inbound = Inbound()
    inbound.open(("s", first))
    assert inbound.take(message(1)) == {"s": first + 1}


def test_the_same_numbers_on_42_and_its_text() -> None:
    inbound = Inbound()
    inbound.open((42, 1), ("42", 1))
    assert inbound.take(message("int", 42), message("text", "42")) == {42: 2, "42": 2}
    inbound.open((42, 1), ("42", 1), on=2)
    inbound.take(message("int", 42), message("text", "42"), on=2)
    assert inbound.got == ["int", "text"]


def test_names_are_bounded_in_bytes() -> None:
    inbound = Inbound()
    for number in range(2000):
        inbound.open((f"{number}".ljust(1024, "x"), 1), on=number % 3)
    most = module.RECEIVER_STREAMS * module.STREAM_WEIGHT
    weight = sum(map(module.weight, inbound.session.expected))
    assert inbound.session.weight == weight <= most + most // 4
    for number in range(1000, 100_000):
        inbound.open((number, 1), on=number % 3)
    assert inbound.session.weight == len(inbound.session.expected) * module.STREAM_WEIGHT


def test_what_a_sender_still_knows_is_never_forgotten_whatever_the_names() -> None:
    """The receiver remembers twice what the sender does, counted alike."""
    outgoing, inbound = session(), Inbound()
    for number in range(4000):
        name = f"{number}".ljust(1 + number * 7 % 1000, "x")
        out = outgoing.outgoing(name)
        inbound.open((name, out.next))
        sent(out, 1)
        out.ack(out.next)
        if not number % 50:
            assert outgoing.out.keys() <= inbound.session.expected.keys()


def test_tables_are_bounded(small: None) -> None:
    inbound = Inbound()
    for stream in range(1000):
        inbound.open((stream, 1), on=stream % 3)
        inbound.take(message(stream, stream), on=stream % 3)
        assert len(inbound.session.expected) <= 16 * SLACK
        assert all(len(positions) <= 16 * SLACK for positions in inbound.positions.values())
    assert inbound.got == list(range(1000))


def test_the_last_16_streams_are_remembered(small: None) -> None:
    """A sender keeps eight; the receiver never forgets one of those."""
    inbound = Inbound()
    for stream in range(100):
        inbound.open((stream, 1))
        inbound.take(message(stream, stream))
    for stream in range(84, 100):
        inbound.open((stream, 1), on=2)
        assert inbound.take(message("again", stream), on=2) == {stream: 2}
    assert inbound.got == list(range(100))


def test_opening_a_stream_again_makes_it_young(small: None) -> None:
    inbound = Inbound()
    inbound.open(("busy", 1))
    for stream in range(200):
        inbound.take(message(stream, "busy"))
        inbound.open((stream, 1))
        if stream % 8 == 7:
            inbound.open(("busy", stream + 2))
    assert inbound.got == list(range(200))


def test_late_ones_of_a_stream_that_was_forgotten_are_not_new(small: None) -> None:
    """On a connection that is long out of use; in doubt it is that connection's end."""
    inbound = Inbound()
    inbound.open(("s", 1), on=1)
    inbound.open(("s", 1), on=2)
    inbound.take(message("once", "s"), on=2)
    for stream in range(100):
        inbound.open((stream, 1), on=2)
    assert "s" not in inbound.session.expected
    with suppress(Malformed):
        inbound.take(message("once", "s"), on=1)
    assert inbound.got == ["once"]


def test_many_opens_take_little_time_and_memory() -> None:
    """As a hostile peer sends them, a full table's worth with every frame."""
    inbound = Inbound()
    with traced() as memory:
        began = time.process_time()
        for frame in range(30):
            inbound.open(*((frame * 8000 + number, 1) for number in range(8000)))
        took = time.process_time() - began
    assert took < 3.0
    assert memory.grown < 4_000_000
    assert len(inbound.session.expected) <= 8192 * SLACK
