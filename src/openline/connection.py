"""One live connection: a backend's link and the core state that belongs to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from .backends.base import FRAGMENT, Link
from .config import Config
from .core.collision import Claim, rank_of
from .core.frames import (
    FRAME_BYTES,
    Batch,
    Batched,
    EncodedNotes,
    Flow,
    Listening,
    Malformed,
    TooBig,
    Welcome,
    append_notes,
    decode_frame,
    decode_plain,
    encode_batch,
    encode_notes,
    encode_notes_frame,
    encode_plain,
)
from .core.handshake import check_ports
from .core.liveness import Liveness
from .core.selection import Endpoint, Quality
from .core.session import Outgoing, Session, open_at
from .errors import InvalidMessage, MessageTooLarge
from .message import Message, Receipt, StreamId
from .parcel import Parcel
from .stats import Counters

if TYPE_CHECKING:
    from .peers import Peer

log = logging.getLogger("openline")

# Streams a connection notes as opened beyond those its session knows, before it looks again.
SPARE_OPENED = 1024

# Payloads that tell the answer to our liveness ping from a pong that nobody asked for.
PROBE = b"probe"
UNASKED = b"alive"
# Asked of a connection whose process seems to have been replaced by another with the same key.
CHALLENGE = b"still you?"

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
    # Peers with something unacknowledged.
    unacked: dict[Peer, None]
    node_id: str

    stopwatch: Callable[[], float]

    def on_messages(self, connection: Connection, messages: list[Message], size: int) -> None: ...
    def on_batch(self, connection: Connection, batch: Batched, size: int) -> None: ...
    def on_far_end_lost(self, connection: Connection, lost: list[bytes]) -> None: ...
    def on_second_process(self, connection: Connection) -> None: ...
    def divert(self, connection: Connection, parcel: Parcel) -> bool: ...
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
        "_opened",
        "_opens",
        "_pings",
        "_probed_at",
        "_waiters",
        "acks",
        "doubted",
        "endpoint",
        "heard",
        "link",
        "liveness",
        "number",
        "peer",
        "plain",
        "positions",
        "reading_paused",
        "receipt",
        "session",
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
        self.receipt = Receipt(1, not self.plain, link.backend, link.endpoint.direction)
        # Between openline peers: the numbers of streams, ours and theirs, and what we owe them.
        self.session: Session[Parcel] | None = None
        self.positions: dict[StreamId, int] | None = None
        self._opened: dict[StreamId, Outgoing[Parcel]] | None = None
        self._opens: list[tuple[StreamId, int]] | None = None
        # To be acknowledged.
        self.acks: dict[StreamId, int] | None = None
        # Toward a plain peer: the messages since its last sign of life, where somebody wants to know.
        self.doubted: deque[Message] | None = None
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
    def claim(self) -> Claim:
        """What speaks for it where two connections reach the same process (rule 3.3)."""
        end = self.endpoint
        hello = end.hello
        assert hello is not None
        outbound = end.direction == "outbound"
        initiator = self._hub.node_id if outbound else hello.node_id
        return Claim(rank_of(self.link.backend, end.secure), initiator, hello.dial)

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
        """Write one message to a plain peer. False: no byte of it left. Raises ``InvalidMessage``."""
        if not self.alive():
            return False
        size = self._send_plain(message)
        if size <= FRAGMENT and not self._hub.dispatching and self.link.closing:
            return False  # the write itself found out, and nothing of it has left
        self._count(1, size)
        if self.doubted is not None:
            self.doubted.append(message)
        return True

    def send_many(self, messages: list[Message]) -> bool:
        """Write several to a plain peer. False: no byte left."""
        if not self.alive():
            return False
        for message in messages:  # counted one by one, as any may raise
            self._count(1, self._send_plain(message))
            if self.doubted is not None:
                self.doubted.append(message)
        return True

    # Sending in a session ------------------------------------------------------------------------

    def post(self, parcel: Parcel) -> bool:
        """Number a parcel in its stream, and write it. False: nothing of it left.

        Of several messages that are together too large for a frame it keeps the first. Another
        connection of the peer may take it, so that streams stay in order. Raises ``Blocked`` and
        ``InvalidMessage``; then the parcel has no numbers.
        """
        peer = self.peer
        if peer.carrier is not self:
            return self._hub.divert(self, parcel)
        # alive(), spelled out: this is the hot path.
        link = self.link
        if link.closing or (not self._hub.dispatching and link.broken()):
            return False
        assert self.session is not None
        messages = parcel.messages
        stream_id = messages[0].stream_id
        out = self.session.out.get(stream_id)
        if out is None:
            out = self.session.outgoing(stream_id)
        if self._opened is None or self._opened.get(stream_id) is not out:
            self._open(stream_id, out, out.next)
        if len(messages) == 1:
            parcel.size = self._send_batched(messages[0])
        else:
            parcel.size = self._send_several(messages)
        if not out.unacked:
            self._hub.unacked[peer] = None
        out.add(parcel)
        if out.full:
            peer.fill(stream_id)
        self.tx += len(messages)
        counters = self._hub.counters
        counters.messages_sent += len(messages)
        counters.bytes_sent += parcel.size
        return True

    def resume(self) -> None:
        """Carry the session on from here: open its streams anew, send what is not acknowledged."""
        assert self.session is not None
        self._opened, self._opens = {}, None
        for stream_id, out in self.session.unacked():
            self._open(stream_id, out, open_at(out))
            for parcel in out.unacked:
                self._send_again(stream_id, out, parcel)
        self.flush()

    def _send_again(self, stream_id: StreamId, out: Outgoing[Parcel], parcel: Parcel) -> None:
        messages = out.pending(parcel)
        parcel.attempts += 1
        self._hub.counters.resent += len(messages)
        try:
            while messages:
                part = messages.copy()
                self._send_several(part)
                messages = messages[len(part) :]
        except InvalidMessage as error:
            # The program has changed it meanwhile. Its numbers are skipped.
            parcel.set_exception(error)
            log.error("message changed while it was on its way: %s", error)
            self._open(stream_id, out, parcel.end)

    def _open(self, stream_id: StreamId, out: Outgoing[Parcel], number: int) -> None:
        if self._opened is None:
            self._opened = {}
        if len(self._opened) > len(self.session.out if self.session else ()) + SPARE_OPENED:
            self._opened.clear()  # streams that the session has forgotten
        self._opened[stream_id] = out
        if self._opens is None:
            self._opens = []
        self._opens.append((stream_id, number))

    def _notes(self) -> EncodedNotes | None:
        """What sessions have to tell each other, to go with the next frame."""
        acks, opens = self.acks, self._opens
        if acks is None and opens is None:
            return None
        self.acks = self._opens = None
        return encode_notes(acks or {}, opens)

    def _send_several(self, messages: list[Message]) -> int:
        """As one frame; what does not fit in, at the end, is taken off the list. Returns the size."""
        self.flush()
        frame = encode_batch(messages)
        if len(frame) > min(FRAME_BYTES + FRAME_BYTES // 2, self._hub.config.max_message_size):
            del messages[_fitting(messages) :]
            if len(messages) == 1:
                size = self._send_batched(messages[0])
                self.flush()
                return size
            frame = encode_batch(messages)
        size = len(frame)
        notes = self._notes()
        if notes is not None:
            append_notes(frame, notes)
        self.link.write_binary(frame)
        return size

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
                self.link.write_binary(batch.split_last(size, self._notes()))
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
        """Write what has gathered: messages, and notes."""
        batch = self._batch
        if batch is None or not batch.count:
            notes = self._notes()
            if notes is not None and not self.link.closing:
                self.link.write_binary(encode_notes_frame(notes))
        elif self.link.closing:
            batch.seal()  # its session sends it over another connection
        else:
            self.link.write_binary(batch.seal(self._notes()))

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
        self._probed_at = self._hub.stopwatch()
        self.link.ping(PROBE)

    def challenge(self) -> None:
        """Is the process behind this connection still there? A pong to this says yes."""
        if not self.link.closing:
            self.link.ping(CHALLENGE)

    async def ping(self) -> float:
        """One WebSocket ping: the round trip in seconds. Raises ``ConnectionError`` when it dies."""
        if self._pings is None:
            self._pings = {}
        payload = next(_numbers).to_bytes(8, "big")
        answer: asyncio.Future[float] = self._hub.loop.create_future()
        self._pings[payload] = (self._hub.stopwatch(), answer)
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
        if self.doubted:
            self.doubted.clear()

    def on_text(self, data: memoryview) -> None:
        if not self.plain:
            raise Malformed("a text between openline peers")
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
        if isinstance(frame, Batched):
            self._hub.on_batch(self, frame, len(data))
        else:
            self._on_control(frame)

    def _on_control(self, frame: object) -> None:
        if isinstance(frame, Flow):
            self._hub.on_flow(self, frame)
        elif isinstance(frame, Listening):
            check_ports(frame.ports)
            self._hub.on_listening(self, frame.ports)
        elif isinstance(frame, Welcome):
            self._hub.on_far_end_lost(self, frame.lost)
        elif frame is not None:
            raise Malformed(f"a {type(frame).__name__.lower()} frame out of place")

    def on_ping(self, payload: bytes) -> None:
        self._hear()
        self.link.pong(payload)

    def on_pong(self, payload: bytes) -> None:
        self._hear()
        if payload == PROBE and self._probed_at:
            self._measured(self._hub.stopwatch() - self._probed_at)
            self._probed_at = 0.0
            return
        if payload == CHALLENGE:
            self._hub.on_second_process(self)
            return
        waiting = self._pings.pop(payload, None) if self._pings else None
        if waiting is not None and not waiting[1].done():
            self._measured(self._hub.stopwatch() - waiting[0])
            waiting[1].set_result(self._hub.stopwatch() - waiting[0])

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


def _fitting(messages: list[Message]) -> int:
    """How many of them fit in a frame; one at least."""
    total = 0
    for index, message in enumerate(messages):
        total += Batch().add(message)
        if index and total > FRAME_BYTES:
            return index
    return len(messages)
