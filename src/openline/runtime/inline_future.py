"""A future that wakes its task at once, inside the socket callback that brought the news.

An ``asyncio.Future`` wakes its task through the loop's queue, which costs as much as encoding and
writing a message. This one speaks the protocol that tasks expect of any future
(``_asyncio_future_blocking``, "Extending asyncio") and steps the waiting task directly where no
other task is running. One task waits for it at most.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import current_task
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PENDING, _DONE, _CANCELLED = range(3)


class Waiter(Generic[T]):
    """Set once; awaited by one task."""

    # Defaults in the class: one is made for every message.
    _asyncio_future_blocking = False
    _state = _PENDING
    _result: T
    _error: BaseException | None = None
    _callback: Callable[[Any], object] | None = None
    _context: contextvars.Context | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def done(self) -> bool:
        return self._state != _PENDING

    def cancelled(self) -> bool:
        return self._state == _CANCELLED

    def set_result(self, result: T) -> None:
        if self._state == _PENDING:
            self._result = result
            self._finish(_DONE)

    def set_exception(self, error: BaseException) -> None:
        if self._state == _PENDING:
            self._error = error
            self._finish(_DONE)

    def _finish(self, state: int) -> None:
        self._state = state
        callback = self._callback
        if callback is None:
            return
        self._callback = None
        if self._context is None:
            callback(self)
        elif current_task(self._loop) is None:
            try:
                self._context.run(callback, self)
            except (SystemExit, KeyboardInterrupt) as error:
                # For the loop, which they end; from here they would get no further than a socket callback.
                self._loop.call_soon(_raise, error)
        else:
            self._loop.call_soon(callback, self, context=self._context)

    def call(self, callback: Callable[[Any], object]) -> None:
        """Call back at once when it is set, in place of a task that waits."""
        self._callback = callback
        self._context = None

    def drop(self) -> None:
        """Whoever waited for it is cancelled, and knows."""
        self._callback = None
        self._state = _CANCELLED

    def __await__(self) -> Generator[Any, None, T]:
        if self._state == _PENDING:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    # What a task asks of a future ----------------------------------------------------------------

    def result(self) -> T:
        if self._state == _DONE:
            if self._error is not None:
                raise self._error
            return self._result
        if self._state == _CANCELLED:
            raise asyncio.CancelledError
        raise asyncio.InvalidStateError("not done yet")

    def exception(self) -> BaseException | None:
        if self._state == _CANCELLED:
            raise asyncio.CancelledError
        return self._error

    def cancel(self, msg: object = None) -> bool:
        """The waiting task is being cancelled: it is told in the next turn, as by any future."""
        if self._state != _PENDING:
            return False
        self._state = _CANCELLED
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
            self._callback = None
        return True

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        if self._state != _PENDING:
            self._loop.call_soon(callback, self, context=context)
            return
        self._callback = callback
        self._context = context if context is not None else contextvars.copy_context()

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        removed = self._callback == callback
        if removed:
            self._callback = None
        return int(removed)


def _raise(error: BaseException) -> None:
    raise error
