"""Windows of answers in pieces, both sides of them together, and what the two sides tell each other."""

from __future__ import annotations

from collections import deque
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Message
from openline.core.frames import Batch, unpack_batch
from openline.core.pieces import (
    FIRST_PARTS,
    FRAME_HEAD,
    LARGE_FRAME,
    LEAST_PARTS,
    MAX_ERROR_TEXT,
    MAX_ERROR_TYPE,
    MOST_PARTS,
    PART_BYTES,
    PEER_PARTS,
    Cancel,
    Failed,
    Grants,
    Taken,
    Window,
    as_message,
    as_part,
    error_in,
    error_of,
    is_end,
    is_last,
    read_told,
)
from openline.peers.requests import Requests

# The answering side ---------------------------------------------------------------------------------


def test_a_window_is_full_by_parts_or_by_bytes() -> None:
    window = Window(8)
    window.add(7, 100)
    assert window.room == 1
    window.add(1, 100)
    assert window.room == 0
    window = Window(8)
    window.add(1, 8 * PART_BYTES)
    assert window.room == 0


def test_a_window_opens_with_what_has_been_taken() -> None:
    window = Window(8)
    window.add(4, 8 * PART_BYTES)
    window.add(4, 10)
    window.grant(3, 8)
    assert (window.room, window.roomy) == (0, False)  # of a frame all has to be taken
    window.grant(4, 8)
    assert (window.room, window.roomy) == (4, True)


@pytest.mark.parametrize(("taken", "allowed"), [(9, 100), (-1, 100), (1, 100)])
def test_a_grant_that_cannot_be_changes_nothing(taken: int, allowed: int) -> None:
    window = Window(4)
    window.add(4, 10)
    window.grant(2, 4)
    window.grant(taken, allowed)
    assert window.room == 2


@pytest.mark.parametrize("allowed", [-(2**63), 0, 1, 2**53])
def test_whatever_it_is_told_it_allows_one_and_not_without_end(allowed: int) -> None:
    window = Window(allowed)
    assert 1 <= window.room <= MOST_PARTS
    window.grant(0, allowed)
    assert 1 <= window.room <= MOST_PARTS


# Both sides -----------------------------------------------------------------------------------------


class Play:
    """An answering side that sends frames of parts, and a reader, over links that take their time."""

    def __init__(self, seed: int, sizes: list[int], allowed: int, budget: int) -> None:
        self.random = Random(seed)
        self.left = deque(sizes)
        self.window, self.grants = Window(allowed), Grants(allowed, 256)
        self.budget = budget
        self.frames: deque[list[int]] = deque()
        self.told: deque[tuple[int, int]] = deque()
        self.arrived: deque[int] = deque()
        self.most = self.most_bytes = 0
        self.waits = False

    def run(self) -> None:
        while self.left or self.frames or self.arrived:
            moves = [move for move, may in self.moves() if may]
            assert moves, "both sides wait"
            self.random.choice(moves)()

    def moves(self) -> list[tuple[object, object]]:
        return [
            (self.send, self.left and self.may_send),
            (self.arrive, self.frames),
            (self.take, self.arrived),
            (self.wait, not self.arrived and not self.waits),
            (self.hear, self.told),
        ]  # type: ignore[return-value]

    @property
    def may_send(self) -> bool:
        room = self.window.room
        return room >= min(4, len(self.left)) or (room > 0 and self.window.roomy)

    def send(self) -> None:
        count = min(self.window.room, self.random.randint(1, 5), len(self.left))
        frame = [self.left.popleft() for _ in range(count)]
        self.window.add(count, sum(frame) + self.random.randint(0, FRAME_HEAD))
        self.frames.append(frame)

    def arrive(self) -> None:
        frame = self.frames.popleft()
        self.grants.came(sum(frame) if sum(frame) > LARGE_FRAME else 0)
        self.arrived += frame
        self.waits = False
        assert self.grants.taken + len(self.arrived) <= self.grants.limit
        self.most = max(self.most, len(self.arrived))
        self.most_bytes = max(self.most_bytes, sum(self.arrived) - max(self.arrived, default=0) * 5)

    def take(self) -> None:
        count = min(len(self.arrived), self.grants.chunk)
        for _ in range(count):
            self.arrived.popleft()
        self.grants.took(count)
        self.tell(False)

    def wait(self) -> None:
        self.waits = True
        self.tell(True)

    def tell(self, drained: bool) -> None:
        if self.grants.due(drained):
            self.budget -= self.grants.tell(drained or not self.arrived, self.budget)
            self.told.append((self.grants.taken, self.grants.allowed))

    def hear(self) -> None:
        self.window.grant(*self.told.popleft())


@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from([1, 100, 3_000, 4_200, 20_000, 100_000]) | st.integers(1, 10_000), max_size=120),
    st.integers(LEAST_PARTS, FIRST_PARTS),
    st.sampled_from([0, 7, 1_000]),
)
def test_the_two_sides_never_wait_for_each_other(
    seed: int, sizes: list[int], allowed: int, budget: int
) -> None:
    play = Play(seed, sizes, allowed, budget)
    play.run()
    assert play.most <= 256
    assert play.most_bytes <= 256 * PART_BYTES
    assert play.budget >= 0


def test_a_reader_that_waits_is_let_have_more_and_a_slow_one_is_not() -> None:
    fast, slow = Grants(32, 100), Grants(32, 100)
    for grants, drained in ((fast, True), (slow, False)):
        for _ in range(5):
            grants.took(grants.chunk)
            assert grants.due(drained)
            grants.tell(drained, 1_000)
    assert (fast.allowed, slow.allowed) == (100, 32)


def test_all_answers_of_a_peer_share_what_may_be_under_way() -> None:
    requests = Requests()
    allowed = [requests.allow(1_024) for _ in range(10_000)]
    assert set(allowed) == {FIRST_PARTS, LEAST_PARTS}
    assert sum(allowed) <= PEER_PARTS + 10_000 * LEAST_PARTS
    for parts in allowed:
        requests.release(parts)
    assert requests.budget == PEER_PARTS


# What is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told", [Cancel("rpc", "m-1"), Cancel(42, 1.5), Taken("m-1", 16, 64), Failed(1, "T", "x")]
)
def test_what_is_told_arrives(told: Cancel | Taken | Failed) -> None:
    batch = Batch()
    batch.add(as_message(told))
    [message] = unpack_batch(bytes(batch.seal())[15:]).messages
    assert read_told(message) == told


@pytest.mark.parametrize("payload", [None, 1, [], ["x"], {}, [None, None], [[], 1]])
@pytest.mark.parametrize("kind", ["cancel", "taken", "failed"])
def test_what_makes_no_sense_is_an_error_of_its_own(kind: str, payload: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_told(Message(0, kind, payload))


def test_what_a_later_version_tells_is_ignored() -> None:
    assert read_told(Message(0, "later", [1, 2])) is None


# Parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "last", "end"),
    [
        (None, True, False),
        ({}, True, False),
        ({"more": True}, False, False),
        ({"more": False}, True, True),
        ({"more": 1}, True, False),
        ({"more": "yes"}, True, False),
        ({"more": None}, True, False),
    ],
)
def test_which_message_is_the_last(metadata: dict[str, object] | None, last: bool, end: bool) -> None:
    message = Message(metadata=metadata)
    assert (is_last(message), is_end(message)) == (last, end)


def test_a_message_that_is_yielded_keeps_what_it_is() -> None:
    mine = Message("id", "progress", 1, {"a": 1, "more": False}, "mine", {"b": 2})
    part = as_part(mine, {"replyTo": "q", "more": True}, "theirs")
    assert part == Message("id", "progress", 1, {"a": 1, "more": True, "replyTo": "q"}, "theirs", {"b": 2})


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_the_text_of_an_error_is_bounded_on_both_sides() -> None:
    assert error_of(ValueError("x" * 9_999)) == ("ValueError", "x" * MAX_ERROR_TEXT)
    assert error_of(Broken()) == ("Broken", "(its text cannot be had: RuntimeError)")
    sent = {"type": "T" * 9_999, "text": "x" * 9_999}
    assert error_in(sent) == ("T" * MAX_ERROR_TYPE, "x" * MAX_ERROR_TEXT)
    assert error_in("just a text") == ("Error", "just a text")
    assert error_in({"type": 1}) == ("1", "")
