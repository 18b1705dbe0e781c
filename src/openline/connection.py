"""One live connection: a backend's link and the core state that belongs to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from .backends.base import FRAGMENT, Link
from .config import Config
from .core.frames import (
    FRAME_BYTES,
    Batch,
    Flow,
    Listening,
    Malformed,
    TooBig,
    decode_frame,
    decode_plain,
    encode_batch,
    encode_plain,
)
from .core.handshake import check_ports
from .core.liveness import Liveness
from .core.selection import Endpoint, Quality
from .errors import MessageTooLarge
from .message import Message, Receipt
from .stats import Counters

if TYPE_CHECKING:
    from .peers import Peer

log = logging.getLogger("openline")

# Payloads that tell the answer to our liveness ping from a pong that nobody asked for.
PROBE = b"probe"
UNASKED = b"alive"

_numbers = itertools.count(1)


class State(Enum):
    """LIVE → SUSPECT ⇄ LIVE → DRAINING → CLOSED; never back from the last two."""

    LIVE = "live"
    SUSPECT = "suspect"
    DRAINING = "draining"
    CLOSED = "closed"


class Hub(Protocol):
    """What a connection needs of the transport that owns it."""

    config: Config
    counters: Counters
    loop: asyncio.AbstractEventLoop
    # The liveness clock: loop time at its last tick. Reading it costs nothing.
    now: float
    # While a received frame is being handled, what handlers send gathers until its end.
    dispatching: bool
    dirty: list[Connection]
    # Connections that are not being read.
    paused: dict[Connection, None]

    def on_messages(self, connection: Connection, messages: list[Message], size: int) -> None: ...
    def on_flow(self, connection: Connection, flow: Flow) -> None: ...
    def on_listening(self, connection: Connection, ports: tuple[int, ...]) -> None: ...
    def on_state(self, connection: Connection) -> None: ...
    def on_lost(self, connection: Connection, reason: str) -> None: ...


class Connection:
    """Between a peer and a link. Sends return False instead of raising where the link is gone."""

    __slots__ = (
        "_batch",
        "_callbacks",
        "_complained",
        "_holding",
        "_hub",
        "_pings",
        "_probed_at",
        "_waiters",
        "endpoint",
        "heard",
        "link",
        "liveness",
        "number",
        "peer",
        "plain",
        "reading_paused",
        "receipt",
        "state",
        "tx",
        "tx_heard",
    )

    def __init__(self, link: Link, hub: Hub) -> None:
        self.number = next(_numbers)
        self.link = link
        self.endpoint: Endpoint = link.endpoint
        self.plain = link.endpoint.hello is None
        self.peer: Peer
        self.state = State.LIVE
        accepted = link.endpoint.direction == "inbound"
        self.liveness = Liveness(hub.config.ping_interval, hub.loop.time(), accepted=accepted)
        # The last inbound unit, to the tick of the liveness clock.
        self.heard = hub.loop.time()
        # Messages sent, and how many of them before the last inbound unit: the rest is in doubt
        # if it dies.
        self.tx = self.tx_heard = 0
        self.reading_paused = False
        self.receipt = Receipt(1, False, link.backend, link.endpoint.direction)
        self._hub = hub
        self._batch: Batch | None = None
        self._holding = False
        self._complained = False
        self._waiters: list[asyncio.Future[None]] = []
        # Told of every change of state, the last one being CLOSED.
        self._callbacks: list[Callable[[], object]] = []
        self._probed_at = 0.0
        self._pings: dict[bytes, tuple[float, asyncio.Future[float]]] | None = None

    def __repr__(self) -> str:
        """One line that says it all; tests and logs rely on it."""
        end = self.endpoint
        return f"<{end.direction} {self.link.backend} #{self.number} {end.remote} {self.status}>"

    @property
    def status(self) -> str:
        congested = self.state is State.LIVE and self.link.congested
        return "congested" if congested else self.state.value

    @property
    def quality(self) -> Quality:
        if self.state is State.LIVE:
            return Quality.CONGESTED if self.link.congested else Quality.GOOD
        return Quality.SUSPECT if self.state is State.SUSPECT else Quality.DRAINING

    @property
    def usable(self) -> bool:
        """Good enough to be taken without looking at any other."""
        return self.state is State.LIVE and not self.link.congested

    # Sending -------------------------------------------------------------------------------------

    def alive(self) -> bool:
        """False where the loop or the kernel already knows that the link is gone.

        The kernel is not asked while a frame is being handled: then the peer was there just now.
        """
        link = self.link
        return not (link.closing or (not self._hub.dispatching and link.broken()))

    def send(self, message: Message) -> bool:
        """Write one message. False: no byte of it left. Raises ``InvalidMessage``."""
        # alive(), spelled out: this is the hot path.
        link, dispatching = self.link, self._hub.dispatching
        if link.closing or (not dispatching and link.broken()):
            return False
        size = self._send_plain(message) if self.plain else self._send_batched(message)
        if size <= FRAGMENT and not dispatching and link.closing:
            return False  # the write itself found out, and nothing of it has left
        self.tx += 1
        counters = self._hub.counters
        counters.messages_sent += 1
        counters.bytes_sent += size
        return True

    def send_many(self, messages: list[Message]) -> bool:
        """Write several, toward an openline peer as one frame. False: no byte left."""
        if not self.alive():
            return False
        if self.plain:
            return self._send_one_by_one(messages)
        self.flush()
        frame = encode_batch(messages)
        if len(frame) > min(FRAME_BYTES + FRAME_BYTES // 2, self._hub.config.max_message_size):
            return self._send_one_by_one(messages)
        self.link.write_binary(frame)
        self._count(len(messages), len(frame))
        return True

    def _send_one_by_one(self, messages: list[Message]) -> bool:
        """To a plain peer, or together too large for a frame; counted one by one, as any may raise."""
        for message in messages:
            self._count(1, self._send_plain(message) if self.plain else self._send_batched(message))
        self.flush()
        return True

    def _count(self, messages: int, size: int) -> None:
        self.tx += messages
        counters = self._hub.counters
        counters.messages_sent += messages
        counters.bytes_sent += size

    def _send_plain(self, message: Message) -> int:
        data = encode_plain(message)
        self._check_size(message, len(data))
        self.link.write_text(data)
        return len(data)

    def _send_batched(self, message: Message) -> int:
        batch = self._batch
        if batch is None:
            batch = self._batch = Batch()
        size = batch.add(message)
        if size > self._hub.config.max_message_size:
            batch.drop_last(size)
            self._check_size(message, size)
        if len(batch.buffer) > FRAME_BYTES:
            if batch.count > 1:
                self.link.write_binary(batch.split_last(size))
            self.flush()
        elif self._hub.dispatching:
            if batch.count == 1:
                self._hub.dirty.append(self)
        elif not self._holding:
            # The first message of a loop turn leaves at once, all others of that turn together.
            # Where nothing is under way, as between a question and its answer, that need not even
            # be arranged for.
            self.flush()
            if self.tx != self.tx_heard:
                self._hold()
        return size

    def _hold(self) -> None:
        """Until the end of this loop turn, what follows gathers."""
        if not self._holding:
            self._holding = True
            self._hub.loop.call_soon(self._release)

    def _check_size(self, message: Message, size: int) -> None:
        limit = self._hub.config.max_message_size
        if size > limit:
            raise MessageTooLarge(
                f"message {message.id!r} to {self.peer.address} takes {size} bytes, "
                f"over max_message_size={limit}"
            )

    def _release(self) -> None:
        self._holding = False
        self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        batch = self._batch
        if batch is None or not batch.count:
            return
        if self.link.closing:
            self._hub.counters.in_doubt += batch.count
            log.warning("%r went away with %d messages unsent", self, batch.count)
            batch.seal()
            return
        self.link.write_binary(batch.seal())

    def send_control(self, frame: bytearray) -> None:
        """A control frame to an openline peer, after what has gathered."""
        if not self.link.closing:
            self.flush()
            self.link.write_binary(frame)

    async def room(self) -> None:
        """Wait until this connection can take more, or is gone."""
        if self.link.congested and not self.link.closing:
            waiter = self._hub.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Liveness ------------------------------------------------------------------------------------

    def set_state(self, state: State) -> None:
        if self.state is not state and self.state is not State.CLOSED:
            self.state = state
            self._hub.on_state(self)
            self._tell()

    def when_changed(self, callback: Callable[[], object]) -> None:
        """Call back on every change of state; closed is the last."""
        self._callbacks.append(callback)

    def _tell(self) -> None:
        self._wake()
        for callback in self._callbacks:
            callback()

    def probe(self) -> None:
        """The liveness ping; its pong also tells the round trip."""
        self._probed_at = time.perf_counter()
        self.link.ping(PROBE)

    async def ping(self) -> float:
        """One WebSocket ping: the round trip in seconds. Raises ``ConnectionError`` when it dies."""
        if self._pings is None:
            self._pings = {}
        payload = next(_numbers).to_bytes(8, "big")
        answer: asyncio.Future[float] = self._hub.loop.create_future()
        self._pings[payload] = (time.perf_counter(), answer)
        try:
            self.flush()
            self.link.ping(payload)
            return await answer
        finally:
            self._pings.pop(payload, None)

    def pause_reading(self) -> None:
        if not self.reading_paused:
            self.reading_paused = True
            self._hub.paused[self] = None
            self.link.pause_reading()

    def resume_reading(self) -> None:
        if self.reading_paused:
            self.reading_paused = False
            self._hub.paused.pop(self, None)
            self.liveness.hold(self._hub.loop.time())
            self.link.resume_reading()

    # From the link -------------------------------------------------------------------------------

    def _hear(self) -> None:
        self.heard = self._hub.now
        self.tx_heard = self.tx

    def on_text(self, data: memoryview) -> None:
        self._hear()
        limit = self._hub.config.max_message_size
        if len(data) > limit:
            raise TooBig(f"a message of {len(data)} bytes, more than {limit}")
        try:
            message = decode_plain(data)
        except Malformed as error:
            self._complain(error)
            return
        self._hub.on_messages(self, [message], len(data))

    def on_binary(self, data: memoryview) -> None:
        if self.plain:
            self.on_text(data)  # some clients send their JSON as binary
            return
        self.heard = self._hub.now
        self.tx_heard = self.tx
        frame = decode_frame(data)
        if type(frame) is list:
            self._hub.on_messages(self, frame, len(data))
        elif type(frame) is Flow:
            self._hub.on_flow(self, frame)
        elif type(frame) is Listening:
            check_ports(frame.ports)
            self._hub.on_listening(self, frame.ports)

    def on_ping(self, payload: bytes) -> None:
        self._hear()
        self.link.pong(payload)

    def on_pong(self, payload: bytes) -> None:
        self._hear()
        if payload == PROBE and self._probed_at:
            self._measured(time.perf_counter() - self._probed_at)
            self._probed_at = 0.0
            return
        waiting = self._pings.pop(payload, None) if self._pings else None
        if waiting is not None and not waiting[1].done():
            self._measured(time.perf_counter() - waiting[0])
            waiting[1].set_result(time.perf_counter() - waiting[0])

    def _measured(self, rtt: float) -> None:
        last = self.receipt
        self.receipt = Receipt(1, last.acked, last.backend, last.direction, rtt)

    def on_writable(self) -> None:
        self._wake()

    def on_closed(self, reason: str) -> None:
        if self.state is State.CLOSED:
            return
        self.flush()
        self.state = State.CLOSED
        for _, answer in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(reason))
        self._hub.on_lost(self, reason)
        self._tell()

    def _complain(self, error: Malformed) -> None:
        """A message of a plain peer that cannot be read: dropped, counted, logged once."""
        self._hub.counters.malformed += 1
        if not self._complained:
            self._complained = True
            log.warning("dropped a message from %s: %s (logged once)", self.endpoint.remote, error)
