"""Programs that are interrupted, end or fork: ``python programs.py SCENARIO LOOP``, by ``test_processes.py``.

Each ends with exit code 0 and writes nothing to standard error if all is well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable

import pytest

import openline
import openline.sync

DEADLINE = 30.0
SCENARIOS: dict[str, Callable[[], None]] = {}


def scenario(function: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS[function.__name__] = function
    return function


def task(payload: object = None, stream_id: int = 0) -> openline.Message:
    return openline.Message(payload=payload, stream_id=stream_id)


def load() -> openline.sync.Transport:
    """Dials in one way: of a race between several, as on a busy machine, the listener logs who gave up."""
    return openline.sync.load_transport(openline.Config(backends=("websocket",)))


def serve(transport: openline.sync.Transport) -> str:
    transport.on_message(lambda peer, message: peer.reply(message, message.payload))
    return f"ws://127.0.0.1:{transport.listen(host='127.0.0.1').port}"


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def interrupted(check: Callable[[], None], work: Callable[[], object]) -> None:
    """``work`` again and again. Each Ctrl-C is answered by a line when ``check`` has passed; before that no
    other one comes. Standard input says how many."""
    total, seen, told = int(input()), 0, 0

    def in_a_callback_of_a_weak_reference(info: sys.UnraisableHookArgs) -> None:
        """Where Python itself has run one, as ``threading`` does, the interrupt goes no further."""
        nonlocal seen
        if info.exc_type is KeyboardInterrupt:
            seen += 1
        else:
            sys.__unraisablehook__(info)

    sys.unraisablehook = in_a_callback_of_a_weak_reference
    while told < total:
        try:
            if told < seen:
                check()
                told = seen
                print(seen, flush=True)
            elif not seen:
                print("ready", flush=True)
            while told == seen < total:
                work()
        except KeyboardInterrupt:
            seen += 1


# Ctrl-C -------------------------------------------------------------------------------------------------


@scenario
def interrupted_calls() -> None:
    with load() as bob, load() as alice:
        address = serve(bob)
        number = 0

        def work() -> None:
            nonlocal number
            number += 1
            assert alice.request(address, task(number)).payload == number
            assert all(receipt.acked for receipt in alice.send_batch(address, [task(n) for n in range(3)]))

        def check() -> None:
            assert alice.request(address, task("after")).payload == "after"
            eventually(lambda: not alice._background._calls)

        interrupted(check, work)


@scenario
def interrupted_waits() -> None:
    """Nothing ever comes."""
    with load() as bob, load() as carol, load() as alice:
        address, silent = serve(bob), carol.listen(host="127.0.0.1").port
        ways = [
            lambda: alice.receive(address, "never"),
            lambda: list(alice.messages("never")),
            lambda: alice.request(f"ws://127.0.0.1:{silent}", task(), timeout=3600.0),
        ]
        turn = 0

        def work() -> None:
            ways[turn % len(ways)]()

        def check() -> None:
            nonlocal turn
            turn += 1
            assert alice.request(address, task(turn)).payload == turn
            eventually(lambda: not alice._background._calls and not alice._transport._inbox._iterating)

        interrupted(check, work)


@scenario
def interrupted_lives() -> None:
    """While transports are made and closed: nothing is left of them."""

    def work() -> None:
        with load() as alice:
            alice.listen(host="127.0.0.1")

    def check() -> None:
        eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("openline.sync")])

    interrupted(check, work)


@scenario
def interrupted_at_the_end() -> None:
    """Nobody catches it: the ``with`` block closes, and the traceback is all that is written."""
    with load() as alice:
        print("ready", flush=True)
        alice.receive("127.0.0.1:1")


# The end of the process ---------------------------------------------------------------------------------

kept: list[object] = []


@scenario
def ends_without_close() -> None:
    bob, alice = load(), load()
    kept.extend([alice, bob])
    address = serve(bob)
    assert alice.request(address, task(1)).payload == 1
    alice.connect("127.0.0.1:1", keep=True)
    kept.append(alice.messages())


@scenario
def ends_with_threads_that_wait() -> None:
    bob, alice = load(), load()
    kept.extend([alice, bob])
    address = serve(bob)
    bob.on_message(lambda peer, message: bob.receive("127.0.0.1:1"), stream_id=1)
    alice.send(address, task(stream_id=2))
    for wait in (lambda: list(alice.messages("never")), lambda: alice.receive(address, "never")):
        threading.Thread(target=_until_closed, args=(wait,), daemon=True).start()
    eventually(lambda: len(alice._background._calls) == 2)


def _until_closed(wait: Callable[[], object]) -> None:
    with contextlib.suppress(openline.Closed):
        wait()


@scenario
def ends_by_exit() -> None:
    kept.append(load())
    sys.exit(0)


@scenario
def ends_in_the_block() -> None:
    with load() as alice:
        alice.listen(host="127.0.0.1")
        raise SystemExit(0)


# Fork ---------------------------------------------------------------------------------------------------


def in_child(alice: openline.sync.Transport, address: str) -> None:
    for call in (alice.stats, alice.peers, alice.close, lambda: alice.send(address, task())):
        with pytest.raises(openline.Closed, match="fork"):
            call()
    with load() as own:
        assert own.request(address, task("from the child")).payload == "from the child"
    kept.append(load())  # closed at the end of the child


def _ended(pid: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code


@scenario
def forks() -> None:
    with load() as bob:
        address = serve(bob)
        with load() as alice:
            assert alice.request(address, task(1)).payload == 1
            for _ in range(3):
                if (pid := os.fork()) == 0:
                    in_child(alice, address)
                    break  # and leaves its parent's blocks, and ends as any program does
                _ended(pid)
                assert alice.request(address, task(2)).payload == 2


@scenario
def forks_while_others_call() -> None:
    with load() as bob, load() as alice:
        address, stop = serve(bob), threading.Event()

        def call() -> None:
            while not stop.is_set():
                assert alice.request(address, task(1)).payload == 1

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for _ in range(5):
            child = multiprocessing.get_context("fork").Process(target=in_child, args=(alice, address))
            child.start()
            child.join(DEADLINE)
            assert child.exitcode == 0, child.exitcode
        stop.set()
        for caller in callers:
            caller.join(DEADLINE)


if __name__ == "__main__":
    if sys.argv[2] == "asyncio":
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    SCENARIOS[sys.argv[1]]()
