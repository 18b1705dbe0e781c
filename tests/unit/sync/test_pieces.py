"""openline.sync: answers in pieces, and payloads of a type."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator

import msgspec
import pytest

import openline
import openline.sync

from .helpers import DEADLINE, eventually, task, two

# Answers in pieces --------------------------------------------------------------------------------------


def test_a_generator_answers_in_pieces() -> None:
    with two() as (alice, bob, address):
        threads = set()

        @bob.on_message
        def count(peer: openline.sync.Peer, message: openline.Message) -> Iterator[int]:
            for number in range(message.payload):
                threads.add(threading.current_thread().name)
                yield number

        assert [part.payload for part in alice.stream(address, task(5))] == [0, 1, 2, 3, 4]
        (peer,) = alice.peers()
        assert [part.payload for part in peer.stream(task(3))] == [0, 1, 2]
        assert all(name.startswith("openline.sync handler") for name in threads)


def test_reply_with_more() -> None:
    with two() as (alice, bob, address):

        @bob.on_message
        def count(peer: openline.sync.Peer, message: openline.Message) -> None:
            for number in range(3):
                peer.reply(message, number, more=True)
            peer.reply(message, "end")

        assert [part.payload for part in alice.stream(address, task())] == [0, 1, 2, "end"]


def test_leaving_the_loop_cancels_the_handler() -> None:
    ended: queue.Queue[str] = queue.Queue()
    with two() as (alice, bob, address):

        @bob.on_message(stream_id="generator")
        def forever(peer: openline.sync.Peer, message: openline.Message) -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                ended.put("generator")

        @bob.on_message(stream_id="more")
        def more(peer: openline.sync.Peer, message: openline.Message) -> None:
            try:
                while True:
                    peer.reply(message, 1, more=True)
            except asyncio.CancelledError:
                ended.put("more")
                raise

        for stream_id in ("generator", "more"):
            for _ in alice.stream(address, task(stream_id=stream_id)):
                break
            assert ended.get(timeout=DEADLINE) == stream_id
        eventually(lambda: not alice._background._calls)


def test_a_handler_that_fails_ends_it_with_its_error() -> None:
    with two() as (alice, bob, address):

        @bob.on_message
        def fail(peer: openline.sync.Peer, message: openline.Message) -> Iterator[int]:
            yield 1
            raise ValueError("no more")

        parts = alice.stream(address, task())
        assert next(parts).payload == 1
        with pytest.raises(openline.RemoteError, match="no more"):
            next(parts)


def test_no_part_in_time() -> None:
    release = threading.Event()
    with two() as (alice, bob, address):
        bob.on_message(lambda peer, message: release.wait(DEADLINE))
        with pytest.raises(TimeoutError):
            next(alice.stream(address, task(), timeout=0.05))
        release.set()


# Payloads of a type -------------------------------------------------------------------------------------


class Work(msgspec.Struct):
    n: int


def test_payloads_of_a_type() -> None:
    with two() as (alice, bob, address):

        @bob.on_message(type=Work)
        def double(peer: openline.sync.Peer, message: openline.TypedMessage[Work]) -> None:
            peer.reply(message, {"n": 2 * message.payload.n})

        assert alice.request(address, task({"n": 2}), returns=Work).payload == Work(4)
        with pytest.raises(openline.RemoteError):
            alice.request(address, task({"n": "two"}))
        (peer,) = alice.peers()
        assert peer.request(task({"n": 3}), returns=Work).payload == Work(6)
        assert [part.payload for part in alice.stream(address, task({"n": 4}), returns=Work)] == [Work(8)]
        with pytest.raises(TypeError):
            bob.on_message(type="Work")(double)
        bob.off_message(double)
        assert bob._transport._inbox.handlers == []
