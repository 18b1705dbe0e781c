"""Time that passes and is not waited for, also where the sockets are real ones.

    await elapse(2.0)            # as ``asyncio.sleep``, in milliseconds
    with hurry() as passed:      # nothing in here waits for time to pass
        await t.close()
    assert passed() < 1.0        # of the loop's own time, however busy the machine is
    stall(0.5)                   # as if the loop had been held up for so long

Meanwhile the clock of the running loop is not the machine's: a turn of the loop takes 0.1 ms, and where the
loop would sleep until its next timer, the clock jumps there. What is on its way over loopback arrives first,
and no jump is made while a thread works for the loop: nothing happens in another order than it would have.
The other clock of a transport, which goes on while the machine sleeps, goes with the loop's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from openline.runtime.environment import RealEnvironment

# How long to look for what may come, on top of what a byte takes that is sent over loopback last.
GRACE = 0.001
TURN = 0.0001

Passed = Callable[[], float]


async def elapse(seconds: float) -> None:
    with hurry():
        await asyncio.sleep(seconds)


@contextmanager
def hurry() -> Iterator[Passed]:
    """Yields a function: how many seconds have passed since, on the loop's clock."""
    clock = _clock()
    clock.enter()
    began = clock.time()
    try:
        yield lambda: clock.time() - began
    finally:
        clock.leave()


def stall(seconds: float) -> None:
    _clock().add(seconds)


def _clock() -> _Clock:
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "clock_of_tests"):
        loop.clock_of_tests = _Clock(loop)
    return loop.clock_of_tests  # type: ignore[no-any-return]


class _Clock:
    """Between a loop and its selector: goes by itself while somebody hurries, else with the machine."""

    def __init__(self, loop: Any) -> None:
        self._now = 0.0
        self._ahead = 0.0
        self._hurried = self._working = 0
        self._real, self._select, self._in_thread = loop.time, loop._selector.select, loop.run_in_executor
        loop.time, loop._selector.select, loop.run_in_executor = self.time, self.select, self.run_in_executor

    def time(self) -> float:
        return self._now if self._hurried else float(self._real()) + self._ahead

    def add(self, seconds: float) -> None:
        self._ahead += seconds
        self._now += seconds

    def enter(self) -> None:
        if not self._hurried:
            self._now = self.time()
            self._cores = _stay_on_one_core()
        self._hurried += 1

    def leave(self) -> None:
        self._hurried -= 1
        if not self._hurried:
            self._ahead = self._now - float(self._real())
            if self._cores:
                os.sched_setaffinity(0, self._cores)

    def select(self, timeout: float | None = None) -> Any:
        if not self._hurried:
            return self._select(timeout)
        self._now += TURN
        if timeout == 0:
            return self._select(0)
        if timeout is not None:
            _loopback_is_empty()
        events = self._select(GRACE if timeout is not None or self._working else None)
        if not events and not self._working and timeout is not None:
            self._now += max(0.0, timeout - TURN)
        return events

    def run_in_executor(self, *work: Any) -> asyncio.Future[Any]:
        self._working += 1
        future: asyncio.Future[Any] = self._in_thread(*work)
        future.add_done_callback(self._worked)
        return future

    def _worked(self, future: object) -> None:
        self._working -= 1


@cache
def _loopback(process: int) -> tuple[int, int]:
    """A line over loopback, of which nobody has to know when it is no longer needed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one.detach(), server.accept()[0].detach()


def _stay_on_one_core() -> set[int]:
    """Each core has a queue of its own for loopback. Returns where this thread was allowed to run."""
    if not hasattr(os, "sched_setaffinity"):
        return set()
    before = os.sched_getaffinity(0)
    with open("/proc/thread-self/stat") as stat:
        os.sched_setaffinity(0, {int(stat.read().rpartition(")")[2].split()[36])})
    return before


def _loopback_is_empty() -> None:
    """A busy kernel carries packets when it comes to it, one after the other: ours comes last."""
    there, here = _loopback(os.getpid())
    os.write(there, b".")
    os.read(here, 1)


_of_the_machine = RealEnvironment.wall_clock


def _wall_clock(environment: RealEnvironment) -> float:
    clock: _Clock | None = getattr(asyncio.get_running_loop(), "clock_of_tests", None)
    return _of_the_machine(environment) if clock is None else clock.time()


RealEnvironment.wall_clock = _wall_clock  # type: ignore[method-assign]
