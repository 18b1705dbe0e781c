"""Which of a link's tracks carries a stream, where a link has several (QUIC streams). Pure.

What is on one track stays in order; between tracks nothing does. So a stream changes its track
only while nothing of it is unacknowledged: then all of it has arrived, and whatever follows on
another track cannot overtake it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..message import StreamId

# Track 0 is for control frames. The others come to less than the 100 streams that QUIC
# implementations let a peer open (qh3: 103), and are more than most programs use at a time.
CONTROL = 0
MAX_TRACKS = 64
# Streams looked at, for each one that needs a track, to find some that need theirs no longer.
LOOK_AT = 8


class Tracks:
    """Gives every stream a track of its own while there are enough, and lets them share beyond."""

    __slots__ = ("_of", "_pinned", "_turn", "_used")

    def __init__(self) -> None:
        self._of: dict[StreamId, int] = {}
        self._pinned: set[StreamId] = set()
        self._used = 0
        self._turn = 0

    def of(self, stream_id: StreamId, idle: Callable[[StreamId], bool]) -> int:
        """``idle`` tells of a stream whether all of it has been acknowledged."""
        track = self._of.get(stream_id)
        if track is None:
            track = self._of[stream_id] = self._free(idle)
        return track

    def pin(self, stream_id: StreamId) -> None:
        """It never changes its track: something of it goes unacknowledged."""
        self._pinned.add(stream_id)

    def _free(self, idle: Callable[[StreamId], bool]) -> int:
        if self._used < MAX_TRACKS:
            self._used += 1
            return self._used
        found: int | None = None
        for stream_id in list(self._oldest()):
            track = self._of.pop(stream_id)
            if stream_id not in self._pinned and idle(stream_id):
                found = track
            else:
                self._of[stream_id] = track  # to the end
        if found is None:
            self._turn = self._turn % MAX_TRACKS + 1
            found = self._turn
        return found

    def _oldest(self) -> list[StreamId]:
        return [stream_id for stream_id, _ in zip(self._of, range(LOOK_AT), strict=False)]
