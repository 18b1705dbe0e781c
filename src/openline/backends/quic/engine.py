"""Drives one QUIC connection of qh3: datagrams in, events out, its one timer.

qh3 (2.1) keeps the protocol (``quiccore``), this keeps time and sockets; ``quicsize`` says how large
datagrams may be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from qh3.quic import events
from qh3.quic.connection import QuicConnectionError

from ...core.doubt import Sending
from ...core.portion import TARGET_QUIC, Portion
from ...core.text import printable
from .core import Quic
from .datagram_size import MIN_DATAGRAM, datagram_size, shrink
from .udp import Addr
from .user import User

log = logging.getLogger("openline")

# Positions in what the core reports of received datagrams.
_ACCEPTED = 2
# What is told of the end of a connection fits in one packet with room to spare.
MAX_REASON = 400
# RFC 9000 section 20.1.
INTERNAL_ERROR = 0x1
# An honest client sends 3 kB, some servers 20 kB of certificates; qh3 would collect 16 MiB.
MAX_HANDSHAKE = 128 * 1024
# Probes in a row without an answer that make one look whether this host has moved.
UNANSWERED = 2
# And that make the path one that may carry less than it did (RFC 8899 section 4.3). Not sooner, as each
# is twice as long as the one before: two are lost now and then where one packet in twenty is, and to go
# back to small datagrams is for good, and may end the connection (see ``_transmit``).
NARROWED = 3
# More than that, and nothing for so long: the peer may be gone, or be another process by now. TCP is
# told by a reset; here it makes the connection suspect, which costs a dial where it was wrong.
SILENCE = 1.0
# What qh3 says of a connection on which nothing came for too long.
IDLE = "Idle timeout"
# Datagrams that leave at a time: as many as the system takes in one call, and others get a turn.
BURST = 64
# What a datagram takes besides data of streams, at least, with one frame in it.
PACKET_BYTES = 48
# An honest peer sends so much twice, where it took for lost what was late: a 32nd.
SENT_TWICE = 5
# So much may wait unnoticed.
MUCH = 64 * 1024
# Timers are not early by more than this, and a timer that is due so soon is due.
_SLACK = 0.0005
# A loop that is later than this has stalled. That is nobody's silence, so for qh3 it has not
# happened: no idle time-out, and no round trip of such a length (rule 3.2).
STALL = 0.1
# Parts of the idle time-out in which the clock is looked at, so that a stall is seen as one.
_LOOKS = 20


def _nowhere(batch: list[bytes], addr: Addr) -> int:
    """Where datagrams of a connection go of which nothing is left."""
    return 0


class Engine:
    """One connection, client or server. ``send(batch, addr)`` takes its datagrams, and returns the size
    of one that is too large for this host's way there."""

    def __init__(self, quic: Quic, send: Callable[[list[bytes], Addr], int]) -> None:
        self.quic = quic
        self.user: User
        # The other end's address, as of the last packet that left.
        self.remote: Addr = ()
        # Where it has been found to be.
        self._place: Addr = ()
        # Connection ids by which the other end may call us.
        self.on_id: Callable[[bytes, bool], None] | None = None
        # Told when it is over, and when nothing is left of it, some time after that.
        self.on_finished: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None
        # Told while probes go unanswered, each one later than the one before (RFC 9002 section 6.2).
        self.on_silence: Callable[[], None] | None = None
        self.over = False
        self.blocked = False
        self.send = send
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._horizon = quic.configuration.idle_timeout / _LOOKS
        # Seconds that our own loop has stood still.
        self._stalled = 0.0
        self._last = self._heard_at = 0.0
        self._busy = False
        # Something has left in this loop turn; and what has been written since waits for its end.
        self._soon = self._more = False
        # Our streams that exist: to these the core may be written without more ado.
        self._open: set[int] = set()
        self._established = False
        # Bytes received so far by a handshake; and since, until the far end is in (else None).
        self._shaking = 0
        self.early: int | None = 0
        # Bytes of streams that have come and are not handed over, about; and the same without what only
        # waits for its turn: the core keeps them, because something in front of them is missing, or it is
        # not read, and does not tell.
        self._unhanded = self.behind_gaps = 0
        self._dead = self._stopped = False
        self._moved = False
        quic.on_share, quic.portion = self._rest, Portion(TARGET_QUIC)

    # In ------------------------------------------------------------------------------------------

    def connect(self, addr: Addr) -> None:
        """A client: begin."""
        self.quic.connect(addr, self._now())
        self.transmit()

    def received(self, batch: list[bytes], addr: Addr) -> None:
        if self._dead:
            return
        quic, now = self.quic, self._now()
        try:
            if self._established:
                assert quic._core is not None
                if self.early is not None:
                    self.early += sum(map(len, batch))
                self._unhanded += sum(map(len, batch)) - PACKET_BYTES * len(batch)
                alive = quic._core.receive_many_datagrams(batch, addr, now)[_ACCEPTED] > 0
                self._busy = True
                quic._drain_core()
                if self._unhanded < MUCH:
                    self._unhanded, self.behind_gaps = max(0, self._unhanded), 0
                elif not quic.resting:
                    self.behind_gaps = self._unhanded
                if quic.resting:
                    quic.portion.took(time.monotonic() - self._stalled - now)
            else:
                alive = True
                self._shaking += sum(map(len, batch))
                if self._shaking > MAX_HANDSHAKE:
                    raise QuicConnectionError(INTERNAL_ERROR, None, "too much before the handshake is over")
                quic.receive_many_datagrams(batch, addr, now)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # hostile bytes may make qh3 panic, which is no Exception
            self._busy = False
            self._give_up(error)
            return
        self._handle(alive)

    def _give_up(self, error: BaseException) -> None:
        """qh3 cannot go on with this connection; nothing more is asked of it."""
        self._dead = True
        reason = error.reason_phrase if isinstance(error, QuicConnectionError) else f"{error!r}"
        self._ended(events.ConnectionTerminated(INTERNAL_ERROR, 0, f"qh3 gives up: {reason}"))
        self._gone()

    def _handle(self, alive: bool = False) -> None:
        """What has come: tell the user, then let leave what that has brought about."""
        self._busy = True
        try:
            if alive and not self.over:
                self._heard_at = self._last
                self.user.on_alive()
            self._tell()
        finally:
            self._busy = False
            self.transmit()

    def _tell(self) -> None:
        quic = self.quic
        waiting: deque[Any] = quic._events
        while waiting and not quic.holding:
            event = waiting.popleft()
            kind = type(event)
            if kind is events.StreamDataReceived:
                if not self.over:
                    self.user.on_stream_data(event.stream_id, event.data, event.end_stream)
            elif kind is events.PingAcknowledged:
                if not self.over:
                    self.user.on_pong(event.uid)
            else:
                self._on_other(event)
        if quic._close_event is not None and not (self.over or quic.holding or quic.resting):
            self._ended(quic._close_event)

    def _on_data(self, stream: int, data: bytes, end: bool) -> None:
        self._unhanded -= len(data) + (len(data) >> SENT_TWICE)
        if not self.over:
            self.user.on_stream_data(stream, data, end)

    def _on_other(self, event: Any) -> None:
        if isinstance(event, events.HandshakeCompleted):
            self._established = True
            self._look_more_often()
            self.quic.sink = self._on_data
            if not self.over:
                self.user.on_handshake(event)
        elif isinstance(event, events.ConnectionIdIssued | events.ConnectionIdRetired):
            if self.on_id is not None:
                self.on_id(event.connection_id, isinstance(event, events.ConnectionIdIssued))
        elif isinstance(event, events.StreamReset | events.StopSendingReceived):
            if not self.over:
                self.user.on_stream_data(event.stream_id, b"", True)
        elif isinstance(event, events.ConnectionTerminated):
            self._ended(event)
            self._gone()

    def _ended(self, event: events.ConnectionTerminated) -> None:
        if not self.over:
            self.over = True
            reason = printable(event.reason_phrase, MAX_REASON)
            self.user.on_over(event.error_code, event.frame_type is None, reason)
            self._finish()

    def _finish(self) -> None:
        self.over = True
        self.go_on()  # so that its end is seen, and what it holds is let go
        if self.on_finished is not None:
            self.on_finished()
            self.on_finished = None

    def forget(self) -> None:
        """Leave nothing of it."""
        self._dead = True
        self._gone()

    def _gone(self) -> None:
        self.stop()
        if self.on_gone is not None:
            self.on_gone()
        # Whoever is told of something holds this; no circle shall keep it.
        self.on_gone = self.on_id = self.on_silence = None
        self.send = _nowhere
        self.quic.let_go()

    def _rest(self) -> None:
        """There is more than one turn's share: the rest waits in the core, whose windows bound it, and
        datagrams are taken in all the same, so that those of others behind them are."""
        self._loop.call_soon(self._after_rest)

    def _after_rest(self) -> None:
        began = time.perf_counter()
        self.quic.resting = False
        self._catch_up()
        if self.quic.resting:
            self.quic.portion.took(time.perf_counter() - began)

    def hold(self) -> None:
        """Hand nothing over; packets are still received, and acknowledged."""
        self.quic.holding = True

    def go_on(self) -> None:
        if self.quic.holding:
            self.quic.holding = False
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        if self.quic._core is not None and not self._dead:
            self._busy = True
            self.quic._drain_core()
            self._handle()

    @property
    def finished(self) -> bool:
        """Over for the core already, though nothing has been told yet, as while holding."""
        return self.over or self.quic._core is None or self.quic._core.state in ("draining", "terminated")

    # Out -----------------------------------------------------------------------------------------

    def write(self, stream: int, data: Any) -> None:
        """Queue bytes of a stream. The first of a loop turn leave at once, all others together.

        Raises ``QuicConnectionError``, ``ValueError`` and ``RuntimeError`` once the core is over.
        """
        core = self.quic._core
        if core is not None and self._established and stream in self._open:
            core.send_stream(stream, data)
        else:
            self.quic.send_stream_data(stream, data)
            self._open.add(stream)
        if not self._busy:
            self.touch()

    def move(self) -> None:
        """The way out is another one from now on: with another id, and a packet to tell the peer."""
        try:
            self.quic.change_connection_id()
        except QuicConnectionError as error:
            log.debug("goes on with the same connection id: %s", error)
        self.ping(0)

    def ping(self, uid: int) -> None:
        self.quic.send_ping(uid)
        self.touch()

    def touch(self) -> None:
        """Something waits to leave."""
        if self._busy:
            return
        if self._soon:
            self._more = True
        else:
            self._soon = True
            self._loop.call_soon(self._end_of_turn)
            self._transmit()

    def _end_of_turn(self) -> None:
        self._soon = False
        if self._more:
            self._more = False
            self.transmit()
        elif not self.over and self.quic._core is not None:
            self.user.on_sent(self.quic._core.get_send_buffer_size(None))

    def transmit(self) -> None:
        """Let leave what may; only from callbacks of the loop."""
        self._transmit()
        if not self.over and self.quic._core is not None:
            if self._moved:
                self._look_where_it_is()
            self.user.on_sent(self.quic._core.get_send_buffer_size(None))

    def _look_where_it_is(self) -> None:
        """While a new path is being validated packets go both ways; only the active one counts."""
        core = self.quic._core
        assert core is not None
        place = core.active_path[2]
        self._moved = place != self.remote
        if place != self._place:
            before, self._place = self._place, place
            if before:
                self.user.on_moved(place)

    def _transmit(self) -> None:
        core = self.quic._core
        if core is None or self.blocked or self._dead:
            return
        now = self._now()
        batch: list[bytes] = []
        poll = core.poll_transmit
        try:
            while len(batch) < BURST and (datagram := poll(now)) is not None:
                if datagram[1] != self.remote:
                    if batch:
                        self._send(batch)
                        batch = []
                    self._moved = True
                    self.remote = datagram[1]
                batch.append(datagram[0])
        except RuntimeError as error:
            # What was made for larger datagrams than the path takes by now does not always fit in smaller
            # ones, and then nothing leaves any more.
            self._give_up(error)
            return
        if batch:
            self._send(batch)
            if len(batch) >= BURST and not self._soon:
                self._soon = True
                self._loop.call_soon(self._end_of_turn)
            self._more = self._more or len(batch) >= BURST
        self._arm(now)

    def _send(self, batch: list[bytes]) -> None:
        if self._established:
            too_large = self.send(batch, self.remote)
        else:
            # One by one: where they are too large, a batch costs all who use the socket its batches.
            too_large = max(self.send([datagram], self.remote) for datagram in batch)
        if too_large > MIN_DATAGRAM:
            if too_large <= datagram_size(self.quic):  # else it was a probe, which has found its limit
                self.shrink("this host's way there takes no larger ones")
        elif too_large and not self.over:
            self._loop.call_soon(self._tell_too_small)

    def _tell_too_small(self) -> None:
        if not self.over:
            self.user.on_too_small()

    def shrink(self, why: str) -> None:
        """No datagrams from now on but those that every path for QUIC carries."""
        if not self._dead and shrink(self.quic):
            log.debug("datagrams to %s are of %d bytes now: %s", self.remote, MIN_DATAGRAM, why)

    def set_blocked(self, blocked: bool) -> None:
        """The system takes no more datagrams, or takes them again."""
        self.blocked = blocked
        if not blocked:
            self.transmit()

    @property
    def stream_limit(self) -> int:
        """Unidirectional streams that the peer lets us open."""
        core = self.quic._core
        return 0 if core is None else core.stream_limits[1]

    def waiting_on(self, stream: int) -> int:
        """Bytes of that stream which have not left."""
        core = self.quic._core
        return 0 if core is None or self.over else core.get_send_buffer_size(stream)

    def sending(self, stream: int) -> Sending | None:
        """How a stream gets on: more of it leaves only while what has left is acknowledged."""
        core = self.quic._core
        if core is None or self.over:
            return None
        return Sending(-self.waiting_on(stream), core.loss_total + core.pto_total, core.smoothed_rtt or 0.0)

    @property
    def waiting(self) -> int:
        """Bytes that have not left."""
        core = self.quic._core
        return 0 if core is None else core.get_send_buffer_size(None)

    def close(self, code: int, reason: str) -> None:
        """Tell the peer that it is over; what has not left stays behind. The user is told nothing."""
        if self.over:
            return
        if not self._dead:
            self.quic.close(code, reason_phrase=reason[:MAX_REASON])
            self._transmit()
        self._finish()

    def stop(self) -> None:
        """No time passes for it any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Time ----------------------------------------------------------------------------------------

    def _notice_silence(self, now: float) -> None:
        core = self.quic._core
        if core is None or self.over or core.pto_count < UNANSWERED:
            return
        if core.pto_count >= NARROWED:
            self.shrink("no answer")
        if self.on_silence is not None:
            self.on_silence()
        if core.pto_count > UNANSWERED and now >= self._heard_at + SILENCE:
            self.user.on_silent()

    def _look_more_often(self) -> None:
        """The shorter one of both sides' time-outs counts (RFC 9000 section 10.1)."""
        bridge = self.quic._tls
        theirs = bridge.remote_transport_parameters if bridge is not None else None
        if theirs is not None and theirs.max_idle_timeout:
            self._horizon = min(self._horizon, theirs.max_idle_timeout / 1000 / _LOOKS)

    def _now(self) -> float:
        now = time.monotonic() - self._stalled
        if self._timer is not None and now > self._timer_at + STALL:
            self._stalled += now - self._timer_at
            now = self._timer_at
        self._last = now = max(now, self._last)  # what qh3 has been told never goes back
        return now

    def _arm(self, now: float) -> None:
        """A timer that is set too early only looks again; so it is rarely set anew."""
        when = None if self._stopped else self.quic.get_timer()
        if when is None:
            return
        if self._timer is not None:
            if when >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = max(now, min(when, now + self._horizon))
        self._timer = self._loop.call_later(max(0.0, self._timer_at - now), self._on_timer)

    def _on_timer(self) -> None:
        now = self._now()
        self._timer = None
        when = self.quic.get_timer()
        if when is not None and when <= now + _SLACK:
            self.quic.handle_timer(max(now, when))
            self._handle()
            self._notice_silence(now)
        elif when is not None:
            self._arm(now)
