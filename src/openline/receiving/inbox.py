"""What has arrived and is not handled yet: bounded queues, and handlers in order (rule 3.5).

Each (peer, stream) is a *lane*. Handlers of a lane run one at a time, in order; lanes run side by
side. A message goes to every matching handler; it also waits for ``receive()`` or ``messages()``
where one of those is in use for its lane, or where no handler matches. A lane that holds too much
asks its sender to stop; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..core.bulk import MEASURED, weight_of
from ..core.selection import Want
from ..core.session import weight
from ..errors import Closed
from ..message import Message, StreamId
from ..peers.mailbox import Handler, Lane, Use
from ..runtime.eager import Ended, Runner, Steps
from ..runtime.ratelog import RateLog
from ..stats import Counters
from .left_behind import LeftBehind
from .levels import Levels
from .throttle import GRAIN

if TYPE_CHECKING:
    from ..peers.table import Peer

# Distinct (address, stream) pairs that receive() remembers; the oldest is forgotten.
MAX_USES = 1024
# What a message takes in memory besides its bytes on the wire, about, as small ones are mostly that.
MESSAGE_OVERHEAD = 256
# Lanes looked at when there are too many; more at a time would let a peer spend our time.
LANES_LOOKED_AT = 16
# A lane that nothing waits in, besides its name.
LANE_BYTES = 2048


class Inbox:
    """All lanes of one transport. ``flow(peer, lane)`` is called when a lane, or the peer as a whole
    (lane None), has become full or roomy."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        runner: Runner,
        matches: Callable[[Want, Peer], bool],
        flow: Callable[[Peer, Lane | None], None],
        forget: Callable[[Peer], None],
        log: RateLog,
        weigh: Callable[[Peer], None],
    ) -> None:
        self._config = config
        self._counters = counters
        self._runner = runner
        self._matches = matches
        self._flow = flow
        self._forget = forget
        self._log = log
        self._weigh = weigh
        self._left_behind = LeftBehind(self._drop)
        self._levels = Levels(config, flow, self._drop_all)
        self._handlers: list[tuple[Handler, StreamId | None]] = []
        self._received: OrderedDict[tuple[str, StreamId], Use] = OrderedDict()
        self._iterating: list[Use] = []
        # Lanes with something for receive(), longest waiting first.
        self._waiting: dict[Lane, None] = {}
        self._version = 0
        self._closed = False

    # Handlers ------------------------------------------------------------------------------------

    def add_handler(self, handler: Handler, stream_id: StreamId | None) -> None:
        self._handlers.append((handler, stream_id))
        self.rebind()
        self._reclaim()

    def remove_handler(self, handler: Handler) -> None:
        # Equal, not the same: a bound method is a new object each time it is named.
        self._handlers = [entry for entry in self._handlers if entry[0] != handler]
        self.rebind()

    def rebind(self) -> None:
        """Who takes what has changed: lanes look again before their next message."""
        self._version += 1

    def _bind(self, lane: Lane) -> None:
        stream = lane.stream_id
        lane.version = self._version
        lane.handlers = [h for h, only in self._handlers if only is None or only == stream]
        lane.carry_on = partial(self._carry_on_alone, lane)
        lane.ended = partial(self._ended_alone, lane)
        lane.uses = [use for use in (*self._received.values(), *self._iterating) if self._fits(use, lane)]
        if any(use.want is not None for use in lane.uses):
            lane.peer.known = True  # this program waits for it
        lane.only = lane.handlers[0] if len(lane.handlers) == 1 and not lane.uses else None

    def _fits(self, use: Use, lane: Lane) -> bool:
        if use.stream_id is not None and use.stream_id != lane.stream_id:
            return False
        return use.want is None or self._matches(use.want, lane.peer)

    def _reclaim(self) -> None:
        """Consumers have changed: what waits for nobody goes to the handlers, unless it has been there."""
        for lane in list(self._waiting):
            self._bind(lane)
            if lane.uses or not lane.handlers:
                continue
            del self._waiting[lane]
            items, lane.tap = lane.tap, deque()
            for message, size, handled in reversed(items):
                if handled:
                    self._levels.release(lane, size)
                else:
                    lane.queue.appendleft((message, size))
            if lane.queue and not lane.running:
                lane.running = True
                self._runner.run(self._drain(lane), lambda steps: steps)

    # Arriving ------------------------------------------------------------------------------------

    def feed(self, peer: Peer, messages: list[Message], size: int) -> None:
        """Messages from one frame of ``size`` bytes."""
        each = MESSAGE_OVERHEAD + (size // len(messages) if messages else 0)
        small = size <= MEASURED
        lanes = peer.lanes
        for message in messages:
            lane = lanes.get(message.stream_id)
            if lane is None:
                lane = self._open(peer, message.stream_id)
            if lane.running:
                weight = each + weight_of(message.payload) if small else each
                lane.queue.append((message, weight))
                self._levels.charge(lane, weight)
                continue
            if lane.version != self._version:
                self._bind(lane)
            if lane.only is None:
                self._deliver(lane, message, each)
            else:
                self._deliver_to(lane, lane.only, message, each)

    def _deliver_to(self, lane: Lane, handler: Handler, message: Message, size: int) -> None:
        """``_deliver`` for the usual case: one handler, and nothing else takes the message."""
        steps = self._call(lane, handler, message)
        if steps is None or self._start(lane, handler, steps, lane.carry_on, lane.ended):
            return
        if size > GRAIN:
            self._levels.occupy(lane, size)

    def _open(self, peer: Peer, stream_id: StreamId) -> Lane:
        if len(peer.lanes) >= self._config.max_streams and not self._drop_idle(peer) and not peer.overfull:
            # That many streams, and something is under way on all of them: stop the peer as a whole.
            peer.overfull = True
            self._flow(peer, None)
        lane = peer.lanes[stream_id] = Lane(peer, stream_id)
        peer.lanes_weight += LANE_BYTES + weight(stream_id)
        if not peer.known:
            self._weigh(peer)
        return lane

    def _close_lane(self, lane: Lane) -> None:
        del lane.peer.lanes[lane.stream_id]
        lane.unbind()
        lane.peer.lanes_weight -= LANE_BYTES + weight(lane.stream_id)

    def _settled(self, lane: Lane) -> None:
        """Perhaps nothing is under way on this lane any more: then an overfull peer has one less."""
        peer = lane.peer
        if peer.overfull and lane.idle and peer.lanes.get(lane.stream_id) is lane:
            self._close_lane(lane)
            if len(peer.lanes) < self._config.max_streams:
                peer.overfull = False
                self._flow(peer, None)
        if not peer.connections:
            self._tidy(peer)

    def _drop_idle(self, peer: Peer) -> bool:
        """Forget idle lanes, looking at a few, oldest first; True if there is room for one more."""
        for stream_id in list(itertools.islice(peer.lanes, LANES_LOOKED_AT)):
            lane = peer.lanes[stream_id]
            if lane.idle and len(peer.lanes) > self._config.max_streams // 2:
                self._close_lane(lane)
            else:
                peer.lanes[stream_id] = peer.lanes.pop(stream_id)  # to the end
        return len(peer.lanes) < self._config.max_streams

    def _deliver(self, lane: Lane, message: Message, size: int) -> None:
        if lane.uses or not lane.handlers:
            self._keep(lane, message, size)
        for index, handler in enumerate(lane.handlers):
            steps = self._call(lane, handler, message)
            carry_on = partial(self._carry_on, lane, message, index + 1)
            if steps is not None and not self._start(lane, handler, steps, carry_on):
                if size > GRAIN:
                    self._levels.occupy(lane, size)
                return  # the lane is running now; a task does the rest

    def _call(self, lane: Lane, handler: Handler, message: Message) -> Steps | None:
        """Call one handler; its coroutine if there is something left to do."""
        try:
            result = handler(lane.peer, message)
        except Exception:
            self._failed(lane, handler)
            return None
        if result is None:
            return None
        if type(result) is CoroutineType:
            return result
        return _await(result) if inspect.isawaitable(result) else None

    def _start(
        self,
        lane: Lane,
        handler: Handler,
        steps: Steps,
        carry_on: Callable[[Steps], Steps],
        ended: Ended | None = None,
    ) -> bool:
        """Step an async handler; True if it is done already, else a task runs ``carry_on``."""
        lane.running = True
        try:
            lane.running = not self._runner.run(steps, carry_on, ended)
        except (Exception, asyncio.CancelledError):
            lane.running = False
            self._failed(lane, handler)
        return not lane.running

    async def _carry_on(self, lane: Lane, message: Message, index: int, rest: Steps) -> None:
        """In a task: finish one handler, then the other handlers, then what has queued up."""
        handlers = lane.handlers
        try:
            await self._guard(lane, handlers[index - 1], rest)
            await self._rest_of(lane, handlers[index:], message)
            self._levels.vacate(lane)
        except asyncio.CancelledError:
            lane.running = False
            raise
        await self._drain(lane)

    async def _carry_on_alone(self, lane: Lane, rest: Steps) -> None:
        """The same where there was only that handler."""
        try:
            await self._guard(lane, lane.handlers[0], rest)
            self._levels.vacate(lane)
        except asyncio.CancelledError:
            lane.running = False
            raise
        await self._drain(lane)

    def _ended_alone(self, lane: Lane, error: BaseException | None) -> Steps | None:
        """The same where that handler has been stepped to its end without a task."""
        if error is not None and not (self._closed and isinstance(error, asyncio.CancelledError)):
            self._failed(lane, lane.handlers[0] if lane.handlers else None, error)
        if lane.busy:
            self._levels.vacate(lane)
        if lane.queue:
            return self._drain(lane)
        lane.running = False
        self._settled(lane)
        return None

    async def _drain(self, lane: Lane) -> None:
        try:
            while lane.queue:
                message, size = lane.queue.popleft()
                self._levels.release(lane, size)
                if lane.version != self._version:
                    self._bind(lane)
                if lane.uses or not lane.handlers:
                    self._keep(lane, message, size)
                if size > GRAIN:
                    self._levels.occupy(lane, size)
                await self._rest_of(lane, lane.handlers, message)
                if lane.busy:
                    self._levels.vacate(lane)
        finally:
            lane.running = False
        self._settled(lane)

    async def _rest_of(self, lane: Lane, handlers: list[Handler], message: Message) -> None:
        for handler in handlers:
            steps = self._call(lane, handler, message)
            if steps is not None:
                await self._guard(lane, handler, self._runner.isolated(steps))

    async def _guard(self, lane: Lane, handler: Handler, steps: Steps) -> None:
        try:
            await steps
        except Exception:
            self._failed(lane, handler)
        except asyncio.CancelledError:
            if self._closed:
                raise
            self._failed(lane, handler)  # it cancelled itself; the lane goes on

    def _failed(self, lane: Lane, handler: Handler | None, error: BaseException | None = None) -> None:
        self._counters.handler_errors += 1
        name = getattr(handler, "__qualname__", repr(handler))
        info = (type(error), error, error.__traceback__) if error is not None else True
        text = "handler %s failed on a message from %s"
        self._log.about(lane.peer, logging.ERROR, text, name, lane.peer, kind=name, exc_info=info)

    # receive() and messages() --------------------------------------------------------------------

    def _keep(self, lane: Lane, message: Message, size: int) -> None:
        if size <= MESSAGE_OVERHEAD + MEASURED:
            size += weight_of(message.payload)
        if lane.peer.plain and self._handlers and not lane.uses:
            self._make_room(lane, size)
        lane.tap.append((message, size, bool(lane.handlers)))
        self._waiting.setdefault(lane)
        self._levels.charge(lane, size)
        for use in lane.uses:
            if use.waiters:
                use.wake()
                return

    def _make_room(self, lane: Lane, size: int) -> None:
        """A plain peer's stream that nobody wants, in a program that handles others.

        It cannot be stopped alone, and stopping the peer would stop the streams that are wanted:
        the newest messages are kept in case a receive() comes, the oldest go.
        """
        config = self._config
        while lane.tap and (
            lane.count + 1 >= config.inbox_messages or lane.bytes + size >= config.inbox_bytes
        ):
            self._levels.release(lane, lane.tap.popleft()[1])
            self._counters.undelivered += 1
            if not lane.overflowed:
                lane.overflowed = True
                text = "nobody takes stream %r of %r: dropping its oldest"
                self._log.about(lane.peer, logging.WARNING, text, _short(lane.stream_id), lane.peer)

    def use_for(self, want: Want, stream_id: StreamId) -> Use:
        """The consumer behind ``receive(address, stream_id)``; it stays in use from now on."""
        key = (str(want.address), stream_id)
        use = self._received.get(key)
        if use is None:
            use = self._received[key] = Use(want, stream_id)
            self._forget_uses()
            self.rebind()
        elif use.want != want:
            use.want = want  # its name resolves to something else now
            self.rebind()
        self._received.move_to_end(key)
        return use

    def _forget_uses(self) -> None:
        """The oldest ones that nobody waits in."""
        if len(self._received) > MAX_USES:
            for key in [key for key, use in self._received.items() if not use.waiters][:-MAX_USES]:
                del self._received[key]

    def begin(self, stream_id: StreamId | None) -> Use:
        """A consumer behind ``messages()``, until ``end``."""
        use = Use(None, stream_id)
        self._iterating.append(use)
        self.rebind()
        return use

    def end(self, use: Use) -> None:
        if use in self._iterating:
            self._iterating.remove(use)
            self.rebind()
            self._reclaim()
            while use.waiters:
                use.wake()

    async def take(self, use: Use) -> tuple[Peer, Message]:
        """The next message for ``use``; waits. Raises ``Closed``."""
        while True:
            if self._closed:
                raise Closed("the transport is closed")
            found = self._take(use)
            if found is not None:
                return found
            waiter = self._runner.loop.create_future()
            use.waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    use.wake()  # it was our turn: hand it on
                raise
            finally:
                if waiter in use.waiters:
                    use.waiters.remove(waiter)

    def _take(self, use: Use) -> tuple[Peer, Message] | None:
        for lane in self._waiting:
            if lane.version != self._version:
                self._bind(lane)
            if use in lane.uses:
                message, size, _ = lane.tap.popleft()
                if not lane.tap:
                    del self._waiting[lane]
                self._levels.release(lane, size)
                self._settled(lane)
                return lane.peer, message
        return None

    # Peers that are gone -------------------------------------------------------------------------

    def peer_gone(self, peer: Peer) -> None:
        """Its last connection has ended; what it left behind stays for receive(), within bounds."""
        for lane in [lane for lane in peer.lanes.values() if lane.idle]:
            self._close_lane(lane)
        self._weigh(peer)
        self._levels.throttle.gone(peer)
        if peer.held:
            self._left_behind.add(peer)

    @property
    def waiting_of_strangers(self) -> int:
        """Bytes, with what messages take besides."""
        return self._levels.throttle.used

    def peer_back(self, peer: Peer) -> None:
        self._left_behind.remove(peer)
        if len(peer.connections) == 1:
            self._levels.throttle.back(peer)

    def _drop_all(self, peer: Peer) -> None:
        """All that no handler is at work on."""
        self._drop(peer, handlers_too=True)

    def _drop(self, peer: Peer, handlers_too: bool = False) -> None:
        dropped = 0
        for lane in list(peer.lanes.values()):
            dropped += len(lane.tap) + (len(lane.queue) if handlers_too else 0)
            while handlers_too and lane.queue:
                self._levels.release(lane, lane.queue.popleft()[1])
            while lane.tap:
                self._levels.release(lane, lane.tap.popleft()[1])
            self._waiting.pop(lane, None)
        if dropped:
            self._counters.undelivered += dropped
            text = "dropped %d messages that %r left behind and nobody took"
            self._log.about(peer, logging.WARNING, text, dropped, peer)
        self._tidy(peer)

    def _tidy(self, peer: Peer) -> None:
        if all(lane.idle for lane in peer.lanes.values()):
            self._left_behind.remove(peer)
            self._forget(peer)
            self._weigh(peer)

    def close(self) -> None:
        """Wake every consumer; count what nobody took."""
        self._closed = True
        self._counters.undelivered += sum(len(lane.tap) for lane in self._waiting)
        for use in (*self._received.values(), *self._iterating):
            while use.waiters:
                use.wake()


def _short(stream_id: StreamId) -> StreamId:
    return stream_id[:32] if isinstance(stream_id, str) else stream_id


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
