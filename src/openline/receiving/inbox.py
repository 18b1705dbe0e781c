"""Who takes what has arrived: handlers, ``receive()`` and ``messages()`` of one transport (rule 3.5).

Messages lie in mailboxes (``peers/mailbox.py``), which ask here who takes them, and run the handlers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import Config
from ..core.bulk import MEASURED
from ..core.selection import Want
from ..errors import Closed
from ..message import Message, StreamId
from ..peer import Peer
from ..peers.mailbox import MESSAGE_OVERHEAD, Consumer, Handler, Mailbox
from ..runtime.eager import Runner
from ..runtime.ratelog import RateLog
from ..stats import Counters
from ..typed import InvalidPayload
from .left_behind import LeftBehind
from .throttle import Throttle

if TYPE_CHECKING:
    from ..peers.remote import Remote

# Distinct (address, stream) pairs that receive() remembers; the oldest is forgotten.
MAX_CONSUMERS = 1024


class Inbox:
    """``flow(peer, mailbox)`` is called when a mailbox, or the peer as a whole (None), has become full or
    roomy; ``forget(remote)`` when nothing waits of one that is gone; ``weigh(remote)`` when it holds more
    streams or fewer. ``matches(want, remote)``: does an address speak of that peer?"""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        runner: Runner,
        matches: Callable[[Want, Remote], bool],
        flow: Callable[[Remote, Mailbox | None], None],
        forget: Callable[[Remote], None],
        log: RateLog,
        weigh: Callable[[Remote], None],
    ) -> None:
        self.config = config
        self.runner = runner
        self.flow = flow
        self.weigh = weigh
        self._counters = counters
        self._matches = matches
        self._forget = forget
        self._log = log
        self._left_behind = LeftBehind(self._drop)
        self._throttle = Throttle(config.strangers_inbox_bytes, self._drop_all)
        self.note = self._throttle.note
        self.handlers: list[tuple[Handler, StreamId | None]] = []
        self._received: OrderedDict[tuple[str, StreamId], Consumer] = OrderedDict()
        self._iterating: list[Consumer] = []
        # Mailboxes with something for receive(), longest waiting first.
        self._waiting: dict[Mailbox, None] = {}
        self.version = 0
        self.closed = False

    def feed(self, remote: Remote, messages: list[Message], size: int) -> None:
        """Messages from one frame of ``size`` bytes."""
        each = MESSAGE_OVERHEAD + (size // len(messages) if messages else 0)
        small = size <= MEASURED
        mailboxes = remote.mailboxes
        by_stream = mailboxes.by_stream
        for message in messages:
            mailbox = by_stream.get(message.stream_id) or mailboxes.open(message.stream_id)
            mailbox.deliver(message, each, small)

    # Who takes what ------------------------------------------------------------------------------

    def add_handler(self, handler: Handler, stream_id: StreamId | None) -> None:
        self.handlers.append((handler, stream_id))
        self.rebind()
        self._reclaim()

    def remove_handler(self, handler: Handler) -> None:
        # Equal, not the same: a bound method is a new object each time it is named.
        self.handlers = [entry for entry in self.handlers if entry[0] != handler]
        self.rebind()

    def rebind(self) -> None:
        """Who takes what has changed: mailboxes look again before their next message."""
        self.version += 1

    def _reclaim(self) -> None:
        """Consumers have changed: what waits for nobody goes to the handlers."""
        for mailbox in list(self._waiting):
            mailbox.reclaim()

    def takers(self, remote: Remote, stream_id: StreamId) -> tuple[list[Handler], list[Consumer]]:
        """Who takes messages of that peer and stream."""
        handlers = [handler for handler, only in self.handlers if only is None or only == stream_id]
        everyone = (*self._received.values(), *self._iterating)
        consumers = [consumer for consumer in everyone if self._fits(consumer, remote, stream_id)]
        if any(consumer.want is not None for consumer in consumers):
            remote.know()  # this program waits for it
        return handlers, consumers

    def _fits(self, consumer: Consumer, remote: Remote, stream_id: StreamId) -> bool:
        if consumer.stream_id is not None and consumer.stream_id != stream_id:
            return False
        return consumer.want is None or self._matches(consumer.want, remote)

    # receive() and messages() --------------------------------------------------------------------

    def consumer_for(self, want: Want, stream_id: StreamId) -> Consumer:
        """The consumer behind ``receive(address, stream_id)``; it stays in use from now on."""
        key = (str(want.address), stream_id)
        consumer = self._received.get(key)
        if consumer is None:
            consumer = self._received[key] = Consumer(want, stream_id)
            self._forget_consumers()
            self.rebind()
        elif consumer.want != want:
            consumer.turn_to(want)
            self.rebind()
        self._received.move_to_end(key)
        return consumer

    def _forget_consumers(self) -> None:
        """The oldest ones that nobody waits in."""
        if len(self._received) > MAX_CONSUMERS:
            idle = [key for key, consumer in self._received.items() if not consumer.waiters]
            for key in idle[:-MAX_CONSUMERS]:
                del self._received[key]

    def begin(self, stream_id: StreamId | None) -> Consumer:
        """A consumer behind ``messages()``, until ``end``."""
        consumer = Consumer(None, stream_id)
        self._iterating.append(consumer)
        self.rebind()
        return consumer

    def end(self, consumer: Consumer) -> None:
        if consumer in self._iterating:
            self._iterating.remove(consumer)
            self.rebind()
            self._reclaim()
            while consumer.waiters:
                consumer.wake()

    async def take(self, consumer: Consumer) -> tuple[Peer, Message]:
        """The next message for ``consumer``; waits. Raises ``Closed``."""
        while True:
            if self.closed:
                raise Closed("the transport is closed")
            found = self._take(consumer)
            if found is not None:
                return found
            waiter = self.runner.loop.create_future()
            consumer.waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    consumer.wake()  # it was our turn: hand it on
                raise
            finally:
                if waiter in consumer.waiters:
                    consumer.waiters.remove(waiter)

    def _take(self, consumer: Consumer) -> tuple[Peer, Message] | None:
        for mailbox in self._waiting:
            if mailbox.serves(consumer):
                return mailbox.peer, mailbox.take()
        return None

    # News of mailboxes ---------------------------------------------------------------------------

    def filled(self, mailbox: Mailbox) -> None:
        """Something waits for ``receive()`` there."""
        self._waiting.setdefault(mailbox)

    def emptied(self, mailbox: Mailbox) -> None:
        self._waiting.pop(mailbox, None)

    def discarded(self, mailbox: Mailbox, first: bool) -> None:
        """A message that nobody wants has made room for another."""
        self._counters.undelivered += 1
        if first:
            text = "nobody takes stream %r of %r: dropping its oldest"
            remote, stream = mailbox.remote, _short(mailbox.stream_id)
            self._log.about(remote, logging.WARNING, text, stream, remote)

    def failed(self, remote: Remote, handler: Handler | None, error: BaseException) -> None:
        """A handler has raised an error, or the payload is not of the type that it wants."""
        if isinstance(error, InvalidPayload):
            self._counters.malformed += 1
            self._log.about(remote, logging.WARNING, "from %s: %s", remote, error)
            return
        self._counters.handler_errors += 1
        name = getattr(handler, "__qualname__", repr(handler))
        info = (type(error), error, error.__traceback__)
        text = "handler %s failed on a message from %s"
        self._log.about(remote, logging.ERROR, text, name, remote, kind=name, exc_info=info)

    # Peers that are gone -------------------------------------------------------------------------

    def peer_gone(self, remote: Remote) -> None:
        """Its last connection has ended; what it left behind stays for receive(), within bounds."""
        remote.mailboxes.close_idle()
        self.weigh(remote)
        self._throttle.gone(remote)
        if remote.mailboxes.held:
            self._left_behind.add(remote)

    def peer_back(self, remote: Remote) -> None:
        self._left_behind.remove(remote)
        if len(remote.connections) == 1:
            self._throttle.back(remote)

    @property
    def waiting_of_strangers(self) -> int:
        """Bytes, with what messages take besides."""
        return self._throttle.used

    @property
    def full_of_strangers(self) -> bool:
        """Do strangers have more waiting than they may, told to stop or not?"""
        return self._throttle.exceeded

    def _drop_all(self, remote: Remote) -> None:
        """All that no handler is at work on."""
        self._drop(remote, queued=True)

    def _drop(self, remote: Remote, queued: bool = False) -> None:
        dropped = sum(mailbox.drop(queued) for mailbox in list(remote.mailboxes.by_stream.values()))
        if dropped:
            self._counters.undelivered += dropped
            text = "dropped %d messages that %r left behind and nobody took"
            self._log.about(remote, logging.WARNING, text, dropped, remote)
        self.tidy(remote)

    def tidy(self, remote: Remote) -> None:
        """Perhaps nothing is left of a peer that is gone."""
        if remote.mailboxes.idle:
            self._left_behind.remove(remote)
            self._forget(remote)
            self.weigh(remote)

    def close(self) -> None:
        """Wake every consumer; count what nobody took."""
        self.closed = True
        self._counters.undelivered += sum(len(mailbox.waiting) for mailbox in self._waiting)
        for consumer in (*self._received.values(), *self._iterating):
            while consumer.waiters:
                consumer.wake()


def _short(stream_id: StreamId) -> StreamId:
    return stream_id[:32] if isinstance(stream_id, str) else stream_id
