"""One live connection: a backend's link and the core state that belongs to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from enum import Enum, Flag, auto

from ..backends.base import End, Link
from ..core.bulk import MEASURED, OVERLOAD, measured, overloaded
from ..core.collision import Claim, rank_of
from ..core.frames import Batched, Flow, Listening, Malformed, TooBig, Welcome, decode_frame, decode_plain
from ..core.handshake import CERTIFIED, MAX_NAME, check_ports
from ..core.liveness import Liveness
from ..core.rate import NO_NEWS, OPENS, Allowance
from ..core.selection import Endpoint, Quality
from ..core.session import MAX_STREAM_NAME, too_long
from ..core.text import printable
from ..message import Message, Receipts, StreamId
from .writer import Hub, Outlet

# Payloads that tell the answer to our liveness ping from a pong that nobody asked for.
PROBE = b"probe"
UNASKED = b"alive"
# Pongs written to a peer whose link is full, until it has taken what is in front of them. At one per
# tick of the clock that is a minute at the least.
MAX_PONGS_WAITING = 256
# Asked of a connection whose process seems to have been replaced by another with the same key.
CHALLENGE = b"still you?"

_numbers = itertools.count(1)


class Pause(Flag):
    """Why a connection is not read."""

    NO = 0
    INBOX = auto()  # what has come fills the inbox
    UNREAD = auto()  # the peer does not read what it is owed


class State(Enum):
    """LIVE → SUSPECT ⇄ LIVE → DRAINING → CLOSED; never back from the last two."""

    LIVE = "live"
    SUSPECT = "suspect"
    DRAINING = "draining"
    CLOSED = "closed"


class Connection(Outlet):
    """Between a peer and a link."""

    __slots__ = (
        "_allowance",
        "_answered_at",
        "_callbacks",
        "_complained",
        "_pauses",
        "_pings",
        "_place_due",
        "_poked_at",
        "_pongs_waiting",
        "_ports_due",
        "_probed_at",
        "_unanswered",
        "double",
        "endpoint",
        "halts",
        "heard",
        "liveness",
        "number",
        "reading_paused",
        "receipts",
        "set_aside",
        "state",
        "stuck",
    )

    def __init__(self, link: Link, hub: Hub) -> None:
        super().__init__(link, hub)
        self.number = next(_numbers)
        self.endpoint: Endpoint = link.endpoint
        self.state = State.LIVE
        accepted = link.endpoint.direction == "inbound"
        self.liveness = Liveness(hub.config.ping_interval, hub.loop.time(), accepted=accepted)
        # The last inbound unit, to the tick of the liveness clock.
        self.heard = hub.loop.time()
        self.reading_paused = False
        self._pauses = Pause.NO
        self.receipts = Receipts(not self.plain, link.backend, link.endpoint.direction)
        # Streams that the peer has stopped over this connection; True where answers pass all the same.
        self.halts: dict[StreamId, bool] | None = None
        # Not used any more, because another process with that key has come.
        self.set_aside = False
        # Another one that cannot be of the same process, if the process behind this one is still there.
        self.double: Connection | None = None
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
        initiator = self._hub.node_id if outbound else hello.node_id
        certified = end.certified if outbound else CERTIFIED in hello.caps
        return Claim(rank_of(self.link.backend, end.secure), initiator, hello.dial, certified)

    @property
    def usable(self) -> bool:
        """Good enough to be taken without looking at any other."""
        return self.state is State.LIVE and not self.link.congested

    @property
    def known(self) -> bool:
        return self.peer.known

    # Liveness ------------------------------------------------------------------------------------

    def set_state(self, state: State) -> None:
        final = self.state is State.CLOSED or (self.state is State.DRAINING and state is not State.CLOSED)
        if self.state is not state and not final:
            self.state = state
            self.endpoint.doubtful = state is not State.LIVE
            self._hub.on_state(self)
            self._tell()

    def when_changed(self, callback: Callable[[], object]) -> None:
        """Call back on every change of state; closed is the last."""
        self._callbacks.append(callback)

    def _tell(self) -> None:
        self._wake()
        for callback in self._callbacks:
            callback()

    def probe(self) -> None:
        """The liveness ping; its pong also tells the round trip."""
        self._probed_at = self._hub.stopwatch()
        self.link.ping(PROBE)

    def challenge(self) -> None:
        """Is the process behind this connection still there? A pong to this says yes."""
        if not self.link.closing:
            self.link.ping(CHALLENGE)

    def poke(self) -> None:
        """If nobody is there any more, let that come out soon. Others cause it, so once per tick."""
        if not self.link.closing and self._poked_at != self._hub.now:
            self._poked_at = self._hub.now
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
        answer: asyncio.Future[float] = self._hub.loop.create_future()
        self._pings[payload] = (self._hub.stopwatch(), answer)
        try:
            self.flush()
            self.link.ping(payload)
            return await answer
        finally:
            self._pings.pop(payload, None)

    def pause_reading(self, why: Pause = Pause.INBOX) -> None:
        self._pauses |= why
        if not self.reading_paused:
            self.reading_paused = True
            self._hub.paused[self] = None
            self.link.pause_reading()

    def resume_reading(self, why: Pause = Pause.INBOX) -> None:
        """That reason is gone; it is read again where there is no other."""
        self._pauses &= ~why
        if self.reading_paused and not self._pauses:
            self.reading_paused = False
            self._hub.paused.pop(self, None)
            self.liveness.hold(self._hub.loop.time())
            self.link.resume_reading()

    def _fall_behind(self) -> None:
        self._hub.watch.owes(self)

    @property
    def in_arrears(self) -> bool:
        """Is the peer owed something that cannot be written?"""
        return bool(self.owed) or self._unanswered is not None

    # From the link -------------------------------------------------------------------------------

    def _hear(self) -> None:
        self.heard = self._hub.now
        self.tx_heard = self.tx
        if self.doubted:
            self.doubted.clear()
            self._doubted_bytes = 0

    def on_alive(self) -> None:
        self.heard = self._hub.now
        if self.state is State.SUSPECT:
            self._hub.watch.trust(self)

    def on_silent(self) -> None:
        if self.state is State.LIVE:
            self._hub.watch.doubt(self)

    # What brings no message ----------------------------------------------------------------------

    def allows(self, cost: float = 1.0) -> bool:
        """A frame that says nothing new: is it within the rate? Raises ``Malformed`` for a flood."""
        return self._allowed().frame(self._hub.loop.time(), cost)

    def _allowed(self) -> Allowance:
        if self._allowance is None:
            self._allowance = Allowance(self._hub.loop.time())
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
        if self._allowed().change(self._hub.loop.time()):
            if self.take_changes():
                self._hub.changed()
        else:
            self._hub.later(self)

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
            self._hub.on_listening(self, ports)
        if moved and place is not None:
            self._hub.on_moved(self, *place)
        return listens or moved

    def catch_up(self) -> None:
        """Answer the last one of too many pings."""
        if self._unanswered is not None and not self.link.congested:
            self.link.pong(self._unanswered)
            self._unanswered = None

    def on_text(self, data: memoryview) -> None:
        if not self.plain:
            raise Malformed("a text between openline peers")
        self._hear()
        limit = self._hub.config.max_message_size
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
        self._hub.on_messages(self, [message], len(data), more)

    def on_binary(self, data: memoryview) -> None:
        if self.plain:
            self.on_text(data)  # some clients send their JSON as binary
            return
        self.heard = self._hub.now
        self.tx_heard = self.tx
        size, more = len(data), 0
        if size <= MEASURED:
            frame = decode_frame(data)
        else:
            _check_load(data, False)
            frame, more = measured(decode_frame, data)
        if isinstance(frame, Batched):
            self._hub.on_batch(self, frame, size, more)
        else:
            self._on_control(frame)

    def _on_control(self, frame: object) -> None:
        if isinstance(frame, Flow):
            self._hub.on_flow(self, frame)
        elif isinstance(frame, Listening):
            check_ports(frame.ports)
            self._on_listening(frame.ports)
        elif isinstance(frame, Welcome):
            self.allows()
            self._hub.on_far_end_lost(self, frame.lost)
        elif frame is None:
            self.allows(NO_NEWS)  # of a kind that a later version may know
        else:
            raise Malformed(f"a {type(frame).__name__.lower()} frame out of place")

    def on_ping(self, payload: bytes) -> None:
        self._hear()
        if not self.allows():
            # Of several pings only the last needs an answer (RFC 6455 section 5.5.3).
            self._unanswered = payload
            self._hub.later(self)
            return
        if self.link.congested and (self._answered_at == self._hub.now or not self._may_pong()):
            # A peer that pings and does not read: one answer per tick of the clock.
            self._unanswered = payload
            self._fall_behind()
            return
        self._answered_at = self._hub.now
        self.link.pong(payload)

    def on_pong(self, payload: bytes) -> None:
        self._hear()
        self.allows()
        if payload == PROBE and self._probed_at:
            self._measured(self._hub.stopwatch() - self._probed_at)
            self._probed_at = 0.0
            return
        if payload == CHALLENGE:
            self._hub.on_second_process(self)
            return
        waiting = self._pings.pop(payload, None) if self._pings else None
        if waiting is not None and not waiting[1].done():
            self._measured(self._hub.stopwatch() - waiting[0])
            waiting[1].set_result(self._hub.stopwatch() - waiting[0])

    def _measured(self, rtt: float) -> None:
        self.receipts.measured(rtt)

    def on_writable(self) -> None:
        self._pongs_waiting = 0
        if self.owed:
            self.pay()
        self.catch_up()
        self._wake()

    def on_closed(self, end: End) -> None:
        if self.state is State.CLOSED:
            return
        self.flush()
        self.state = State.CLOSED
        for _, answer in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(end.text))
        self._hub.on_lost(self, end)
        self._tell()
        self._callbacks.clear()  # the last there was to tell; who is told may hold this connection

    def take_hint(self, message: Message) -> None:
        """What a plain peer calls itself: a claim."""
        source = message.metadata.get("sourceNodeId") if message.metadata else None
        if isinstance(source, str):
            self.endpoint.hint = self.peer.name = printable(source, MAX_NAME)

    def _complain(self, error: Malformed) -> None:
        """A message of a plain peer that cannot be read: dropped, counted, logged once.

        Raises ``Malformed`` where there are too many of them.
        """
        self._hub.counters.malformed += 1
        self.allows()
        if not self._complained:
            self._complained = True
            text = "dropped a message from %s: %s (logged once)"
            self._hub.log.about(self.peer, logging.WARNING, text, self.endpoint.remote, error)


def _check_load(data: memoryview, is_json: bool) -> None:
    if overloaded(data, is_json):
        raise TooBig(f"a message {OVERLOAD}")
