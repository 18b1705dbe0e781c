"""Run a handler's coroutine at once, inside the socket callback, and only if it waits, in a task.

A handler that never suspends costs no task and no trip through the loop. It still sees a proper
``asyncio.current_task()``, so ``asyncio.timeout`` and task groups work: each step is taken in the
name of a parked task (a *pilot*), and if the coroutine suspends, that same task carries it on.
``_enter_task`` and ``_leave_task`` are asyncio's documented hooks for this ("Extending asyncio").

A coroutine that suspends for a ``Waiter`` alone, as one that awaits ``peer.reply()`` does, is
stepped on by the news it waits for, still without its task having run.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import _enter_task, _leave_task, current_task
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .inline_future import Waiter

# Parked tasks kept for the next handlers; more than this many at a time is rare.
MAX_PARKED = 64

Steps = Coroutine[Any, Any, Any]
# Told how a coroutine ended that was stepped on by a waiter; returns what its task still has to do.
Ended = Callable[[BaseException | None], Steps | None]


class Runner:
    """Runs coroutines eagerly on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # What handlers start with: the program's own context, not that of whatever dispatched them.
        self._base = contextvars.copy_context()
        self._parked: list[_Pilot] = []
        self._busy: set[asyncio.Task[None]] = set()
        self._closed = False

    def run(self, coroutine: Steps, wrap: Callable[[Steps], Steps], ended: Ended | None = None) -> bool:
        """Step ``coroutine``. True: it has finished. False: a task now carries ``wrap(coroutine)``.

        With ``ended`` it may also be left to a waiter, and ``ended`` is called when it has finished.
        Raises what the coroutine raises in its first step.
        """
        pilot = self._free_pilot()
        if pilot is None:
            self._carry(self._new_pilot(), coroutine, wrap(self.isolated(coroutine)))
            return False
        task = pilot.task
        context = self._base.copy()
        _enter_task(self.loop, task)
        try:
            yielded = context.run(coroutine.send, None)
        except BaseException as error:
            self.park(pilot)
            if type(error) is StopIteration:
                return True
            raise
        finally:
            _leave_task(self.loop, task)
        if ended is not None and isinstance(yielded, Waiter) and not yielded._state:
            self._busy.add(task)
            pilot.hold(coroutine, context, wrap, ended, yielded)
        else:
            self._carry(pilot, coroutine, wrap(_resume(coroutine, yielded, context, pilot)), yielded)
        return False

    async def isolated(self, coroutine: Steps) -> Any:
        """Run one handler's coroutine in a task that runs several, in a context of its own."""
        context = self._base.copy()
        try:
            yielded = context.run(coroutine.send, None)
        except StopIteration as end:
            return end.value
        return await _steps(coroutine, yielded, context)

    def _free_pilot(self) -> _Pilot | None:
        """A parked one, where a task may be entered, and not one that somebody has cancelled."""
        if current_task(self.loop) is not None:
            return None
        while self._parked:
            pilot = self._parked.pop()
            if not pilot.task.cancelling():
                return pilot
        return None

    def _new_pilot(self) -> _Pilot:
        pilot = _Pilot(self)
        pilot.task.add_done_callback(pilot.ended)
        return pilot

    def _carry(self, pilot: _Pilot, coroutine: Steps | None, job: Steps, yielded: object = None) -> None:
        self._busy.add(pilot.task)
        pilot.carry(coroutine, job, yielded)

    def step(self, pilot: _Pilot) -> None:
        """The waiter of a held coroutine has its news."""
        loop, coroutine = self.loop, pilot.cargo
        if coroutine is None or not pilot.held:
            return  # its task has taken it over
        pilot.held = False
        if current_task(loop) is not None:
            # A task may not be entered inside another one.
            self._carry(pilot, coroutine, pilot.wrap(_resume(coroutine, None, pilot.context, pilot)))
            return
        error: BaseException | None = None
        _enter_task(loop, pilot.task)
        try:
            yielded = pilot.context.run(coroutine.send, None)
        except StopIteration:
            pass
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
        else:
            if isinstance(yielded, Waiter) and not yielded._state:
                pilot.hold(coroutine, pilot.context, pilot.wrap, pilot.ended_with, yielded)
            else:
                job = pilot.wrap(_resume(coroutine, yielded, pilot.context, pilot))
                self._carry(pilot, coroutine, job, yielded)
            return
        finally:
            _leave_task(loop, pilot.task)
        pilot.cargo = None
        rest = pilot.ended_with(error)
        if rest is None:
            self.park(pilot)
        else:
            self._carry(pilot, None, rest)

    def lost(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)

    def park(self, pilot: _Pilot) -> None:
        """Keep a pilot for the next handlers, unless it was cancelled."""
        self._busy.discard(pilot.task)
        full = self._closed or len(self._parked) >= MAX_PARKED
        if full or pilot.task.cancelling():
            pilot.task.cancel()
        else:
            self._parked.append(pilot)

    async def idle(self) -> None:
        """Wait until nothing runs."""
        own = asyncio.current_task()
        while tasks := [task for task in self._busy if task is not own]:
            await asyncio.wait(tasks, timeout=0.01)

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        self._closed = True
        own = asyncio.current_task()
        tasks = [pilot.task for pilot in self._parked]
        tasks += [task for task in self._busy if task is not own]
        self._parked.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Pilot:
    """A task that waits for something to carry."""

    __slots__ = (
        "_job",
        "_runner",
        "_stopped_at",
        "_waiter",
        "_wake",
        "cargo",
        "context",
        "ended_with",
        "held",
        "on_news",
        "task",
        "thrown",
        "wrap",
    )

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # While held: the coroutine is stepped in the task's name without it.
        self.held = False
        self.context: contextvars.Context
        self.wrap: Callable[[Steps], Steps]
        self.ended_with: Ended
        self._waiter: Waiter[Any]
        # Made once, not for each message.
        self.on_news = self._on_news
        self._job: Steps | None = None
        # What the job's coroutine waits for, and what it gets instead of an answer.
        self._stopped_at: Any = None
        self.thrown: BaseException | None = None
        # What the job is about, to be closed with it.
        self.cargo: Steps | None = None
        self._wake: asyncio.Future[None] | None = None
        self.task = runner.loop.create_task(self._fly())

    def hold(
        self,
        coroutine: Steps,
        context: contextvars.Context,
        wrap: Callable[[Steps], Steps],
        ended: Ended,
        waiter: Waiter[Any],
    ) -> None:
        """Leave a coroutine to the waiter it waits for."""
        self.held = True
        self.cargo, self.context, self.wrap, self.ended_with = coroutine, context, wrap, ended
        self._waiter = waiter
        waiter.call(self.on_news)

    def _on_news(self, waiter: Waiter[Any]) -> None:
        if self._wake is not None and not self._wake.done():
            self._runner.step(self)  # else a cancellation is on its way, and comes first

    def carry(self, coroutine: Steps | None, job: Steps, yielded: object) -> None:
        self.cargo, self._job, self._stopped_at = coroutine, job, yielded
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def ended(self, task: asyncio.Task[None]) -> None:
        """The task is over; what it has not come to carry is closed."""
        self._runner.lost(task)
        for coroutine in (self._job, self.cargo):
            if coroutine is not None:
                coroutine.close()
        self._job = self.cargo = None
        self.held = False

    async def _fly(self) -> None:
        while True:
            cancelled = await self._parked()
            if cancelled:
                self._pass_on_cancellation()
            job, self._job = self._job, None
            if job is None:
                return
            await job
            self.cargo = None
            self._runner.park(self)

    def _pass_on_cancellation(self) -> None:
        """It is the handler's to see, at the very place where it waits, as in a task of its own."""
        if self.held and self.cargo is not None:
            self.held = False
            self._waiter.drop()
            self.thrown = asyncio.CancelledError()
            self._job = self.wrap(_resume(self.cargo, None, self.context, self))
        elif self.cargo is not None:
            waits_for, self._stopped_at = self._stopped_at, None
            if waits_for is None or not waits_for.cancel():
                self.thrown = asyncio.CancelledError()
        elif self._job is not None:
            # Between two handlers: the next one's.
            self.task.uncancel()
            self._runner.loop.call_soon(self.task.cancel)

    async def _parked(self) -> bool:
        """Wait for a job; True if a cancellation came instead of, or along with, one."""
        if self._job is not None:
            return False
        self._wake = self._runner.loop.create_future()
        try:
            await self._wake
        except asyncio.CancelledError:
            return True
        finally:
            self._wake = None
        return False


@types.coroutine
def _steps(coroutine: Steps, yielded: Any, context: contextvars.Context) -> Generator[Any, Any, Any]:
    while True:
        try:
            sent = yield yielded
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            thrown: BaseException | None = error
        else:
            thrown = None
        try:
            yielded = (
                context.run(coroutine.send, sent) if thrown is None else context.run(coroutine.throw, thrown)
            )
        except StopIteration as end:
            return end.value


async def _resume(coroutine: Steps, yielded: Any, context: contextvars.Context, pilot: _Pilot) -> Any:
    """Go on with a coroutine that has already been stepped once."""
    thrown, pilot.thrown = pilot.thrown, None
    if thrown is not None:
        try:
            yielded = context.run(coroutine.throw, thrown)
        except StopIteration as end:
            return end.value
    return await _steps(coroutine, yielded, context)
