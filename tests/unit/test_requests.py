"""Which message answers which request: never somebody else's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from openline import Closed, InvalidMessage, Message, NotConfirmed
from openline.connection.connection import Connection
from openline.peers.in_flight import Request
from openline.peers.requests import LATE_FOR, MAX_LATE, PlainRequests, Requests
from openline.sending.deadlines import Deadlines

PLAIN, OPENLINE = True, False


def waiting(message: Message, limit: float = 5.0) -> Request:
    return Request(asyncio.get_running_loop(), message, None, "h:1", limit)


def result_of(pending: Request) -> Message | None:
    return pending.result() if pending.done() and not pending.cancelled() else None


class Out:
    """The requests out to one peer, by their ids."""

    def __init__(self, *messages: Message) -> None:
        self.requests = Requests()
        self.pending = {}
        for message in messages:
            self.pending[message.id] = waiting(message)
            self.requests.add(self.pending[message.id])

    def give_up(self, id: str, now: float = 0.0) -> None:
        self.requests.remove(self.pending[id], now)
        self.pending[id].cancel()

    def answered_by(self, message: Message, plain: bool, now: float = 0.0) -> object:
        """The id of the request that ``message`` answered; None if it answered none."""
        claimed = self.requests.claim(message, plain, now)
        answered = [p.id for p in self.pending.values() if result_of(p) is message]
        assert claimed == bool(answered)
        return answered[0] if answered else None


def ask(id: str | int | float, stream: str | int = "default") -> Message:
    return Message(id=id, stream_id=stream)


def answer(id: str | int | float = "x", stream: str | int = "default", **metadata: Any) -> Message:
    return Message(id=id, stream_id=stream, metadata=metadata or None)


@pytest.mark.parametrize("plain", [PLAIN, OPENLINE])
async def test_reply_to_names_the_request(plain: bool) -> None:
    out = Out(ask("a"), ask("b"))
    assert out.answered_by(answer(replyTo="b"), plain) == "b"
    assert out.answered_by(answer(replyTo="a"), plain) == "a"
    assert len(out.requests.out) == 0


@pytest.mark.parametrize("plain", [PLAIN, OPENLINE])
async def test_reply_to_works_across_streams(plain: bool) -> None:
    assert Out(ask("a", "rpc")).answered_by(answer(stream="other", replyTo="a"), plain) == "a"


async def test_message_answer_answers() -> None:
    question = ask(7, 42)
    reply = question.answer({"done": True})
    assert (reply.stream_id, reply.type, reply.reply_to) == (42, "result", 7)
    assert Out(question).answered_by(reply, OPENLINE) == 7


@pytest.mark.parametrize("id", ["a", 7, 7.5])
async def test_a_plain_peer_may_answer_with_the_same_id(id: str | int | float) -> None:
    assert Out(ask(id), ask("other")).answered_by(answer(id, stream="elsewhere"), PLAIN) == id


async def test_a_number_and_its_text_are_two_ids() -> None:
    out = Out(ask(7), ask("8"))
    assert out.answered_by(answer("7"), PLAIN) is None
    assert out.answered_by(answer(8), PLAIN) is None


async def test_an_openline_peer_says_what_it_answers() -> None:
    out = Out(ask("a"))
    assert out.answered_by(answer("a"), OPENLINE) is None
    assert out.answered_by(answer("x"), OPENLINE) is None


async def test_the_next_message_of_a_plain_peer_answers_the_only_request_out() -> None:
    assert Out(ask("a")).answered_by(answer(), PLAIN) == "a"


async def test_only_one_out_counts_per_stream() -> None:
    out = Out(ask("a", "rpc"), ask("b", "other"))
    assert out.answered_by(answer(stream="default"), PLAIN) is None
    assert out.answered_by(answer(stream="rpc"), PLAIN) == "a"


async def test_a_numeric_stream_and_its_text_are_two_streams() -> None:
    assert Out(ask("a", 42)).answered_by(answer(stream="42"), PLAIN) is None


async def test_with_two_out_on_a_stream_nobody_guesses() -> None:
    out = Out(ask("a"), ask("b"))
    assert out.answered_by(answer(), PLAIN) is None
    assert out.answered_by(answer("b"), PLAIN) == "b"
    assert out.answered_by(answer(), PLAIN) == "a"


@pytest.mark.parametrize("plain", [PLAIN, OPENLINE])
async def test_what_answers_something_else_answers_no_request_of_ours(plain: bool) -> None:
    assert Out(ask("a")).answered_by(answer(replyTo="z"), plain) is None


async def test_reply_to_outranks_the_same_id() -> None:
    assert Out(ask("a"), ask("b")).answered_by(answer("a", replyTo="b"), PLAIN) == "b"
    assert Out(ask("a")).answered_by(answer("a", replyTo="z"), PLAIN) is None


@pytest.mark.parametrize("reply_to", [[], ["a"], {}, {"id": "a"}], ids=repr)
@pytest.mark.parametrize("plain", [PLAIN, OPENLINE])
async def test_a_reply_to_that_is_no_id_names_no_request_of_ours(reply_to: object, plain: bool) -> None:
    """From the wire it may be any JSON value, also one that cannot be a dict's key."""
    assert Out(ask("a")).answered_by(answer(replyTo=reply_to), plain) is None


@pytest.mark.parametrize(("id", "reply_to"), [(1, True), (0, False)])
async def test_true_is_not_the_id_1(id: int, reply_to: bool) -> None:
    assert Out(ask(id)).answered_by(answer(replyTo=reply_to), OPENLINE) is None


async def test_null_reply_to_says_nothing() -> None:
    assert Out(ask("a")).answered_by(answer(replyTo=None), PLAIN) == "a"
    assert Out(ask("a")).answered_by(answer(replyTo=None), OPENLINE) is None


async def test_an_answer_comes_once() -> None:
    out = Out(ask("a"))
    assert out.answered_by(answer(replyTo="a"), OPENLINE) == "a"
    assert not out.requests.claim(answer(replyTo="a"), OPENLINE, 0.0)


async def test_nobody_waits_any_more_but_the_answer_is_still_its_own() -> None:
    out = Out(ask("a"))
    out.pending["a"].cancel()
    assert out.requests.claim(answer(replyTo="a"), OPENLINE, 0.0)
    assert len(out.requests.out) == 0


async def test_a_late_answer_is_not_the_next_requests() -> None:
    """A plain peer that names nothing: its next message may be the answer to what was given up."""
    out = Out(ask("late"), ask("next"))
    out.give_up("late")
    assert out.answered_by(answer("1"), PLAIN) is None
    assert out.answered_by(answer("2"), PLAIN) == "next"


async def test_a_late_answer_that_gives_the_id_back_frees_the_way() -> None:
    out = Out(ask("late"), ask("next"))
    out.give_up("late")
    assert out.answered_by(answer("late"), PLAIN) is None
    assert out.answered_by(answer("x"), PLAIN) == "next"


async def test_an_answer_that_names_its_request_does_not_wait_for_late_ones() -> None:
    out = Out(ask("late"), ask("next"))
    out.give_up("late")
    assert out.answered_by(answer("next"), PLAIN) == "next"


async def test_one_message_for_each_that_was_given_up() -> None:
    out = Out(*(ask(str(number)) for number in range(4)))
    for number in range(3):
        out.give_up(str(number))
    answers = [out.answered_by(answer(f"x{number}"), PLAIN) for number in range(4)]
    assert answers == [None, None, None, "3"]


async def test_a_late_answer_on_another_stream_is_no_concern() -> None:
    out = Out(ask("late", "other"), ask("next"))
    out.give_up("late")
    assert out.answered_by(answer(), PLAIN) == "next"


async def test_late_answers_are_not_waited_for_for_ever() -> None:
    out = Out(ask("late"), ask("next"))
    out.give_up("late", now=100.0)
    assert out.answered_by(answer(), PLAIN, now=100.0 + LATE_FOR + 1) == "next"


async def test_what_was_given_up_is_remembered_within_bounds() -> None:
    out = Out(*(ask(str(number)) for number in range(3 * MAX_LATE)), ask("next"))
    for number in range(3 * MAX_LATE):
        out.give_up(str(number))
    for number in range(MAX_LATE):
        assert out.answered_by(answer(f"x{number}"), PLAIN) is None
    assert out.answered_by(answer("x"), PLAIN) == "next"


async def test_what_was_answered_is_not_late() -> None:
    out = Out(ask("a"), ask("next"))
    assert out.answered_by(answer(replyTo="a"), PLAIN) == "a"
    out.requests.remove(out.pending["a"], 0.0)
    assert out.answered_by(answer(), PLAIN) == "next"


async def test_a_removed_request_gets_no_answer() -> None:
    out = Out(ask("a"))
    out.requests.remove(out.pending["a"])
    assert out.answered_by(answer(replyTo="a"), PLAIN) is None
    assert out.answered_by(answer("a"), PLAIN) is None


async def test_removing_twice_leaves_a_new_request_with_that_id_alone() -> None:
    out = Out(ask("a"))
    old = out.pending["a"]
    out.requests.remove(old)
    again = waiting(ask("a"))
    out.requests.add(again)
    out.requests.remove(old)
    assert len(out.requests.out) == 1


async def test_one_id_is_out_once() -> None:
    out = Out(ask("a"))
    with pytest.raises(InvalidMessage, match="already out"):
        out.requests.add(waiting(ask("a")))


async def test_a_lost_connection_fails_its_own_requests_only() -> None:
    out = Out(ask("a"), ask("b"), ask("c"))
    lost, other = cast(Connection, object()), cast(Connection, object())
    out.pending["a"].connection = lost
    out.pending["b"].connection = other
    out.requests.fail(lost, NotConfirmed("gone"))
    assert isinstance(out.pending["a"].exception(), NotConfirmed)
    assert not out.pending["b"].done()
    assert not out.pending["c"].done()
    assert len(out.requests.out) == 2


# Answers over another socket of a plain peer -------------------------------------------------------

HERE, THERE = "10.0.0.2", "10.0.0.3"


@pytest.fixture
async def asked() -> PlainRequests:
    return PlainRequests()


def anybody(_: Request) -> bool:
    return True


@pytest.mark.parametrize("reply", [answer(replyTo="a"), answer("a")], ids=["replyTo", "same id"])
async def test_another_socket_from_that_ip_may_answer_by_name(asked: PlainRequests, reply: Message) -> None:
    pending = waiting(ask("a"))
    asked.add(HERE, pending)
    assert HERE in asked
    assert not asked.claim(THERE, reply, anybody)
    assert not asked.claim(HERE, answer("x"), anybody)
    assert not asked.claim(HERE, answer("a", replyTo="z"), anybody)
    assert asked.claim(HERE, reply, anybody)
    assert pending.result() is reply
    assert not asked.claim(HERE, reply, anybody)


async def test_only_where_that_socket_is_the_peers_that_was_asked(asked: PlainRequests) -> None:
    one, other = waiting(ask("a")), waiting(ask("a"))
    asked.add(HERE, one)
    asked.add(HERE, other)
    assert not asked.claim(HERE, answer("a"), lambda _: False)
    assert asked.claim(HERE, answer("a"), lambda pending: pending is other)
    assert other.done()
    assert not one.done()


async def test_nothing_is_kept_of_requests_that_are_over(asked: PlainRequests) -> None:
    one, other = waiting(ask("a")), waiting(ask("b"))
    for pending in (one, other):
        asked.add(HERE, pending)
    asked.remove(HERE, one)
    assert not asked.claim(HERE, answer("a"), anybody)
    assert HERE in asked
    asked.remove(HERE, other)
    asked.remove(HERE, other)
    assert HERE not in asked


@pytest.mark.parametrize("reply_to", [[], {}, None], ids=repr)
async def test_any_json_may_come_there_too(asked: PlainRequests, reply_to: object) -> None:
    asked.add(HERE, waiting(ask("a")))
    assert not asked.claim(HERE, answer(replyTo=reply_to), anybody)


# Time-outs ----------------------------------------------------------------------------------------


class Clock:
    """The part of an event loop that timers need, with a time of its own."""

    class Timer:
        def __init__(self, when: float, callback: Callable[[], object]) -> None:
            self.when, self.callback, self.cancelled = when, callback, False

        def cancel(self) -> None:
            self.cancelled = True

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Clock.Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Clock.Timer:
        self.timers.append(Clock.Timer(when, callback))
        return self.timers[-1]

    @property
    def armed(self) -> list[float]:
        return [timer.when for timer in self.timers if not timer.cancelled]

    def go(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.when <= until]:
            timer = min(due, key=lambda t: t.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.callback()
        self.now = until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(cast(asyncio.AbstractEventLoop, clock))


async def test_each_request_has_its_own_deadline(clock: Clock, deadlines: Deadlines) -> None:
    late, soon, middle = (waiting(ask(n), limit) for n, limit in enumerate((3.0, 1.0, 2.0)))
    for pending in (late, soon, middle):
        deadlines.add(pending)
    done = []
    for _ in range(4):
        done.append([p.done() for p in (soon, middle, late)])
        clock.go(1.0)
    assert done == [[False] * 3, [True, False, False], [True, True, False], [True] * 3]
    with pytest.raises(TimeoutError, match="no answer from h:1 to request 1 within 1 s"):
        soon.result()
    assert [type(pending.exception()) for pending in (middle, late)] == [TimeoutError] * 2


async def test_many_requests_share_one_timer(clock: Clock, deadlines: Deadlines) -> None:
    requests = [waiting(ask(n), 5.0 - n / 1000) for n in range(1000)]
    for pending in requests:
        deadlines.add(pending)
    assert clock.armed == [100.0 + requests[-1].limit]
    for pending in requests:
        deadlines.remove(pending)
    clock.go(10.0)
    assert clock.armed == []
    assert not any(pending.done() for pending in requests)


async def test_a_timer_left_over_is_set_for_whoever_is_next(clock: Clock, deadlines: Deadlines) -> None:
    first, second = waiting(ask(1), 1.0), waiting(ask(2), 2.0)
    deadlines.add(first)
    deadlines.add(second)
    deadlines.remove(first)
    clock.go(1.5)
    assert not second.done()
    clock.go(0.5)
    assert isinstance(second.exception(), TimeoutError)


async def test_an_answer_in_time_stays(clock: Clock, deadlines: Deadlines) -> None:
    pending = waiting(ask("a"))
    deadlines.add(pending)
    pending.settle(answer())
    clock.go(10.0)
    assert pending.result().id == "x"


async def test_close_stops_the_timer_and_tells_who_waits(clock: Clock, deadlines: Deadlines) -> None:
    waits, answered = waiting(ask("a")), waiting(ask("b"))
    deadlines.add(waits)
    deadlines.add(answered)
    answered.settle(answer())
    deadlines.close()
    assert clock.armed == []
    assert isinstance(waits.exception(), Closed)
    assert answered.result().id == "x"
