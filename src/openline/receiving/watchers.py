"""Who is told which peers are there: ``on_peer`` handlers and ``peer_events()`` of one transport.

Each has a backlog of its own (``core/backlog.py``), and takes from it when it has time: nothing that
happens to connections, and nobody else, waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..core.backlog import Backlog
from ..core.presence import Presence
from ..peer import PeerEvent, PeerEventKind
from ..runtime.eager import Runner, Steps
from ..runtime.home import Home
from ..runtime.ratelog import RateLog
from ..stats import Counters

if TYPE_CHECKING:
    from ..peers.remote import Remote

PeerHandler = Callable[[PeerEvent], Awaitable[Any] | None]

# Events that a handler gets in one turn of the loop: what it takes for each is the program's.
EVENTS_PER_TURN = 64


class Watchers:
    """``unix_time()`` is what events say of when they happened."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        runner: Runner,
        log: RateLog,
        home: Home,
        unix_time: Callable[[], float],
    ) -> None:
        self.home = home
        self.runner = runner
        self._limit = config.peer_events
        self._counters = counters
        self._log = log
        self._unix_time = unix_time
        self._handlers: list[_Handling] = []
        # In the order in which they began, until nobody has them any more.
        self._iterators: weakref.WeakValueDictionary[int, PeerEvents] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        # A task that waits in one of them may be held by nothing else.
        self._waiting: list[PeerEvents] = []

    @property
    def watched(self) -> bool:
        return bool(self._handlers or self._iterators)

    def tell(self, remote: Remote, kind: PeerEventKind, why: str, before: Presence) -> None:
        event = PeerEvent(kind, remote.peer, why, self._unix_time())
        for handling in self._handlers:
            self._add(handling.backlog, event, before, remote.known, handling.name)
            handling.wake()
        for iterator in list(self._iterators.values()):
            self._add(iterator.backlog, event, before, remote.known, "peer_events()")
            iterator.wake()

    def _add(self, backlog: Backlog, event: PeerEvent, before: Presence, known: bool, name: str) -> None:
        was_behind = backlog.behind
        backlog.add(event, before, known)
        self.count(backlog)
        if backlog.behind and not was_behind:
            text = "%s is too slow for the events of peers: what cancels out is left out from now on"
            self._log.line("peer events", True, logging.WARNING, text, name, kind=name, most=1)

    def count(self, backlog: Backlog) -> None:
        """Note in the counters what it has dropped."""
        self._counters.peer_events_missed += backlog.take_dropped()

    # Handlers ------------------------------------------------------------------------------------

    def add_handler(self, handler: PeerHandler) -> None:
        self._handlers.append(_Handling(self, handler, Backlog(self._limit)))

    def remove_handler(self, handler: PeerHandler) -> None:
        # Equal, not the same: a bound method is a new object each time it is named.
        for handling in self._handlers:
            if handling.handler == handler:
                handling.end()
        self._handlers = [each for each in self._handlers if each.handler != handler]

    def failed(self, name: str, event: PeerEvent, error: BaseException) -> None:
        """A handler has raised an error."""
        self._counters.handler_errors += 1
        info = (type(error), error, error.__traceback__)
        text = "on_peer handler %s failed on %r of %r"
        self._log.line(name, True, logging.ERROR, text, name, event.kind, event.peer, exc_info=info)

    # peer_events() -------------------------------------------------------------------------------

    def events(self) -> PeerEvents:
        """What happens from now on."""
        number = next(self._numbers)
        iterator = self._iterators[number] = PeerEvents(self, number, Backlog(self._limit))
        return iterator

    def forget(self, number: int) -> None:
        """That iterator collects no more."""
        self._iterators.pop(number, None)

    def begin_wait(self, iterator: PeerEvents) -> None:
        self._waiting.append(iterator)

    def end_wait(self, iterator: PeerEvents) -> None:
        self._waiting.remove(iterator)

    # The end -------------------------------------------------------------------------------------

    async def idle(self) -> None:
        """Until handlers have had everything, and have ended."""
        while any(handling.at_work or handling.due for handling in self._handlers):
            await self.runner.idle()
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Until every handler that is not at work has had everything."""
        while any(each.due and not each.at_work for each in self._handlers):  # noqa: ASYNC110 - a few turns
            await asyncio.sleep(0)

    def close(self) -> None:
        """Nothing more is told; iterators give what they have, and end."""
        for handling in self._handlers:
            self._counters.peer_events_missed += handling.end()
        self._handlers.clear()
        for iterator in list(self._iterators.values()):
            iterator.finish()
        self._iterators.clear()


class _Handling:
    """One handler: its events one at a time, in order."""

    def __init__(self, watchers: Watchers, handler: PeerHandler, backlog: Backlog) -> None:
        self._watchers = watchers
        self.handler = handler
        self.backlog = backlog
        self.name = getattr(handler, "__qualname__", repr(handler))
        # Is one of its coroutines under way, and about what? Is it to be called in a turn to come?
        self.at_work = False
        self._event: PeerEvent | None = None
        self.due = False
        self._ended = False

    def end(self) -> int:
        """It is not called any more. How many events it has not had."""
        self._ended = True
        return self.backlog.clear()

    def wake(self) -> None:
        if not self.due and not self.at_work:
            self.due = True
            self._watchers.runner.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.due = False
        for _ in range(EVENTS_PER_TURN):
            event = self._next()
            if event is None:
                return
            self._handle(event)
            if self.at_work:
                return  # a task goes on
        self.wake()

    def _next(self) -> PeerEvent | None:
        if self._ended or self._watchers.home.foreign:
            return None
        event = self.backlog.take()
        self._watchers.count(self.backlog)
        return event

    def _call(self, event: PeerEvent) -> Steps | None:
        """Call it; its coroutine, if there is something left to do."""
        try:
            result = self.handler(event)
        except Exception as error:
            self._watchers.failed(self.name, event, error)
            return None
        return _await(result) if inspect.isawaitable(result) else None

    def _handle(self, event: PeerEvent) -> None:
        steps = self._call(event)
        if steps is None:
            return
        self.at_work, self._event = True, event
        try:
            self.at_work = not self._watchers.runner.run(steps, self._go_on)
        except (Exception, asyncio.CancelledError) as error:
            self.at_work = False
            self._watchers.failed(self.name, event, error)
        if not self.at_work:
            self._event = None

    async def _go_on(self, rest: Steps) -> None:
        """In a task: finish with one event, then with those that have come meanwhile."""
        event, self._event = self._event, None
        steps: Steps | None = rest
        try:
            while event is not None:
                if steps is not None:
                    await self._guard(event, steps)
                event = self._next()
                steps = self._isolated(event) if event is not None else None
        finally:
            self.at_work = False

    def _isolated(self, event: PeerEvent) -> Steps | None:
        steps = self._call(event)
        return self._watchers.runner.isolated(steps) if steps is not None else None

    async def _guard(self, event: PeerEvent, steps: Steps) -> None:
        try:
            await steps
        except Exception as error:
            self._watchers.failed(self.name, event, error)
        except asyncio.CancelledError as error:
            if self._ended:
                raise
            self._watchers.failed(self.name, event, error)  # it cancelled itself; the next one goes on


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class PeerEvents(AsyncIterator[PeerEvent]):
    """What ``Transport.peer_events`` returns. It collects as long as somebody has it, or until ``aclose``."""

    def __init__(self, watchers: Watchers, number: int, backlog: Backlog) -> None:
        self._watchers = watchers
        self._number = number
        self.backlog = backlog
        self._news = asyncio.Event()
        self._finished = False

    async def __anext__(self) -> PeerEvent:
        """Raises ``StopAsyncIteration`` when the transport is closed and everything told; ``WrongLoop``."""
        self._watchers.home.check()
        while True:
            event = self.backlog.take()
            self._watchers.count(self.backlog)
            if event is not None:
                return event
            if self._finished:
                raise StopAsyncIteration
            self._news.clear()
            self._watchers.begin_wait(self)
            try:
                await self._news.wait()
            finally:
                self._watchers.end_wait(self)

    def wake(self) -> None:
        self._news.set()

    def finish(self) -> None:
        """Nothing more comes."""
        self._finished = True
        self._news.set()

    async def aclose(self) -> None:
        """Collect no more; what has not been taken is dropped."""
        self._watchers.forget(self._number)
        self.finish()
        self.backlog.clear()
