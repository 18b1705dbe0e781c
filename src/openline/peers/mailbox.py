"""The queues of an inbox: one lane per (peer, stream), and those who consume from them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..core.selection import Want
from ..message import Message, StreamId
from ..runtime.eager import Ended, Steps

if TYPE_CHECKING:
    from .table import Peer

Handler = Callable[["Peer", Message], Awaitable[Any] | None]


class Use:
    """One consumer of waiting messages: ``stream_id`` None takes all streams, ``want`` None all peers."""

    __slots__ = ("stream_id", "waiters", "want")

    def __init__(self, want: Want | None, stream_id: StreamId | None) -> None:
        self.want = want
        self.stream_id = stream_id
        self.waiters: deque[asyncio.Future[None]] = deque()

    def wake(self) -> None:
        """One waiter looks again; the message stays until that one really takes it."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Lane:
    """What has arrived from one peer on one stream."""

    __slots__ = (
        "answers",
        "busy",
        "bytes",
        "carry_on",
        "count",
        "ended",
        "handlers",
        "only",
        "overflowed",
        "overrun",
        "paused",
        "peer",
        "queue",
        "running",
        "stream_id",
        "tap",
        "uses",
        "version",
    )

    def __init__(self, peer: Peer, stream_id: StreamId) -> None:
        self.peer = peer
        self.stream_id = stream_id
        self.handlers: list[Handler] = []
        # The one handler, where nothing else takes this lane's messages.
        self.only: Handler | None = None
        self.carry_on: Callable[[Steps], Steps]
        self.ended: Ended
        self.uses: list[Use] = []
        self.version = -1
        # Is a handler running that has not finished? Then messages wait in the queue.
        self.running = False
        self.queue: deque[tuple[Message, int]] = deque()
        # Waiting for receive().
        self.tap: deque[tuple[Message, int, bool]] = deque()  # the bool: handlers have had it
        self.count = 0
        self.bytes = 0
        # Bytes of a large message that a handler is at work on.
        self.busy = 0
        # The sender was told to stop; it goes on all the same.
        self.paused = self.overrun = False
        # It was told so, and that answers are welcome all the same.
        self.answers = False
        self.overflowed = False

    def unbind(self) -> None:
        """It is given up. What it was bound to holds on to it, which only the collector would end, and
        that takes its time where a peer opens one stream after the other."""
        self.version = -1
        self.carry_on = self.ended = _given_up

    @property
    def idle(self) -> bool:
        return not (self.running or self.count or self.paused)


def _given_up(_: object) -> Any:
    raise AssertionError("a lane that was given up is in use")
