"""One link over QUIC: units on streams, pings by PING frames, and a goodbye after all data.

The first unidirectional stream of each side is its control stream; each further one is a track.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ...config import Config
from ...core.doubt import Sending
from ...core.frames import HEADROOM, Malformed
from ...core.selection import Endpoint
from ...core.text import printable
from ..base import NOBODY, NORMAL, End, Link, LinkEvents
from ..sockets import ip_of
from ..unfinished import Unfinished
from .engine import Engine
from .framing import ANSWER, BINARY, GOODBYE, HELLO, TEXT, goodbye, header, read_goodbye
from .incoming import Incoming, ReadLink
from .limits import CUT, FRAME_OVERHEAD, GOODBYE_WAIT, LARGE, MAX_LARGE
from .parts import Addr
from .user import NO_READER, NO_USER


class Opening(Protocol):
    """Who brings a link up, and is told what comes of that until it is."""

    def on_connected(self) -> None:
        """TLS is done; a client judges what the server has shown."""
        ...

    def on_hello(self, text: str) -> None:
        """The far end's first unit. Raises ``Malformed``."""
        ...

    def on_failed(self, code: int, by_program: bool, reason: str) -> None:
        """It has ended before there was a hello; ``on_ended`` follows."""
        ...

    def on_too_small(self) -> None:
        """This host's way there does not carry QUIC's smallest datagrams."""
        ...

    def on_ended(self, end: End) -> None:
        """It has ended; its events have been told, where it had any."""
        ...


class QuicLink(ReadLink):
    """A link from its first packet; its events come with the hello."""

    backend = "quic"
    multiplexed = True
    answers_pings = True
    # Read on every send, so an attribute.
    closing: bool

    __slots__ = (
        "_answered",
        "_code",
        "_ended",
        "_engine",
        "_farewell",
        "_full_limit",
        "_greeted",
        "_high_water",
        "_how",
        "_incoming",
        "_large",
        "_mine",
        "_next_ping",
        "_outbox",
        "_pings",
        "_reason",
        "_sent",
        "_timer",
        "_tracks",
        "_unsent",
        "_up",
        "backlog",
        "closing",
        "congested",
        "endpoint",
        "events",
        "opening",
    )

    def __init__(
        self, engine: Engine[Any], endpoint: Endpoint, config: Config, client: bool, unfinished: Unfinished
    ) -> None:
        self.endpoint = endpoint
        self.events: LinkEvents = NOBODY
        self.congested = self.backlog = False
        # Until it is up, and for a server until the client is in.
        self.opening: Opening | None = None
        self._full_limit = config.max_message_size + FRAME_OVERHEAD
        self._high_water = config.write_high_water
        # Our control stream; theirs is the other one (RFC 9000 section 2.1).
        self._mine, theirs = (2, 3) if client else (3, 2)
        self._incoming = Incoming(self, theirs, self._full_limit, unfinished)
        self._engine = engine
        engine.user, engine.reader = self, self._incoming
        self._greeted = self._up = False
        self._tracks: dict[int, int] = {}
        self._sent = 0
        # Bytes that may not have left, at most: what had not when it was last looked, and all since.
        self._unsent = 0
        # Large units that wait their turn, and whatever comes behind them on their tracks.
        self._outbox: deque[tuple[int, bytearray, int]] | None = None
        self._large: set[int] | None = None
        self._pings: dict[int, bytes] | None = None
        self._next_ping = 1
        # The peer's goodbye; and whether it answers ours.
        self._farewell: tuple[int, int, str] | None = None
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None
        self.closing = self._ended = False
        # How it ends, from when that is certain; and what the goodbye said.
        self._how: End | None = None
        self._code, self._reason = CUT, ""

    def __repr__(self) -> str:
        return f"<quic link {self.endpoint.direction} {self.endpoint.remote}>"

    @property
    def limit(self) -> int:
        return self._incoming.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._incoming.set_limit(limit)

    # The way up ----------------------------------------------------------------------------------

    def say_hello(self, text: str) -> None:
        """The first unit of each side."""
        self._write_unit(HELLO, bytearray(HEADROOM) + text.encode(), 0)

    @property
    def has_written(self) -> bool:
        return bool(self._tracks)

    def go_up(self, admit: Callable[[Link], LinkEvents]) -> None:
        """From now on it has the events that ``admit`` returns."""
        self.limit = self._full_limit
        self._up = True
        self.events = admit(self)

    def entered(self) -> None:
        """The far end is in: what came early may be looked at."""
        self._engine.entered()
        self._incoming.entered()

    def lose(self, reason: str) -> None:
        """Nobody is there any more."""
        self._how = self._how or End.lost(f"connection lost: {reason}")
        self.abort()

    # From the engine -----------------------------------------------------------------------------

    def on_handshake(self) -> None:
        if self.opening is not None:
            self.opening.on_connected()

    def on_alive(self) -> None:
        if self._up and not self._ended:
            self.events.on_alive()

    def on_control(self, kind: int, data: memoryview) -> bool:
        if not self._up:
            self._on_first(kind, data)
        elif kind == GOODBYE:
            self._on_goodbye(*read_goodbye(data))
        else:
            return False
        return True

    def _on_goodbye(self, code: int, count: int, reason: str) -> None:
        answer, code = code & ANSWER, code & ~ANSWER
        if self._answered or (answer and not self.closing) or (not answer and self._farewell is not None):
            raise Malformed("a goodbye out of place")
        if count < self._incoming.received:
            raise Malformed("more came than the goodbye says")
        self._answered = bool(answer)
        self._incoming.announced = count
        self._farewell = code, count, printable(reason)
        self.look_for_the_end()

    def _on_first(self, kind: int, data: memoryview) -> None:
        if kind != HELLO or self._greeted or self.opening is None:
            raise Malformed("the first unit is not a hello")
        self._greeted = True
        try:
            text = str(data, "ascii")
        except UnicodeDecodeError:
            raise Malformed("a hello with a character outside ASCII") from None
        self.opening.on_hello(text)

    def on_silent(self) -> None:
        if self._up and not self._ended:
            self.events.on_silent()

    def on_too_small(self) -> None:
        """Until it is up; later it falls silent, and that is seen."""
        if not self._up and self.opening is not None:
            self.opening.on_too_small()

    def on_moved(self, addr: Addr) -> None:
        ip, port = ip_of(addr), addr[1]
        if self._up and not self._ended and (ip, port) != (self.endpoint.ip, self.endpoint.port):
            self.events.on_moved(ip, port)

    def on_pong(self, uid: int) -> None:
        payload = self._pings.pop(uid, None) if self._pings is not None else None
        if not self._pings:
            self._pings = None
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
        crowded = self._outbox is not None and len(self._outbox) > MAX_LARGE
        if not self.congested:
            self.congested = crowded or small > self._high_water
        elif small <= self._high_water // 4 and not crowded:
            self.congested = False
            if self._up and not self._ended:
                self.events.on_writable()

    def on_over(self, code: int, by_program: bool, reason: str) -> None:
        if not self._up and self.opening is not None:
            self.opening.on_failed(code, by_program, reason)
        if by_program and code != CUT:
            self._how = self._how or End.by_peer(code, reason)
        else:
            self._how = self._how or End.lost(f"connection lost{': ' + reason if reason else ''}")
        self._end()

    # The end -------------------------------------------------------------------------------------

    def look_for_the_end(self) -> None:
        """Has all come that was sent before the goodbye?"""
        assert self._farewell is not None
        code, count, reason = self._farewell
        if self._incoming.received < count:
            return
        if self._answered:
            self._hang_up(code)  # both have all of the other's
            return
        self._how = self._how or End.by_peer(code, reason)
        self._say_goodbye(code, reason, ANSWER)

    def _say_goodbye(self, code: int, reason: str, answer: int = 0) -> None:
        unit = goodbye(code | answer, self._sent, reason)
        self._write_unit(GOODBYE, bytearray(HEADROOM) + unit, 0)
        if not self.closing:
            self.closing = True
            self._code, self._reason = code, reason
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GOODBYE_WAIT, self._hang_up, code)

    def _hang_up(self, code: int) -> None:
        if not self._ended:
            self._engine.close(code or NORMAL, self._reason)
            self._end()

    def fail(self, code: int, reason: str) -> None:
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
        self._ended = self.closing = True
        self._outbox = None
        self._incoming.end()
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().call_soon(self._tell_end)

    def _tell_end(self) -> None:
        how = self._how or End.lost("connection lost")
        # Whoever is told may hold this link, and so does its engine; that must not be a circle.
        events, self.events = self.events, NOBODY
        opening, self.opening = self.opening, None
        self._engine.user, self._engine.reader = NO_USER, NO_READER
        self._incoming.let_go()
        self._timer = None
        if self._up:
            events.on_closed(how)
        if opening is not None:
            opening.on_ended(how)

    # Writing -------------------------------------------------------------------------------------

    def write_text(self, data: bytes) -> None:
        self._write(TEXT, bytearray(HEADROOM) + data, 0)

    def write_binary(self, buffer: bytearray, track: int = 0) -> None:
        if self._outbox or len(buffer) > LARGE or self.closing:
            self._write(BINARY, buffer, track)
        else:
            self._sent += 1
            self._write_unit(BINARY, buffer, track)

    def _write(self, kind: int, buffer: bytearray, track: int) -> None:
        if self.closing:
            return
        self._sent += 1
        if self._outbox or len(buffer) > LARGE:
            if self._outbox is None:
                self._outbox = deque()
            self._outbox.append((kind, buffer, track))
            self._pump()
        else:
            self._write_unit(kind, buffer, track)

    def _pump(self) -> None:
        """Let large units begin, as many as may be on their way; others pass them, on other tracks."""
        outbox = self._outbox
        if not outbox:
            return
        if self._large is None:
            self._large = set()
        waiting: set[int] = set()
        for _ in range(len(outbox)):
            unit = kind, buffer, track = outbox.popleft()
            large = len(buffer) > LARGE
            if track in waiting or (large and len(self._large) >= MAX_LARGE):
                waiting.add(track)
                outbox.append(unit)
                continue
            if large:
                self._large.add(track)
            self._write_unit(kind, buffer, track)
        if len(outbox) > MAX_LARGE:
            self.congested = True

    def _write_unit(self, kind: int, buffer: bytearray, track: int) -> None:
        stream = self._tracks.get(track)
        if stream is None:
            stream = self._new_stream(track)
        head = header(kind, len(buffer) - HEADROOM)
        start = HEADROOM - len(head)
        buffer[start:HEADROOM] = head
        engine = self._engine
        engine.write(stream, memoryview(buffer)[start:])
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
        return sum(engine.waiting_on(streams[track]) for track in self._large or () if track in streams)

    def _new_stream(self, track: int) -> int:
        """One more, or one that is there where the peer allows no more."""
        number = len(self._tracks)
        if self._up and number >= self._engine.stream_limit:
            number = number % self._engine.stream_limit if self._engine.stream_limit else 0
        stream = self._tracks[track] = self._mine + 4 * number
        return stream

    def ping(self, payload: bytes) -> None:
        if not self.closing:
            uid, self._next_ping = self._next_ping, self._next_ping + 1
            if self._pings is None:
                self._pings = {}
            self._pings[uid] = payload
            self._engine.ping(uid)

    def pong(self, payload: bytes) -> None:
        """Pings answer themselves; this one is a sign of life, which asks for an acknowledgement."""
        if not self.closing:
            self._engine.ping(0)

    def close(self, code: int, reason: str) -> None:
        self._how = self._how or End.by_us(code)
        if not self.closing:
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
        return self._ended or self._engine.ended

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
