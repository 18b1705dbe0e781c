"""openline.sync: handlers run in threads, in the order of their stream, and may block and call everything."""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading

import pytest

import openline
import openline.sync
from openline.sync import workers
from tests.unit.transport.helpers import closed_port

from .helpers import DEADLINE, Calling, echo, eventually, loop_threads, serve, task, two


def test_one_stream_in_order_and_streams_side_by_side() -> None:
    with two() as (alice, bob, address):
        got: dict[object, list[object]] = {"slow": [], "fast": []}
        release = threading.Event()

        @bob.on_message
        def handle(peer: openline.sync.Peer, message: openline.Message) -> None:
            if message.stream_id == "slow":
                release.wait(DEADLINE)
            got[message.stream_id].append(message.payload)

        alice.send_batch(address, [task(n, stream_id="slow") for n in range(50)])
        alice.send_batch(address, [task(n, stream_id="fast") for n in range(50)])
        eventually(lambda: got["fast"] == list(range(50)))
        assert got["slow"] == []
        release.set()
        eventually(lambda: got["slow"] == list(range(50)))


def test_a_handler_asks_back_and_so_on() -> None:
    """Alice asks Bob, whose handler asks Alice, whose handler asks Bob, ..."""
    with two() as (alice, bob, address):
        back = serve(alice)

        def count_down(own: openline.sync.Transport, other: str) -> None:
            @own.on_message
            def handle(peer: openline.sync.Peer, message: openline.Message) -> None:
                left = message.payload
                below = own.request(other, task(left - 1, stream_id=left)).payload if left else 0
                peer.reply(message, below + 1)

        count_down(alice, address)
        count_down(bob, back)
        assert alice.request(address, task(20)).payload == 21


def test_more_blocked_handlers_than_threads_do_not_stop_what_they_wait_for() -> None:
    """Each holds a thread while it waits for an answer; answers need no thread."""
    with two(workers=2) as (alice, bob, address), openline.sync.load_transport() as carol:
        third = serve(carol)
        carol.on_message(echo)

        @bob.on_message
        def forward(peer: openline.sync.Peer, message: openline.Message) -> None:
            peer.reply(message, bob.request(third, task(message.payload)).payload)

        callers = [Calling(alice.request, address, task(n, stream_id=n)) for n in range(10)]
        assert [caller.end().payload for caller in callers] == list(range(10))
        names = [thread.name for thread in loop_threads() if "handler" in thread.name]
        assert len([name for name in names if name.endswith((" 1", " 2"))]) >= 2


def test_threads_are_as_many_as_allowed() -> None:
    with two(workers=3) as (alice, bob, address):
        release, running = threading.Event(), []

        @bob.on_message
        def wait(peer: openline.sync.Peer, message: openline.Message) -> None:
            running.append(threading.current_thread())
            release.wait(DEADLINE)

        alice.send_batch(address, [task(n, stream_id=n) for n in range(10)])
        eventually(lambda: len(running) == 3)
        assert len(set(running)) == 3
        release.set()
        eventually(lambda: len(running) == 10)
        assert len(set(running)) == 3


class Counting:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def method(self, peer: openline.sync.Peer, message: openline.Message) -> None:
        self.seen.append(message.payload)


def test_off_message_knows_it_again() -> None:
    with two() as (alice, bob, address):
        counting = Counting()
        assert bob.on_message(counting.method) == counting.method

        @bob.on_message(stream_id="other")
        def other(peer: openline.sync.Peer, message: openline.Message) -> None:
            counting.seen.append("other")

        alice.send(address, task(1))
        eventually(lambda: counting.seen == [1])
        bob.off_message(counting.method)
        bob.off_message(other)
        assert bob._transport._inbox.handlers == []


def test_what_is_no_plain_function_is_refused() -> None:
    async def coroutine(peer: openline.sync.Peer, message: openline.Message) -> None: ...

    with openline.sync.load_transport() as alice:
        with pytest.raises(TypeError, match="plain function"):
            alice.on_message(coroutine)
        with pytest.raises(TypeError, match="stream_id="):
            alice.on_message("rpc")  # type: ignore[call-overload]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_what_a_handler_raises_is_logged_and_stops_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with two() as (alice, bob, address):

        @bob.on_message
        def fail(peer: openline.sync.Peer, message: openline.Message) -> None:
            if message.payload == "fail":
                raise error
            peer.reply(message, "fine")

        alice.send(address, task("fail"))
        assert alice.request(address, task()).payload == "fine"
        assert bob.stats().handler_errors == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "fail failed on a message from" in record.getMessage()
    assert "raise error" in caplog.text


def test_a_handler_may_close_its_own_transport(caplog: pytest.LogCaptureFixture) -> None:
    closed: queue.Queue[str] = queue.Queue()
    with openline.sync.load_transport() as alice:
        bob = openline.sync.load_transport(openline.Config(close_timeout=3600))

        @bob.on_message
        def leave(peer: openline.sync.Peer, message: openline.Message) -> None:
            bob.close()
            closed.put("closed")

        alice.send(serve(bob), task())
        assert closed.get(timeout=DEADLINE) == "closed"
        with pytest.raises(openline.Closed):
            bob.listen()
    assert "close_timeout" not in caplog.text


def test_on_undelivered_in_order_in_a_thread_that_may_call(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[object, str]] = []
    with two() as (alice, _, address):
        begun, release = threading.Event(), threading.Event()

        @alice.on_undelivered
        def lost(peer: openline.sync.Peer, message: openline.Message, why: str) -> None:
            begun.set()
            release.wait(DEADLINE)
            told.append((message.payload, why))
            assert alice.connect(peer.address) == peer

        tell = alice._transport._node.undelivered[0]
        alice.send(address, task())
        (peer,) = alice._transport.peers()
        for number in range(20):
            alice._background.ask(tell, peer, task(number), "a reason")
        begun.wait(DEADLINE)
        alice._background.ask(tell, peer, task(20), "a reason")
        release.set()
        eventually(lambda: len(told) == 21)
    assert told == [(number, "a reason") for number in range(21)]
    assert "failed" not in caplog.text


def test_a_slow_on_undelivered_is_not_told_of_everything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "MAX_TOLD", 3)
    with openline.sync.load_transport() as alice:
        release, begun, told = threading.Event(), threading.Event(), []

        def slow(number: int) -> None:
            begun.set()
            release.wait(DEADLINE)
            told.append(number)
            if number == 2:
                raise ValueError("a bug")

        tell = alice._workers.in_order(slow)
        alice._background.ask(tell, 0)
        begun.wait(DEADLINE)
        for number in range(1, 10):
            alice._background.ask(tell, number)
        release.set()
        eventually(lambda: len(told) == 4)
    assert told == [0, 1, 2, 3]
    assert "too slow" in caplog.text
    assert "a bug" in caplog.text


def test_a_handler_that_is_cancelled_hears_of_it_where_it_waits() -> None:
    heard: queue.Queue[BaseException] = queue.Queue()
    with openline.sync.load_transport() as alice, openline.sync.load_transport() as carol:
        silent = f"127.0.0.1:{carol.listen(host='127.0.0.1').port}"
        bob = openline.sync.load_transport(openline.Config(close_timeout=0.05))

        @bob.on_message
        def ask(peer: openline.sync.Peer, message: openline.Message) -> None:
            try:
                alice.request(silent, task(), timeout=3600)
            except BaseException as error:
                heard.put(error)
            try:
                alice.send(silent, task())
            except BaseException as error:
                heard.put(error)

        alice.send(serve(bob), task())
        eventually(lambda: alice._background._calls)
        bob.close()
        assert isinstance(heard.get(timeout=DEADLINE), asyncio.CancelledError)
        assert isinstance(heard.get(timeout=DEADLINE), asyncio.CancelledError)
        assert alice.send(silent, task()).acked


def test_a_message_for_a_handler_that_never_ends_does_not_hold_up_close() -> None:
    release = threading.Event()
    with openline.sync.load_transport() as alice:
        bob = openline.sync.load_transport(openline.Config(close_timeout=0.05))
        bob.on_message(lambda peer, message: release.wait(DEADLINE))
        alice.send(serve(bob), task())
        bob.close()
    release.set()
    eventually(lambda: loop_threads() == [])


def test_a_port_where_nobody_listens_in_a_handler() -> None:
    with two() as (alice, bob, address):

        @bob.on_message
        def handle(peer: openline.sync.Peer, message: openline.Message) -> None:
            try:
                bob.send(f"127.0.0.1:{closed_port()}", task())
            except openline.Unreachable:
                peer.reply(message, sys.exc_info()[0].__name__)  # type: ignore[union-attr]

        assert alice.request(address, task()).payload == "Unreachable"
