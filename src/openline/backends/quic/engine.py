"""Drives one QUIC connection: datagrams in, events out, its one timer."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Generic

from ...core.doubt import Sending
from ...core.text import printable
from .clock import LOOKS, STALL, Clock
from .limits import MIN_DATAGRAM
from .parts import Addr, Broken, Core, D, Outlet, Owner
from .user import NO_OUTLET, NO_OWNER, NO_READER, NO_USER, Reader, User

log = logging.getLogger("openline")

# What is told of the end of a connection fits in one packet with room to spare.
MAX_REASON = 400
# RFC 9000 section 20.1.
INTERNAL_ERROR = 0x1
# Probes in a row without an answer that make one look whether this host has moved.
UNANSWERED = 2
# And that make the path one that may carry less than it did (RFC 8899 section 4.3). Not sooner, as each
# is twice as long as the one before: two are lost now and then where one packet in twenty is, and to go
# back to small datagrams is for good, and may end the connection (see ``Qh3Core.poll``).
NARROWED = 3
# More than that, and nothing for so long: the peer may be gone, or be another process by now. TCP is
# told by a reset; here it makes the connection suspect, which costs a dial where it was wrong.
SILENCE = 1.0
# What a core says of a connection on which nothing came for too long.
IDLE = "Idle timeout"
# Timers are not early by more than this, and a timer that is due so soon is due. Not more: qh3 waits a
# millisecond for something that an acknowledgement could ride with, and would not get it.
SLACK = 0.0005
# A timer that fires so soon is not set anew (RFC 9002 section 6.1.2 has it as the granularity of timers).
SOON = 0.001


class Engine(Generic[D]):
    """One connection, client or server. ``clock`` is that of its backend, ``outlet`` takes its datagrams."""

    __slots__ = (
        "__weakref__",
        "_busy",
        "_clock",
        "_dead",
        "_finished",
        "_heard_at",
        "_horizon",
        "_kept",
        "_last",
        "_loop",
        "_more",
        "_moved",
        "_place",
        "_remote",
        "_resting",
        "_soon",
        "_stalled",
        "_stopped",
        "_timer",
        "_timer_at",
        "_unsent",
        "blocked",
        "core",
        "outlet",
        "over",
        "owner",
        "reader",
        "user",
    )

    def __init__(self, core: Core[D], outlet: Outlet[D], owner: Owner, clock: Clock) -> None:
        self.core = core
        self.outlet = outlet
        self.owner = owner
        self.user: User = NO_USER
        self.reader: Reader = NO_READER
        self.over = self.blocked = False
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        clock.join()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        # How far a timer is set ahead at most: for an idle time-out that the clock does not look after.
        self._horizon = math.inf
        # Seconds that our own loop has stood still, and that the clock has not seen.
        self._stalled = 0.0
        self._last = self._heard_at = 0.0
        # The far end's address as of the last packet that left, and where it has been found to be.
        self._remote: Addr = ()
        self._place: Addr = ()
        self._moved = False
        # What its user has been told that the core keeps.
        self._kept = 0
        # In a callback of the core's; whatever is written there leaves at its end.
        self._busy = False
        # The user has written, and has not been told since that all of it has left.
        self._unsent = False
        # Something has left in this loop turn; and what has been written since waits for its end.
        self._soon = self._more = False
        self._resting = False
        self._dead = self._finished = self._stopped = False

    # In ------------------------------------------------------------------------------------------

    def connect(self, addr: Addr) -> None:
        """A client: begin."""
        self.core.connect(addr, self._now())
        self.transmit()

    def received(self, batch: list[D], addr: Addr) -> None:
        if self._dead:
            return
        try:
            alive = self.core.receive(batch, addr, self._now())
        except Broken as error:
            self._give_up(str(error))
            return
        self._handle(alive)

    def _give_up(self, reason: str) -> None:
        """Nothing more is asked of the core."""
        self._dead = True
        self._busy = False
        self.on_end(INTERNAL_ERROR, False, reason)
        self.on_forgotten()

    def _handle(self, alive: bool = False) -> None:
        """What has come: tell the user, then let leave what that has brought about."""
        core = self.core
        self._busy = True
        try:
            if alive and not self.over:
                self._heard_at = self._last
                self.user.on_alive()
            core.deliver(self.reader.take, self)
            if core.kept != self._kept:
                self._kept = core.kept
                self.reader.on_kept(core.kept)
        except Broken as error:
            self._give_up(str(error))
        finally:
            self._busy = False
            if core.resting and not self._resting:
                self._resting = True
                self._loop.call_soon(self._after_rest)
            self.transmit()

    def _after_rest(self) -> None:
        self._resting = self.core.resting = False
        self._catch_up()

    def _catch_up(self) -> None:
        if not self._dead:
            self._handle()

    def hold(self) -> None:
        """Hand nothing over; packets are still received, and acknowledged."""
        self.core.holding = True

    def go_on(self) -> None:
        if self.core.holding:
            self.core.holding = False
            self._loop.call_soon(self._catch_up)

    def entered(self) -> None:
        """The far end has proven itself."""
        self.core.entered()
        self._kept = self.core.kept

    # From the core -------------------------------------------------------------------------------

    def on_handshake(self) -> None:
        theirs = self.core.peer_idle_timeout
        if theirs is not None and theirs / LOOKS < self._clock.period:
            self._horizon = max(STALL, theirs / LOOKS)  # the shorter one counts (RFC 9000 section 10.1)
        if not self.over:
            self.user.on_handshake()

    def on_id(self, cid: bytes, issued: bool) -> None:
        self.owner.on_id(cid, issued)

    def on_pong(self, uid: int) -> None:
        if not self.over:
            self.user.on_pong(uid)

    def on_end(self, code: int, by_program: bool, reason: str) -> None:
        if not self.over:
            self.over = True
            self.user.on_over(code, by_program, printable(reason, MAX_REASON))
            self._finish()

    def on_forgotten(self) -> None:
        self.stop()
        # Whoever is told of something holds this; no circle shall keep it.
        owner, self.owner = self.owner, NO_OWNER
        self.outlet = NO_OUTLET
        owner.on_gone()
        self.core.let_go()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = self.over = True
            self.go_on()  # so that its end is seen, and what it holds is let go
            self.owner.on_finished()

    def forget(self) -> None:
        """Leave nothing of it."""
        self._dead = True
        self.on_forgotten()

    @property
    def ended(self) -> bool:
        """Over for the core already, though nothing has been told yet, as while holding."""
        return self.over or self.core.over

    # Out -----------------------------------------------------------------------------------------

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes of a stream. The first of a loop turn leave at once, all others together."""
        self.core.write(stream, data)
        self._unsent = True
        if not self._busy:
            self.touch()

    def move(self) -> None:
        """The way out is another one from now on: with another id, and a packet to tell the peer."""
        self.core.change_id()
        self.ping(0)

    def ping(self, uid: int) -> None:
        self.core.ping(uid)
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
        elif self._unsent and not self.over:
            self._tell_what_left()

    def transmit(self) -> None:
        """Let leave what may; only from callbacks of the loop."""
        self._transmit()
        if self._moved and not self.over:
            self._look_where_it_is()
        if self._unsent and not self.over:
            self._tell_what_left()

    def _tell_what_left(self) -> None:
        waiting = self.core.waiting()
        self._unsent = waiting > 0
        self.user.on_sent(waiting)

    def _look_where_it_is(self) -> None:
        """While a new path is being validated packets go both ways; only the active one counts."""
        place = self.core.place
        if place is None:
            return
        self._moved = place != self._remote
        if place != self._place:
            before, self._place = self._place, place
            if before:
                self.user.on_moved(place)

    def _transmit(self) -> None:
        if self.blocked or self._dead:
            return
        now = self._now()
        try:
            found = self.core.poll(now)
        except Broken as error:
            self._give_up(str(error))
            return
        if len(found) == 1 and found[0][1] == self._remote:  # which is what an answer is
            if too_large := self.outlet.send([found[0][0]], self._remote):
                self._on_too_large(too_large)
        elif found:
            self._send_all(found)
        self._arm(now)

    def _send_all(self, found: list[tuple[D, Addr]]) -> None:
        if len(found) >= self.core.burst:
            self._more = True
            if not self._soon:
                self._soon = True
                self._loop.call_soon(self._end_of_turn)
        batch: list[D] = []
        for datagram in found:
            if datagram[1] != self._remote:
                if batch:
                    self._send(batch)
                    batch = []
                self._moved = True
                self._remote = datagram[1]
            batch.append(datagram[0])
        self._send(batch)

    def _send(self, batch: list[D]) -> None:
        if self.core.established:
            too_large = self.outlet.send(batch, self._remote)
        else:
            # One by one: where they are too large, a batch costs all who use the socket its batches.
            too_large = max(self.outlet.send([datagram], self._remote) for datagram in batch)
        if too_large:
            self._on_too_large(too_large)

    def _on_too_large(self, too_large: int) -> None:
        """This host would not send a datagram of that size."""
        if too_large > MIN_DATAGRAM:
            if too_large <= self.core.datagram_size:  # else it was a probe, which has found its limit
                self.shrink("this host's way there takes no larger ones")
        elif not self.over:
            self._loop.call_soon(self._tell_too_small)

    def _tell_too_small(self) -> None:
        if not self.over:
            self.user.on_too_small()

    def shrink(self, why: str) -> None:
        """No datagrams from now on but those that every path for QUIC carries."""
        if not self._dead and self.core.shrink():
            log.debug("datagrams to %s are of %d bytes now: %s", self._remote, MIN_DATAGRAM, why)

    def set_blocked(self, blocked: bool) -> None:
        """The system takes no more datagrams, or takes them again."""
        self.blocked = blocked
        if not blocked:
            self.transmit()

    @property
    def stream_limit(self) -> int:
        return self.core.stream_limit

    def waiting_on(self, stream: int) -> int:
        """Bytes of that stream which have not left."""
        return 0 if self.over else self.core.waiting(stream)

    def sending(self, stream: int) -> Sending | None:
        return None if self.over else self.core.sending(stream)

    @property
    def waiting(self) -> int:
        """Bytes that have not left."""
        return self.core.waiting()

    def close(self, code: int, reason: str) -> None:
        """Tell the peer that it is over; what has not left stays behind. The user is told nothing."""
        if self.over:
            return
        if not self._dead:
            self.core.close(code, reason[:MAX_REASON])
            self._transmit()
        self._finish()

    def stop(self) -> None:
        """No time passes for it any more."""
        if not self._stopped:
            self._stopped = True
            self._clock.leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Time ----------------------------------------------------------------------------------------

    def _notice_silence(self, now: float) -> None:
        unanswered = self.core.unanswered
        if self.over or unanswered < UNANSWERED:
            return
        if unanswered >= NARROWED:
            self.shrink("no answer")
        self.owner.on_silence()
        if unanswered > UNANSWERED and now >= self._heard_at + SILENCE:
            self.user.on_silent()

    def _now(self) -> float:
        """A stall of our own loop has not happened: no idle time-out, no round trip of such a length."""
        clock = self._clock
        now = clock.read() - clock.stalled
        if now > clock.limit:
            now = clock.past(now)
        now -= self._stalled
        if self._timer is not None and now > self._timer_at + STALL:
            self._stalled += now - self._timer_at
            now = self._timer_at
        if now <= self._last:
            return self._last  # what the core has been told never goes back
        self._last = now
        return now

    def _arm(self, now: float) -> None:
        """A timer that is set too early only looks again; so it is rarely set anew. One that is about to be
        due looks anyway."""
        if self._stopped or (self._timer is not None and self._timer_at <= now + SOON):
            return
        when = self.core.timer
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
        when = self.core.timer
        if when is not None and when <= now + SLACK:
            try:
                self.core.handle_timer(max(now, when))
            except Broken as error:
                self._give_up(str(error))
                return
            self._handle()
            self._notice_silence(now)
        elif when is not None:
            self._arm(now)
