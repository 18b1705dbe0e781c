"""openline.sync: each call does what its namesake with ``await`` does."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
import traceback
import warnings
import weakref
from pathlib import Path

import pytest

import openline
import openline.sync
from openline.sync.background import _Call
from tests.unit.transport.helpers import closed_port

from .helpers import DEADLINE, PLAIN, Calling, echo, eventually, loop_threads, serve, task, two


def test_all_of_it() -> None:
    with two() as (alice, bob, address):
        bob.on_message(echo, stream_id="echo")
        peer = alice.connect(address)
        assert peer is not None
        assert (peer.name, peer.node_id, peer.proven, peer.plain) == ("bob", bob.node_id, True, False)
        assert (peer.connected, peer.state) == (True, "live")
        assert alice.peers() == [peer]
        assert {peer: 1}[alice.peers()[0]] == 1
        assert 0 <= alice.ping(address, timeout=DEADLINE) < DEADLINE
        assert alice.send(address, task("one")).acked
        assert [receipt.acked for receipt in alice.send_batch(address, (task(n) for n in range(3)))] == [
            True
        ] * 3
        (back,) = bob.peers()
        assert [bob.receive(back.address, timeout=DEADLINE).payload for _ in range(4)] == ["one", 0, 1, 2]
        assert alice.request(address, task(21, stream_id="echo")).payload == 21
        assert peer.request(task(22, stream_id="echo"), DEADLINE).payload == 22
        assert peer.send(task("two")).acked
        assert bob.receive(back.address).payload == "two"
        assert "websocket" in str(alice.explain(address)) or "quic" in str(alice.explain(address))
        assert alice.stats().created == 1
        assert alice.config.name == "alice"
        assert repr(alice).startswith("<openline.sync transport 'alice', 1 connections")


def test_a_listener() -> None:
    with openline.sync.load_transport() as bob:
        listener = bob.listen(host="127.0.0.1")
        assert listener.address == f"ws://127.0.0.1:{listener.port}"
        assert (listener.host, listener.secure) == ("127.0.0.1", False)
        assert "websocket" in listener.backends
        assert repr(listener).startswith("<listening on")
        listener.reload_tls()
        bob.reload_tls()
        with pytest.raises(OSError, match=r"in use|bind"):
            bob.listen(listener.port, "127.0.0.1")
        listener.close()
        again = bob.listen(listener.port, "127.0.0.1")
        assert again.port == listener.port


def test_errors_are_the_same_and_show_the_line_that_called() -> None:
    with openline.sync.load_transport() as alice:
        with pytest.raises(openline.Unreachable) as caught:
            alice.send(f"127.0.0.1:{closed_port()}", task())
        with pytest.raises(openline.InvalidAddress):
            alice.request("nowhere", task())
        with pytest.raises(openline.InvalidAddress):
            alice.explain("nowhere")
        with pytest.raises(TimeoutError):
            alice.receive("127.0.0.1:1", timeout=0.001)
        assert alice.connect(f"127.0.0.1:{closed_port()}", keep=True) is None
    text = "".join(traceback.format_exception(caught.value))
    assert "alice.send(f" in text
    assert "run_coroutine_threadsafe" not in text
    with pytest.raises(openline.InvalidIdentity):
        openline.sync.load_transport(openline.Config(identity="/nonexistent/key"))
    with pytest.raises(ValueError, match="workers"):
        openline.sync.load_transport(workers=0)
    eventually(lambda: loop_threads() == [])


def test_an_error_leaves_no_circle() -> None:
    gc.disable()
    try:
        with openline.sync.load_transport() as alice:
            try:
                alice.explain("nowhere")
            except openline.InvalidAddress as error:
                seen = weakref.ref(error)
            eventually(lambda: seen() is None)
    finally:
        gc.enable()


def test_closed_is_closed() -> None:
    with openline.sync.load_transport() as bob:  # the loop goes on for it
        alice = openline.sync.load_transport()
        address = serve(bob)
        alice.close()
        alice.close()
        for call in (
            lambda: alice.send(address, task()),
            lambda: alice.listen(),
            lambda: alice.receive(address),
        ):
            with pytest.raises(openline.Closed):
                call()
        with pytest.raises(openline.Closed):
            next(alice.messages())
    with pytest.raises(openline.Closed):  # and now there is no loop
        alice.send(address, task())
    assert bob.stats().active == 0


def test_one_thread_for_all_and_none_after_the_last() -> None:
    assert loop_threads() == []
    with openline.sync.load_transport():
        (first,) = loop_threads()
        with two() as (alice, bob, address):
            bob.on_message(echo)
            assert alice.request(address, task(1)).payload == 1
            assert loop_threads()[0] is first
        assert first.is_alive()
    assert not first.is_alive()
    eventually(lambda: loop_threads() == [])  # threads of handlers end by themselves
    with openline.sync.load_transport():
        assert loop_threads() != [first]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc, which is Linux's")
def test_many_lives_leave_nothing_open() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def live() -> None:
        with two() as (alice, bob, address):
            bob.on_message(echo)
            assert alice.request(address, task(1)).payload == 1
        with pytest.raises(openline.InvalidIdentity):
            openline.sync.load_transport(openline.Config(identity="/nonexistent/key"))

    live()
    eventually(lambda: loop_threads() == [])
    before = open_files()
    for _ in range(10):
        live()
    eventually(lambda: loop_threads() == [] and open_files() <= before)


def test_a_transport_that_is_dropped_closes() -> None:
    alice = openline.sync.load_transport()
    with pytest.warns(ResourceWarning, match=r"with load_transport\(\.\.\.\) as t"):
        del alice
    eventually(lambda: loop_threads() == [])


# Threads and loops --------------------------------------------------------------------------------------


def test_many_threads_get_their_own_answers() -> None:
    def ask(number: int) -> list[object]:
        return [alice.request(address, task([number, n])).payload for n in range(40)]

    with two() as (alice, bob, address):
        bob.on_message(echo)
        callers = [Calling(ask, number) for number in range(8)]
        for number, caller in enumerate(callers):
            assert caller.end() == [[number, n] for n in range(40)]


def one_message(address: str) -> bool:
    with openline.sync.load_transport() as alice:
        return alice.send(address, task(3)).acked


async def test_inside_a_running_loop_it_waits_and_works() -> None:
    with two() as (alice, bob, address):
        bob.on_message(echo)
        assert alice.request(address, task(1)).payload == 1
        assert (await asyncio.to_thread(alice.request, address, task(2))).payload == 2
    async with openline.load_transport() as other:
        listener = await other.listen(host="127.0.0.1")
        assert await asyncio.to_thread(one_message, f"127.0.0.1:{listener.port}")


def test_a_call_on_its_own_loop_is_refused_and_does_not_hang() -> None:
    with two() as (alice, _, address):
        raised: queue.Queue[BaseException] = queue.Queue()

        def on_the_loop() -> None:
            try:
                alice.send(address, task())
            except BaseException as error:
                raised.put(error)

        alice._background.post(on_the_loop)
        assert isinstance(raised.get(timeout=DEADLINE), openline.WrongLoop)


@pytest.mark.parametrize("when", ["before", "at once", "later", "after"])
def test_a_call_that_is_cancelled_ends_whenever_that_is(when: str) -> None:
    async def work() -> str:
        if when != "after":
            await asyncio.Event().wait()
        return "done"

    with openline.sync.load_transport() as alice:
        background = alice._background
        call = _Call(background, work, (), {})
        if when == "before":
            background.ask(call.cancel)
        background.ask(call.start)
        if when == "at once":
            call = _Call(background, work, (), {})
            background.ask(lambda: (call.start(), call.cancel()))
        elif when in ("later", "after"):
            alice.peers()
            background.ask(lambda: None)
            background.ask(call.cancel)
        assert call.ended.acquire(timeout=DEADLINE)
        if when == "after":
            assert call.outcome() == "done"
        else:
            with pytest.raises(asyncio.CancelledError):
                call.outcome()


def test_close_ends_what_other_threads_wait_for() -> None:
    alice = openline.sync.load_transport()
    begun = threading.Event()

    def walk() -> list[object]:
        begun.set()
        return list(alice.messages())

    waiting, walking = Calling(alice.receive, "127.0.0.1:1"), Calling(walk)
    begun.wait(DEADLINE)
    eventually(lambda: len(alice._background._calls) == 2)
    closing = [Calling(alice.close) for _ in range(3)]
    for thread in closing:
        thread.end()
    with pytest.raises(openline.Closed):
        waiting.end()
    assert walking.end() == []


# messages() ---------------------------------------------------------------------------------------------


def test_messages_one_by_one_and_leaving_ends_it() -> None:
    with two() as (alice, bob, address):
        got = []
        walk = bob.messages(stream_id="rpc")
        first = Calling(next, walk)
        eventually(lambda: bob._transport._inbox._iterating)
        alice.send_batch(address, [task(n, stream_id="rpc") for n in range(5)])
        peer, message = first.end()
        assert (peer.name, message.payload) == ("alice", 0)
        for _, message in walk:
            got.append(message.payload)
            if message.payload == 3:
                break
        del walk, first
        assert got == [1, 2, 3]
        eventually(lambda: not bob._transport._inbox._iterating)


def test_messages_ends_with_the_transport() -> None:
    bob = openline.sync.load_transport()
    walk = Calling(lambda: list(bob.messages()))
    eventually(lambda: bob._transport._inbox._iterating)
    bob.close()
    assert walk.end() == []


def test_nothing_warns_where_nothing_is_wrong() -> None:
    gc.collect()  # what other tests have left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with openline.sync.load_transport(PLAIN) as alice, openline.sync.load_transport(PLAIN) as bob:
            bob.on_message(echo)
            alice.request(f"ws://{serve(bob)}", task())
        del alice, bob
        gc.collect()
