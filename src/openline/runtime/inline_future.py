"""A future that wakes its task at once, inside the socket callback that brought the news.

An ``asyncio.Future`` wakes its task through the loop's queue; until then whatever came with the news would
go first. This one steps the waiting task directly where no other task is running.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import current_task
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class InlineFuture(asyncio.Future[T]):
    """Settled once; what comes later is no news. Of those that wait for it the first is woken at once."""

    # Defaults in the class: one is made for every message.
    _callback: Callable[[Any], object] | None = None
    _context: contextvars.Context | None = None

    def settle(self, result: T) -> None:
        if not self.done():
            self.set_result(result)
            callback = self._callback
            if callback is None:
                return
            if self._context is None:
                self._callback = None
                callback(self)
            else:
                self._call_back(callback)

    def fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)
            self.exception()  # whoever waited may be gone: then nobody need hear of it
            if self._callback is not None:
                self._call_back(self._callback)

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        self._callback = None
        if self._context is None:
            callback(self)
            return
        loop = self.get_loop()
        if current_task(loop) is not None:
            loop.call_soon(callback, self, context=self._context)
            return
        try:
            self._context.run(callback, self)
        except (SystemExit, KeyboardInterrupt) as error:
            # For the loop, which they end; from here they would get no further than a socket callback.
            loop.call_soon(_raise, error)

    def call(self, callback: Callable[[Any], object]) -> None:
        """Call back at once when it is settled, in place of a task that waits."""
        self._callback, self._context = callback, None

    def drop(self) -> None:
        """Whoever waited for it is cancelled, and knows."""
        self._callback = None
        self.cancel()

    # What a task asks of a future ----------------------------------------------------------------

    def cancel(self, msg: object = None) -> bool:
        """The waiting task is being cancelled: it is told in the next turn, as by any future."""
        if not super().cancel(msg):
            return False
        callback, self._callback = self._callback, None
        if callback is not None:
            self.get_loop().call_soon(callback, self, context=self._context)
        return True

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        if self._callback is not None or self.done():
            super().add_done_callback(callback, context=context)
        else:
            self._callback = callback
            self._context = context if context is not None else contextvars.copy_context()

    def remove_done_callback(self, callback: Callable[[Any], object], /) -> int:
        removed = super().remove_done_callback(callback)
        if self._callback == callback:
            self._callback = None
            removed += 1
        return removed


def _raise(error: BaseException) -> None:
    raise error
