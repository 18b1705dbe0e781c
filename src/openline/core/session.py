"""Numbers and acknowledgements of one direction between two processes (rule 3.4). Pure.

Each stream counts its messages. A connection says once at which number a stream goes on over it
(*open*), from then on both sides count. An acknowledgement names the next number the receiver
waits for. After a change of connection the sender opens at the first number that is not
acknowledged and sends from there again; the receiver drops what it has had.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from ..errors import InvalidMessage
from ..message import Message, StreamId
from .frames import Malformed

# Streams that a sender keeps numbers for, per peer; beyond it the one opened longest ago with
# nothing unacknowledged is forgotten (its numbers go on where all others have got to). Those with
# long names count for more, as they take more.
SENDER_STREAMS = 4096
# The receiver remembers twice as many, so it never forgets one that the sender still knows. Part
# of the protocol, not of Config: the two sides must agree.
RECEIVER_STREAMS = 2 * SENDER_STREAMS
# What a stream counts, at the least; its numbers without the name; a character that is not ASCII.
STREAM_WEIGHT = 256
_NUMBERS_WEIGHT = 200
_WIDE = 4
# Where nothing could be forgotten, so many are looked at before all are; and all are from time to time.
LOOK_AT = 16
LOOK_AT_ALL = 64
# Above what anybody sends, and below what MessagePack can carry, with room to count on.
MAX_NUMBER = 2**53
# Characters of a stream's name that is remembered like this.
MAX_STREAM_NAME = 1024


class Blocked(Exception):
    """It cannot be sent just now: too many streams wait for acknowledgements, or what waits may not
    travel over the connection at hand."""


class Numbered:
    """Consecutive messages of one stream that were sent together."""

    messages: list[Message]
    # The numbers, ``end`` being the next one's; and bytes as encoded.
    first = end = size = 0
    # The stream, once they have been numbered.
    out: Outgoing[Any] | None = None

    def confirm_first(self, count: int) -> None:
        """The peer has so many of them, and the others go on by themselves."""


P = TypeVar("P", bound=Numbered)


# Unacknowledged messages and bytes of one stream.
Limits = tuple[int, int]


class Outgoing(Generic[P]):
    """One stream, sending side. ``next`` is the number of the next new message."""

    __slots__ = ("acked", "max_messages", "max_size", "next", "size", "unacked")

    def __init__(self, first: int, limits: Limits) -> None:
        self.max_messages, self.max_size = limits
        self.next = self.acked = first
        self.unacked: deque[P] = deque()
        # Bytes not acknowledged.
        self.size = 0

    def add(self, sent: P, size: int) -> bool:
        """Number messages that are being sent, of ``size`` bytes. True where the window is full by that."""
        sent.first = self.next
        sent.out = self
        sent.size = size
        self.next = sent.end = sent.first + len(sent.messages)
        self.unacked.append(sent)
        self.size += size
        # As ``full`` says, without its call: this is done for every message.
        return self.size >= self.max_size or self.next - self.acked >= self.max_messages

    def extend(self, sent: P, size: int) -> bool:
        """One more message, of ``size`` bytes, belongs to what was sent last. True as for ``add``."""
        sent.size += size
        sent.end = self.next = self.next + 1
        self.size += size
        return self.full

    def take_over(self, old: Outgoing[P], sent: list[P]) -> None:
        """Number what has been sent in another session, and goes on here."""
        for each in sent:
            pending = old.pending(each)
            each.confirm_first(len(each.messages) - len(pending))
            each.messages = pending
            self.add(each, each.size)

    def remove(self, sent: list[P]) -> None:
        """These are not waited for here any more; the others stay."""
        gone = set(map(id, sent))
        self.unacked = deque(each for each in self.unacked if id(each) not in gone)
        self.size = sum(each.size for each in self.unacked)

    def give_up(self) -> list[P]:
        """Nothing is waited for any more; returns what was."""
        given_up = list(self.unacked)
        self.unacked.clear()
        self.size, self.acked = 0, self.next
        return given_up

    def ack(self, upto: int) -> list[P]:
        """The receiver has everything below ``upto``; returns what is complete by that.

        Raises ``Malformed`` for what was never sent. An old acknowledgement is no news.
        """
        if upto > self.next:
            raise Malformed(f"acknowledges {upto}, and {self.next} is the next to be sent")
        done: list[P] = []
        unacked = self.unacked
        # Nearly always one, and all of it.
        while unacked and unacked[0].end <= upto:
            sent = unacked.popleft()
            self.size -= sent.size
            done.append(sent)
        if upto > self.acked:
            self.acked = upto
        return done

    def pending(self, sent: P) -> list[Message]:
        """Of unacknowledged messages those that are still to be confirmed."""
        return sent.messages[max(0, self.acked - sent.first) :]

    @property
    def room(self) -> int:
        """Messages that may still be sent; one at least, for whoever has been let through."""
        return max(1, self.max_messages - (self.next - self.acked))

    @property
    def full(self) -> bool:
        """No more may be sent until some of it is acknowledged."""
        return self.size >= self.max_size or self.next - self.acked >= self.max_messages

    @property
    def roomy(self) -> bool:
        """Half empty: those who wait may go on."""
        return self.size <= self.max_size // 2 and self.next - self.acked <= self.max_messages // 2


class Session(Generic[P]):
    """What one process knows of its exchange with one other process, over all connections."""

    __slots__ = (
        "_floor",
        "_in_vain",
        "_limits",
        "expected",
        "out",
        "out_weight",
        "process",
        "remembered_for",
        "weight",
    )

    def __init__(self, process: str, limits: Limits, floor: int = 1) -> None:
        self._limits = limits
        # The other process.
        self.process = process
        self.out: dict[StreamId, Outgoing[P]] = {}
        # What the streams weigh, sending and receiving: their bytes, about.
        self.out_weight = self.weight = 0
        # Seconds after the last connection.
        self.remembered_for = 0.0
        # Receiving: the number each stream waits for.
        self.expected: dict[StreamId, int] = {}
        # How often there was next to nothing to forget.
        self._in_vain = 0
        # Numbers below it are used up; a stream that is begun again begins there.
        self._floor = floor

    @property
    def floor(self) -> int:
        """Above every number used so far: where a later session with that process may begin."""
        return max((out.next for out in self.out.values()), default=self._floor)

    def outgoing(self, stream_id: StreamId) -> Outgoing[P]:
        out = self.out.get(stream_id)
        if out is None:
            if too_long(stream_id):
                raise InvalidMessage(f"a stream_id of more than {MAX_STREAM_NAME} characters")
            more = weight(stream_id)
            if self.out_weight + more > SENDER_STREAMS * STREAM_WEIGHT and not self._forget_some(more):
                raise Blocked
            self.out_weight += more
            out = self.out[stream_id] = Outgoing(self._floor, self._limits)
        return out

    def _forget_some(self, more: int) -> bool:
        """Many at a time: taking single entries from the front of a dict gets slower with each.

        Where there were few last time, a look at the oldest says mostly whether there are any now.
        """
        most = SENDER_STREAMS * STREAM_WEIGHT
        self._in_vain += 1
        if (
            self._in_vain > 1
            and self._in_vain % LOOK_AT_ALL
            and all(out.unacked for out in itertools.islice(self.out.values(), LOOK_AT))
        ):
            return False
        for stream_id, out in [item for item in self.out.items() if not item[1].unacked]:
            if self.out_weight <= most // 4 * 3:
                break
            del self.out[stream_id]
            self.out_weight -= weight(stream_id)
            self._floor = max(self._floor, out.next)
        if self.out_weight <= most // 8 * 7:
            self._in_vain = 0
        return self.out_weight + more <= most

    def streams_left(self) -> int:
        """How many more there may be, once what can be has been forgotten."""
        most = SENDER_STREAMS * STREAM_WEIGHT
        if self.out_weight > most // 4 * 3:
            self._forget_some(0)
        return max(0, most - self.out_weight) // STREAM_WEIGHT

    def remember_for(self, seconds: float) -> None:
        """After the last connection."""
        self.remembered_for = seconds

    @property
    def unacked_size(self) -> int:
        return sum(out.size for out in self.out.values())

    def unacked(self) -> Iterator[tuple[StreamId, Outgoing[P]]]:
        """Streams with something unacknowledged."""
        return ((stream_id, out) for stream_id, out in self.out.items() if out.unacked)

    @property
    def has_unacked(self) -> bool:
        return any(out.unacked for out in self.out.values())

    # Receiving -----------------------------------------------------------------------------------

    def open(self, positions: dict[StreamId, int], opens: Iterable[tuple[StreamId, int]]) -> list[StreamId]:
        """The sender says where streams go on over one connection, whose ``positions`` these are.

        Returns streams that are forgotten for it, and that other connections may have positions of.
        """
        expected = self.expected
        for stream_id, first in opens:
            if not 0 <= first < MAX_NUMBER or too_long(stream_id):
                raise Malformed(f"opens stream {str(stream_id)[:32]!r} at {first}")
            positions.pop(stream_id, None)  # to the end: what was opened longest ago goes first
            positions[stream_id] = first
            awaited = expected.pop(stream_id, None)
            if awaited is None:
                self.weight += weight(stream_id)
            expected[stream_id] = first if awaited is None or awaited < first else awaited
        most = RECEIVER_STREAMS * STREAM_WEIGHT
        forgotten = self._forget_oldest(most) if self.weight > most + most // 4 else []
        for stream_id in forgotten:
            positions.pop(stream_id, None)
        if len(positions) > RECEIVER_STREAMS + RECEIVER_STREAMS // 4:
            for stream_id in [stream_id for stream_id in positions if stream_id not in expected]:
                del positions[stream_id]
        return forgotten

    def _forget_oldest(self, most: int) -> list[StreamId]:
        """What was opened longest ago, many at a time."""
        forgotten = []
        for stream_id in list(self.expected):
            if self.weight <= most:
                break
            del self.expected[stream_id]
            self.weight -= weight(stream_id)
            forgotten.append(stream_id)
        return forgotten

    def accept(
        self, positions: dict[StreamId, int], messages: list[Message], acks: dict[StreamId, int]
    ) -> list[Message]:
        """Messages that came over one connection: those that are new. ``acks`` gets what to acknowledge.

        Raises ``Malformed`` for a stream that was not opened, or a gap.
        """
        expected = self.expected
        if len(messages) == 1:
            stream_id = messages[0].stream_id
            number = positions.get(stream_id)
            if number is not None and expected.get(stream_id) == number:
                positions[stream_id] = expected[stream_id] = acks[stream_id] = number + 1
                return messages
        # Nothing is noted before all of it has been looked at: where the last one is bad, the first
        # ones come again over another connection.
        seen: dict[StreamId, list[int]] = {}
        fresh: list[Message] = []
        for message in messages:
            stream_id = message.stream_id
            state = seen.get(stream_id)
            if state is None:
                number, awaited = positions.get(stream_id), expected.get(stream_id)
                if number is None or awaited is None:
                    raise Malformed(f"a message on stream {str(stream_id)[:32]!r}, which is not open")
                state = seen[stream_id] = [number, awaited]
            number, awaited = state
            state[0] = number + 1
            if number == awaited:
                state[1] = number + 1
                fresh.append(message)
            elif number > awaited:
                raise Malformed(f"stream {str(stream_id)[:32]!r} jumps from {awaited} to {number}")
        for stream_id, (number, awaited) in seen.items():
            positions[stream_id] = number
            expected[stream_id] = acks[stream_id] = awaited
        return fresh


def weight(stream_id: StreamId) -> int:
    """What its numbers and its name take, about, and the same on both sides."""
    if type(stream_id) is not str:
        return STREAM_WEIGHT
    size = len(stream_id) if stream_id.isascii() else len(stream_id) * _WIDE
    return max(STREAM_WEIGHT, _NUMBERS_WEIGHT + size)


def too_long(stream_id: StreamId) -> bool:
    return type(stream_id) is str and len(stream_id) > MAX_STREAM_NAME


def open_at(out: Outgoing[Any]) -> int:
    """Where a stream goes on over a new connection: the first number that is not acknowledged."""
    return max(out.unacked[0].first, out.acked) if out.unacked else out.next
