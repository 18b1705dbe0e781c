"""Virtual time, and processes that stop, sleep and die in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from openline.testing import Deadlock, Killed, Process, Spinning, Unhandled, VirtualLoop, current_process, run


def the_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_time_passes_only_when_nothing_runs() -> None:
    async def main() -> list[float]:
        loop = the_loop()
        times = [loop.time()]
        time.sleep(0.01)  # noqa: ASYNC251
        times.append(loop.time())
        await asyncio.sleep(3600)
        times.append(loop.time())
        return times

    before = time.monotonic()
    assert run(main()) == [0.0, 0.0, 3600.0]
    assert time.monotonic() - before < 1


def test_timers_of_one_moment_keep_their_order() -> None:
    async def main() -> list[int]:
        loop, order = the_loop(), list[int]()
        for number in range(50):
            loop.call_at(1.0, order.append, number)
        await asyncio.sleep(2)
        return order

    assert run(main()) == list(range(50))


def test_cancelled_timers_are_swept() -> None:
    async def main() -> None:
        for _ in range(1000):
            the_loop().call_later(1e6, print).cancel()
        await asyncio.sleep(1)
        assert len(the_loop()._queue) < 200

    run(main())


def test_deadlock_names_who_waits() -> None:
    async def waits_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"(?s)nothing is scheduled.*waits_for_ever"):
        run(waits_for_ever())


def test_spinning_is_found() -> None:
    async def main() -> None:
        for _ in iter(int, 1):
            await asyncio.sleep(0)

    with pytest.raises(Spinning, match="no end"):
        run(main())


def test_limit() -> None:
    async def main() -> None:
        for _ in iter(int, 1):
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError, match="not finished after 60 virtual seconds"):
        run(main(), limit=60)


def test_what_nobody_handles_is_raised() -> None:
    async def main() -> None:
        the_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(Unhandled) as raised:
        run(main())
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_names_and_ips_without_a_network() -> None:
    async def main() -> None:
        loop = the_loop()
        loop.names["b.example"] = ["10.0.0.2", "fd00::2"]
        found = await loop.getaddrinfo("b.example", 80)
        assert [item[4] for item in found] == [("10.0.0.2", 80), ("fd00::2", 80, 0, 0)]
        assert [item[4] for item in await loop.getaddrinfo("fe80::1%2", 80)] == [("fe80::1", 80, 0, 2)]
        with pytest.raises(OSError, match="not known"):
            await loop.getaddrinfo("c.example", 80)

    run(main())


def test_no_threads() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(print)

    run(main())


# Processes ----------------------------------------------------------------------------------------


class Ticker:
    """Notes the loop's and the process's time every second."""

    def __init__(self, process: Process) -> None:
        self.seen: list[tuple[float, float]] = []
        self.cleaned_up = False
        self.task = process.spawn(self._tick())

    async def _tick(self) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                self.seen.append((the_loop().clock, the_loop().time()))
        finally:
            self.cleaned_up = True


def test_frozen_callbacks_wait_for_the_thaw() -> None:
    async def main() -> None:
        process = the_loop().process("p")
        ticker = Ticker(process)
        await asyncio.sleep(1.5)
        process.freeze()
        await asyncio.sleep(3)
        assert len(ticker.seen) == 1
        process.thaw()
        await asyncio.sleep(1.2)
        assert ticker.seen == [(1.0, 1.0), (4.5, 4.5), (5.5, 5.5)]

    run(main())


def test_a_sleeping_machine_does_not_count_its_sleep() -> None:
    async def main() -> None:
        process = the_loop().process("p")
        ticker = Ticker(process)
        await asyncio.sleep(1.5)
        process.sleep(100)
        await asyncio.sleep(103)
        assert ticker.seen == [(1.0, 1.0), (102.0, 2.0), (103.0, 3.0), (104.0, 4.0)]

    run(main())


def test_held_callbacks_keep_their_order() -> None:
    async def main() -> list[int]:
        process, order = the_loop().process("p"), list[int]()
        process.freeze()
        for number in range(20):
            the_loop().call_later(number / 10, order.append, number, context=process.context)
        await asyncio.sleep(5)
        assert not order
        process.thaw()
        await asyncio.sleep(0.1)
        return order

    assert run(main()) == list(range(20))


def test_a_killed_process_runs_no_more_code() -> None:
    tickers: list[Ticker] = []

    async def main() -> None:
        process = the_loop().process("p")
        tickers.append(Ticker(process))
        waiting = asyncio.ensure_future(process.run(asyncio.sleep(60)))
        await asyncio.sleep(1.5)
        process.kill()
        with pytest.raises(Killed):
            await waiting
        with pytest.raises(Killed):
            await process.run(asyncio.sleep(1))
        await asyncio.sleep(10)
        assert len(tickers[0].seen) == 1
        assert not tickers[0].cleaned_up

    run(main())


def test_run_passes_results_errors_and_cancellation() -> None:
    async def fails() -> None:
        raise KeyError("x")

    async def tells() -> Process | None:
        return current_process()

    async def main() -> None:
        process = the_loop().process("p")
        assert current_process() is None
        assert await process.run(tells()) is process
        with pytest.raises(KeyError):
            await process.run(fails())
        task = asyncio.ensure_future(process.run(asyncio.sleep(60)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    run(main())


async def chaotic() -> list[tuple[int, float]]:
    """Sets of tasks, and much at the same time."""
    loop, seen = the_loop(), list[tuple[int, float]]()

    async def one(number: int) -> int:
        await asyncio.sleep(number % 3)
        return number

    tasks = {loop.create_task(one(number)) for number in range(50)}
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        seen += [(task.result(), loop.time()) for task in done]
    return seen


def test_sets_of_tasks_have_an_order() -> None:
    rubbish = [object() for _ in range(1000)]  # moves what is allocated next
    first = run(chaotic())
    del rubbish
    assert run(chaotic()) == first


def test_the_same_in_another_process() -> None:
    root = str(Path(__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {root!r}); from openline.testing import run; "
        "from tests.simulation.test_virtual_loop import chaotic; print(run(chaotic()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{run(chaotic())}\n"}


def test_a_runner_can_use_it() -> None:
    async def main() -> float:
        await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    def run_it(main: Coroutine[Any, Any, float]) -> float:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main)

    assert run_it(main()) == 60.0
