"""Threads in which the handlers of a synchronous transport run, so that they may block.

A handler's coroutine on the loop waits for its thread, so that the order of messages, back-pressure and the
report of what a handler raises are the asynchronous transport's own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..runtime.inline_future import InlineFuture
from .background import Background, Cancels, here

log = logging.getLogger("openline")

# What on_undelivered has not been told yet because it is slow: a full window of four streams. Beyond that it
# is counted (``stats().in_doubt``) and logged, as it is where there is no handler.
MAX_TOLD = 65536


class Workers:
    """As many threads as handlers that run, ``limit`` at most. Kept on the loop."""

    def __init__(self, background: Background, limit: int) -> None:
        self._background = background
        self._limit = limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0

    async def run(self, function: Callable[..., Any], *args: object) -> Any:
        """Call ``function`` in a thread and wait for what it returns."""
        job = self._put(function, args)
        try:
            return await job.outcome
        except asyncio.CancelledError:
            job.cancel()
            raise

    def start(self, function: Callable[..., Any], *args: object) -> InlineFuture[Any]:
        """Call ``function`` in a thread."""
        return self._put(function, args).outcome

    def in_order(self, function: Callable[..., object]) -> Callable[..., None]:
        """What calls ``function`` in a thread, one call after the other, and waits for none of them."""
        return _Line(self, function).add

    def _put(self, function: Callable[..., Any], args: tuple[Any, ...]) -> _Job:
        job = _Job(self, InlineFuture(self._background.loop), function, args)
        self._busy += 1
        self._jobs.put(job)
        if self._threads < min(self._busy, self._limit):
            self._one_more()
        return job

    def _one_more(self) -> None:
        name = f"openline.sync handler {self._threads + 1}"
        try:
            threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()
        except RuntimeError:  # the system has no more of them, or the process ends
            if not self._threads:
                raise
        else:
            self._threads += 1

    def done(self) -> None:
        """A job has left its thread."""
        self._busy -= 1

    def post(self, function: Callable[[], object]) -> None:
        self._background.post(function)

    def let_go(self) -> None:
        """From a handler that closes its own transport: nothing is to wait for this handler."""
        job = here.job
        if isinstance(job, _Job) and job.workers is self:
            self.post(job.let_go)

    def close(self) -> None:
        """Threads end when they have nothing to do; one that is in a handler, after that."""
        self._limit = 0
        for _ in range(self._threads):
            self._jobs.put(None)


class _Job:
    """One call of a handler."""

    __slots__ = ("_args", "_call", "_cancelled", "_error", "_function", "_value", "outcome", "workers")

    def __init__(
        self,
        workers: Workers,
        outcome: InlineFuture[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.workers, self.outcome, self._function, self._args = workers, outcome, function, args
        # What the handler waits for.
        self._call: Cancels | None = None
        self._cancelled = False
        self._value: Any = None
        self._error: BaseException | None = None

    def do(self) -> None:
        """In a thread."""
        if not self._cancelled:
            try:
                self._value = self._function(*self._args)
            except (Exception, asyncio.CancelledError) as error:
                self._error = error
            except BaseException as error:  # sys.exit() in a thread ends nothing but what it was called in
                self._error = RuntimeError(f"a handler raised {error!r}")
                self._error.__cause__ = error
        self.workers.post(self._done)

    def _done(self) -> None:
        self.workers.done()
        error, self._error = self._error, None
        if error is None:
            self.outcome.settle(self._value)
        else:
            self.outcome.fail(error)

    def waits_for(self, call: Cancels) -> None:
        """In its thread. Raises ``CancelledError`` where it has been cancelled."""
        self._call = call  # before the look, as cancel() does it the other way round
        if self._cancelled:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        """Nobody waits for it: it need not begin any more, and waits for nothing any more."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def let_go(self) -> None:
        self.outcome.settle(None)


class _Line:
    """Calls of one function, in order."""

    def __init__(self, workers: Workers, function: Callable[..., object]) -> None:
        self._workers = workers
        self._function = function
        self._name = getattr(function, "__qualname__", repr(function))
        self._waiting: deque[tuple[object, ...]] = deque()
        self._running = False

    def add(self, *args: object) -> None:
        """On the loop."""
        if len(self._waiting) >= MAX_TOLD:
            log.warning("%s is too slow: it is not told of everything", self._name)
            return
        self._waiting.append(args)
        if not self._running:
            self._start()

    def _start(self) -> None:
        self._running = True
        self._workers.start(self._tell).call(self._ended)

    def _tell(self) -> None:
        """In a thread."""
        while self._waiting:
            try:
                self._function(*self._waiting.popleft())
            except Exception:
                log.exception("%s failed", self._name)

    def _ended(self, _: object) -> None:
        self._running = False
        if self._waiting:  # added after the last look
            self._start()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        here.take(job)
        try:
            job.do()
        finally:
            here.take(None)
            del job
