"""Staggered racing (RFC 8305 section 5): the first success wins, all others are called off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ..errors import Unreachable

T = TypeVar("T")

# The head start of one attempt over the next: RFC 8305 section 5 recommends 250 ms.
STAGGER = 0.25

Attempt = Callable[[], Awaitable[T]]


class AllFailed(Exception):
    """``errors`` has one for each attempt, in the order in which they failed."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__("all attempts failed")
        self.errors = errors


def merged(address: object, errors: list[Exception]) -> Exception:
    """One error that says it all: whoever refuses us goes before what cannot be reached.

    ``errors`` is empty afterwards: what is raised of them would have for a context what holds them.
    """
    found = errors.copy()
    errors.clear()
    for error in found:
        if not isinstance(error, Unreachable):
            return error
    unreachable = [error for error in found if isinstance(error, Unreachable)]
    tried = list(dict.fromkeys(path for error in unreachable for path in error.tried))
    return Unreachable(str(address), tried, no_route=all(error.no_route for error in unreachable))


class Race(Generic[T]):
    """Attempts of which one result is kept; ``discard`` is given what comes too late.

    An error that is one of ``decisive`` ends it: no other attempt would be better.
    """

    def __init__(
        self,
        discard: Callable[[T], object],
        stagger: float = STAGGER,
        decisive: tuple[type[Exception], ...] = (),
    ) -> None:
        self._discard = discard
        self._decisive = decisive
        self._stagger = stagger
        self._tasks: dict[asyncio.Task[T], int] = {}
        self._errors: list[Exception] = []

    async def run(self, attempts: Sequence[Attempt[T]]) -> tuple[int, T]:
        """The number of the attempt that won, and its result. Raises ``AllFailed``, or what is decisive."""
        waiting = list(enumerate(attempts))
        try:
            while waiting or self._tasks:
                if waiting:
                    number, attempt = waiting.pop(0)
                    self._tasks[asyncio.ensure_future(_started(attempt))] = number
                winner = await self._next(self._stagger if waiting else None)
                if winner is not None:
                    return winner
        finally:
            self._call_off()
        raise AllFailed(self._errors)

    async def _next(self, timeout: float | None) -> tuple[int, T] | None:
        """The end of one, or the turn of the next."""
        done, _ = await asyncio.wait(self._tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        winner: tuple[int, T] | None = None
        for task in sorted(done, key=self._tasks.__getitem__):  # of a tie the preferred one wins
            number = self._tasks.pop(task)
            error = task.exception()
            if isinstance(error, self._decisive):
                raise error
            if isinstance(error, Exception):
                self._errors.append(error)
            elif error is not None:
                raise error
            elif winner is None:
                winner = number, task.result()
            else:
                self._discard(task.result())
        return winner

    def _call_off(self) -> None:
        for task in self._tasks:
            task.add_done_callback(self._too_late)
            task.cancel()
        self._tasks.clear()

    def _too_late(self, task: asyncio.Task[T]) -> None:
        """One that succeeded in the moment it was cancelled must not leak."""
        if not task.cancelled() and task.exception() is None:
            self._discard(task.result())


async def _started(attempt: Attempt[T]) -> T:
    return await attempt()
