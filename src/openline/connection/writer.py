"""What leaves over one connection: messages gather into frames, and notes of the session with them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..backends.base import FRAGMENT, End, Link
from ..config import Config
from ..core.bulk import MAX_CONTAINERS, OVERLOAD, overloaded
from ..core.frames import (
    FRAME_BYTES,
    Batch,
    Batched,
    EncodedNotes,
    Flow,
    append_notes,
    encode_batch,
    encode_notes,
    encode_notes_frame,
    encode_plain,
)
from ..core.notes import MAX_RIDERS, Owed
from ..core.session import SENDER_STREAMS, STREAM_WEIGHT, Blocked, Outgoing, Session, open_at, weight
from ..core.tracks import CONTROL, Tracks
from ..errors import InvalidMessage, MessageTooLarge
from ..message import Message, StreamId
from ..peers.in_flight import Parcel
from ..runtime.ratelog import RateLog
from ..stats import Counters

if TYPE_CHECKING:
    from ..peers.table import Peer
    from .connection import Connection
    from .heartbeat import Watch


# Acknowledgements ride on frames of up to so many bytes, which fit in one packet with them, where
# streams have tracks of their own.
SMALL = 1000

# Messages to a plain peer since its last sign of life that are kept to be reported if it dies; and
# ``Config.window_bytes`` of them.
MAX_DOUBTED = 1024


class Hub(Protocol):
    """What a connection needs of the transport that owns it."""

    config: Config
    counters: Counters
    log: RateLog
    loop: asyncio.AbstractEventLoop
    # The liveness clock: loop time at its last tick. Reading it costs nothing.
    now: float
    # While a received frame is being handled, what handlers send gathers until its end.
    dispatching: bool
    dirty: list[Outlet]
    # Connections that are not being read.
    paused: dict[Connection, None]
    # Peers with something unacknowledged.
    unacked: dict[Peer, None]
    node_id: str
    watch: Watch

    stopwatch: Callable[[], float]

    def on_messages(self, connection: Connection, messages: list[Message], size: int, more: int) -> None: ...
    def on_batch(self, connection: Connection, batch: Batched, size: int, more: int) -> None: ...
    def on_far_end_lost(self, connection: Connection, lost: list[bytes]) -> None: ...
    def on_second_process(self, connection: Connection) -> None: ...
    def divert(self, connection: Outlet, parcel: Parcel) -> bool: ...
    def on_flow(self, connection: Connection, flow: Flow) -> None: ...
    def on_listening(self, connection: Connection, ports: tuple[int, ...]) -> None: ...
    def on_moved(self, connection: Connection, ip: str, port: int) -> None: ...
    def changed(self) -> None:
        """What a send may depend on is not as it was."""
        ...

    def later(self, connection: Connection) -> None:
        """It has put something off, which is to be done soon, together with what others have."""
        ...

    def on_state(self, connection: Connection) -> None: ...
    def on_lost(self, connection: Connection, end: End) -> None: ...


class Outlet:
    """The sending half of a connection. Sends return False instead of raising where the link is gone."""

    __slots__ = (
        "_batch",
        "_doubted_bytes",
        "_holding",
        "_hub",
        "_lane",
        "_opened",
        "_opening",
        "_opens",
        "_track",
        "_tracks",
        "_waiters",
        "acks",
        "barred",
        "doubted",
        "link",
        "owed",
        "peer",
        "plain",
        "positions",
        "session",
        "tx",
        "tx_heard",
    )

    def __init__(self, link: Link, hub: Hub) -> None:
        self.link = link
        self.plain = link.endpoint.hello is None
        self.peer: Peer
        # Messages sent, and how many of them before the last inbound unit: the rest is in doubt
        # if it dies.
        self.tx = self.tx_heard = 0
        # Between openline peers: the session, its streams that are open on this connection, and
        # what is to be opened and acknowledged with the next frame.
        self.session: Session[Parcel] | None = None
        self.acks: dict[StreamId, int] | None = None
        # Where the peer's streams are on this connection; None where nothing is taken in.
        self.positions: dict[StreamId, int] | None = None
        # What the peer is to be told once it reads again.
        self.owed: Owed | None = None
        self._opened: dict[StreamId, Outgoing[Parcel]] | None = None
        self._opens: list[tuple[StreamId, int]] | None = None
        self._opening = 0
        # Streams that wait for a better connection.
        self.barred: set[StreamId] | None = None
        # Toward a plain peer: the messages since its last sign of life, where somebody wants to know.
        self.doubted: deque[tuple[Message, int]] | None = None
        self._doubted_bytes = 0
        self._hub = hub
        self._batch: Batch | None = None
        # Where the link has several tracks: the stream that gathers now, and its track.
        self._tracks = Tracks() if link.multiplexed else None
        self._lane: StreamId | None = None
        self._track = CONTROL
        self._holding = False
        self._waiters: list[asyncio.Future[None]] = []

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
            self._doubt(message, size)
        return True

    def send_many(self, messages: list[Message]) -> bool:
        """Write several to a plain peer. False: no byte left."""
        if not self.alive():
            return False
        for message in messages:  # counted one by one, as any may raise
            size = self._send_plain(message)
            self._count(1, size)
            if self.doubted is not None:
                self._doubt(message, size)
        return True

    def _doubt(self, message: Message, size: int) -> None:
        """Keep it until the next sign of life: the last ones, within bounds."""
        assert self.doubted is not None
        self.doubted.append((message, size))
        self._doubted_bytes += size
        while len(self.doubted) > 1 and (
            len(self.doubted) > MAX_DOUBTED or self._doubted_bytes > self._hub.config.window_bytes
        ):
            self._doubted_bytes -= self.doubted.popleft()[1]

    # Sending in a session ------------------------------------------------------------------------

    def post(self, parcel: Parcel) -> bool:
        """Number a parcel in its stream, and write it. False: nothing of it left.

        Of several messages it keeps the first, as many as fit in a frame and in the window. Another
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
        if self._tracks is not None and stream_id != self._lane:
            self._change_lane(stream_id)
        if self._opened is None or self._opened.get(stream_id) is not out:
            if self.barred and stream_id in self.barred and out.unacked:
                raise Blocked
            self._open(stream_id, out, out.next)
        if len(messages) == 1:
            parcel.size = self._send_batched(messages[0])
        else:
            del messages[out.room :]
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

    def resume(self, may_travel: Callable[[Parcel], bool]) -> None:
        """Carry the session on from here: open its streams anew, send what is not acknowledged.

        Streams in which something waits that may not travel here stay closed.
        """
        assert self.session is not None
        self.flush()
        self._opened, self._opens, self._opening = {}, None, 0
        self.barred = set()
        for stream_id, out in self.session.unacked():
            if not all(map(may_travel, out.unacked)):
                self.barred.add(stream_id)
                continue
            self._change_lane(stream_id)
            self._open(stream_id, out, open_at(out))
            for parcel in out.unacked:
                self._send_again(stream_id, out, parcel)
        self.flush()

    def forward(self, stream_id: StreamId, out: Outgoing[Parcel], parcels: list[Parcel]) -> None:
        """Send parcels that have just been numbered in this session, and come from another one."""
        if self.barred and stream_id in self.barred:
            return  # with what waits there
        self._change_lane(stream_id)
        if self._opened is None or self._opened.get(stream_id) is not out:
            self._open(stream_id, out, parcels[0].first)
        for parcel in parcels:
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
            text = "message changed while it was on its way: %s"
            self._hub.log.about(self.peer, logging.ERROR, text, error)
            self._open(stream_id, out, parcel.end)
            if self._tracks is not None:
                self._tracks.pin(stream_id)

    def _change_lane(self, stream_id: StreamId) -> None:
        """What follows is of this stream: it goes on the track of that."""
        if self._tracks is None or stream_id == self._lane:
            return
        self.flush()
        self._lane = stream_id
        self._track = self._tracks.of(stream_id, self._idle)

    def track_of(self, stream_id: StreamId) -> int:
        return CONTROL if self._tracks is None else self._tracks.of(stream_id, self._idle)

    def pin_unacked(self) -> None:
        """Another connection goes on with these, so that their acknowledgements may be of copies sent
        over that one, and say nothing of what is on its way here: they keep their tracks."""
        if self._tracks is not None and self.session is not None:
            for stream_id, _ in self.session.unacked():
                self._tracks.pin(stream_id)

    def _idle(self, stream_id: StreamId) -> bool:
        """Has all that was sent on this stream been acknowledged?"""
        assert self.session is not None
        out = self.session.out.get(stream_id)
        return out is None or not out.unacked

    def _open(self, stream_id: StreamId, out: Outgoing[Parcel], number: int) -> None:
        if self._opened is None or self._opening >= SENDER_STREAMS * STREAM_WEIGHT:
            # From time to time all are opened anew with their next message: the receiver forgets
            # streams that were opened too many others ago, however busy they are. What has
            # gathered goes first: an open is read before the messages of its frame.
            self.flush()
            self._opened, self._opening = {}, 0
        self._opening += weight(stream_id)
        self._opened[stream_id] = out
        if self._opens is None:
            self._opens = []
        self._opens.append((stream_id, number))

    def _notes(self, size: int = 0) -> EncodedNotes | None:
        """What sessions have to tell each other, to go with the next frame, of ``size`` bytes."""
        acks, opens = self.acks, self._opens
        if acks is None and opens is None:
            return None
        if acks is not None and (
            len(acks) > MAX_RIDERS or (self._tracks is not None and (size > SMALL or self.link.backlog))
        ):
            # They would come behind all that is in front of them on this track, or after its losses.
            self._acknowledge()
            acks = None
            if opens is None:
                return None
        self.acks = self._opens = None
        return encode_notes(acks or {}, opens)

    def _send_several(self, messages: list[Message]) -> int:
        """As one frame; what does not fit in, at the end, is taken off the list. Returns the size."""
        self.flush()
        frame = encode_batch(messages)
        if len(frame) > min(FRAME_BYTES + FRAME_BYTES // 2, self._hub.config.max_message_size):
            del messages[self._fitting(messages) :]
            if len(messages) == 1:
                size = self._send_batched(messages[0])
                self.flush()
                return size
            frame = encode_batch(messages)
        size = len(frame)
        notes = self._notes(size)
        if notes is not None:
            append_notes(frame, notes)
        self.link.write_binary(frame, self._track)
        return size

    def _fitting(self, messages: list[Message]) -> int:
        """How many of them fit in a frame; one at least."""
        total = 0
        for index, message in enumerate(messages):
            size = Batch().add(message)
            self._check_size(message, size)
            total += size
            if index and total > FRAME_BYTES:
                return index
        return len(messages)

    def _count(self, messages: int, size: int) -> None:
        self.tx += messages
        counters = self._hub.counters
        counters.messages_sent += messages
        counters.bytes_sent += size

    def _send_plain(self, message: Message) -> int:
        data = encode_plain(message)
        self._check_size(message, len(data))
        if overloaded(data, True):
            raise MessageTooLarge(f"message {message.id!r} to {self.peer.address} {OVERLOAD}")
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
        if size > MAX_CONTAINERS and overloaded(batch.buffer[-size:], False):
            batch.drop_last(size)
            raise MessageTooLarge(f"message {message.id!r} to {self.peer.address} {OVERLOAD}")
        if len(batch.buffer) > FRAME_BYTES:
            if batch.count > 1:
                self.link.write_binary(batch.split_last(size, self._notes(FRAME_BYTES)), self._track)
            self.flush()
        elif self._hub.dispatching:
            if batch.count == 1:
                self._hub.dirty.append(self)
        elif not self._holding:
            # The first message of a loop turn leaves at once, all others of that turn together.
            # Where nothing is under way, as between a question and its answer, that need not even
            # be arranged for.
            notes = None if self.acks is None and self._opens is None else self._notes(size)
            self.link.write_binary(batch.seal(notes), self._track)
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
            if self._opens is None:
                if self.acks is not None:
                    self._acknowledge()
                return
            notes = self._notes()
            if notes is not None and not self.link.closing:
                self.link.write_binary(encode_notes_frame(notes), self._track)
        elif self.link.closing:
            batch.seal()  # its session sends it over another connection
        else:
            self.link.write_binary(batch.seal(self._notes(len(batch.buffer))), self._track)

    def _acknowledge(self) -> None:
        """In a frame of their own; where the link is full, once it is not."""
        acks, link = self.acks, self.link
        self.acks = None
        assert acks is not None
        if link.congested or len(acks) > MAX_RIDERS or self.owed:
            self._owing().acks.add(acks, self.positions)
            self.pay()
        elif not link.closing:
            link.write_binary(encode_notes_frame(encode_notes(acks, None)))

    def tell_flow(self, stream_id: StreamId, stop: bool, answers: bool) -> None:
        """An openline peer: our inbox for that stream is full, or has room; after what has gathered."""
        self.flush()
        self._owing().stops.set(stream_id, stop, answers)
        self.pay()

    def tell_ports(self, ports: tuple[int, ...]) -> None:
        """An openline peer: we listen on these now."""
        self.flush()
        self._owing().ports = ports
        self.pay()

    def _owing(self) -> Owed:
        if self.owed is None:
            self.owed = Owed()
        return self.owed

    def pay(self) -> None:
        """Write what is owed to the peer, as far as the link takes it."""
        owed, link, session = self.owed, self.link, self.session
        if session is None:
            return
        while owed and not link.congested and not link.closing:
            frame = owed.frame(session.expected)
            if frame is not None:
                link.write_binary(frame)
        if owed:
            self._fall_behind()

    def _fall_behind(self) -> None:
        """The peer is owed something that cannot be written now."""

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
