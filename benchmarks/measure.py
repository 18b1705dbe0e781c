"""Stop-watches shared by all Python contenders, so that none is timed in its own way."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

# A receiver that saw nothing for this long, after the sender has finished, will not see the rest.
SILENCE = 5.0


async def ask_each(ask: Callable[[Any], Awaitable[Any]], messages: Sequence[Any]) -> list[float]:
    """Seconds for each question and its answer, one after the other."""
    times = []
    for message in messages:
        start = perf_counter()
        await ask(message)
        times.append(perf_counter() - start)
    return times


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

    def seen(self, number: int = 1) -> None:
        self.count += number
        self.last = perf_counter()
        if self.count >= self._expected:
            self._complete.set()

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
