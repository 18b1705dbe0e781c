"""What comes on the streams of one link over QUIC: bytes become units, and what is kept of them is counted.

The first unidirectional stream of the far end is its control stream; each further one is a track. Nobody
opens another kind of stream, nor ends one: that is over with the connection.
"""

from __future__ import annotations

import logging
from abc import abstractmethod

from ...core.frames import Malformed, TooBig
from ...core.tracks import MAX_TRACKS
from ...runtime.ratelog import process_log
from ..base import PROTOCOL_ERROR, TOO_BIG, Link
from ..unfinished import FREE, Unfinished
from .framing import BINARY, TEXT, UnitReader
from .limits import EARLY_BYTES, EARLY_DATAGRAMS, HELLO_BYTES, MAX_HELD, SHORT


class ReadLink(Link):
    """A link, as what it reads sees it."""

    @abstractmethod
    def on_control(self, kind: int, data: memoryview) -> bool:
        """A unit of the control stream. False where it is one as on any other stream."""

    @abstractmethod
    def look_for_the_end(self) -> None:
        """A goodbye has come, and one more of the units that went before it."""

    @abstractmethod
    def fail(self, code: int, reason: str) -> None:
        """Hostile or broken input: say why, then cut; this link only (rule 3.6)."""


class Incoming:
    """Hands the units of all streams to the link's events, those of one stream in order."""

    __slots__ = (
        "_counted",
        "_early",
        "_early_bytes",
        "_full_limit",
        "_held",
        "_kept",
        "_link",
        "_readers",
        "_theirs",
        "_unfinished",
        "announced",
        "limit",
        "over",
        "received",
    )

    def __init__(self, link: ReadLink, theirs: int, full_limit: int, unfinished: Unfinished) -> None:
        """``theirs`` is the number of the far end's control stream (RFC 9000 section 2.1)."""
        self._link = link
        self._theirs = theirs
        self._full_limit = full_limit
        self._unfinished = unfinished
        # The largest unit taken in now.
        self.limit = HELLO_BYTES
        self.over = False
        # Units so far; and how many a goodbye says there are, once it has come.
        self.received = 0
        self.announced: int | None = None
        self._readers: dict[int, UnitReader] = {}
        # What comes on tracks before the far end is in; and how many bytes, here or in the core.
        self._early: dict[int, bytearray] | None = {}
        self._early_bytes = 0
        # Bytes of units that have not come whole, and those that wait in the core; are they counted?
        self._held = self._kept = 0
        self._counted = False

    def set_limit(self, limit: int) -> None:
        """Counts from the next unit on, which may have come with this one."""
        self.limit = limit
        if self._theirs in self._readers:
            self._readers[self._theirs].limit = limit

    def entered(self) -> None:
        """The far end is in: what came early may be looked at."""
        early, self._early = self._early, None
        self._early_bytes = 0
        self._count()
        for stream, data in (early or {}).items():
            self.take(stream, bytes(data), False)

    def end(self) -> None:
        self.over = True
        self._early = None
        self._readers.clear()
        self._unfinished.remove(self._link)

    def let_go(self) -> None:
        """Its end has been told: no circle keeps the link."""
        del self._link

    # From the engine -----------------------------------------------------------------------------

    def take(self, stream: int, data: bytes, end: bool) -> None:
        if self.over:
            return
        try:
            if end or stream & 3 != self._theirs:
                raise Malformed("a stream that is none of this protocol's, or that ends")
            reader = self._readers.get(stream)
            if self._early is not None and stream != self._theirs:
                self._keep(stream, data)
            elif reader is None or reader.held or len(data) > SHORT:
                self._feed(stream, data)
            else:
                reader.feed(data, self.limit, self._on_unit if stream != self._theirs else self._on_control)
                self._held += reader.held
            if self._held > FREE or self._counted or self._early_bytes > FREE:
                self._count()
        except Malformed as error:
            self._link.fail(TOO_BIG if isinstance(error, TooBig) else PROTOCOL_ERROR, str(error))
        except Exception:
            text, remote = "%s fails on what it has received; cutting it", self._link.endpoint.remote
            process_log.line("quic", True, logging.ERROR, text, remote, exc_info=True)
            self._link.abort()

    def on_kept(self, size: int) -> None:
        if self.over:
            return
        if self._early is None:
            self._kept = size
            self._count()
        elif size > FREE:
            self._early_bytes = max(self._early_bytes, size)
            self._count()
            if size > EARLY_DATAGRAMS:
                self._link.fail(PROTOCOL_ERROR, "too much before the proof")

    def _keep(self, stream: int, data: bytes) -> None:
        assert self._early is not None
        self._early.setdefault(stream, bytearray()).extend(data)
        kept = sum(map(len, self._early.values()))
        self._early_bytes = max(self._early_bytes, kept)
        if kept > EARLY_BYTES:
            raise Malformed("too much before the proof")

    def _count(self) -> None:
        if not self.over:
            size = self._held + self._early_bytes + self._kept
            self._counted = size > FREE
            self._unfinished.set(self._link, size)

    def _feed(self, stream: int, data: bytes) -> None:
        reader = self._readers.get(stream)
        if reader is None:
            if len(self._readers) > MAX_TRACKS:
                raise Malformed("too many streams")
            reader = self._readers[stream] = UnitReader()
        before = reader.held
        reader.feed(data, self.limit, self._on_unit if stream != self._theirs else self._on_control)
        self._held += reader.held - before
        if self._held > MAX_HELD * self._full_limit:
            raise TooBig("the beginnings of too many large units")

    def _on_control(self, kind: int, data: memoryview) -> None:
        if not self._link.on_control(kind, data):
            self._on_unit(kind, data)

    def _on_unit(self, kind: int, data: memoryview) -> None:
        if self.over:
            return
        self.received += 1
        if self.announced is not None and self.received > self.announced:
            raise Malformed("more came than the goodbye says")
        if kind == BINARY:
            self._link.events.on_binary(data)
        elif kind == TEXT:
            self._link.events.on_text(data)
        else:
            raise Malformed("a control unit out of place")
        if self.announced is not None:
            self._link.look_for_the_end()
