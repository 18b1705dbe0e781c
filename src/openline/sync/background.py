"""The event loop of all synchronous transports, in a thread, and calls to it from any other thread.

A call is handed over with ``call_soon_threadsafe`` and waits for a lock that the loop releases: two changes
of thread and little else. A wait for a lock is what Ctrl-C interrupts in Python: the call is cancelled on the
loop then, and whoever waited goes on at once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from threading import get_ident
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from ..errors import Closed, WrongLoop

P = ParamSpec("P")
T = TypeVar("T")

# At the end of the loop: for calls that have their outcome and return it, then for what is cancelled.
LAST_CALLS = 1.0
# At the end of the process, beyond Config.close_timeout: a loop that does not end is left behind.
AT_EXIT = 2.0


class User(Protocol):
    """A transport that needs the loop."""

    @property
    def longest_close(self) -> float:
        """Seconds that ``begin_closing`` may take."""

    def begin_closing(self) -> None:
        """Close it, on the loop, and leave."""


class Background:
    """The loop and its thread. They begin with the first user and end with the last one."""

    def __init__(self) -> None:
        # Made in the thread: where the making is interrupted here, nothing is left open.
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._unwanted = False
        # Why it takes no more calls.
        self._over: str | None = None
        self.foreign = False
        self._ident = 0
        self._users: set[User] = set()
        self._calls: set[_Call[Any]] = set()
        self.thread = threading.Thread(target=self._run, name="openline.sync", daemon=True)

    def start(self) -> None:
        """Begin to run. Raises ``OSError`` where there can be no loop. Interrupted, no thread goes on."""
        try:
            self.thread.start()
            self._ready.wait()
        except BaseException:
            self._unwanted = True
            if self._ready.is_set():
                self.post(self.loop.stop)
            raise
        if self._failure is not None:
            raise self._failure

    # Users ---------------------------------------------------------------------------------------

    @staticmethod
    def enter(user: User) -> Background:
        """The loop that runs now, or a new one."""
        global _current, _at_exit_known
        with _lock:
            if not _at_exit_known:
                _at_exit_known = True
                atexit.register(_at_exit)
            if _current is None:
                fresh = Background()
                fresh.start()
                _current = fresh
            _current._users.add(user)
            return _current

    @staticmethod
    def withdraw(user: User) -> None:
        """``enter`` was interrupted, or what had to follow."""
        if _current is not None and user in _current._users:
            _current.leave(user)

    def leave(self, user: User) -> None:
        """The last one ends the loop."""
        global _current
        with _lock:
            self._users.discard(user)
            if self._users or _current is not self:
                return
            _current = None
        self.post(self.loop.stop)

    def join(self) -> None:
        """Wait until the thread has ended, if nobody needs it any more."""
        if not self._users and self.thread is not threading.current_thread():
            self.thread.join(LAST_CALLS + AT_EXIT)

    def finish(self) -> None:
        """The process ends: close what was not closed, within bounds."""
        users = list(self._users)
        for user in users:
            self.post(user.begin_closing)
        self.thread.join(max((user.longest_close for user in users), default=0.0) + LAST_CALLS + AT_EXIT)

    def disown(self) -> None:
        """In a child that came by fork: the thread is the parent's."""
        self.foreign = True
        self._over = (
            f"this transport was made in another process than {os.getpid()}; make a new one after fork"
        )

    # Calls ---------------------------------------------------------------------------------------

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function on the loop and wait for its outcome.

        Raises what it raises, ``Closed`` where the loop has ended, and ``WrongLoop`` on the loop's thread.
        """
        return self._wait(_Call(self, function, args, kwargs))

    def ask(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a plain function on the loop and wait for its outcome. Raises as ``call`` does."""
        return self._wait(_Ask(self, function, args, kwargs))

    def each(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Walk an asynchronous iterator; to leave this one, or drop it, closes that one."""
        walk = _Walk(source)
        try:
            while (item := self.call(walk.step)) is not _END:
                yield cast(T, item)
        finally:
            self.post(walk.close)

    def post(self, function: Callable[[], object]) -> None:
        """Have a function called on the loop, unless that has ended; wait for nothing."""
        if not self.foreign:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(function)

    def _wait(self, call: _Call[T]) -> T:
        if get_ident() == self._ident:
            raise WrongLoop("this thread runs the loop of openline.sync: the call would wait for itself")
        try:
            self._calls.add(call)  # before the look: the end of the loop looks the other way round
            if self._over is not None:
                raise Closed(self._over)
            if here.job is not None:
                here.job.waits_for(call)
            self.loop.call_soon_threadsafe(call.start)
            call.ended.acquire()
        except BaseException:
            self._calls.discard(call)
            self.post(call.cancel)
            raise
        return call.outcome()

    @property
    def running(self) -> bool:
        """Does it take calls?"""
        return self._over is None

    def ended(self, call: _Call[Any]) -> None:
        """It has its outcome."""
        self._calls.discard(call)

    # The thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.loop = _new_loop()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        self._ident = get_ident()
        _running.add(self)
        asyncio.set_event_loop(self.loop)
        try:
            if not self._unwanted:
                self.loop.run_forever()
            self._over = "the transport is closed"
            self.loop.run_until_complete(self._wind_up())
        finally:
            self._over = self._over or "the loop of openline.sync has failed"
            asyncio.set_event_loop(None)
            self.loop.close()
            for call in list(self._calls):
                call.fail(Closed(self._over))
            _running.discard(self)

    async def _wind_up(self) -> None:
        own = asyncio.current_task()
        if tasks := {task for task in asyncio.all_tasks() if task is not own}:
            _, late = await asyncio.wait(tasks, timeout=LAST_CALLS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_CALLS)
        await self.loop.shutdown_asyncgens()


class Cancels(Protocol):
    """A call that somebody waits for."""

    def cancel(self) -> None:
        """On the loop: who waits gets ``CancelledError``."""


class Job(Protocol):
    """What a thread of handlers is at work on."""

    def waits_for(self, call: Cancels) -> None:
        """It begins to wait for that, which is cancelled with it."""


class _Here(threading.local):
    job: Job | None = None

    def take(self, job: Job | None) -> None:
        """This thread is at work on that now."""
        self.job = job


# Of each thread.
here = _Here()


class _Call(Generic[T]):
    """One call from another thread, and its outcome."""

    __slots__ = (
        "_args",
        "_background",
        "_begun",
        "_error",
        "_function",
        "_kwargs",
        "_over",
        "_task",
        "_value",
        "ended",
    )

    def __init__(self, background: Background, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._background, self._function, self._args, self._kwargs = background, function, args, kwargs
        self._task: asyncio.Task[None] | None = None
        self._begun = self._over = False
        self._error: BaseException | None = None
        self._value: T
        # Released at the end.
        self.ended = threading.Lock()
        self.ended.acquire()

    def start(self) -> None:
        """On the loop."""
        if not self._over:
            self._task = self._background.loop.create_task(self._run())

    def cancel(self) -> None:
        """On the loop. Who waits for it, if anybody still does, gets ``CancelledError``."""
        if self._task is not None:
            self._task.cancel()
        if not self._begun and not self._over:  # then it never does
            self.fail(asyncio.CancelledError())

    async def _run(self) -> None:
        self._begun = True
        try:
            self._value = await self._function(*self._args, **self._kwargs)
        except asyncio.CancelledError as error:
            self._error = error if self._background.running else Closed("the transport was closed meanwhile")
        except BaseException as error:
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._background.ended(self)
        self.ended.release()

    def fail(self, error: BaseException) -> None:
        """It comes to nothing."""
        self._error = error
        self._end()

    def outcome(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class _Ask(_Call[T]):
    """A call of a plain function."""

    __slots__ = ()

    def start(self) -> None:
        if self._over:
            return
        try:
            self._value = self._function(*self._args, **self._kwargs)
        except Exception as error:
            self._error = error
        finally:
            self._end()


_END = object()


class _Walk(Generic[T]):
    """Steps of an asynchronous iterator, one at a time, and its end."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None

    async def step(self) -> T | object:
        """The next one, or ``_END``."""
        async with self._turn:
            return await anext(self._source, _END)

    def close(self) -> None:
        """On the loop."""
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        # A step that was interrupted is being cancelled: it ends first.
        async with self._turn:
            if (aclose := getattr(self._source, "aclose", None)) is not None:
                await aclose()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


# One for all: two transports of one program that talk to each other need no change of thread between them.
_current: Background | None = None
_lock = threading.Lock()
_at_exit_known = False
# In a child those of its parent stay in it for ever: to free a loop would close what is the parent's.
_running: set[Background] = set()


def _at_exit() -> None:
    background = _current
    if background is not None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C once more: no longer
            background.finish()


def _in_child() -> None:
    global _current, _lock
    _current, _lock = None, threading.Lock()
    for background in list(_running):
        background.disown()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
