"""A future that wakes its task at once, inside the socket callback that brought the news.

An ``asyncio.Future`` wakes its task through the loop's queue; until then whatever came with the news would
go first. This one steps the waiting task directly where no other task is running. It speaks the protocol
that tasks expect of any future (``_asyncio_future_blocking``, "Extending asyncio"), which is cheaper than to
inherit from asyncio's: that has a finalizer, and one is made for every message.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import current_task
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InlineFuture(Generic[T]):
    """Settled once; what comes later is no news. One task waits for it at most."""

    # Defaults in the class: one is made for every message. Tasks ask for ``_loop`` where there is no
    # ``get_loop``.
    _asyncio_future_blocking = False
    _done = _cancelled = False
    _result: T
    _error: BaseException | None = None
    _callback: Callable[[Any], object] | None = None
    # What the callback runs in; None where it looks after that itself.
    _context: contextvars.Context | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def settle(self, result: T) -> None:
        if not self._done:
            self._result = result
            self._done = True
            if self._callback is not None:
                self._call_back(self._callback)

    def fail(self, error: BaseException) -> None:
        """Whoever waited may be gone: then nobody need hear of it."""
        if not self._done:
            self._error = error
            self._done = True
            if self._callback is not None:
                self._call_back(self._callback)

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        self._callback = None
        if self._context is None:
            callback(self)
        elif current_task(self._loop) is not None:
            self._loop.call_soon(callback, self, context=self._context)
        else:
            try:
                self._context.run(callback, self)
            except (SystemExit, KeyboardInterrupt) as error:
                # For the loop, which they end; from here they would get no further than a socket callback.
                self._loop.call_soon(_raise, error)

    def call(self, callback: Callable[[Any], object]) -> None:
        """Call back at once when it is settled, in place of the task that was about to wait."""
        # Where it is waited for again, that is a new wait.
        self._asyncio_future_blocking = False
        self._callback, self._context = callback, None

    def drop(self) -> None:
        """Whoever waited for it is cancelled, and knows."""
        self._callback = None
        self.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        if self._error is None and self._done and not self._cancelled:
            return self._result  # as ``result`` does, which is one call more for every message
        return self.result()

    # What a task asks of a future ----------------------------------------------------------------

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._done:
            raise asyncio.InvalidStateError("not settled yet")
        return self._result

    def exception(self) -> BaseException | None:
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._done:
            raise asyncio.InvalidStateError("not settled yet")
        return self._error

    def cancel(self, msg: object = None) -> bool:
        """The waiting task is being cancelled: it is told in the next turn, as by any future."""
        if self._done:
            return False
        self._done = self._cancelled = True
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)
        return True

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        if self._done:
            self._loop.call_soon(callback, self, context=context)
            return
        assert self._callback is None, "two that wait for one message"
        self._callback = callback
        self._context = context if context is not None else contextvars.copy_context()

    def remove_done_callback(self, callback: Callable[[Any], object], /) -> int:
        removed = self._callback == callback
        if removed:
            self._callback = None
        return int(removed)


def _raise(error: BaseException) -> None:
    raise error
