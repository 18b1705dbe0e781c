"""What has arrived from one peer and is not handled yet: bounded queues, and handlers in order (rule 3.5).

Each (peer, stream) has a *mailbox*. Handlers of a mailbox run one at a time, in order; mailboxes run side
by side. A message goes to every matching handler; it also waits for ``receive()`` or ``messages()`` where
one of those is in use for its stream, or where no handler matches. A mailbox that holds too much asks its
sender to stop; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any

from ..core.bulk import MEASURED, weight_of
from ..core.selection import Want
from ..message import Message, StreamId
from ..peer import Peer
from ..runtime.eager import Ended, Pilot, Steps

if TYPE_CHECKING:
    from .owner import Owner, Siblings
    from .remote import Remote

# What a message takes in memory besides its bytes on the wire, about, as small ones are mostly that.
MESSAGE_OVERHEAD = 256
# What a peer holds is looked at when it is so much more, or less, than when it was looked at last: rarely
# enough to cost nothing, and as many strangers as may connect hold little below it.
GRAIN = 4096
# A peer that fills this many streams is stopped as a whole, by not reading from it.
MAX_FULL = 16
# So is one that goes on after "stop". An honest one's bytes in flight fit in here: a full send
# buffer and a full receive buffer of the kernel are about 10 MB on Linux.
OVERRUN_BYTES = 16 * 1024 * 1024

Handler = Callable[[Peer, Message], Awaitable[Any] | AsyncIterator[Any] | None]


class Consumer:
    """A ``receive()`` or ``messages()``: ``stream_id`` None takes all streams, ``want`` None all peers."""

    __slots__ = ("stream_id", "waiters", "want")

    def __init__(self, want: Want | None, stream_id: StreamId | None) -> None:
        self.want = want
        self.stream_id = stream_id
        self.waiters: deque[asyncio.Future[None]] = deque()

    def turn_to(self, want: Want) -> None:
        """Its name resolves to something else now."""
        self.want = want

    def wake(self) -> None:
        """One waiter looks again; the message stays until that one really takes it."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Mailbox:
    """What has arrived from one peer on one stream, and who takes it."""

    __slots__ = (
        "_busy",
        "_cancelled",
        "_consumers",
        "_handlers",
        "_message",
        "_on_end",
        "_on_wait",
        "_only",
        "_overflowed",
        "_owner",
        "_pilot",
        "_siblings",
        "_version",
        "answers",
        "bytes",
        "count",
        "overrun",
        "paused",
        "peer",
        "queue",
        "remote",
        "running",
        "stream_id",
        "waiting",
    )

    def __init__(self, remote: Remote, stream_id: StreamId, siblings: Siblings, owner: Owner) -> None:
        self._siblings = siblings
        self._owner = owner
        self.remote = remote
        # What handlers get.
        self.peer = remote.peer
        self.stream_id = stream_id
        # Who takes its messages; and the one handler, where nothing else does.
        self._version = -1
        self._handlers: list[Handler] = []
        self._consumers: list[Consumer] = []
        self._only: Handler | None = None
        # Its own methods, made when it is bound and not for each message.
        self._on_wait: Callable[[Steps], Steps]
        self._on_end: Ended
        # Is a handler running that has not finished? Then messages wait in the queue.
        self.running = False
        self.queue: deque[tuple[Message, int]] = deque()
        # Waiting for receive().
        self.waiting: deque[tuple[Message, int, bool]] = deque()  # the bool: handlers have had it
        # Messages in both, and bytes.
        self.count = 0
        self.bytes = 0
        # What a handler is at work on, if it waits, and what carries it; and has it been cancelled?
        self._message: Message | None = None
        self._pilot: Pilot | None = None
        self._cancelled = False
        # Bytes of a large message that a handler is at work on.
        self._busy = 0
        # The sender was told to stop; it goes on all the same.
        self.paused = self.overrun = False
        # It was told so, and that answers are welcome all the same.
        self.answers = False
        self._overflowed = False

    @property
    def idle(self) -> bool:
        """Is nothing under way on this stream?"""
        return not (self.running or self.count or self.paused)

    def _bind(self) -> None:
        """See who takes its messages now."""
        self._version = self._owner.version
        self._handlers, self._consumers = handlers, consumers = self._owner.takers(
            self.remote, self.stream_id
        )
        self._only = handlers[0] if len(handlers) == 1 and not consumers else None
        self._on_wait, self._on_end = self._carry_on_alone, self._ended_alone

    def close(self) -> None:
        """The mailbox is given up. Its own methods hold on to it, which only the collector would end, and
        that takes its time where a peer opens one stream after the other."""
        self._version = -1
        self._on_wait = self._on_end = _given_up

    # Handlers ------------------------------------------------------------------------------------

    def deliver(self, message: Message, size: int, small: bool) -> None:
        """A message of ``size`` bytes has come, in a small frame or in one that was measured.

        This is one function, as it is called for each message: usually one handler takes it, and nothing
        else, and nothing is under way.
        """
        if self.running:
            size = size + weight_of(message.payload) if small else size
            self.queue.append((message, size))
            self._charge(size)
            return
        owner = self._owner
        if self._version != owner.version:
            self._bind()
        handler = self._only
        if handler is None:
            self._deliver_to_all(message, size)
            return
        try:
            steps = handler(self.peer, message)
        except Exception as error:
            self._failed(handler, error, message)
            return
        if steps is None:
            return
        if type(steps) is not CoroutineType and (steps := self._coroutine(message, steps)) is None:
            return
        self.running = True
        try:
            self.running = not owner.runner.run(steps, self._on_wait, self._on_end)
        except (Exception, asyncio.CancelledError) as error:
            self.running = False
            self._failed(handler, error, message)
        if self.running:
            self._message, self._pilot = message, owner.runner.last
            if size > GRAIN:
                self._occupy(size)

    def _deliver_to_all(self, message: Message, size: int) -> None:
        if self._consumers or not self._handlers:
            self._keep(message, size)
        for index, handler in enumerate(self._handlers):
            steps = self._call(handler, message)
            if steps is not None and not self._start(handler, steps, message, index + 1):
                if size > GRAIN:
                    self._occupy(size)
                return  # it is running now; a task does the rest

    def _call(self, handler: Handler, message: Message) -> Steps | None:
        """Call one handler; its coroutine if there is something left to do."""
        try:
            result = handler(self.peer, message)
        except Exception as error:
            self._failed(handler, error, message)
            return None
        return result if type(result) is CoroutineType else self._coroutine(message, result)

    def _coroutine(self, message: Message, result: Any) -> Steps | None:
        """What a handler has returned that is no coroutine, if there is something left to do."""
        if isinstance(result, AsyncGeneratorType):
            return self.remote.answers.generate(message, result)
        return _await(result) if result is not None and inspect.isawaitable(result) else None

    def _failed(self, handler: Handler | None, error: BaseException, message: Message | None) -> None:
        """A handler has raised an error: that is logged, and who asked is told."""
        if not (self._cancelled and isinstance(error, asyncio.CancelledError)):
            self._owner.failed(self.remote, handler, error)
        if message is not None:
            self.remote.answers.failed(message, error)

    def _start(self, handler: Handler, steps: Steps, message: Message, following: int) -> bool:
        """Step an async handler; True if it is done already, else a task goes on with those that follow."""
        self.running = True
        try:
            self.running = not self._owner.runner.run(steps, partial(self._carry_on, message, following))
        except (Exception, asyncio.CancelledError) as error:
            self.running = False
            self._failed(handler, error, message)
        if self.running:
            self._message, self._pilot = message, self._owner.runner.last
        return not self.running

    async def _carry_on(self, message: Message, following: int, rest: Steps) -> None:
        """In a task: finish one handler, then the other handlers, then what has queued up."""
        handlers = self._handlers
        try:
            if await self._guard(handlers[following - 1], rest, message):
                await self._handle(handlers[following:], message)
            self._vacate()
        except asyncio.CancelledError:
            self.running = False
            raise
        await self._drain()

    async def _carry_on_alone(self, rest: Steps) -> None:
        """The same where there was only that handler."""
        try:
            await self._guard(self._handlers[0], rest, self._message)
            self._vacate()
        except asyncio.CancelledError:
            self.running = False
            raise
        await self._drain()

    def _ended_alone(self, error: BaseException | None) -> Steps | None:
        """The same where that handler has been stepped to its end without a task."""
        if error is not None and not (self._owner.closed and isinstance(error, asyncio.CancelledError)):
            self._failed(self._handlers[0] if self._handlers else None, error, self._message)
        self._message = None
        if self._busy:
            self._vacate()
        if self.queue:
            return self._drain()
        self.running = False
        if self._siblings.overfull or not self.remote.paths.connections:
            self._siblings.settled(self)
        return None

    async def _drain(self) -> None:
        """In a task: everything that has queued up."""
        try:
            while self.queue:
                message, size = self.queue.popleft()
                self._release(size)
                if self._version != self._owner.version:
                    self._bind()
                if self._consumers or not self._handlers:
                    self._keep(message, size)
                if size > GRAIN:
                    self._occupy(size)
                self._message = message
                await self._handle(self._handlers, message)
                if self._busy:
                    self._vacate()
        finally:
            self.running = False
            self._message = self._pilot = None
        self._siblings.settled(self)

    async def _handle(self, handlers: list[Handler], message: Message) -> None:
        for handler in handlers:
            steps = self._call(handler, message)
            if steps is not None and not await self._guard(
                handler, self._owner.runner.isolated(steps), message
            ):
                return

    async def _guard(self, handler: Handler, steps: Steps, message: Message | None) -> bool:
        """See a handler to its end. False where it has been cancelled by who asked: then no other begins."""
        try:
            await steps
        except Exception as error:
            self._failed(handler, error, message)
        except asyncio.CancelledError as error:
            if self._owner.closed:
                raise
            self._failed(handler, error, message)  # it cancelled itself, or was; the others go on
        cancelled, self._cancelled = self._cancelled, False
        if cancelled and (task := asyncio.current_task()) is not None:
            task.uncancel()
        return not cancelled

    def cancel(self, id: object) -> bool:
        """Who asked does not wait any more: cancel the handler of that message, or do not begin it.

        False where there is none.
        """
        message, pilot = self._message, self._pilot
        if message is not None and message.id == id and pilot is not None:
            self._cancel(message, pilot)
            return True
        for index, (queued, size) in enumerate(self.queue):
            if queued.id == id:
                del self.queue[index]
                self._release(size)
                self.remote.answers.failed(queued, asyncio.CancelledError("nobody waits for it"))
                return True
        return False

    def _cancel(self, message: Message, pilot: Pilot) -> None:
        if self._message is message and not self._cancelled:
            self._cancelled = pilot.cancel()
            if not self._cancelled:
                self._owner.runner.loop.call_soon(self._cancel, message, pilot)

    # receive() and messages() --------------------------------------------------------------------

    def _keep(self, message: Message, size: int) -> None:
        """Let a message wait for ``receive()``."""
        if size <= MESSAGE_OVERHEAD + MEASURED:
            size += weight_of(message.payload)
        if self.remote.plain and self._owner.handlers and not self._consumers:
            self._make_room(size)
        self.waiting.append((message, size, bool(self._handlers)))
        self._owner.filled(self)
        self._charge(size)
        for consumer in self._consumers:
            if consumer.waiters:
                consumer.wake()
                return

    def _make_room(self, size: int) -> None:
        """A plain peer's stream that nobody wants, in a program that handles others.

        It cannot be stopped alone, and stopping the peer would stop the streams that are wanted:
        the newest messages are kept in case a receive() comes, the oldest go.
        """
        config = self._owner.config
        while self.waiting and (
            self.count + 1 >= config.inbox_messages or self.bytes + size >= config.inbox_bytes
        ):
            self._release(self.waiting.popleft()[1])
            first, self._overflowed = not self._overflowed, True
            self._owner.discarded(self, first)

    def serves(self, consumer: Consumer) -> bool:
        if self._version != self._owner.version:
            self._bind()
        return consumer in self._consumers

    def take(self) -> Message:
        """The message that has waited longest for ``receive()``."""
        message, size, _ = self.waiting.popleft()
        if not self.waiting:
            self._owner.emptied(self)
        self._release(size)
        self._siblings.settled(self)
        return message

    def reclaim(self) -> None:
        """Consumers have changed: what waits for nobody goes to the handlers, unless it has been there."""
        self._bind()
        if self._consumers or not self._handlers:
            return
        self._owner.emptied(self)
        items, self.waiting = self.waiting, deque()
        for message, size, handled in reversed(items):
            if handled:
                self._release(size)
            else:
                self.queue.appendleft((message, size))
        if self.queue and not self.running:
            self.running = True
            if not self._owner.runner.run(self._drain(), lambda steps: steps):
                self._pilot = self._owner.runner.last

    def drop(self, queued: bool) -> int:
        """Throw away what waits for ``receive()``, and what is ``queued`` for handlers; how many messages."""
        dropped = len(self.waiting) + (len(self.queue) if queued else 0)
        while queued and self.queue:
            self._release(self.queue.popleft()[1])
        while self.waiting:
            self._release(self.waiting.popleft()[1])
        self._owner.emptied(self)
        return dropped

    # How full it is ------------------------------------------------------------------------------

    def _charge(self, size: int) -> None:
        """A message more waits."""
        self.count += 1
        self.bytes += size
        siblings, config = self._siblings, self._owner.config
        siblings.charge(size, self.remote.known)
        if not self.paused:
            if (
                siblings.throttled
                or self.count >= config.inbox_messages
                or self.bytes >= config.inbox_bytes
                or siblings.held > MAX_FULL * config.inbox_bytes
            ):
                self.pause()
        elif not self.overrun and self.bytes > config.inbox_bytes + OVERRUN_BYTES:
            self.overrun = True
            self._owner.flow(self.remote, self)

    def _release(self, size: int) -> None:
        self.count -= 1
        self.bytes -= size
        self._siblings.release(size)
        if self.paused and not self._siblings.throttled:
            self.reopen()

    def _occupy(self, size: int) -> None:
        self._busy += size
        self._siblings.occupy(size, self.remote.known)

    def _vacate(self) -> None:
        busy, self._busy = self._busy, 0
        self._siblings.vacate(busy)

    def pause(self) -> None:
        """Its sender is told to stop."""
        self.paused = True
        self._siblings.set_full(self, True)

    def reopen(self) -> None:
        """Its sender may go on, once half of it is empty."""
        config = self._owner.config
        if self.count <= config.inbox_messages // 2 and self.bytes <= config.inbox_bytes // 2:
            self.paused = self.overrun = False
            self._siblings.set_full(self, False)

    def welcome(self, answers: bool) -> None:
        """Its sender is told that it is paused, and whether answers are welcome all the same."""
        self.answers = self.paused and answers


def _given_up(_: object) -> Any:
    raise AssertionError("a mailbox that was given up is in use")


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
