"""Run a handler's coroutine at once, inside the socket callback, and only if it waits, in a task.

A handler that never suspends costs no task and no trip through the loop. It still sees a proper
``asyncio.current_task()``, so ``asyncio.timeout`` and task groups work: each step is taken in the
name of a parked task (a *pilot*), and if the coroutine suspends, that same task carries it on.
``_enter_task`` and ``_leave_task`` are asyncio's documented hooks for this ("Extending asyncio").

A coroutine that suspends for an ``InlineFuture`` alone, as one that awaits ``peer.reply()`` does, is
stepped on by the news it waits for, still without its task having run.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .inline_future import InlineFuture

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
        self.parked: list[Pilot] = []
        # As many may be parked; none once it is closed.
        self.room = MAX_PARKED
        self.busy: set[asyncio.Task[None]] = set()
        # Who carries what has been run last and was not finished.
        self.last: Pilot | None = None

    def run(self, coroutine: Steps, wrap: Callable[[Steps], Steps], ended: Ended | None = None) -> bool:
        """Step ``coroutine``. True: it has finished. False: a task now carries ``wrap(coroutine)``.

        With ``ended`` it may also be left to a waiter, and ``ended`` is called when it has finished.
        Raises what the coroutine raises in its first step.
        """
        loop, parked = self.loop, self.parked
        while parked:
            pilot = parked.pop()
            task = pilot.task
            if not task.cancelling():
                break
        else:
            return self._in_new_task(coroutine, wrap)
        try:
            _enter_task(loop, task)
        except RuntimeError:  # another task is being run
            parked.append(pilot)
            return self._in_new_task(coroutine, wrap)
        context = self._base.copy()
        try:
            yielded = context.run(coroutine.send, None)
        except StopIteration:
            if len(parked) >= self.room or task.cancelling():
                self.park(pilot)
            else:
                parked.append(pilot)  # as park() does, at less cost
            return True
        except BaseException:
            self.park(pilot)
            raise
        finally:
            _leave_task(loop, task)
        pilot.begin(coroutine, context, wrap, ended, yielded)
        self.last = pilot
        return False

    def _in_new_task(self, coroutine: Steps, wrap: Callable[[Steps], Steps]) -> bool:
        """Where no parked task can be entered."""
        self.last = pilot = Pilot(self)
        pilot.carry(coroutine, wrap(self.isolated(coroutine)))
        return False

    async def isolated(self, coroutine: Steps) -> Any:
        """Run one handler's coroutine in a task that runs several, in a context of its own."""
        context = self._base.copy()
        try:
            yielded = context.run(coroutine.send, None)
        except StopIteration as end:
            return end.value
        return await _steps(coroutine, yielded, context)

    def park(self, pilot: Pilot) -> None:
        """Keep a pilot for the next handlers, unless it was cancelled."""
        self.busy.discard(pilot.task)
        if len(self.parked) >= self.room or pilot.task.cancelling():
            pilot.task.cancel()
        else:
            self.parked.append(pilot)

    async def idle(self) -> None:
        """Wait until nothing runs."""
        own = asyncio.current_task()
        while tasks := [task for task in self.busy if task is not own]:
            await asyncio.wait(tasks, timeout=0.01)

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        self.room = 0
        own = asyncio.current_task()
        tasks = [pilot.task for pilot in self.parked]
        tasks += [task for task in self.busy if task is not own]
        self.parked.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Pilot:
    """A task that waits for something to carry."""

    __slots__ = (
        "_begun",
        "_cargo",
        "_context",
        "_ended_with",
        "_held",
        "_job",
        "_on_news",
        "_runner",
        "_stopped_at",
        "_thrown",
        "_waiter",
        "_wake",
        "_wrap",
        "task",
    )

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._begun = False
        # While held: the coroutine is stepped in the task's name without it.
        self._held = False
        self._context: contextvars.Context
        self._wrap: Callable[[Steps], Steps]
        self._ended_with: Ended | None
        self._waiter: InlineFuture[Any]
        # Made once, not for each message.
        self._on_news = self._step
        self._job: Steps | None = None
        # What the job's coroutine waits for, and what it gets instead of an answer.
        self._stopped_at: Any = None
        self._thrown: BaseException | None = None
        # What the job is about, to be closed with it.
        self._cargo: Steps | None = None
        self._wake: asyncio.Future[None] | None = None
        self.task = runner.loop.create_task(self._fly())
        self.task.add_done_callback(self._over)

    def begin(
        self,
        coroutine: Steps,
        context: contextvars.Context,
        wrap: Callable[[Steps], Steps],
        ended: Ended | None,
        yielded: Any,
    ) -> None:
        """Leave a coroutine that has been stepped to the waiter it waits for, or else to the task."""
        self._cargo, self._context, self._wrap, self._ended_with = coroutine, context, wrap, ended
        if ended is not None and isinstance(yielded, InlineFuture) and not yielded.done():
            self._runner.busy.add(self.task)
            self._held, self._waiter = True, yielded
            yielded.call(self._on_news)
        else:
            self.carry(coroutine, wrap(self._resume(coroutine, yielded, context)), yielded)

    def _step(self, _: object) -> None:
        """The waiter of a held coroutine has its news."""
        coroutine, loop = self._cargo, self._runner.loop
        if self._wake is None or self._wake.done():
            return  # a cancellation is on its way, and comes first
        if coroutine is None or not self._held:
            return  # its task has taken it over
        self._held = False
        try:
            _enter_task(loop, self.task)
        except RuntimeError:  # another task is being run
            self.carry(coroutine, self._wrap(self._resume(coroutine, None, self._context)))
            return
        error: BaseException | None
        try:
            yielded = self._context.run(coroutine.send, None)
        except StopIteration:
            error = None
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
        else:
            self.begin(coroutine, self._context, self._wrap, self._ended_with, yielded)
            return
        finally:
            _leave_task(loop, self.task)
        self._cargo = None
        assert self._ended_with is not None
        rest = self._ended_with(error)
        error = None  # its traceback holds this frame
        runner = self._runner
        if rest is not None:
            self.carry(None, rest)
        elif len(runner.parked) >= runner.room or self.task.cancelling():
            runner.park(self)
        else:
            runner.busy.discard(self.task)
            runner.parked.append(self)

    def carry(self, coroutine: Steps | None, job: Steps, yielded: object = None) -> None:
        """Let the task do ``job``."""
        self._runner.busy.add(self.task)
        self._cargo, self._job, self._stopped_at = coroutine, job, yielded
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def cancel(self) -> bool:
        """Cancel what it carries, where that waits. False: a turn of the loop too early, as a task that is
        cancelled before its first step ends without having carried anything."""
        if self._begun:
            self.task.cancel()
        return self._begun

    def _over(self, task: asyncio.Task[None]) -> None:
        """The task has ended; what it has not come to carry is closed."""
        self._runner.busy.discard(task)
        for coroutine in (self._job, self._cargo):
            if coroutine is not None:
                coroutine.close()
        self._job = self._cargo = None
        self._held = False

    async def _fly(self) -> None:
        self._begun = True
        while True:
            cancelled = await self._parked()
            if cancelled:
                self._pass_on_cancellation()
            job, self._job = self._job, None
            if job is None:
                return
            await job
            self._cargo = None
            self._runner.park(self)

    def _pass_on_cancellation(self) -> None:
        """It is the handler's to see, at the very place where it waits, as in a task of its own."""
        if self._held and self._cargo is not None:
            self._held = False
            self._waiter.drop()
            self._thrown = asyncio.CancelledError()
            self._job = self._wrap(self._resume(self._cargo, None, self._context))
        elif self._cargo is not None:
            waits_for, self._stopped_at = self._stopped_at, None
            if waits_for is None or not waits_for.cancel():
                self._thrown = asyncio.CancelledError()
        elif self._job is not None:
            # Between two handlers: the next one's.
            self.task.uncancel()
            self._runner.loop.call_soon(self.task.cancel)

    async def _resume(self, coroutine: Steps, yielded: Any, context: contextvars.Context) -> Any:
        """Go on with a coroutine that has already been stepped once."""
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            try:
                yielded = context.run(coroutine.throw, thrown)
            except StopIteration as end:
                return end.value
        return await _steps(coroutine, yielded, context)

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
