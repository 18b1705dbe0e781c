"""One link over QUIC: units on streams, pings by PING frames, and a goodbye after all data.

The first unidirectional stream of each side is its control stream; each further one is a track.
Nobody opens another kind of stream, nor ends one: that is over with the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from qh3.quic import events
from qh3.quic.connection import QuicConnectionError

from ...config import Config
from ...core.doubt import Sending
from ...core.frames import HEADROOM, Malformed, TooBig
from ...core.selection import Endpoint
from ...core.text import printable
from ...core.tracks import MAX_TRACKS
from ...runtime.ratelog import process_log
from ..base import NOBODY, NORMAL, PROTOCOL_ERROR, TOO_BIG, End, Link, LinkEvents
from ..sockets import ip_of
from ..unfinished import FREE, Unfinished
from .engine import Engine
from .framing import ANSWER, BINARY, GOODBYE, HELLO, TEXT, UnitReader, goodbye, header, read_goodbye
from .limits import (
    CUT,
    EARLY_BYTES,
    EARLY_DATAGRAMS,
    FRAME_OVERHEAD,
    GOODBYE_WAIT,
    HELLO_BYTES,
    LARGE,
    MAX_HELD,
    MAX_LARGE,
    SHORT,
)
from .udp import Addr
from .user import NO_USER

log = logging.getLogger("openline")


class QuicLink(Link):
    """A link from its first packet; its events come with the hello."""

    backend = "quic"
    multiplexed = True
    answers_pings = True

    def __init__(
        self, engine: Engine, endpoint: Endpoint, config: Config, client: bool, unfinished: Unfinished
    ) -> None:
        self.endpoint = endpoint
        self.events: LinkEvents = NOBODY
        self._limit = HELLO_BYTES
        self.full_limit = config.max_message_size + FRAME_OVERHEAD
        self._high_water = config.write_high_water
        self._engine = engine
        engine.user = self
        # Before the link is up: what the handshake tells.
        self.on_connected: Callable[[events.HandshakeCompleted], None] | None = None
        self.on_hello: Callable[[str], None] | None = None
        self.on_failed: Callable[[int, bool, str], None] | None = None
        self.on_narrow: Callable[[], None] | None = None
        # Told of its end, after its events have been.
        self.on_ended: Callable[[End], None] | None = None
        self._up = False
        # Which streams are ours and theirs (RFC 9000 section 2.1), and what belongs to each.
        self._mine, self._theirs = (2, 3) if client else (3, 2)
        self._tracks: dict[int, int] = {}
        self._readers: dict[int, UnitReader] = {}
        # Units that come before the far end is in.
        self._early: dict[int, bytearray] | None = {}
        self._early_bytes = 0
        # Bytes of units that have not come whole, and those that wait in the core; are they counted?
        self._held = self._behind = 0
        self._counted = False
        self._unfinished = unfinished
        self._sent = self._received = 0
        # Bytes that may not have left, at most: what had not when it was last looked, and all since.
        self._unsent = 0
        # Large units that wait their turn, and whatever comes behind them on their tracks.
        self._outbox: deque[tuple[int, bytearray, int]] = deque()
        self._large: set[int] = set()
        self._pings: dict[int, bytes] = {}
        self._next_ping = 1
        # The peer's goodbye; and whether it answers ours.
        self._farewell: tuple[int, int, str] | None = None
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None
        self._closing = self._ended = False
        # How it ends, from when that is certain; and what the goodbye said.
        self._how: End | None = None
        self._code, self._reason = CUT, ""

    def __repr__(self) -> str:
        return f"<quic link {self.endpoint.direction} {self.endpoint.remote}>"

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        """Counts from the next unit on, which may have come with this one."""
        self._limit = limit
        if self._theirs in self._readers:
            self._readers[self._theirs].limit = limit

    # The way up ----------------------------------------------------------------------------------

    def say_hello(self, text: str) -> None:
        """The first unit of each side."""
        self._write_unit(HELLO, bytearray(HEADROOM) + text.encode(), 0)

    @property
    def has_written(self) -> bool:
        return bool(self._tracks)

    def go_up(self, admit: Callable[[Link], LinkEvents]) -> None:
        """From now on it has the events that ``admit`` returns."""
        self.limit = self.full_limit
        self._up = True
        self.events = admit(self)

    def entered(self) -> None:
        """The far end is in: what came early may be looked at."""
        early, self._early = self._early, None
        self._early_bytes, self._engine.early = 0, None
        self._count()
        for stream, data in (early or {}).items():
            self._take_in(stream, bytes(data))

    def lose(self, reason: str) -> None:
        """Nobody is there any more."""
        self._how = self._how or End.lost(f"connection lost: {reason}")
        self.abort()

    # From the engine -----------------------------------------------------------------------------

    def on_handshake(self, event: events.HandshakeCompleted) -> None:
        if self.on_connected is not None:
            self.on_connected(event)

    def on_alive(self) -> None:
        early = self._engine.early
        if early is not None and early > FREE:
            self._early_bytes = max(self._early_bytes, early)
            self._count()
            if early > EARLY_DATAGRAMS:
                self._fail(PROTOCOL_ERROR, "too much before the proof")
        behind = self._engine.behind_gaps
        if behind != self._behind:
            self._behind = behind
            self._count()
        if self._up and not self._ended:
            self.events.on_alive()

    def on_stream_data(self, stream: int, data: bytes, end: bool) -> None:
        if end or stream & 3 != self._theirs:
            self._fail(PROTOCOL_ERROR, "a stream that is none of this protocol's, or that ends")
        else:
            self._take_in(stream, data)

    def _take_in(self, stream: int, data: bytes) -> None:
        if self._ended:
            return
        try:
            reader = self._readers.get(stream)
            if self._early is not None and stream != self._theirs:
                self._keep(stream, data)
            elif reader is None or reader.held or len(data) > SHORT:
                self._feed(stream, data)
            else:
                take = self._on_unit if stream != self._theirs else self._on_control
                reader.feed(data, self._limit, take)
                self._held += reader.held
            if self._held > FREE or self._counted or self._early_bytes > FREE:
                self._count()
        except Malformed as error:
            self._fail(TOO_BIG if isinstance(error, TooBig) else PROTOCOL_ERROR, str(error))
        except Exception:
            text = "%s fails on what it has received; cutting it"
            process_log.line("quic", True, logging.ERROR, text, self.endpoint.remote, exc_info=True)
            self.abort()

    def _keep(self, stream: int, data: bytes) -> None:
        assert self._early is not None
        self._early.setdefault(stream, bytearray()).extend(data)
        kept = sum(map(len, self._early.values()))
        self._early_bytes = max(self._early_bytes, kept)
        if kept > EARLY_BYTES:
            raise Malformed("too much before the proof")

    def _count(self) -> None:
        if not self._ended:
            size = self._held + self._early_bytes + self._behind
            self._counted = size > FREE
            self._unfinished.set(self, size)

    def _feed(self, stream: int, data: bytes) -> None:
        reader = self._readers.get(stream)
        if reader is None:
            if len(self._readers) > MAX_TRACKS:
                raise Malformed("too many streams")
            reader = self._readers[stream] = UnitReader()
        before = reader.held
        reader.feed(data, self._limit, self._on_unit if stream != self._theirs else self._on_control)
        self._held += reader.held - before
        if self._held > MAX_HELD * self.full_limit:
            raise TooBig("the beginnings of too many large units")

    def _on_unit(self, kind: int, data: memoryview) -> None:
        if self._ended:
            return
        self._received += 1
        if self._farewell is not None and self._received > self._farewell[1]:
            raise Malformed("more came than the goodbye says")
        if kind == BINARY:
            self.events.on_binary(data)
        elif kind == TEXT:
            self.events.on_text(data)
        else:
            raise Malformed("a control unit out of place")
        if self._farewell is not None:
            self._look_for_the_end()

    def _on_control(self, kind: int, data: memoryview) -> None:
        if not self._up:
            self._on_first(kind, data)
        elif kind == GOODBYE:
            self._on_goodbye(*read_goodbye(data))
        else:
            self._on_unit(kind, data)

    def _on_goodbye(self, code: int, count: int, reason: str) -> None:
        answer, code = code & ANSWER, code & ~ANSWER
        if self._answered or (answer and not self._closing) or (not answer and self._farewell is not None):
            raise Malformed("a goodbye out of place")
        if count < self._received:
            raise Malformed("more came than the goodbye says")
        self._answered = bool(answer)
        self._farewell = code, count, printable(reason)
        self._look_for_the_end()

    def _on_first(self, kind: int, data: memoryview) -> None:
        if kind != HELLO or self.on_hello is None:
            raise Malformed("the first unit is not a hello")
        on_hello, self.on_hello = self.on_hello, None
        try:
            text = str(data, "ascii")
        except UnicodeDecodeError:
            raise Malformed("a hello with a character outside ASCII") from None
        on_hello(text)

    def on_silent(self) -> None:
        if self._up and not self._ended:
            self.events.on_silent()

    def on_too_small(self) -> None:
        """Until it is up; later it falls silent, and that is seen."""
        if not self._up and self.on_narrow is not None:
            self.on_narrow()

    def on_moved(self, addr: Addr) -> None:
        ip, port = ip_of(addr), addr[1]
        if self._up and not self._ended and (ip, port) != (self.endpoint.ip, self.endpoint.port):
            self.events.on_moved(ip, port)

    def on_pong(self, uid: int) -> None:
        payload = self._pings.pop(uid, None)
        if payload is not None and self._up and not self._ended:
            self.events.on_pong(payload)

    def on_sent(self, waiting: int) -> None:
        if self._large and not self._ended:
            engine, streams = self._engine, self._tracks
            self._large = {track for track in self._large if engine.waiting_on(streams[track])}
            self._pump()
        self._unsent = waiting
        if not waiting and not self.congested and not self._outbox:
            self.backlog = False
            return
        self.backlog = waiting > 0
        small = waiting - self._large_waiting() if self._large else waiting
        crowded = len(self._outbox) > MAX_LARGE
        if not self.congested:
            self.congested = crowded or small > self._high_water
        elif small <= self._high_water // 4 and not crowded:
            self.congested = False
            if self._up and not self._ended:
                self.events.on_writable()

    def on_over(self, code: int, by_program: bool, reason: str) -> None:
        if not self._up and self.on_failed is not None:
            self.on_failed(code, by_program, reason)
        if by_program and code != CUT:
            self._how = self._how or End.by_peer(code, reason)
        else:
            self._how = self._how or End.lost(f"connection lost{': ' + reason if reason else ''}")
        self._end()

    # The end -------------------------------------------------------------------------------------

    def _look_for_the_end(self) -> None:
        """Has all come that was sent before the goodbye?"""
        assert self._farewell is not None
        code, count, reason = self._farewell
        if self._received < count:
            return
        if self._answered:
            self._hang_up(code)  # both have all of the other's
            return
        self._how = self._how or End.by_peer(code, reason)
        self._say_goodbye(code, reason, ANSWER)

    def _say_goodbye(self, code: int, reason: str, answer: int = 0) -> None:
        unit = goodbye(code | answer, self._sent, reason)
        self._write_unit(GOODBYE, bytearray(HEADROOM) + unit, 0)
        if not self._closing:
            self._closing = True
            self._code, self._reason = code, reason
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GOODBYE_WAIT, self._hang_up, code)

    def _hang_up(self, code: int) -> None:
        if not self._ended:
            self._engine.close(code or NORMAL, self._reason)
            self._end()

    def _fail(self, code: int, reason: str) -> None:
        """Hostile or broken input: say why, then cut; this link only (rule 3.6)."""
        if self._ended:
            return
        self._how = self._how or End.bad_input(code, reason)
        self._engine.close(code, reason)
        self._end()

    def cut(self, code: int, reason: str) -> None:
        if not self._ended:
            self._how = self._how or End.lost(f"cut: {reason}")
            self._engine.close(code, reason)
            self._end()

    def refuse(self, code: int, reason: str) -> None:
        """During the handshake: they may not come in."""
        self._engine.close(code, reason)
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self._early = None
        self._readers.clear()
        self._outbox.clear()
        self._unfinished.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().call_soon(self._tell_end)

    def _tell_end(self) -> None:
        how = self._how or End.lost("connection lost")
        # Whoever is told may hold this link, and so does its engine; that must not be a circle.
        events, self.events = self.events, NOBODY
        if self._up:
            events.on_closed(how)
        if self.on_ended is not None:
            self.on_ended(how)
        self.on_connected = self.on_hello = self.on_failed = self.on_narrow = self.on_ended = None
        self._engine.user = NO_USER

    # Writing -------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    def write_text(self, data: bytes) -> None:
        self._write(TEXT, bytearray(HEADROOM) + data, 0)

    def write_binary(self, buffer: bytearray, track: int = 0) -> None:
        self._write(BINARY, buffer, track)

    def _write(self, kind: int, buffer: bytearray, track: int) -> None:
        if self._closing:
            return
        self._sent += 1
        if self._outbox or len(buffer) > LARGE:
            self._outbox.append((kind, buffer, track))
            self._pump()
        else:
            self._write_unit(kind, buffer, track)

    def _pump(self) -> None:
        """Let large units begin, as many as may be on their way; others pass them, on other tracks."""
        waiting: set[int] = set()
        for _ in range(len(self._outbox)):
            unit = kind, buffer, track = self._outbox.popleft()
            large = len(buffer) > LARGE
            if track in waiting or (large and len(self._large) >= MAX_LARGE):
                waiting.add(track)
                self._outbox.append(unit)
                continue
            if large:
                self._large.add(track)
            self._write_unit(kind, buffer, track)
        if len(self._outbox) > MAX_LARGE:
            self.congested = True

    def _write_unit(self, kind: int, buffer: bytearray, track: int) -> None:
        stream = self._tracks.get(track)
        if stream is None:
            stream = self._new_stream(track)
        head = header(kind, len(buffer) - HEADROOM)
        start = HEADROOM - len(head)
        buffer[start:HEADROOM] = head
        engine = self._engine
        try:
            engine.write(stream, memoryview(buffer)[start:])
        except (QuicConnectionError, ValueError, RuntimeError) as error:
            # The core is over, which its next event tells.
            log.debug("%r: %s", self, error)
            return
        self._unsent += len(buffer)
        if self._unsent <= self._high_water:
            return
        self._unsent = waiting = engine.waiting
        if waiting > self._high_water:
            self.backlog = True
            if waiting - self._large_waiting() > self._high_water:
                self.congested = True

    def _large_waiting(self) -> int:
        """Bytes of large units that have not left: nobody else has to wait for them."""
        engine, streams = self._engine, self._tracks
        return sum(engine.waiting_on(streams[track]) for track in self._large if track in streams)

    def _new_stream(self, track: int) -> int:
        """One more, or one that is there where the peer allows no more."""
        number = len(self._tracks)
        if self._up and number >= self._engine.stream_limit:
            number = number % self._engine.stream_limit if self._engine.stream_limit else 0
        stream = self._tracks[track] = self._mine + 4 * number
        return stream

    def ping(self, payload: bytes) -> None:
        if not self._closing:
            uid, self._next_ping = self._next_ping, self._next_ping + 1
            self._pings[uid] = payload
            self._engine.ping(uid)

    def pong(self, payload: bytes) -> None:
        """Pings answer themselves; this one is a sign of life, which asks for an acknowledgement."""
        if not self._closing:
            self._engine.ping(0)

    def close(self, code: int, reason: str) -> None:
        self._how = self._how or End.by_us(code)
        if not self._closing:
            self._say_goodbye(code, reason)

    def abort(self) -> None:
        if not self._ended:
            self._how = self._how or End.lost("aborted by this side")
            self._engine.close(self._code, self._reason)
            self._end()

    def pause_reading(self) -> None:
        if not self._ended:
            self._engine.hold()

    def resume_reading(self) -> None:
        if not self._ended:
            self._engine.go_on()

    # What is known underneath --------------------------------------------------------------------

    def broken(self) -> bool:
        return self._ended or self._engine.finished

    def sending(self, track: int) -> Sending | None:
        stream = self._tracks.get(track)
        return None if stream is None or self._ended else self._engine.sending(stream)

    def relieve(self) -> None:
        if not self._ended:
            self._engine.shrink("what is sent does not get through")

    def progress(self) -> Any:
        """Any authentic packet counts as life (``on_alive``), so there is nothing else to look at."""
        return None

    def taken(self) -> int:
        return -self._engine.waiting
