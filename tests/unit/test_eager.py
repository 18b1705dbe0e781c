"""The runner: a handler's coroutine runs at once, and gets a task only if it waits."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from openline.runtime.eager import MAX_PARKED, Runner

from .callbacks import in_callback

T = TypeVar("T")
Steps = Coroutine[Any, Any, Any]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="untouched")


def as_it_is(steps: Steps) -> Steps:
    return steps


async def run(runner: Runner, steps: Steps, wrap: Callable[[Steps], Steps] = as_it_is) -> bool:
    return await in_callback(lambda: runner.run(steps, wrap))


async def nothing() -> None:
    pass


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    """A runner with a parked pilot, as after the first message."""
    runner = Runner(asyncio.get_running_loop())
    await run(runner, nothing())
    await settled(runner)
    yield runner
    await runner.close()


async def settled(runner: Runner) -> None:
    async with asyncio.timeout(5):
        await runner.idle()


# Running ------------------------------------------------------------------------------------------


async def test_what_does_not_wait_finishes_at_once_and_makes_no_task(runner: Runner) -> None:
    seen = []

    async def handler() -> None:
        seen.append(await inner())

    async def inner() -> str:
        return "done"

    def call() -> tuple[bool, list[str], bool]:
        before = asyncio.all_tasks()
        finished = runner.run(handler(), as_it_is)
        return finished, list(seen), asyncio.all_tasks() == before

    assert await in_callback(call) == (True, ["done"], True)


async def test_it_is_not_wrapped(runner: Runner) -> None:
    def wrap(_: Steps) -> Steps:
        raise AssertionError("only what waits is wrapped")

    assert await run(runner, nothing(), wrap)


async def test_what_waits_is_carried_on(runner: Runner) -> None:
    seen = []
    ready = asyncio.Event()

    async def handler() -> str:
        seen.append("before")
        await ready.wait()
        seen.append("after")
        return "result"

    async def wrap(steps: Steps) -> None:
        seen.append(await steps)

    assert not await run(runner, handler(), wrap)
    assert seen == ["before"]
    ready.set()
    await settled(runner)
    assert seen == ["before", "after", "result"]


@pytest.mark.parametrize("waits", [0, 1, 2, 5])
async def test_it_may_wait_any_number_of_times_for_anything(runner: Runner, waits: int) -> None:
    loop, seen = asyncio.get_running_loop(), []

    async def handler() -> None:
        for number in range(waits):
            await asyncio.sleep(0)
            done: asyncio.Future[int] = loop.create_future()
            done.set_result(number)
            seen.append(await done)
            later: asyncio.Future[int] = loop.create_future()
            loop.call_soon(later.set_result, number)
            seen.append(await later)

    assert await run(runner, handler()) is (waits == 0)
    await settled(runner)
    assert seen == [number for number in range(waits) for _ in range(2)]


async def test_many_wait_side_by_side(runner: Runner) -> None:
    ready, seen = asyncio.Event(), []

    async def handler(number: int) -> None:
        await ready.wait()
        seen.append(number)

    for number in range(3 * MAX_PARKED):
        assert not await run(runner, handler(number))
    ready.set()
    await settled(runner)
    assert sorted(seen) == list(range(3 * MAX_PARKED))
    assert len(asyncio.all_tasks()) <= MAX_PARKED + 2


async def test_the_current_task_is_the_same_before_and_after_the_first_wait(runner: Runner) -> None:
    tasks = []

    async def handler() -> None:
        for _ in range(3):
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0)

    await run(runner, handler())
    await settled(runner)
    assert tasks[0] is not None
    assert tasks[0] is tasks[1] is tasks[2]


async def test_outside_a_handler_there_is_no_current_task(runner: Runner) -> None:
    async def fail() -> None:
        raise KeyError

    def call() -> list[object]:
        runner.run(nothing(), as_it_is)
        after_success = asyncio.current_task()
        with pytest.raises(KeyError):
            runner.run(fail(), as_it_is)
        after_error = asyncio.current_task()
        runner.run(asyncio.sleep(0), as_it_is)
        return [after_success, after_error, asyncio.current_task()]

    assert await in_callback(call) == [None, None, None]


async def test_one_handler_may_start_another(runner: Runner) -> None:
    seen = []

    async def inner(name: str) -> None:
        seen.append(f"{name} starts")
        await asyncio.sleep(0)
        seen.append(f"{name} ends")

    async def outer() -> None:
        assert not runner.run(inner("first"), as_it_is)
        seen.append("outer goes on")
        await asyncio.sleep(0)
        assert not runner.run(inner("second"), as_it_is)

    await run(runner, outer())
    await settled(runner)
    assert seen[0] == "outer goes on"
    assert set(seen[1:]) == {"first starts", "first ends", "second starts", "second ends"}


async def test_from_within_a_task_it_gets_a_task_of_its_own(runner: Runner) -> None:
    tasks = []

    async def handler() -> None:
        tasks.append(asyncio.current_task())

    assert not runner.run(handler(), as_it_is)
    assert tasks == []
    await settled(runner)
    assert tasks[0] is not asyncio.current_task()


# What handlers use --------------------------------------------------------------------------------


async def test_a_timeout_that_is_met(runner: Runner) -> None:
    seen = []

    async def handler() -> None:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            seen.append("in time")

    await run(runner, handler())
    await settled(runner)
    assert seen == ["in time"]


@pytest.mark.parametrize("limit", [-1, 0, 0.001])
async def test_a_timeout_that_is_not(runner: Runner, limit: float) -> None:
    seen = []

    async def handler() -> None:
        try:
            async with asyncio.timeout(limit):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        await asyncio.sleep(0)
        seen.append("goes on")

    await run(runner, handler())
    await settled(runner)
    assert seen == [0, "goes on"]


async def test_a_task_group(runner: Runner) -> None:
    seen: list[object] = []

    async def child(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(child(number))
        seen.append("all")

    await run(runner, handler())
    await settled(runner)
    assert seen == [0, 1, 2, "all"]


async def test_a_task_group_whose_child_fails(runner: Runner) -> None:
    seen = []

    async def child() -> None:
        raise KeyError("child")

    async def handler() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await asyncio.Event().wait()
        except* KeyError:
            seen.append("caught")

    await run(runner, handler())
    await settled(runner)
    assert seen == ["caught"]


# Exceptions and cancellation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [KeyError("k"), RuntimeError("r"), asyncio.CancelledError()],
    ids=["error", "of the runtime", "cancelled"],
)
async def test_an_exception_of_the_first_step_is_raised(runner: Runner, error: BaseException) -> None:
    async def handler() -> None:
        raise error

    def call() -> BaseException | None:
        try:
            runner.run(handler(), as_it_is)
        except BaseException as caught:
            return caught
        return None

    assert await in_callback(call) is error
    assert await run(runner, nothing())


async def test_a_later_exception_is_the_wrappers(runner: Runner) -> None:
    seen: list[BaseException] = []

    async def handler() -> None:
        await asyncio.sleep(0)
        raise KeyError("later")

    async def guard(steps: Steps) -> None:
        try:
            await steps
        except KeyError as error:
            seen.append(error)

    assert not await run(runner, handler(), guard)
    await settled(runner)
    assert [str(error) for error in seen] == ["'later'"]
    assert await run(runner, nothing())


async def test_cancelling_the_handlers_task_reaches_the_handler(runner: Runner) -> None:
    for turns in range(4):
        seen: list[object] = []
        task: list[asyncio.Task[Any] | None] = []

        async def handler(seen: list[object] = seen, task: list[Any] = task) -> None:
            task.append(asyncio.current_task())
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            finally:
                seen.append("cleaned up")

        await run(runner, handler())
        for _ in range(turns):
            await asyncio.sleep(0)
        assert task[0] is not None
        assert task[0].cancel()
        await settled(runner)
        assert seen == ["cancelled", "cleaned up"]


async def test_a_handler_that_cancels_itself_and_ends_does_no_harm_to_the_next(runner: Runner) -> None:
    seen = []

    async def rash() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def next_handler() -> None:
        await asyncio.sleep(0)
        seen.append("finished")

    await run(runner, rash())
    for _ in range(3):
        await asyncio.sleep(0)
    await run(runner, next_handler())
    await settled(runner)
    assert seen == ["finished"]


async def test_a_handler_that_swallows_its_cancellation_does_no_harm_to_the_next(runner: Runner) -> None:
    seen: list[object] = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("swallowed")
        await asyncio.sleep(0)

    async def next_handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append(task.cancelling())
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        seen.append("finished")

    before = asyncio.all_tasks()
    await run(runner, stubborn())
    for task in asyncio.all_tasks() & before - {asyncio.current_task()}:
        task.cancel()
    await settled(runner)
    await run(runner, next_handler())
    await settled(runner)
    assert seen == ["swallowed", 0, "finished"]


async def test_pilots_cancelled_from_outside_are_replaced(runner: Runner) -> None:
    """Programs cancel ``asyncio.all_tasks()`` when they end; messages may come until the last moment."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    seen = []

    async def handler() -> None:
        await asyncio.sleep(0)
        seen.append("finished")

    await run(runner, handler())
    await settled(runner)
    assert seen == ["finished"]


# Nothing leaks ------------------------------------------------------------------------------------


async def look(seen: list[str]) -> None:
    seen.append(variable.get())
    await asyncio.sleep(0)
    seen.append(variable.get())


@pytest.mark.parametrize("waits", [True, False])
async def test_context_variables_do_not_reach_the_next_handler(runner: Runner, waits: bool) -> None:
    async def handler() -> None:
        variable.set("set by a handler")
        if waits:
            await asyncio.sleep(0)

    for _ in range(3):
        seen: list[str] = []
        await run(runner, handler())
        await settled(runner)
        await run(runner, look(seen))
        await settled(runner)
        assert seen == ["untouched", "untouched"]


@pytest.mark.parametrize("waits", [True, False])
async def test_nor_does_a_changed_value_of_one_that_was_set_before(waits: bool) -> None:
    async def handler() -> None:
        variable.set("changed by a handler")
        if waits:
            await asyncio.sleep(0)

    variable.set("set by the program")
    own = Runner(asyncio.get_running_loop())
    own.run(nothing(), as_it_is)
    await settled(own)
    seen: list[str] = []
    for _ in range(3):
        await run(own, handler())
        await settled(own)
        await run(own, look(seen))
        await settled(own)
    await own.close()
    assert "changed by a handler" not in seen


async def test_nor_do_those_of_a_task_that_started_a_handler(runner: Runner) -> None:
    async def starter() -> None:
        variable.set("the starter's own")
        for _ in range(3):
            runner.run(nothing(), as_it_is)

    await asyncio.create_task(starter())
    await settled(runner)
    seen: list[str] = []
    for _ in range(5):
        await run(runner, look(seen))
    await settled(runner)
    assert set(seen) == {"untouched"}


async def test_a_handler_keeps_its_own_context_across_waits(runner: Runner) -> None:
    seen = []

    async def handler(value: str) -> None:
        variable.set(value)
        for _ in range(2):
            await asyncio.sleep(0)
            seen.append(variable.get() == value)

    for number in range(10):
        await run(runner, handler(str(number)))
    await settled(runner)
    assert seen == [True] * 20


async def test_memory_stays_flat_over_many_handlers_that_wait(runner: Runner) -> None:
    async def batch(count: int) -> None:
        for _ in range(count):
            await run(runner, asyncio.sleep(0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    await batch(500)
    gc.collect()
    tracemalloc.start()
    try:
        await batch(200)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await batch(3000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 3000 * 8, f"{grown / 3000:.0f} bytes per handler stay behind"


async def test_pilots_are_used_again(runner: Runner) -> None:
    for _ in range(20):
        await run(runner, asyncio.sleep(0))
        await settled(runner)
    assert len(asyncio.all_tasks()) == 2


# Closing ------------------------------------------------------------------------------------------


async def tasks_after_close(runner: Runner) -> set[asyncio.Task[Any]]:
    async with asyncio.timeout(5):
        await runner.close()
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_close_cancels_what_runs_and_leaves_no_task(runner: Runner) -> None:
    seen = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    for _ in range(5):
        await run(runner, handler())
    assert await tasks_after_close(runner) == set()
    assert seen == ["cleaned up"] * 5


async def test_close_waits_for_what_cleans_up_slowly(runner: Runner) -> None:
    seen = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    await run(runner, handler())
    assert await tasks_after_close(runner) == set()
    assert seen == ["cleaned up"]


async def test_close_with_a_handler_that_swallows_its_cancellation(runner: Runner) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    await run(runner, stubborn())
    assert await tasks_after_close(runner) == set()


async def test_close_twice_and_of_a_runner_that_never_ran(runner: Runner) -> None:
    assert await tasks_after_close(runner) == set()
    assert await tasks_after_close(runner) == set()
    assert await tasks_after_close(Runner(asyncio.get_running_loop())) == set()


async def test_close_from_within_a_handler_does_not_wait_for_itself(runner: Runner) -> None:
    closed = asyncio.Event()

    async def handler() -> None:
        await asyncio.sleep(0)
        await runner.close()
        closed.set()

    await run(runner, handler())
    async with asyncio.timeout(5):
        await closed.wait()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_handlers_not_yet_begun_are_closed_too() -> None:
    """The very first has no pilot to run on; close() may come before its task has begun."""
    fresh = Runner(asyncio.get_running_loop())
    handlers = [nothing(), nothing()]
    for steps in handlers:
        assert not fresh.run(steps, as_it_is)
    left = await tasks_after_close(fresh)
    states = [inspect.getcoroutinestate(steps) for steps in handlers]
    for steps in handlers:
        steps.close()
    assert states == [inspect.CORO_CLOSED] * 2
    assert left == set()


async def test_idle_waits_for_all_but_its_own_task(runner: Runner) -> None:
    ready, seen = asyncio.Event(), []

    async def handler() -> None:
        await ready.wait()
        seen.append("handled")

    async def waits_for_the_others() -> None:
        await asyncio.sleep(0)
        ready.set()
        await runner.idle()
        seen.append("idle")

    await run(runner, handler())
    await run(runner, waits_for_the_others())
    await settled(runner)
    assert seen == ["handled", "idle"]
