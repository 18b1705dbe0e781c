"""What a connection has to tell its peer and cannot write now, as the peer does not read. Pure.

Nothing queues here: of each thing only the newest is kept, because only that counts. So what is owed
does not grow with what the peer sends, however long it does not read, and nobody has to stop reading
in order to bound it: two peers that both have their links full would wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..message import StreamId
from .frames import FRAME_BYTES, encode_flow, encode_listening, encode_notes, encode_notes_frame

# Acknowledgements of that many streams ride on a frame of messages; more have frames of their own.
MAX_RIDERS = 64
# Bytes of names of streams with acknowledgements that are kept. Beyond it, all streams that are open
# are acknowledged once there is room, whose names are known anyway.
PENDING_BYTES = 64 * 1024
# What a number and its headers take in a frame, at most.
_NUMBER = 16


def _size(stream_id: StreamId) -> int:
    """Bytes that it takes in a frame, at most."""
    if type(stream_id) is str:
        return _NUMBER + (len(stream_id) if stream_id.isascii() else 4 * len(stream_id))
    return _NUMBER


class Acks:
    """Acknowledgements, the newest of each stream."""

    __slots__ = ("_all", "_bytes", "_pending", "_positions", "_walk")

    def __init__(self) -> None:
        self._pending: dict[StreamId, int] = {}
        self._bytes = 0
        # There were too many, so all streams that are open are owed one: where they are, and those
        # of them that still are.
        self._all = False
        self._positions: Mapping[StreamId, int] = {}
        self._walk: list[StreamId] = []

    def __bool__(self) -> bool:
        return self._all or bool(self._pending or self._walk)

    def add(self, acks: Mapping[StreamId, int], positions: Mapping[StreamId, int] | None) -> None:
        """``positions`` are those of the connection's streams, now and later; None where it takes no more."""
        for stream_id, number in acks.items():
            if stream_id not in self._pending:
                self._bytes += _size(stream_id)
            self._pending[stream_id] = number
        if self._bytes > PENDING_BYTES and positions is not None:
            self._pending, self._bytes = {}, 0
            self._all, self._walk, self._positions = True, [], positions

    def take(self, expected: Mapping[StreamId, int]) -> dict[StreamId, int]:
        """As many as fit in a frame."""
        if self._all:
            self._all, self._walk = False, list(self._positions)
        acks: dict[StreamId, int] = {}
        size = 0
        while size < FRAME_BYTES and self._pending:
            stream_id, number = self._pending.popitem()
            self._bytes -= _size(stream_id)
            size += _size(stream_id)
            acks[stream_id] = number
        while size < FRAME_BYTES and self._walk:
            stream_id = self._walk.pop()
            position, awaited = self._positions.get(stream_id), expected.get(stream_id)
            if position is not None and awaited is not None and stream_id not in acks:
                size += _size(stream_id)
                # What has come over this connection: the rest may still be on its way here.
                acks[stream_id] = min(position, awaited)
        return acks


class Stops:
    """Which of the peer's streams are stopped: what it knows, and what it has to be told."""

    __slots__ = ("_due", "_told")

    def __init__(self) -> None:
        # Stopped streams; True where answers pass all the same.
        self._told: dict[StreamId, bool] = {}
        self._due: dict[StreamId, bool | None] = {}

    def __bool__(self) -> bool:
        return bool(self._due)

    def set(self, stream_id: StreamId, stopped: bool, answers: bool) -> None:
        state = answers if stopped else None
        if self._told.get(stream_id) is state:
            self._due.pop(stream_id, None)  # as it was before
        else:
            self._due[stream_id] = state

    def take(self) -> tuple[StreamId, bool, bool]:
        """The next thing to be said: the stream, whether it is stopped, and whether answers pass."""
        stream_id = next(iter(self._due))
        state = self._due.pop(stream_id)
        if state is None:
            self._told.pop(stream_id, None)
        else:
            self._told[stream_id] = state
        return stream_id, state is not None, bool(state)


class Owed:
    """All of it, for one connection."""

    __slots__ = ("_ports", "acks", "stops")

    def __init__(self) -> None:
        self.acks = Acks()
        self.stops = Stops()
        # What we listen on, where that has changed.
        self._ports: tuple[int, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.acks or self.stops) or self._ports is not None

    def listen(self, ports: tuple[int, ...]) -> None:
        self._ports = ports

    def frame(self, expected: Mapping[StreamId, int]) -> bytearray | None:
        """The next one; None where there is nothing to say after all."""
        acks = self.acks.take(expected)
        if acks:
            return encode_notes_frame(encode_notes(acks, None))
        if self.stops:
            return encode_flow(*self.stops.take())
        if self._ports is not None:
            ports, self._ports = self._ports, None
            return encode_listening(ports)
        return None
