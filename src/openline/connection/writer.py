"""What leaves over one connection: messages gather into frames, and notes of the session with them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from ..backends.base import FRAGMENT, Link
from ..core.bulk import MAX_CONTAINERS, OVERLOAD, overloaded
from ..core.frames import (
    FRAME_BYTES,
    Batch,
    EncodedNotes,
    append_notes,
    encode_batch,
    encode_notes,
    encode_notes_frame,
    encode_plain,
)
from ..core.notes import MAX_RIDERS, Owed
from ..core.session import SENDER_STREAMS, STREAM_WEIGHT, Blocked, Outgoing, Session, weight
from ..core.tracks import CONTROL, Tracks
from ..errors import MessageTooLarge
from ..message import Message, StreamId
from .context import Context

# Acknowledgements ride on frames of up to so many bytes, which fit in one packet with them, where
# streams have tracks of their own.
SMALL = 1000

# Messages to a plain peer since its last sign of life that are kept to be reported if it dies; and
# ``Config.window_bytes`` of them.
MAX_DOUBTED = 1024


class Side(Protocol):
    """Whose writer it is: the connection."""

    @property
    def address(self) -> str:
        """Where the peer is, for errors."""
        ...

    def fall_behind(self) -> None:
        """The peer is owed something that the link does not take now."""
        ...


class Writer:
    """Writes to one link. What cannot be written because the link is gone is told by False, not raised."""

    __slots__ = (
        "_batch",
        "_context",
        "_doubted",
        "_doubted_bytes",
        "_holding",
        "_opened",
        "_opening",
        "_opens",
        "_positions",
        "_session",
        "_side",
        "_stream",
        "_track",
        "_tracks",
        "_waiters",
        "acks",
        "barred",
        "frames",
        "link",
        "owed",
        "tx",
    )

    def __init__(self, link: Link, context: Context, side: Side) -> None:
        self.link = link
        self._context = context
        self._side: Side | None = side
        # Messages written.
        self.tx = 0
        # Frames with messages.
        self.frames = 0
        # Between openline peers: the session, its streams that are open on this connection, and
        # what is to be opened and acknowledged with the next frame.
        self._session: Session[Any] | None = None
        self._positions: dict[StreamId, int] | None = None
        self.acks: dict[StreamId, int] = {}
        self._opened: dict[StreamId, Outgoing[Any]] | None = None
        self._opens: list[tuple[StreamId, int]] | None = None
        self._opening = 0
        # What the peer is to be told once it reads again.
        self.owed: Owed | None = None
        # Streams that wait for a better connection.
        self.barred: set[StreamId] | None = None
        # Toward a plain peer: the messages since its last sign of life, where somebody wants to know.
        self._doubted: deque[tuple[Message, int]] | None = None
        self._doubted_bytes = 0
        self._batch: Batch | None = None
        # Where the link has several tracks: the stream that gathers now, and its track.
        self._tracks = Tracks() if link.multiplexed else None
        self._stream: StreamId | None = None
        self._track = CONTROL
        self._holding = False
        self._waiters: list[asyncio.Future[None]] = []

    def enter(self, session: Session[Any], positions: dict[StreamId, int]) -> None:
        """The connection belongs to this session; ``positions`` is where the peer's streams are on it."""
        self._session, self._positions = session, positions

    def close(self) -> None:
        """The link is gone: no circle keeps the connection."""
        self._side = None

    def refuse(self) -> None:
        """Nothing of the peer is taken in any more."""
        self._positions = None

    def alive(self) -> bool:
        """False where the loop or the kernel already knows that the link is gone.

        The kernel is not asked while a frame is being handled: then the peer was there just now.
        """
        link = self.link
        return not (link.closing or (not self._context.turn.dispatching and link.broken()))

    @property
    def gathering(self) -> bool:
        """Do messages gather in a frame now, which leaves later in this turn of the loop?"""
        return self._batch is not None and self._batch.count > 0

    # To a plain peer -----------------------------------------------------------------------------

    def send(self, message: Message) -> bool:
        """Write one message to a plain peer. False: no byte of it left. Raises ``InvalidMessage``."""
        if not self.alive():
            return False
        size = self._write_plain(message)
        if size <= FRAGMENT and not self._context.turn.dispatching and self.link.closing:
            return False  # the write itself found out, and nothing of it has left
        self._count(1, size)
        if self._doubted is not None:
            self._doubt(message, size)
        return True

    def send_many(self, messages: list[Message]) -> bool:
        """Write several to a plain peer. False: no byte left."""
        if not self.alive():
            return False
        for message in messages:  # counted one by one, as any may raise
            size = self._write_plain(message)
            self._count(1, size)
            if self._doubted is not None:
                self._doubt(message, size)
        return True

    def _write_plain(self, message: Message) -> int:
        data = encode_plain(message)
        self._check_size(message, len(data))
        if overloaded(data, True):
            raise MessageTooLarge(f"message {message.id!r} to {self._whereto} {OVERLOAD}")
        self.link.write_text(data)
        return len(data)

    def note_doubted(self) -> None:
        """Somebody wants to know what may not have arrived."""
        self._doubted = deque()

    def heard(self) -> None:
        """A sign of life: what has been written before is not in doubt."""
        if self._doubted:
            self._doubted.clear()
            self._doubted_bytes = 0

    @property
    def doubted(self) -> list[Message]:
        """Written since the last sign of life: the last ones, within bounds."""
        return [message for message, _ in self._doubted or ()]

    def _doubt(self, message: Message, size: int) -> None:
        assert self._doubted is not None
        self._doubted.append((message, size))
        self._doubted_bytes += size
        while len(self._doubted) > 1 and (
            len(self._doubted) > MAX_DOUBTED or self._doubted_bytes > self._context.config.window_bytes
        ):
            self._doubted_bytes -= self._doubted.popleft()[1]

    # In a session --------------------------------------------------------------------------------

    def write(self, stream_id: StreamId, out: Outgoing[Any], message: Message, quiet: bool) -> int:
        """Write the next message of a stream, which ``out`` numbers; returns its size.

        The first one of a loop turn leaves at once, all others of that turn together. ``quiet``: nothing
        else is under way. Raises ``Blocked`` and ``InvalidMessage``, and then nothing has left.
        """
        if self._opened is None or self._stream != stream_id or self._opened.get(stream_id) is not out:
            self._begin(stream_id, out)
        batch, context = self._batch, self._context
        if batch is None:
            batch = self._batch = Batch()
        size = batch.add(message)
        if size > MAX_CONTAINERS or size > context.config.max_message_size:
            self._check(batch, message, size)
        if len(batch.buffer) > FRAME_BYTES:
            self._overflow(batch, size)
        elif context.turn.dispatching:
            if batch.count == 1:
                context.turn.gathered.append(self)
        elif not self._holding:
            self.flush()
            # Where nothing is under way, as between a question and its answer, holding need not even be
            # arranged for.
            if not quiet:
                self._hold()
        self.tx += 1
        context.counters.messages_sent += 1
        context.counters.bytes_sent += size
        return size

    def _begin(self, stream_id: StreamId, out: Outgoing[Any]) -> None:
        """What follows is of this stream: on its track, and open on this connection."""
        if self._stream != stream_id:
            self.select(stream_id)
        if self._opened is None or self._opened.get(stream_id) is not out:
            if self.barred and stream_id in self.barred and out.unacked:
                raise Blocked
            self.open(stream_id, out, out.next)

    def _check(self, batch: Batch, message: Message, size: int) -> None:
        """A large message: may it be sent? If not it is taken out again."""
        try:
            self._check_size(message, size)
            if size > MAX_CONTAINERS and overloaded(batch.buffer[-size:], False):
                raise MessageTooLarge(f"message {message.id!r} to {self._whereto} {OVERLOAD}")
        except MessageTooLarge:
            batch.drop_last(size)
            raise

    def _overflow(self, batch: Batch, size: int) -> None:
        """The last message, of that size, makes the frame too long: it gets one of its own."""
        if batch.count > 1:
            self.frames += 1
            self.link.write_binary(batch.split_last(size, self._notes(FRAME_BYTES)), self._track)
        self.flush()

    def write_many(self, stream_id: StreamId, out: Outgoing[Any], messages: list[Message]) -> int:
        """Write the next messages of a stream as one frame; returns their size.

        As many as fit; what does not is taken off the list. Raises ``Blocked`` and ``InvalidMessage``, and
        then nothing has left.
        """
        self._begin(stream_id, out)
        size = self.write_frame(messages)
        self._count(len(messages), size)
        return size

    def _count(self, messages: int, size: int) -> None:
        self.tx += messages
        counters = self._context.counters
        counters.messages_sent += messages
        counters.bytes_sent += size

    def reopen(self) -> None:
        """All streams are opened anew over this connection; what is to wait for another is barred."""
        self.flush()
        self._opened, self._opens, self._opening = {}, None, 0
        self.barred = set()

    def bar(self, stream_id: StreamId) -> None:
        """Something waits in this stream that may not travel here."""
        assert self.barred is not None
        self.barred.add(stream_id)

    def is_open(self, stream_id: StreamId, out: Outgoing[Any]) -> bool:
        return self._opened is not None and self._opened.get(stream_id) is out

    def select(self, stream_id: StreamId) -> None:
        """What follows is of this stream: it goes on the track of that."""
        if stream_id == self._stream:
            return
        self._stream = stream_id
        if self._tracks is not None:
            self.flush()
            self._track = self._tracks.of(stream_id, self._idle)

    def track_of(self, stream_id: StreamId) -> int:
        return CONTROL if self._tracks is None else self._tracks.of(stream_id, self._idle)

    def pin(self, stream_id: StreamId) -> None:
        """This stream keeps its track: something of it goes unacknowledged here."""
        if self._tracks is not None:
            self._tracks.pin(stream_id)

    def pin_unacked(self) -> None:
        """Another connection goes on with these, so that their acknowledgements may be of copies sent
        over that one, and say nothing of what is on its way here: they keep their tracks."""
        if self._tracks is not None and self._session is not None:
            for stream_id, _ in self._session.unacked():
                self._tracks.pin(stream_id)

    def _idle(self, stream_id: StreamId) -> bool:
        """Has all that was sent on this stream been acknowledged?"""
        assert self._session is not None
        out = self._session.out.get(stream_id)
        return out is None or not out.unacked

    def open(self, stream_id: StreamId, out: Outgoing[Any], number: int) -> None:
        """With the next frame the peer learns that this stream goes on here, at ``number``."""
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

    def write_frame(self, messages: list[Message]) -> int:
        """As one frame; what does not fit in, at the end, is taken off the list. Returns the size."""
        self.flush()
        frame = encode_batch(messages)
        if len(frame) > min(FRAME_BYTES + FRAME_BYTES // 2, self._context.config.max_message_size):
            del messages[self._fitting(messages) :]
            if len(messages) == 1:
                return self._write_alone(messages[0])
            frame = encode_batch(messages)
        self.frames += 1
        size = len(frame)
        notes = self._notes(size)
        if notes is not None:
            append_notes(frame, notes)
        self.link.write_binary(frame, self._track)
        return size

    def _write_alone(self, message: Message) -> int:
        """A large message, in a frame of its own."""
        batch = Batch()
        size = batch.add(message)
        self.frames += 1
        self.link.write_binary(batch.seal(self._notes(size)), self._track)
        return size

    def _fitting(self, messages: list[Message]) -> int:
        """How many of them fit in a frame; one at least."""
        total = 0
        for index, message in enumerate(messages):
            batch = Batch()
            size = batch.add(message)
            self._check(batch, message, size)
            total += size
            if index and total > FRAME_BYTES:
                return index
        return len(messages)

    def _hold(self) -> None:
        """Until the end of this loop turn, what follows gathers."""
        self._holding = True
        self._context.loop.call_soon(self._release)

    def _release(self) -> None:
        self._holding = False
        self.flush()

    @property
    def _whereto(self) -> str:
        return self._side.address if self._side is not None else self.link.endpoint.remote

    def _check_size(self, message: Message, size: int) -> None:
        limit = self._context.config.max_message_size
        if size > limit:
            raise MessageTooLarge(
                f"message {message.id!r} to {self._whereto} takes {size} bytes, over max_message_size={limit}"
            )

    # Notes ---------------------------------------------------------------------------------------

    def _notes(self, size: int = 0) -> EncodedNotes | None:
        """What sessions have to tell each other, to go with the next frame, of ``size`` bytes."""
        opens = self._opens
        if len(self.acks) > MAX_RIDERS or (
            self.acks and self._tracks is not None and (size > SMALL or self.link.backlog)
        ):
            # They would come behind all that is in front of them on this track, or after its losses.
            self._acknowledge()
        acks, self.acks, self._opens = self.acks, {}, None
        return encode_notes(acks, opens) if acks or opens is not None else None

    def flush(self) -> None:
        """Write what has gathered: messages, and notes. A link that is gone takes nothing: then the session
        sends it over another connection."""
        batch, acks, opens = self._batch, self.acks, self._opens
        if batch is None or not batch.count:
            if opens is not None:
                notes = self._notes()
                if notes is not None and not self.link.closing:
                    self.link.write_binary(encode_notes_frame(notes), self._track)
            elif acks:
                self._acknowledge()
        elif self._tracks is None and len(acks) <= MAX_RIDERS:
            self.frames += 1
            if acks:
                self.acks = {}
            self._opens = None
            self.link.write_binary(batch.seal_with(acks, opens), self._track)
        else:
            self.frames += 1
            self.link.write_binary(batch.seal(self._notes(len(batch.buffer))), self._track)

    def _acknowledge(self) -> None:
        """In a frame of their own; where the link is full, once it is not."""
        acks, link = self.acks, self.link
        self.acks = {}
        if link.congested or len(acks) > MAX_RIDERS or self.owed:
            self._owing().acks.add(acks, self._positions)
            self.write_owed()
        elif not link.closing:
            link.write_binary(encode_notes_frame(encode_notes(acks, None)))

    def tell_flow(self, stream_id: StreamId, stop: bool, answers: bool) -> None:
        """An openline peer: our inbox for that stream is full, or has room; after what has gathered."""
        self.flush()
        self._owing().stops.set(stream_id, stop, answers)
        self.write_owed()

    def tell_ports(self, ports: tuple[int, ...]) -> None:
        """An openline peer: we listen on these now."""
        self.flush()
        self._owing().listen(ports)
        self.write_owed()

    def _owing(self) -> Owed:
        if self.owed is None:
            self.owed = Owed()
        return self.owed

    def write_owed(self) -> None:
        """Write what is owed to the peer, as far as the link takes it."""
        owed, link, session = self.owed, self.link, self._session
        if session is None:
            return
        while owed and not link.congested and not link.closing:
            frame = owed.frame(session.expected)
            if frame is not None:
                link.write_binary(frame)
        if owed and self._side is not None:
            self._side.fall_behind()

    # Room ----------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until this connection can take more, or is gone."""
        if self.link.congested and not self.link.closing:
            waiter = self._context.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def wake(self) -> None:
        """Whoever waits for room looks again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
