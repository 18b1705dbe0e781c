"""Answers in pieces: how many parts may be under way, and what the two sides tell each other besides. Pure.

The asker says how many parts it lets be under way, in its request and later when it has taken some. The
answering side stops at so many, or at ``PART_BYTES`` for each of them, whichever comes first. So a slow
reader stops its own answer and no other, and what waits for it is bounded; parts are ordinary messages.
"""

from __future__ import annotations

from collections import deque
from typing import Any
from zlib import crc32

import msgspec

from ..message import STREAM, Message, StreamId

# A stream of the session that both sides tell such things on; no program's message is on it.
CONTROL_STREAM = "\0openline"
# The streams that parts travel on, those of one answer on one of them: so the session numbers a few streams,
# however many answers there are. Several, as over QUIC a lost packet holds up what is on its stream.
LANES = tuple(f"\0openline/{number}" for number in range(8))
RESERVED = frozenset({CONTROL_STREAM, *LANES})
# In ``Message.metadata``: of a request, how many parts may be under way; of a part, whether more follow.
MORE, REPLY_TO = "more", "replyTo"
# The type of a message that ends an answer with an error, and what it holds.
ERROR = "error"

# Bytes for each part that is let be under way: with the largest window as many as an inbox holds.
PART_BYTES = 4096
# Parts under way at first: a token each, they fill half a second at 64 tokens a second.
FIRST_PARTS = 32
# At the least, however many answers come at a time.
LEAST_PARTS = 4
# All answers of one peer together may be let so many, as in sixteen full inboxes; beyond it each has the
# least.
PEER_PARTS = 16384
# What the answering side believes, whatever it is told.
MOST_PARTS = 16384
# A frame of more bytes is measured; a smaller one is taken for one of so many, which spares looking at each.
LARGE_FRAME = 3072
# What the answering side counts for a frame besides its parts, at most.
FRAME_HEAD = 64
# Characters of an error's text and of its type's name: enough to say what is wrong, and no place to unload.
MAX_ERROR_TEXT = 1000
MAX_ERROR_TYPE = 100
# Characters of a request's id that is remembered.
MAX_ID = 256

Id = str | int | float


class Window:
    """The answering side's: how many parts may still be sent."""

    __slots__ = ("_allowed", "_chunks", "_size", "_taken", "sent")

    def __init__(self, allowed: int) -> None:
        self._allowed = min(max(1, allowed), MOST_PARTS)
        self.sent = self._taken = 0
        # Bytes under way, and in which chunks: the number after its last part, and its size.
        self._size = 0
        self._chunks: deque[tuple[int, int]] = deque()

    @property
    def room(self) -> int:
        """So many parts; one at least where none is under way."""
        if self._size >= self._allowed * PART_BYTES:
            return 0
        return max(0, self._allowed - (self.sent - self._taken))

    @property
    def half(self) -> int:
        return self._allowed // 2

    @property
    def roomy(self) -> bool:
        """Half empty: who waits may go on, and not for a part at a time."""
        half = self._allowed // 2
        return self.sent - self._taken <= half and self._size <= half * PART_BYTES

    def add(self, count: int, size: int) -> None:
        """So many parts have left together."""
        self.sent += count
        self._size += size
        self._chunks.append((self.sent, size))

    def grant(self, taken: int, allowed: int) -> None:
        """The asker has taken so many in all, and lets so many be under way. What is old is no news."""
        if taken < self._taken or taken > self.sent:
            return
        self._taken, self._allowed = taken, min(max(1, allowed), MOST_PARTS)
        while self._chunks and self._chunks[0][0] <= taken:
            self._size -= self._chunks.popleft()[1]


class Grants:
    """The asker's: how many parts it lets be under way, and when it says so."""

    __slots__ = ("_most", "_size", "_told", "allowed", "taken")

    def __init__(self, allowed: int, most: int) -> None:
        self.allowed = allowed
        self._most = max(allowed, most)
        self.taken = self._told = 0
        # Bytes of the frames of parts that have not been told, at least.
        self._size = 0

    def came(self, frame: int) -> None:
        """Parts in a frame of so many bytes, 0 for a small one."""
        self._size += (frame or LARGE_FRAME) + FRAME_HEAD

    def took(self, count: int) -> None:
        self.taken += count

    @property
    def limit(self) -> int:
        """As many parts may have come by now."""
        return self._told + self.allowed

    @property
    def chunk(self) -> int:
        """Parts that may be taken before that is looked at again."""
        return max(1, self.allowed // 2)

    def due(self, drained: bool) -> bool:
        """Is it time to tell? ``drained``: the reader waits for more, which the other side may not send where
        what it has sent fills the window by its size."""
        untold = self.taken - self._told
        if untold >= self.chunk:
            return True
        return drained and untold > 0 and self._size >= self.allowed // 2 * PART_BYTES

    def tell(self, drained: bool, budget: int) -> int:
        """It is told now. A reader that waits is let have twice as many, out of a ``budget`` for all of the
        peer's answers; returns how many more than before."""
        more = max(0, min(self.allowed, self._most - self.allowed, budget)) if drained else 0
        self.allowed += more
        self._told = self.taken
        if drained:  # else some of them are still to be taken
            self._size = 0
        return more


# What is told ------------------------------------------------------------------------------------


class Cancel(msgspec.Struct, array_like=True, frozen=True):
    """Nobody waits for the answer to this message any more."""

    stream_id: StreamId
    id: Id


class Taken(msgspec.Struct, array_like=True, frozen=True):
    """Of the answer to this message so many parts have been taken in all, and so many may be under way."""

    id: Id
    taken: int
    allowed: int


class Failed(msgspec.Struct, array_like=True, frozen=True):
    """The handler of this message has raised an error."""

    id: Id
    type: str
    text: str

    @property
    def shown(self) -> tuple[str, str]:
        """Type and text, no longer than they may be."""
        return self.type[:MAX_ERROR_TYPE], self.text[:MAX_ERROR_TEXT]


Told = Cancel | Taken | Failed
_KINDS: dict[str, type[Told]] = {"cancel": Cancel, "taken": Taken, "failed": Failed}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def as_message(told: Told) -> Message:
    """On the stream that such things are told on."""
    return Message(0, _NAMES[type(told)], told, None, CONTROL_STREAM)


def read_told(message: Message) -> Told | None:
    """None for what this version does not know. Raises ``msgspec.ValidationError``."""
    kind = _KINDS.get(message.type)
    return None if kind is None else msgspec.convert(message.payload, kind)


# Parts -------------------------------------------------------------------------------------------


def lane_of(id: Id) -> str:
    """The same for an id that is used again: what is left of the first answer comes first."""
    return LANES[crc32(repr(id).encode()) % len(LANES)]


def allowed_by(message: Message) -> int | None:
    """How many parts the asker of this message lets be under way; None where it has not asked for parts."""
    allowed = message.metadata.get(STREAM) if message.metadata else None
    return allowed if type(allowed) is int else None


def is_last(message: Message) -> bool:
    """Does no part follow this one?"""
    return not message.metadata or message.metadata.get(MORE) is not True


def is_end(message: Message) -> bool:
    """Is it the end of an answer, and no part itself?"""
    return message.metadata is not None and message.metadata.get(MORE) is False


def as_part(message: Message, metadata: dict[str, Any], stream_id: StreamId) -> Message:
    """A message that a handler has yielded, as a part."""
    merged = {**message.metadata, **metadata} if message.metadata else metadata
    return Message(message.id, message.type, message.payload, merged, stream_id, message.extra)


def error_in(payload: object) -> tuple[str, str]:
    """Type and text of the error in the message that ends an answer."""
    if not isinstance(payload, dict):
        return "Error", str(payload)[:MAX_ERROR_TEXT]
    kind, text = payload.get("type", "Error"), payload.get("text", "")
    return str(kind)[:MAX_ERROR_TYPE], str(text)[:MAX_ERROR_TEXT]


def error_of(error: BaseException) -> tuple[str, str]:
    """The same of an error that a handler has raised. No traceback, and no text without end."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its text cannot be had: {type(broken).__name__})"
    return type(error).__name__[:MAX_ERROR_TYPE], text[:MAX_ERROR_TEXT]
