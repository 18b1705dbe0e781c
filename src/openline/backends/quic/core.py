"""qh3's connection as a ``Core``: the handshake in Python, everything else compiled.

qh3 (2.1) has two halves: a compiled one, which is all that a connection needs once TLS is done, and one in
Python with TLS. That one goes as soon as nothing is wanted of it any more: it takes more memory than all
the rest. Hence the dependency is pinned to 2.1, for what is private there: ``_core`` is the compiled half,
``_drain_core`` hands over what it has received, ``_tls`` and ``_create_tls`` keep each other alive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from qh3._hazmat import QuicConnectionCore
from qh3.quic import events as qh3events
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.tls import SessionTicket

from ...core.doubt import Sending
from ...core.portion import FIRST, TARGET_QUIC, Portion
from ..sockets import forget_frames
from .datagram_size import PeerLimits, apply_smallest, limits_of, size_of
from .parts import Addr, Broken, CoreEvents, TakeData

log = logging.getLogger("openline")

# RFC 9000 sections 19.6 and 20.1: TLS's unexpected_message, in a CRYPTO frame.
_CRYPTO_FRAME, _UNEXPECTED = 0x06, 0x0100 + 10
# An honest client sends 3 kB, some servers 20 kB of certificates; qh3 would collect 16 MiB.
MAX_HANDSHAKE = 128 * 1024
# Datagrams that leave at a time: as many as the system takes in one call, and others get a turn.
BURST = 64
# What a datagram takes besides data of streams, at least, with one frame in it.
PACKET_BYTES = 48
# An honest peer sends so much twice, where it took for lost what was late: a 32nd.
SENT_TWICE = 5
# So much may wait unnoticed.
MUCH = 64 * 1024
# Datagrams that may come with nothing sent in between that is itself acknowledged: qh3 keeps 300 bytes for
# each acknowledgement that left alone, until one of this side's packets is acknowledged.
ALONE = 8
# So many bytes it keeps for each; so many of its packets may wait for the far end's acknowledgement, which
# honest peers send within a round trip; and after so many received ones they are counted.
PACKET_KEPT = 300
MAX_UNACKNOWLEDGED = 16 * 1024
COUNT_EVERY = 1024
# What its timer is called when an acknowledgement is due.
_ACK_DUE = "ack_application"
# Positions in what qh3 reports of received datagrams, and in what it says of its active path.
_AUTHENTIC, _PEER = 2, 2


class Handshake(QuicConnection):
    """qh3's connection in Python, which can be let go."""

    _bridge: Any = None

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        """qh3's TLS, its context and the connection hold each other. After a retry packet there is
        another one."""
        before, bridge = self._bridge, super()._create_tls(remote_source_cid)
        if before is not None:
            vars(before).clear()
        bridge.receive_crypto = partial(_receive_crypto, bridge.receive_crypto)  # type: ignore[method-assign]
        self._bridge = bridge
        return bridge

    def tell_of_tickets(self, handler: Callable[[SessionTicket], None]) -> None:
        """Before it connects."""
        self._session_ticket_handler = handler

    def let_go(self) -> None:
        self._session_ticket_handler = self._session_ticket_fetcher = None
        if self._bridge is not None:
            vars(self._bridge).clear()
        self._bridge = self._tls = None

    def take_event(self, event: tuple[Any, ...]) -> None:
        """Handle one event that has been taken from the compiled half."""
        core = self._core
        self._core = _Before(core, event)  # type: ignore[assignment]
        try:
            self._drain_core()
        finally:
            self._core = core


def _receive_crypto(receive: Callable[..., None], *data: Any, **where: Any) -> None:
    """Some of qh3's errors are kept by the very call that raises them, and keep all calls up to the loop."""
    try:
        receive(*data, **where)
    except BaseException as error:
        forget_frames(error)
        raise


class _Before:
    """A core whose next event is this one, and then none for now."""

    def __init__(self, core: Any, event: tuple[Any, ...]) -> None:
        self._rest = [event]
        self._real = core

    def next_event(self) -> Any:
        return self._rest.pop() if self._rest else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def broken(error: BaseException) -> Broken:
    """Hostile bytes may make qh3 panic, which is no ``Exception``. Raises what is no failure of qh3's."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | asyncio.CancelledError):
        raise error
    reason = error.reason_phrase if isinstance(error, QuicConnectionError) else f"{error!r}"
    return Broken(f"qh3 gives up: {reason}")


class Qh3Core:
    """A server's connection; that of a dial is in ``client_core``."""

    burst = BURST

    __slots__ = (
        "_closed",
        "_core",
        "_early",
        "_end",
        "_entered",
        "_heard",
        "_limits",
        "_portion",
        "_quic",
        "_terminated",
        "_unacknowledged",
        "_uncounted",
        "_unhanded",
        "established",
        "holding",
        "idle_timeout",
        "kept",
        "peer_idle_timeout",
        "resting",
    )

    def __init__(self, quic: Handshake) -> None:
        self.established = self.holding = self.resting = False
        self.kept = 0
        self.idle_timeout: float = quic.configuration.idle_timeout
        self.peer_idle_timeout: float | None = None
        # Until nothing is wanted of TLS any more; and the compiled half, which a retry replaces.
        self._quic: Handshake | None = quic
        self._core: QuicConnectionCore | None = None
        # Closed by this side, or found to have ended; and how, until that has been told.
        self._closed = False
        self._end: tuple[int, bool, str] | None = None
        # Nothing has to be answered any more, which has still to be told.
        self._terminated = False
        # Bytes that have come in a handshake; and then, until the far end is in.
        self._early = 0
        self._entered = False
        # Datagrams that have come since this side has sent what the far end acknowledges.
        self._heard = 0
        # Datagrams that have come since this side's packets were counted, and how many those were.
        self._uncounted = self._unacknowledged = 0
        # Bytes of streams that have come and are not handed over, about.
        self._unhanded = 0
        self._portion: Portion | None = None
        self._limits: PeerLimits | None = None

    # In ------------------------------------------------------------------------------------------

    def connect(self, addr: Addr, now: float) -> None:
        assert self._quic is not None
        self._quic.connect(addr, now)
        self._core = self._quic._core

    def receive(self, batch: list[bytes], addr: Addr, now: float) -> bool:
        size = len(batch[0]) if len(batch) == 1 else sum(map(len, batch))
        if not self._entered:
            self._early += size
        try:
            if not self.established:
                self._receive_handshake(batch, addr, now)
                return True
            assert self._core is not None
            self._heard += len(batch)
            self._uncounted += len(batch)
            self._unhanded += size - PACKET_BYTES * len(batch)
            return self._core.receive_many_datagrams(batch, addr, now)[_AUTHENTIC] > 0
        except BaseException as error:
            raise broken(error) from None

    def _receive_handshake(self, batch: list[bytes], addr: Addr, now: float) -> None:
        if self._early > MAX_HANDSHAKE:
            raise Broken("qh3 gives up: too much before the handshake is over")
        assert self._quic is not None
        self._quic.receive_many_datagrams(batch, addr, now)
        self._core = self._quic._core

    def entered(self) -> None:
        self._entered, self._early = True, 0
        self._weigh()

    def deliver(self, take: TakeData, events: CoreEvents) -> None:
        if self.holding or self.resting:
            return
        if not self.established:
            self._deliver_handshake(take, events)
        if self.established:
            self._deliver_rest(take, events)
        if self._end is not None and not (self.holding or self.resting):
            end, self._end = self._end, None
            events.on_end(*end)
        if self._terminated:
            self._terminated = False
            events.on_forgotten()

    def _deliver_rest(self, take: TakeData, events: CoreEvents) -> None:
        core = self._core
        began, left = time.perf_counter(), FIRST if self._portion is None else self._portion.size
        quiet = True
        while not self.holding and core is not None and core is self._core:
            event = core.next_event()
            if event is None:
                break
            if event[0] == "stream_data":
                data = event[2]
                size = len(data)
                left -= size
                quiet = False
                self._unhanded -= size + (size >> SENT_TWICE)
                take(event[1], data, event[3])
                if left < 0:
                    self._rest(time.perf_counter() - began)
                    break
            else:
                self._on_event(core, event, take, events)
        if self._heard >= ALONE:
            self.ping(0)
        if quiet:
            self._acknowledge()
        if self._uncounted >= COUNT_EVERY:
            self._count_unacknowledged()
        if self._unhanded >= MUCH or self.kept or not self._entered:
            self._weigh()
        elif self._unhanded < 0:
            self._unhanded = 0

    def _acknowledge(self) -> None:
        """Nothing has come that would be answered, so nothing that the acknowledgement could ride on: it
        leaves with the next ``poll``, where qh3 would wait a millisecond for company. An idle connection
        that is pinged needs no timer then (RFC 9000 section 13.2.1 lets it be sooner, not later)."""
        core = self._core
        timer = core.get_timer() if core is not None else None
        if timer is not None and timer[0] == _ACK_DUE:
            assert core is not None
            core.handle_timer(timer[1])

    def _count_unacknowledged(self) -> None:
        """What the far end leaves unacknowledged grows here with all that it sends. Raises ``Broken``."""
        core = self._core
        self._uncounted = 0
        self._unacknowledged = len(core.outstanding_application_packets) if core is not None else 0
        if self._unacknowledged > MAX_UNACKNOWLEDGED:
            raise Broken(f"it leaves {self._unacknowledged} packets unacknowledged, and goes on sending")
        self._weigh()

    def _rest(self, seconds: float) -> None:
        """There is more than one turn's share: the rest waits in the core, whose windows bound it, and
        datagrams are taken in all the same, so that those of others behind them are."""
        self.resting = True
        if self._portion is None:
            self._portion = Portion(TARGET_QUIC)
        self._portion.took(seconds)

    def _weigh(self) -> None:
        """The core keeps what something in front of it is missing for, and does not tell."""
        if self._unhanded < MUCH:
            self._unhanded = max(0, self._unhanded)
            behind = 0
        else:
            behind = self.kept if self.resting else self._unhanded
        if self._unacknowledged >= COUNT_EVERY:
            behind += PACKET_KEPT * self._unacknowledged
        self.kept = behind if self._entered else self._early

    # What comes out of qh3 -------------------------------------------------------------------------

    def _deliver_handshake(self, take: TakeData, events: CoreEvents) -> None:
        """What the half in Python has come to, up to the end of the handshake, or its own."""
        quic = self._quic
        waiting = quic._events if quic is not None else ()
        while waiting:
            event = waiting.popleft()
            if isinstance(event, qh3events.HandshakeCompleted):
                self._on_handshake(event)
                events.on_handshake()
            elif isinstance(event, qh3events.StreamDataReceived):
                take(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, qh3events.StreamReset | qh3events.StopSendingReceived):
                take(event.stream_id, b"", True)
            elif isinstance(event, qh3events.ConnectionIdIssued | qh3events.ConnectionIdRetired):
                events.on_id(event.connection_id, isinstance(event, qh3events.ConnectionIdIssued))
            elif isinstance(event, qh3events.PingAcknowledged):
                events.on_pong(event.uid)
            elif isinstance(event, qh3events.ConnectionTerminated):
                self._terminated = True
        self._look_for_the_end(quic)

    def _look_for_the_end(self, quic: Handshake | None) -> None:
        ended = quic._close_event if quic is not None else None
        if ended is not None:
            self._ends(ended.error_code, ended.frame_type, ended.reason_phrase)

    def _on_handshake(self, event: qh3events.HandshakeCompleted) -> None:
        quic = self._quic
        assert quic is not None
        self.established, self._early = True, 0
        theirs = quic._applied_transport_parameters
        if theirs is not None:
            self._limits = limits_of(theirs)
            if theirs.max_idle_timeout:
                self.peer_idle_timeout = theirs.max_idle_timeout / 1000
        self._done_with_tls()

    def _done_with_tls(self) -> None:
        self._let_go_of_tls()

    def _let_go_of_tls(self) -> None:
        if self._quic is not None:
            self._quic.let_go()
        self._quic = None

    def _on_event(
        self, core: QuicConnectionCore, event: tuple[Any, ...], take: TakeData, events: CoreEvents
    ) -> None:
        kind = event[0]
        if kind == "ping_acknowledged":
            events.on_pong(event[1])
        elif kind in ("stream_reset", "stop_sending"):
            take(event[1], b"", True)
        elif kind == "handshake_done":
            core.handshake_confirmed()
        elif kind in ("connection_id_issued", "connection_id_retired"):
            events.on_id(event[1], kind == "connection_id_issued")
        elif kind == "peer_closed":
            self._ends(event[2], event[3], event[4].decode(errors="replace"))
        elif kind == "protocol_error":
            self._ends(event[1], event[2], event[3])
        elif kind == "connection_terminated":
            self._ends(event[1], event[2], event[3].decode(errors="replace"))
            self._terminated = True
        elif kind == "crypto_data":
            self._on_crypto(core, event)

    def _on_crypto(self, core: QuicConnectionCore, event: tuple[Any, ...]) -> None:
        """The far end says something in TLS after the handshake. A client may not (RFC 9001 section 6)."""
        reason = "TLS is over"
        core.close(_UNEXPECTED, _CRYPTO_FRAME, reason.encode())
        self._ends(_UNEXPECTED, _CRYPTO_FRAME, reason)

    def _ends(self, code: int, frame: int | None, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._end = code, frame is None, reason

    # Out -----------------------------------------------------------------------------------------

    def poll(self, now: float) -> list[tuple[Any, ...]]:
        core = self._core
        found: list[tuple[Any, ...]] = []
        if core is None:
            return found
        poll = core.poll_transmit
        try:
            while (datagram := poll(now)) is not None:
                found.append(datagram)
                if len(found) == BURST:
                    break
        except RuntimeError as error:
            # What was made for larger datagrams than the path takes by now does not always fit in smaller
            # ones, and then nothing leaves any more.
            raise broken(error) from None
        return found

    @property
    def timer(self) -> float | None:
        core = self._core
        timer = core.get_timer() if core is not None else None
        return None if timer is None else timer[1]

    def handle_timer(self, now: float) -> None:
        try:
            if self.established:
                assert self._core is not None
                self._core.handle_timer(now)
            elif self._quic is not None:
                self._quic.handle_timer(now)
        except BaseException as error:
            raise broken(error) from None

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        try:
            if self.established and self._core is not None:
                self._heard = 0
                self._core.send_stream(stream, data)
            elif self._quic is not None:
                self._quic.send_stream_data(stream, data)
        except (QuicConnectionError, ValueError, RuntimeError) as error:
            # It is over, which its next event tells.
            log.debug("cannot write: %s", error)

    def ping(self, uid: int) -> None:
        """Also now and then where this side only listens (RFC 9000 section 13.2.4)."""
        self._heard = 0
        if self._core is not None:
            self._ask(self._core.send_ping, uid)

    def change_id(self) -> None:
        if self._core is not None:
            self._ask(self._core.change_connection_id)

    def close(self, code: int, reason: str) -> None:
        if self._core is not None and not self._closed:
            self._closed = True
            self._ask(self._core.close, code, None, reason.encode())

    def _ask(self, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except RuntimeError as error:
            log.debug("qh3 will not: %s", error)

    def let_go(self) -> None:
        self._let_go_of_tls()
        self._core = None

    # What is known of it ---------------------------------------------------------------------------

    def waiting(self, stream: int | None = None) -> int:
        return 0 if self._core is None else self._core.get_send_buffer_size(stream)

    def sending(self, stream: int) -> Sending:
        core = self._core
        if core is None:
            return Sending(0, 0, 0.0)
        waiting = core.get_send_buffer_size(stream)
        return Sending(-waiting, core.loss_total + core.pto_total, core.smoothed_rtt or 0.0)

    @property
    def stream_limit(self) -> int:
        return 0 if self._core is None else self._core.stream_limits[1]

    @property
    def unanswered(self) -> int:
        return 0 if self._core is None else self._core.pto_count

    @property
    def place(self) -> Addr | None:
        if self._core is None:
            return None
        path: tuple[Any, ...] = self._core.active_path
        place: Addr = path[_PEER]
        return place

    @property
    def over(self) -> bool:
        return self._core is None or self._core.state in ("draining", "terminated")

    @property
    def datagram_size(self) -> int:
        return 0 if self._core is None else size_of(self._core)

    def shrink(self) -> bool:
        if self._core is None or self._limits is None:
            return False
        return apply_smallest(self._core, self._limits)
