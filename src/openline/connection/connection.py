"""One live connection: a backend's link, what is written to it, and the core state that belongs to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from enum import Flag, auto
from typing import Any, Generic

from ..backends.base import End, Link
from ..core.bulk import MEASURED, OVERLOAD, measured, overloaded
from ..core.collision import Claim, rank_of
from ..core.frames import (
    MESSAGES,
    PARSE_ERRORS,
    Batched,
    Flow,
    Listening,
    Malformed,
    TooBig,
    Welcome,
    decode_frame,
    decode_plain,
    unpack_batch,
    unreadable,
)
from ..core.handshake import CERTIFIED, MAX_NAME, check_ports
from ..core.lifecycle import NEXT, State
from ..core.liveness import Liveness
from ..core.rate import NO_NEWS, OPENS, Allowance
from ..core.selection import Endpoint, Quality
from ..core.session import MAX_STREAM_NAME, Session, too_long
from ..core.text import printable
from ..message import Message, Receipts, StreamId
from .context import Context, Listeners
from .events import R
from .writer import Writer

# Payloads that tell the answer to our liveness ping from a pong that nobody asked for.
PROBE = b"probe"
UNASKED = b"alive"
# Pongs written to a peer whose link is full, until it has taken what is in front of them. At one per
# tick of the clock that is a minute at the least.
MAX_PONGS_WAITING = 256
# Asked of a connection whose process seems to have been replaced by another with the same key.
CHALLENGE = b"still you?"

_numbers = itertools.count(1)

__all__ = ["Connection", "Pause", "State"]


class Pause(Flag):
    """Why a connection is not read."""

    NO = 0
    INBOX = auto()  # what has come fills the inbox
    UNREAD = auto()  # the peer does not read what it is owed


class Connection(Generic[R]):
    """Between a remote node and a link; ``writer`` is its sending half."""

    __slots__ = (
        "_allowance",
        "_answered_at",
        "_arrivals",
        "_callbacks",
        "_complained",
        "_context",
        "_listeners",
        "_pauses",
        "_pings",
        "_place_due",
        "_poked_at",
        "_pongs_waiting",
        "_ports_due",
        "_probed_at",
        "_unanswered",
        "endpoint",
        "halts",
        "heard",
        "link",
        "liveness",
        "number",
        "plain",
        "positions",
        "reading_paused",
        "receipts",
        "remote",
        "session",
        "state",
        "stuck",
        "tx_heard",
        "writer",
    )

    def __init__(self, link: Link, context: Context, listeners: Listeners[R]) -> None:
        self.link = link
        self._context = context
        self._listeners = listeners
        self._arrivals = listeners.arrivals
        self.number = next(_numbers)
        self.endpoint: Endpoint = link.endpoint
        self.plain = link.endpoint.hello is None
        self.remote: R
        self.writer = Writer(link, context, self)
        # Between openline peers: the session it belongs to, and where the peer's streams are on this
        # connection; None where nothing is taken in.
        self.session: Session[Any] | None = None
        self.positions: dict[StreamId, int] | None = None
        self.state = State.LIVE
        accepted = link.endpoint.direction == "inbound"
        interval, now = context.config.ping_interval, context.loop.time()
        self.liveness = Liveness(interval, now, accepted=accepted, openline=not self.plain)
        # The last inbound unit, to the tick of the liveness clock; and the messages written before it:
        # the rest is in doubt if it dies.
        self.heard = context.loop.time()
        self.tx_heard = 0
        self.reading_paused = False
        self._pauses = Pause.NO
        self.receipts = Receipts(not self.plain, link.backend, link.endpoint.direction)
        # Streams that the peer has stopped over this connection; True where answers pass all the same.
        self.halts: dict[StreamId, bool] = {}
        # What is sent does not get through, though it may be alive: suspect as long as that is so.
        self.stuck = False
        # A ping that came while there was no room for the pong, or among too many.
        self._unanswered: bytes | None = None
        self._answered_at = 0.0
        self._pongs_waiting = 0
        # How often the peer may ask for something; and changes of its that have been put off.
        self._allowance: Allowance | None = None
        self._ports_due: tuple[int, ...] | None = None
        self._place_due: tuple[str, int] | None = None
        self._poked_at = float("-inf")
        self._complained = False
        # Told of every change of state, the last one being CLOSED.
        self._callbacks: list[Callable[[], object]] = []
        self._probed_at = 0.0
        self._pings: dict[bytes, tuple[float, asyncio.Future[float]]] | None = None

    def __repr__(self) -> str:
        """One line that says it all; tests and logs rely on it."""
        end = self.endpoint
        return f"<{end.direction} {self.link.backend} #{self.number} {end.remote} {self.status}>"

    def join(self, remote: R) -> None:
        """Whose connection it is."""
        self.remote = remote

    def enter(self, session: Session[Any]) -> None:
        """It belongs to this session, which is the one with the process at its far end."""
        self.session, self.positions = session, {}
        self.writer.enter(session, self.positions)

    @property
    def address(self) -> str:
        return self.remote.address

    @property
    def status(self) -> str:
        congested = self.state is State.LIVE and self.link.congested
        return "congested" if congested else self.state.value

    @property
    def quality(self) -> Quality:
        if self.state is State.LIVE:
            return Quality.CONGESTED if self.link.congested else Quality.GOOD
        return Quality.SUSPECT if self.state is State.SUSPECT else Quality.DRAINING

    @property
    def claim(self) -> Claim:
        """What speaks for it where two connections reach the same process (rule 3.3)."""
        end = self.endpoint
        hello = end.hello
        assert hello is not None
        outbound = end.direction == "outbound"
        initiator = self._context.node_id if outbound else hello.node_id
        certified = end.certified if outbound else CERTIFIED in hello.caps
        return Claim(rank_of(self.link.backend, end.secure), initiator, hello.dial, certified)

    @property
    def usable(self) -> bool:
        """Good enough to be taken without looking at any other."""
        return self.state is State.LIVE and not self.link.congested

    @property
    def known(self) -> bool:
        return self.remote.known

    # State ---------------------------------------------------------------------------------------

    def set_state(self, state: State) -> None:
        if state in NEXT[self.state]:
            self.state = state
            self.endpoint.doubtful = state is not State.LIVE
            self._listeners.lifecycle.on_state(self)
            self._tell()

    def when_changed(self, callback: Callable[[], object]) -> None:
        """Call back on every change of state; closed is the last."""
        self._callbacks.append(callback)

    def _tell(self) -> None:
        self.writer.wake()
        for callback in self._callbacks:
            callback()

    def set_stuck(self, stuck: bool) -> None:
        """Does what is sent over it fail to get through?"""
        self.stuck = stuck

    def refuse(self) -> None:
        """Nothing that comes over it is taken in any more."""
        self.positions = None
        self.writer.refuse()

    # Liveness ------------------------------------------------------------------------------------

    def probe(self) -> None:
        """The liveness ping; its pong also tells the round trip."""
        self._probed_at = self._context.stopwatch()
        self.link.ping(PROBE)

    def challenge(self) -> None:
        """Is the process behind this connection still there? A pong to this says yes."""
        if not self.link.closing:
            self.link.ping(CHALLENGE)

    def poke(self) -> None:
        """If nobody is there any more, let that come out soon. Others cause it, so once per tick."""
        if not self.link.closing and self._poked_at != self._context.now:
            self._poked_at = self._context.now
            self.link.ping(UNASKED)

    def reassure(self) -> None:
        """A pong that nobody asked for, to a peer that may watch us."""
        if self._may_pong():
            self.link.pong(UNASKED)

    def _may_pong(self) -> bool:
        """Pongs do not queue without limit behind what the peer does not take."""
        if self.link.congested:
            self._pongs_waiting += 1
            return self._pongs_waiting <= MAX_PONGS_WAITING
        return True

    async def ping(self) -> float:
        """One WebSocket ping: the round trip in seconds. Raises ``ConnectionError`` when it dies."""
        if self._pings is None:
            self._pings = {}
        payload = next(_numbers).to_bytes(8, "big")
        answer: asyncio.Future[float] = self._context.loop.create_future()
        self._pings[payload] = (self._context.stopwatch(), answer)
        try:
            self.writer.flush()
            self.link.ping(payload)
            return await answer
        finally:
            self._pings.pop(payload, None)

    def pause_reading(self, why: Pause = Pause.INBOX) -> None:
        self._pauses |= why
        if not self.reading_paused:
            self.reading_paused = True
            self._listeners.liveness.paused(self)
            self.link.pause_reading()

    def resume_reading(self, why: Pause = Pause.INBOX) -> None:
        """That reason is gone; it is read again where there is no other."""
        self._pauses &= ~why
        if self.reading_paused and not self._pauses:
            self.reading_paused = False
            self._listeners.liveness.resumed(self)
            self.liveness.hold(self._context.loop.time())
            self.link.resume_reading()

    def fall_behind(self) -> None:
        self._listeners.liveness.owes(self)

    @property
    def in_arrears(self) -> bool:
        """Is the peer owed something that cannot be written?"""
        return bool(self.writer.owed) or self._unanswered is not None

    # From the link -------------------------------------------------------------------------------

    def _hear(self) -> None:
        self.heard = self._context.now
        self.tx_heard = self.writer.tx
        if self.plain:
            self.writer.heard()

    def on_alive(self) -> None:
        self.heard = self._context.now
        if self.state is State.SUSPECT:
            self._listeners.liveness.trust(self)

    def on_silent(self) -> None:
        if self.state is State.LIVE:
            self._listeners.liveness.doubt(self)

    def on_text(self, data: memoryview) -> None:
        if not self.plain:
            raise Malformed("a text between openline peers")
        self._hear()
        limit = self._context.config.max_message_size
        if len(data) > limit:
            raise TooBig(f"a message of {len(data)} bytes, more than {limit}")
        _check_load(data, True)
        try:
            if len(data) <= MEASURED:
                message, more = decode_plain(data), 0
            else:
                message, more = measured(decode_plain, data)
            if too_long(message.stream_id):
                raise Malformed(f"a streamId of more than {MAX_STREAM_NAME} characters")
        except Malformed as error:
            self._complain(error)
            return
        self._arrivals.on_messages(self, [message], len(data), more)

    def on_binary(self, data: memoryview) -> None:
        if self.plain:
            self.on_text(data)  # some clients send their JSON as binary
            return
        self.heard = self._context.now
        self.tx_heard = self.writer.tx
        size, more = len(data), 0
        if size <= MEASURED:
            if size and data[0] == MESSAGES:
                try:
                    batch = unpack_batch(data[1:])
                except PARSE_ERRORS as error:
                    raise unreadable(MESSAGES, error) from None
                self._arrivals.on_batch(self, batch, size, 0)
                return
            frame = decode_frame(data)
        else:
            _check_load(data, False)
            frame, more = measured(decode_frame, data)
        if isinstance(frame, Batched):
            self._arrivals.on_batch(self, frame, size, more)
        else:
            self._on_control(frame)

    def _on_control(self, frame: object) -> None:
        if isinstance(frame, Flow):
            self._arrivals.on_flow(self, frame)
        elif isinstance(frame, Listening):
            check_ports(frame.ports)
            self._on_listening(frame.ports)
        elif isinstance(frame, Welcome):
            self.allows()
            self._listeners.lifecycle.on_far_end_lost(self, frame.lost)
        elif frame is None:
            self.allows(NO_NEWS)  # of a kind that a later version may know
        else:
            raise Malformed(f"a {type(frame).__name__.lower()} frame out of place")

    def on_ping(self, payload: bytes) -> None:
        self._hear()
        now, link = self._context.now, self.link
        # One in a tick of the clock is no rate worth counting.
        first = self._answered_at != now and not link.congested
        if not first and not self.allows():
            # Of several pings only the last needs an answer (RFC 6455 section 5.5.3).
            self._unanswered = payload
            self._listeners.later.add(self)
            return
        if link.congested and (self._answered_at == now or not self._may_pong()):
            # A peer that pings and does not read: one answer per tick of the clock.
            self._unanswered = payload
            self.fall_behind()
            return
        self._answered_at = now
        link.pong(payload)

    def on_pong(self, payload: bytes) -> None:
        self._hear()
        if payload == PROBE and self._probed_at:  # what we have asked for is not counted
            self.receipts.measured(self._context.stopwatch() - self._probed_at)
            self._probed_at = 0.0
            return
        self.allows()
        if payload == CHALLENGE:
            self._listeners.lifecycle.on_challenge_met(self)
            return
        waiting = self._pings.pop(payload, None) if self._pings else None
        if waiting is not None and not waiting[1].done():
            self.receipts.measured(self._context.stopwatch() - waiting[0])
            waiting[1].set_result(self._context.stopwatch() - waiting[0])

    def on_writable(self) -> None:
        self._pongs_waiting = 0
        if self.writer.owed:
            self.writer.write_owed()
        self.catch_up()
        self.writer.wake()

    def on_closed(self, end: End) -> None:
        if self.state is State.CLOSED:
            return
        self.writer.flush()
        self.state = State.CLOSED
        for _, answer in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(end.text))
        self._listeners.lifecycle.on_lost(self, end)
        self._tell()
        self._callbacks.clear()  # the last there was to tell; who is told may hold this connection
        self.writer.close()

    # What brings no message ----------------------------------------------------------------------

    def allows(self, cost: float = 1.0) -> bool:
        """A frame that says nothing new: is it within the rate? Raises ``Malformed`` for a flood."""
        return self._allowed().frame(self._context.loop.time(), cost)

    def _allowed(self) -> Allowance:
        if self._allowance is None:
            self._allowance = Allowance(self._context.loop.time())
        return self._allowance

    def says_nothing(self, opens: int, messages: int, news: bool) -> None:
        """A frame with so many opens and messages, and with ``news`` besides. Raises ``Malformed``."""
        cost = max(0, opens - messages - OPENS) / OPENS
        if not messages and not news:
            cost += NO_NEWS
        if cost:
            self.allows(cost)

    def on_moved(self, ip: str, port: int) -> None:
        self._place_due = ip, port
        self._change()

    def _on_listening(self, ports: tuple[int, ...]) -> None:
        hello = self.endpoint.hello
        assert hello is not None
        self.allows()
        if ports != hello.ports or self._ports_due is not None:
            self._ports_due = ports
            self._change()

    def _change(self) -> None:
        """Now, or together with what else changes soon: sends have to look anew after every change."""
        if self._allowed().change(self._context.loop.time()):
            if self.take_changes():
                self._listeners.lifecycle.changed()
        else:
            self._listeners.later.add(self)

    def take_changes(self) -> bool:
        """The peer has other ports, or is somewhere else. True where that is so."""
        ports, self._ports_due = self._ports_due, None
        place, self._place_due = self._place_due, None
        hello, end = self.endpoint.hello, self.endpoint
        listens = ports is not None and hello is not None and ports != hello.ports
        moved = place is not None and place != (end.ip, end.port)
        if self.state is State.CLOSED:
            return False
        if listens and ports is not None:
            self._listeners.lifecycle.on_listening(self, ports)
        if moved and place is not None:
            self._listeners.lifecycle.on_moved(self, *place)
        return listens or moved

    def catch_up(self) -> None:
        """Answer the last one of too many pings."""
        if self._unanswered is not None and not self.link.congested:
            self.link.pong(self._unanswered)
            self._unanswered = None

    def take_hint(self, message: Message) -> str | None:
        """What a plain peer calls itself: a claim."""
        source = message.metadata.get("sourceNodeId") if message.metadata else None
        if not isinstance(source, str):
            return None
        self.endpoint.hint = printable(source, MAX_NAME)
        return self.endpoint.hint

    def _complain(self, error: Malformed) -> None:
        """A message of a plain peer that cannot be read: dropped, counted, logged once.

        Raises ``Malformed`` where there are too many of them.
        """
        self._context.counters.malformed += 1
        self.allows()
        if not self._complained:
            self._complained = True
            text = "dropped a message from %s: %s (logged once)"
            self._context.log.about(self.remote, logging.WARNING, text, self.endpoint.remote, error)


def _check_load(data: memoryview, is_json: bool) -> None:
    if overloaded(data, is_json):
        raise TooBig(f"a message {OVERLOAD}")
