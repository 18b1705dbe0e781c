"""Stop-watches shared by all Python contenders, so that none is timed in its own way."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# A receiver that saw nothing for this long, after the sender has finished, will not see the rest.
SILENCE = 5.0


async def ask_each(ask: Callable[[Any], Awaitable[Any]], messages: Sequence[Any]) -> list[float]:
    """Seconds for each question and its answer, one after the other."""

    async def each() -> list[float]:
        times = []
        for message in messages:
            start = perf_counter()
            await ask(message)
            times.append(perf_counter() - start)
        return times

    return await alone(each())


async def calls_each(ask: Callable[[Any], Awaitable[Any]], messages: Sequence[Any]) -> list[int]:
    """Python calls from each question to the next: at both ends, and what the ack of the answer takes."""
    count = 0

    def called(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    async def each() -> list[int]:
        nonlocal count
        counts = []
        sys.setprofile(called)
        for message in messages:
            await ask(message)
            counts.append(count)
            count = 0
        sys.setprofile(None)
        return counts

    return await alone(each())


async def alone(work: Coroutine[Any, Any, T]) -> T:
    """In a task of its own: with each answer all that wait for one another are resumed, the caller too."""
    return await asyncio.create_task(work)


class Rally:
    """Times an echo that is driven by handlers: each answer that comes in starts the next question."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self.times: list[float] = []
        self.finished: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._messages = iter(messages)
        self._start = 0.0

    def serve(self) -> Any:
        """The first question."""
        message = next(self._messages)
        self._start = perf_counter()
        return message

    def answered(self) -> Any | None:
        """Note the answer; the next question, or None when all have been asked."""
        now = perf_counter()
        self.times.append(now - self._start)
        message = next(self._messages, None)
        if message is None:
            self.finished.set_result(self.times)
        self._start = perf_counter()
        return message


class Tally:
    """Counts at the receiver."""

    def __init__(self, expected: int) -> None:
        self.count = 0
        self.last = 0.0
        self._expected = expected
        self._complete = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def seen(self, number: int = 1) -> None:
        self.count += number
        self.last = perf_counter()
        if self.count >= self._expected:
            # From whichever thread: not every contender counts on the loop's own.
            self._loop.call_soon_threadsafe(self._complete.set)

    async def settled(self) -> None:
        """Until everything is here, or nothing has come for a while."""
        before = -1
        while not self._complete.is_set() and self.count != before:
            before = self.count
            await self._complete_or_silence()

    async def _complete_or_silence(self) -> None:
        try:
            await asyncio.wait_for(self._complete.wait(), SILENCE)
        except TimeoutError:
            return


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]
