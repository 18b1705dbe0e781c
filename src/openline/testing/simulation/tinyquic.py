"""As much of QUIC as its users can tell apart from it: streams, loss, acknowledgements, credit. No sockets.

A ``Core`` of the QUIC backend (``backends.quic.parts``), as qh3's connection is. Packets are objects;
nothing is encrypted, and nothing is left to any other chance than the network's, so that a run is the
same for the same seed.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from ...address import Address
from ...backends.quic.parts import Addr, CoreEvents, TakeData
from ...core.doubt import Sending

# Stream bytes in one packet; real ones have a third of that, and take three times as long to simulate.
CHUNK = 4096
# What a packet takes besides.
HEADER = 40
# In flight at a time: at first (RFC 9002 section 7.2), and at most.
FIRST_WINDOW, MAX_WINDOW = 14_720, 512 * 1024
# A round trip, before it is known (RFC 9002 section 6.2.2); and the least time until a probe.
FIRST_RTT, LEAST_PROBE = 0.333, 0.025
# Doublings of the time until the next probe.
MAX_BACKOFF = 6
# A packet is lost when one that left so much later has arrived (RFC 9002 section 6.1.1).
REORDERING = 3
# Acknowledged again with every acknowledgement, as one of them may be lost.
ACKED_AGAIN = 32
# Bytes that a receiver lets come before they are read: on one stream, and on all.
STREAM_CREDIT, CREDIT = 128 * 1024, 256 * 1024
# On a path with little bandwidth, so many seconds' worth are under way (as ``wire`` has it for TCP).
AHEAD_SECONDS, PART_SECONDS = 0.5, 0.25
LEAST_CHUNK = 1200

INITIAL, ANSWER, DATA, PING, GRANT, ACK, CLOSE, RESET = (
    "initial",
    "answer",
    "data",
    "ping",
    "grant",
    "ack",
    "close",
    "reset",
)
# Of all streams together, where a grant names none.
ALL = -1
# What both sides take for the server's.
CERTIFICATE = b"a certificate"
# What is to be handed over: data of a stream, the end of a handshake, of a ping, of the connection.
_READ, _UP, _PONG, _END = range(4)


class Packet:
    """``number`` where it is to be acknowledged, and sent again until it is."""

    __slots__ = ("content", "kind", "link", "number", "size")

    def __init__(self, link: int, kind: str, content: Any, size: int, number: int | None) -> None:
        self.link = link
        self.kind = kind
        self.content = content
        self.size = size + HEADER
        self.number = number

    def __str__(self) -> str:
        what = f"{self.content[0]} at {self.content[1]}" if self.kind == DATA else str(self.content)[:60]
        return f"#{self.link}.{self.number} {self.kind} {what}"


class _Flight:
    """A packet that has left, and is not acknowledged."""

    __slots__ = ("at", "began", "order", "packet", "size", "tries")

    def __init__(self, packet: Packet, order: int, at: float) -> None:
        self.packet, self.order, self.at, self.tries = packet, order, at, 1
        self.began = at
        self.size = packet.size if packet.kind == DATA else 0


class _Out:
    """A stream, sending side."""

    __slots__ = ("credit", "offset", "pieces")

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.offset = 0
        self.credit = STREAM_CREDIT


class _In:
    """A stream, receiving side: what has come too early waits here."""

    __slots__ = ("credit", "offset", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, bytes] = {}
        self.offset = 0
        self.credit = STREAM_CREDIT


class TinyQuic:
    """One end of a connection, a server's or a client's. ``rate`` tells what the path carries, in bytes
    per second."""

    # Its packets have no size that a path could be too narrow for.
    datagram_size = 0
    burst = sys.maxsize
    # It never says that it has had its share: what the simulation measures is not time.
    resting = False
    # What it keeps has a number in no frame, and nobody counts it.
    kept = 0
    # Unidirectional streams that the other end lets this one open (as qh3 has it).
    stream_limit = 103
    # That probes go unanswered is for liveness to find here.
    unanswered = 0
    peer_idle_timeout: float | None = None
    # There are no tickets.
    resumes = False
    certificate = CERTIFICATE

    def __init__(self, link: int, client: bool, idle_timeout: float, rate: Callable[[], float]) -> None:
        self.idle_timeout = idle_timeout
        self.holding = False
        self.state = "active"
        self.link = link
        self._rate = rate
        self._far: Addr = ()
        # How it has ended, until that is told; and has this side closed it?
        self._end: tuple[int, bool, str] | None = None
        self._closed = self._forgotten = False
        # When a packet last came; the end of closing or draining.
        self._heard = 0.0
        self._end_at = math.inf
        self._farewell: Packet | None = None
        # Sending.
        self._urgent: deque[Packet] = deque()
        self._out: dict[int, _Out] = {}
        self._unsent = self._in_flight = self._sent = 0
        self._credit = CREDIT
        self._window = FIRST_WINDOW
        self._flying: dict[int, _Flight] = {}
        self._numbers = self._orders = 0
        self._rtt = FIRST_RTT
        self._backoff = 0
        # Packets that were sent again; and the round trip, which real ones know of what is sent again, too.
        self._again_total = 0
        self._smoothed_rtt = 0.0
        # Receiving; ``_ready`` has come, and there is credit for what is ``_waiting`` to be handed over.
        self._in: dict[int, _In] = {}
        self._seen: set[int] = set()
        self._to_ack: list[int] = []
        self._acked: deque[int] = deque(maxlen=ACKED_AGAIN)
        self._ready: deque[tuple[Any, ...]] = deque()
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._granted = CREDIT
        self._consumed = 0
        self.established = not client

    # What its engine does ------------------------------------------------------------------------

    def connect(self, addr: Addr, now: float) -> None:
        """A client's first packet."""
        self._far = addr
        self._heard = now
        self._urge(INITIAL, None, LEAST_CHUNK)

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            return
        out = self._out.get(stream)
        if out is None:
            out = self._out[stream] = _Out()
        if data:
            out.pieces.append(bytes(data))
            self._unsent += len(data)

    def ping(self, uid: int) -> None:
        if not self._closed:
            self._urge(PING, uid, 0)

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._farewell = Packet(self.link, CLOSE, (code, reason), len(reason), None)
            self._urgent.clear()
            self._urgent.append(self._farewell)
            self._wind_up("closing")

    def entered(self) -> None:
        """Nobody is counted as a stranger here."""

    def check(self, address: Address) -> None:
        """There is one certificate, and everybody's."""

    def trust_it(self) -> None:
        """There are no tickets."""

    def let_go(self) -> None:
        """It keeps nobody."""

    def change_id(self) -> None:
        """Nobody looks at it here."""

    def shrink(self) -> bool:
        return False

    def waiting(self, stream: int | None = None) -> int:
        return 0 if self._closed else self._unsent

    def sending(self, stream: int) -> Sending:
        return Sending(-self.waiting(), self._again_total, self._smoothed_rtt)

    @property
    def place(self) -> Addr:
        return self._far

    @property
    def over(self) -> bool:
        return self.state in ("draining", "terminated")

    def _urge(self, kind: str, content: Any, size: int) -> None:
        self._numbers += 1
        self._urgent.append(Packet(self.link, kind, content, size, self._numbers))

    def _wind_up(self, state: str) -> None:
        self.state = state
        self._end_at = self._heard + 3 * self._probe_time
        self._flying.clear()
        self._out.clear()
        self._unsent = 0

    # Sending -------------------------------------------------------------------------------------

    def poll(self, now: float) -> list[tuple[Packet, Addr]]:
        found: list[tuple[Packet, Addr]] = []
        while (packet := self._next(now)) is not None:
            found.append((packet, self._far))
        return found

    def _next(self, now: float) -> Packet | None:
        """The next packet that may leave."""
        if self._to_ack:
            numbers = tuple(self._to_ack)
            again = tuple(self._acked)
            self._acked.extend(numbers)
            self._to_ack.clear()
            return Packet(self.link, ACK, (*again, *numbers), 0, None)
        if self._urgent:
            packet = self._urgent.popleft()
        else:
            found = self._next_chunk() if self._unsent and self.state == "active" else None
            if found is None:
                return None
            packet = found
        if packet.number is not None and self.state == "active":
            self._fly(packet, now)
        return packet

    def _fly(self, packet: Packet, now: float) -> None:
        assert packet.number is not None
        flight = self._flying.get(packet.number)
        self._orders += 1
        if flight is None:
            flight = self._flying[packet.number] = _Flight(packet, self._orders, now)
            self._in_flight += flight.size
        else:
            flight.order, flight.at = self._orders, now
            flight.tries += 1

    def _next_chunk(self) -> Packet | None:
        """Of the stream whose turn it is, where congestion and credit allow it."""
        rate = self._rate()
        if not self.established or self._in_flight >= min(self._window, max(rate * AHEAD_SECONDS, 1)):
            return None
        most = min(CHUNK, max(LEAST_CHUNK, int(min(rate, 1e9) * PART_SECONDS)), self._credit - self._sent)
        if most <= 0:
            return None
        for stream, out in self._out.items():
            room = min(most, out.credit - out.offset)
            if out.pieces and room > 0:
                del self._out[stream]  # to the end
                self._out[stream] = out
                return self._cut_off(stream, out, room)
        return None

    def _cut_off(self, stream: int, out: _Out, room: int) -> Packet:
        parts: list[bytes] = []
        while out.pieces and room > 0:
            piece = out.pieces.popleft()
            if len(piece) > room:
                out.pieces.appendleft(piece[room:])
                piece = piece[:room]
            parts.append(piece)
            room -= len(piece)
        data, offset = b"".join(parts), out.offset
        out.offset += len(data)
        self._sent += len(data)
        self._unsent -= len(data)
        self._numbers += 1
        return Packet(self.link, DATA, (stream, offset, data), len(data), self._numbers)

    # Receiving -----------------------------------------------------------------------------------

    def receive(self, batch: list[Packet], addr: Addr, now: float) -> bool:
        """Were they this connection's, at a time when it counts?"""
        self._far = self._far or addr
        alive = [self._receive(packet, now) for packet in batch]
        self._drain()
        return any(alive)

    def _receive(self, packet: Packet, now: float) -> bool:
        if self.state == "closing":
            if packet.kind != CLOSE and self._farewell is not None:
                self._urgent.append(self._farewell)
            return False
        if self.state != "active":
            return False
        self._heard = now
        if packet.number is not None:
            self._to_ack.append(packet.number)
            if packet.number in self._seen:
                return True
            self._seen.add(packet.number)
        self._take(packet, now)
        return True

    def _take(self, packet: Packet, now: float) -> None:
        kind, content = packet.kind, packet.content
        if kind == DATA:
            self._take_data(*content)
        elif kind == ACK:
            self._take_acks(content, now)
        elif kind == GRANT:
            stream, credit = content
            if stream == ALL:
                self._credit = max(self._credit, credit)
            elif stream in self._out:
                self._out[stream].credit = max(self._out[stream].credit, credit)
        elif kind == INITIAL:
            self._urge(ANSWER, None, LEAST_CHUNK)
        elif kind == ANSWER:
            self.established = True
            self._ready.append((_UP,))
        elif kind in (CLOSE, RESET):
            code, reason = content
            self._over(code, reason, kind == CLOSE)

    def _take_data(self, stream: int, offset: int, data: bytes) -> None:
        into = self._in.get(stream)
        if into is None:
            into = self._in[stream] = _In()
        into.waiting[offset] = data
        while (piece := into.waiting.pop(into.offset, None)) is not None:
            into.offset += len(piece)
            self._ready.append((_READ, stream, piece))

    def _over(self, code: int, reason: str, by_program: bool) -> None:
        self._ready.append((_END, code, by_program, reason))
        self._wind_up("draining")

    # Acknowledgements and time -------------------------------------------------------------------

    def _take_acks(self, numbers: tuple[int, ...], now: float) -> None:
        newest = 0
        for number in numbers:
            flight = self._flying.pop(number, None)
            if flight is None:
                continue
            newest = max(newest, flight.order)
            self._in_flight -= flight.size
            self._window = min(MAX_WINDOW, self._window + flight.size)
            self._smoothed_rtt += (now - flight.began - self._smoothed_rtt) / 8
            if flight.tries == 1:
                self._rtt += (now - flight.at - self._rtt) / (8 if self._rtt != FIRST_RTT else 1)
            if flight.packet.kind == PING and flight.packet.content:
                self._ready.append((_PONG, flight.packet.content))
        if newest:
            self._backoff = 0
            for flight in [f for f in self._flying.values() if f.order <= newest - REORDERING]:
                self._again(flight)

    def _again(self, flight: _Flight) -> None:
        if flight.packet not in self._urgent:
            self._urgent.append(flight.packet)
            self._again_total += 1
            flight.order = self._orders + 1

    @property
    def _probe_time(self) -> float:
        return float(max(2 * self._rtt, LEAST_PROBE) * 2**self._backoff)

    @property
    def timer(self) -> float | None:
        if self.state == "terminated":
            return None
        if self.state != "active":
            return self._end_at
        idle = self._heard + self.idle_timeout
        if not self._flying:
            return idle
        return float(min(idle, min(flight.at for flight in self._flying.values()) + self._probe_time))

    def handle_timer(self, now: float) -> None:
        if self.state != "active":
            if now >= self._end_at and self.state != "terminated":
                self.state = "terminated"
                self._ready.append((_END, 0, False, ""))
                self._forgotten = True
        elif now >= self._heard + self.idle_timeout:
            self._over(1, "Idle timeout", False)
        else:
            self._probe(now)
        self._drain()

    def _probe(self, now: float) -> None:
        due = now - self._probe_time
        late = sorted((f for f in self._flying.values() if f.at <= due + 1e-9), key=lambda f: f.order)
        for flight in late[:2]:
            self._again(flight)
        for flight in late:
            flight.at = now
        if late:
            self._backoff = min(self._backoff + 1, MAX_BACKOFF)
            self._window = max(FIRST_WINDOW, self._window // 2)

    # Handing over --------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Give credit for what has come; not while somebody holds it back."""
        while self._ready and not self.holding:
            event = self._ready.popleft()
            if event[0] != _END:
                self._waiting.append(event)
                if event[0] == _READ:
                    self._grant(event[1], len(event[2]))
            elif not self._closed:
                self._closed = True
                self._end = event[1:]

    def deliver(self, take: TakeData, events: CoreEvents) -> None:
        self._drain()
        while self._waiting and not self.holding:
            event = self._waiting.popleft()
            if event[0] == _READ:
                take(event[1], event[2], False)
            elif event[0] == _PONG:
                events.on_pong(event[1])
            elif event[0] == _UP:
                events.on_handshake()
        if self._end is not None and not self.holding:
            end, self._end = self._end, None
            events.on_end(*end)
        if self._forgotten and not self.holding:
            self._forgotten = False
            events.on_forgotten()

    def _grant(self, stream: int, size: int) -> None:
        into = self._in[stream]
        self._consumed += size
        if self._granted - self._consumed < CREDIT // 2:
            self._granted = self._consumed + CREDIT
            self._urge(GRANT, (ALL, self._granted), 0)
        if into.credit - into.offset < STREAM_CREDIT // 2:
            into.credit = into.offset + STREAM_CREDIT
            self._urge(GRANT, (stream, into.credit), 0)
