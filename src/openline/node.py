"""What connections report to, and what a transport is made of underneath.

Everything here is called from below: by backends when a link is up, by connections when something
has arrived or a state has changed, by the inbox when a lane is full.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from .address import Address
from .backends.base import CONFLICT, GOING_AWAY, NORMAL, REPLACED, By, End, Environment, Link
from .backends.select import Choice
from .config import Config
from .connection.admission import Admission
from .connection.connection import Connection, State
from .connection.heartbeat import Watch
from .connection.later import Later
from .connection.writer import Outlet
from .core.frames import Batched, Flow, Malformed, encode_welcome
from .core.handshake import MAX_PORTS
from .core.origin import origin
from .core.rate import NO_NEWS
from .core.selection import Endpoint, Rank, Reject, Want, match
from .core.session import too_long
from .errors import Closed, IdentityConflict, NotConfirmed, Refused, Unreachable
from .identity import Identity
from .message import Message
from .peers.delivery import Delivery
from .peers.doubts import Doubts
from .peers.in_flight import Parcel
from .peers.limits import Limits
from .peers.mailbox import Lane
from .peers.pairing import Pairing
from .peers.requests import Pending
from .peers.rivals import bury_predecessors, poke_rivals
from .peers.table import MAX_LOST, Peer, PeerTable
from .receiving.inbox import Inbox
from .receiving.levels import FULL_LANES_PER_PEER
from .routing.dialer import Dialer
from .routing.recovery import Recovery
from .routing.router import Router
from .runtime.eager import Runner
from .runtime.home import Home
from .runtime.ratelog import RateLog
from .sending.sender import Sender
from .stats import Counters

log = logging.getLogger("openline")

# Told of messages that may not have arrived: the peer, the message, and why.
Undelivered = Callable[[Peer, Message, str], object]


class Switchboard:
    """All connections of one transport, and what happens on them."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config = config
        self.counters = Counters()
        self.home = Home()
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        self.dispatching = False
        self.dirty: list[Outlet] = []
        self.paused: dict[Connection, None] = {}
        self.random = environment.random
        self.stopwatch = environment.stopwatch
        self.undelivered: list[Undelivered] = []
        self.log = RateLog(log, self.loop.time)
        self.later = Later(self.loop, self.changed).add
        identity = Identity.of(config.identity)
        self.node_id = identity.node_id
        self.pairing = Pairing(self)
        self.limits = Limits(self)
        self.door = Admission(
            config,
            identity,
            self._link_up,
            self._lost_to,
            self.pairing.in_conflict,
            self._on_bad_handshake,
            self.pairing.is_copy,
            self.pairing.on_copy,
            self.limits.crowded,
        )
        self.unacked: dict[Peer, None] = {}
        self.recovery = Recovery(self)
        self.delivery = Delivery(self, self.recovery.stranded, environment.wall_clock)
        # Closing: goodbye to whatever still comes up. Closed: nothing is sent or taken in.
        self.closing = self.closed = False
        # Going away: what openline peers send from now on is the next process's.
        self.leaving = False
        self.backends = Choice(
            *environment.backends(config, self.door, self._on_bad_handshake), config.dial_timeout
        )
        self.table = PeerTable(self._make_peer, self.door.is_own)
        self.dialer = Dialer(self._dial, self._try_out)
        self.router = Router(self.table, self.dialer, config, self.loop, self.backends, self.log)
        self.runner = Runner(self.loop)
        self.inbox = Inbox(
            config,
            self.counters,
            self.runner,
            self.router.receives,
            self._regulate,
            self.table.forget,
            self.log,
            self.delivery.retention.weigh,
        )
        self.sender = Sender(self)
        self.doubts = Doubts(self)
        self.watch = Watch(self, environment.wall_clock, self._tick)

    def _tick(self, now: float, wall: float) -> None:
        self.delivery.tick(now, wall)
        if self.backends.files is not None:
            self.backends.files.look()

    def check_open(self) -> None:
        self.home.check()
        if self.closing:
            raise Closed("the transport is closed")

    def _make_peer(self, key: object, end: Endpoint) -> Peer:
        peer = Peer(self.sender, key, end, self.table.is_own(end))
        peer.known = peer.node_id in (self.config.allow or ())
        peer.by_name = self.config.certified
        return peer

    def _lost_to(self, node_id: str) -> list[bytes]:
        """Connections to that node that we have lost, or give up now, and that it may still hold."""
        peer = self.table.node(node_id)
        if peer is None:
            return []
        suspects = [c.endpoint.connection_id for c in peer.connections if c.state is State.SUSPECT]
        return [*peer.lost, *(connection_id for connection_id in suspects if connection_id is not None)]

    async def _dial(self, address: Address) -> Connection:
        self.counters.dials += 1
        try:
            connection = await self._open(address)
        except (Unreachable, Refused, IdentityConflict):
            self.counters.dial_failures += 1
            raise
        self._dialed(address, connection)
        return connection

    async def _try_out(self, address: Address) -> None:
        """A dial that no send waits for counts if it succeeds."""
        connection = await self._open(address)
        self.counters.dials += 1
        self._dialed(address, connection)

    async def _open(self, address: Address) -> Connection:
        link = await self.backends.dial(address)
        if isinstance(link.events, Connection):
            return link.events
        # Nobody dials again at once: who hangs up on everybody would be dialed in a tight loop.
        path = f"{link.backend} {link.endpoint.remote}"
        raise Unreachable(str(address), [(path, "died as soon as it was open")])

    def _dialed(self, address: Address, connection: Connection) -> None:
        bury_predecessors(self.table, address, connection)
        if not connection.plain:
            for peer in self.delivery.unacked():
                self.delivery.move(peer, address, connection.peer)

    def _on_bad_handshake(self, peer: str, reason: str) -> None:
        self.counters.malformed += 1
        host = peer.partition(" ")[0].rpartition(":")[0].strip("[]")
        self.log.line(origin(host), False, logging.WARNING, "turned away %s: %s", peer, reason)

    def _link_up(self, link: Link, lost: list[bytes]) -> Connection:
        end = link.endpoint
        if end.target is not None and end.target.node_id is not None:
            # That it is this node is proven by now; the address of a peer is the same however it was dialed.
            end.target = msgspec.structs.replace(end.target, node_id=None)
        connection = Connection(link, self)
        peer = self.table.add(connection)
        if connection.plain:
            connection.doubted = deque() if self.undelivered else None
        else:
            self.delivery.joined(connection)
        self.router.came(connection)
        self.inbox.peer_back(peer)
        self.limits.opened(connection)
        self.watch.add(connection)
        poke_rivals(self.table, connection)
        self.inbox.rebind()
        if link.endpoint.direction == "outbound":
            self.counters.created += 1
        else:
            self.counters.accepted += 1
        log.debug("open: %r", connection)
        if not connection.plain:
            if link.endpoint.direction == "inbound":
                link.write_binary(encode_welcome(self._lost_to(peer.node_id or "")))
            self.pairing.joined(connection, lost)
        for address in self.dialer.waiting():
            want = self.router.want_now(address)
            if link.endpoint.direction == "inbound" and self.table.plan(want).chosen is connection:
                self.dialer.settle(address, connection)
        for lane in peer.lanes.values():
            if lane.paused:
                self._regulate(peer, lane)
        if self.closing:
            self.loop.call_soon(link.close, GOING_AWAY, "closing")
        return connection

    def on_messages(self, connection: Connection, messages: list[Message], size: int, more: int) -> None:
        counters = self.counters
        counters.messages_received += len(messages)
        counters.bytes_received += size
        if self.closed:
            counters.undelivered += len(messages)
            return
        connection.take_hint(messages[0])
        self.dispatching = True
        try:
            peer = connection.peer
            if peer.requests.out or connection.endpoint.ip in self.sender.asked:
                messages = [m for m in messages if not self._claim(connection, m)]
            self.inbox.feed(peer, messages, size + more)
        finally:
            self.dispatching = False
            if self.dirty:
                self._flush_dirty()

    def on_batch(self, connection: Connection, batch: Batched, size: int, more: int) -> None:
        """A frame of an openline peer's session; decoded, it takes so many bytes ``more``."""
        self.dispatching = True
        try:
            messages, opens = batch.messages, batch.opens
            news = bool(batch.acks or opens) and self.delivery.on_notes(connection, batch)
            if (not messages and not news) or (opens and len(opens) > len(messages)):
                connection.says_nothing(len(opens), len(messages), news)
            if messages and not (self.leaving and self._refuses(connection)):
                counters = self.counters
                counters.messages_received += len(messages)
                counters.bytes_received += size
                messages = self.delivery.take(connection, messages)
                peer = connection.peer
                if peer.requests.out:
                    self._hand_out(peer, messages, size + more)
                else:
                    self.inbox.feed(peer, messages, size + more)
        finally:
            self.dispatching = False
            if self.dirty:
                self._flush_dirty()
        if connection.acks is not None:
            self.delivery.owe(connection)

    def _hand_out(self, peer: Peer, messages: list[Message], size: int) -> None:
        """Answers to those who wait for them, everything else to the inbox, and all of it in order."""
        each = size // len(messages) if messages else 0
        run: list[Message] = []
        for message in messages:
            if not peer.requests.awaits(message):
                run.append(message)
                continue
            if run:
                self.inbox.feed(peer, run, each * len(run))
                run = []
            peer.requests.claim(message, False, self.now)
        if run:
            self.inbox.feed(peer, run, each * len(run))

    def _refuses(self, connection: Connection) -> bool:
        """While closing: what is not taken in is not acknowledged, and goes to whoever comes next.

        As long as handlers wait for answers of this peer, everything of it is taken in.
        """
        if not connection.peer.requests.out:
            connection.positions = None
        return connection.positions is None

    def divert(self, connection: Outlet, parcel: Parcel) -> bool:
        return self.delivery.divert(connection, parcel)

    def on_far_end_lost(self, connection: Connection, lost: list[bytes]) -> None:
        self.pairing.far_end_lost(connection.peer, lost)

    def on_second_process(self, connection: Connection) -> None:
        self.pairing.second_process(connection)

    def _claim(self, connection: Connection, message: Message) -> bool:
        """Is it the answer to a request? A plain peer may also send that over another socket."""
        if connection.peer.requests.claim(message, connection.plain, self.now):
            return True
        if not connection.plain:
            return False
        return self.sender.asked.claim(
            connection.endpoint.ip, message, lambda pending: self._may_be(connection, pending)
        )

    def _may_be(self, connection: Connection, pending: Pending) -> bool:
        """Would a send to where the request went be allowed on this plain connection?"""
        asked = pending.connection
        if asked is None:
            return False
        address = Address(asked.endpoint.ip, asked.endpoint.port)
        want = Want(address, (asked.endpoint.ip,))
        ends = [candidate.endpoint for candidate in self.table.candidates(want)]
        verdict = match(want, connection.endpoint, ends)
        # Some answer over a socket of their own although they were dialed.
        return isinstance(verdict, Rank) or verdict in (Reject.DIAL_FIRST, Reject.PLAIN_NOT_THERE)

    def _flush_dirty(self) -> None:
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.flush()

    def on_flow(self, connection: Connection, flow: Flow) -> None:
        """The peer's inbox for a stream is full, or has room again."""
        peer = connection.peer
        if too_long(flow.stream_id):
            raise Malformed("the name of a stopped stream is too long")
        session = connection.session
        if session is None or flow.stream_id not in session.out:
            connection.allows(NO_NEWS)
            return  # nothing goes out on that stream
        # The peer says it over all its connections; what counts is what it has said over the carrier.
        halts = connection.halts = connection.halts or {}
        before = halts.get(flow.stream_id)
        if not flow.paused:
            halts.pop(flow.stream_id, None)
        elif len(halts) < self.config.max_streams or flow.stream_id in halts:
            halts[flow.stream_id] = flow.answers
        if halts.get(flow.stream_id) is before:
            connection.allows(NO_NEWS)
        elif connection is peer.carrier:
            peer.heed(halts, flow.stream_id)

    def on_listening(self, connection: Connection, ports: tuple[int, ...]) -> None:
        """The peer listens on other ports than its hello said."""
        hello = connection.endpoint.hello
        assert hello is not None
        connection.endpoint.hello = msgspec.structs.replace(hello, ports=ports)
        self.router.told(connection)

    def on_moved(self, connection: Connection, ip: str, port: int) -> None:
        """The peer goes on from another address: a laptop in another network, or a NAT that forgot."""
        before = connection.endpoint.remote
        self.table.moved(connection, ip, port)
        self.counters.migrations += 1
        self.log.about(connection.peer, logging.INFO, "moved: %r was at %s", connection, before)
        self.router.told(connection)

    def on_state(self, connection: Connection) -> None:
        self.changed()
        peer = connection.peer
        if connection.plain:
            if connection.state is State.LIVE:
                self._retire_if_replaced(connection)
        elif connection.state is State.LIVE:
            self.pairing.settle(peer)
        elif connection is peer.carrier:
            if connection.state is State.DRAINING:
                peer.carrier = None
                self.delivery.settle(peer)
            self.delivery.check(peer)

    def _retire_if_replaced(self, connection: Connection) -> None:
        """A plain one was suspect, and is not; if we dialed a replacement meanwhile, one is enough."""
        if connection.endpoint.target is None:
            return
        others = [c for c in connection.peer.connections if c is not connection and c.endpoint.target]
        if any(other.state is State.LIVE for other in others):
            connection.set_state(State.DRAINING)
            connection.link.close(NORMAL, "replaced")

    def on_lost(self, connection: Connection, end: End) -> None:
        self.counters.closed += 1
        if end.by is By.BAD_INPUT:
            self.counters.malformed += 1
            self.log.about(connection.peer, logging.WARNING, "closed %r: %s", connection, end.text)
        else:
            log.debug("gone: %r: %s", connection, end.text)
        peer = connection.peer
        self.limits.closed(connection)
        self.router.went(connection)
        self.table.remove(connection)
        self.watch.remove(connection)
        self.doubts.forget(connection)
        self.inbox.rebind()
        if not connection.plain:
            self._session_lost(connection, end)
        elif not end.clean:
            self.counters.in_doubt += connection.tx - connection.tx_heard
            doubted = [message for message, _ in connection.doubted or ()]
            self.report(peer, doubted, f"the connection was lost: {end.text}")
        if connection.plain:
            error = NotConfirmed(
                f"the connection to {peer.address} was lost before the answer came: {end.text}"
            )
            peer.requests.fail(connection, error)
        if not peer.connections:
            self.inbox.peer_gone(peer)
            for stream_id in list(peer.stopped):
                peer.go_on(stream_id)

    def _session_lost(self, connection: Connection, end: End) -> None:
        peer, number = connection.peer, connection.endpoint.connection_id
        if end.by is By.PEER:
            self._told_goodbye(connection, end.code)
        elif end.by is not By.US and number is not None:
            peer.lost = (*peer.lost, number)[-MAX_LOST:]
        self.delivery.lost(connection)
        if peer.witness is connection:
            peer.witness = None
        self.pairing.orphaned(peer)

    def _told_goodbye(self, connection: Connection, code: int | None) -> None:
        if code == GOING_AWAY:
            self.recovery.said_goodbye(connection.peer)
        elif code == REPLACED:
            self.pairing.replaced(connection)
        elif code == CONFLICT:
            self.pairing.told_of_conflict(connection)

    def doubt(self, peer: Peer, messages: Iterable[Message], why: str) -> None:
        """Nothing will ever confirm these."""
        messages = list(messages)
        self.counters.in_doubt += len(messages)
        self.report(peer, messages, why)

    def report(self, peer: Peer, messages: Iterable[Message], why: str) -> None:
        for message in messages:
            for handler in self.undelivered:
                try:
                    handler(peer, message, why)
                except Exception:
                    self.counters.handler_errors += 1
                    text = "on_undelivered handler %r failed"
                    self.log.about(peer, logging.ERROR, text, handler, exc_info=True)

    def changed(self) -> None:
        self.table.generation += 1
        self.inbox.rebind()

    def evict(self, connection: Connection) -> None:
        """It failed when it was used: no send shall choose it again; its last bytes are still read."""
        self.counters.evictions += 1
        self.log.about(connection.peer, logging.INFO, "evicted: %r", connection)
        connection.set_state(State.DRAINING)
        self.router.went(connection)
        self.table.remove(connection)

    def _regulate(self, peer: Peer, lane: Lane | None) -> None:
        """A lane, or the peer as a whole, has become full, or roomy: tell the sender.

        An openline peer is told per stream. A plain peer, and an openline peer that fills very
        many streams or does not listen, is stopped by not reading its connections.
        """
        if lane is not None:
            self._tell_sender(peer, lane)
        unruly = peer.plain or peer.held > FULL_LANES_PER_PEER * self.config.inbox_bytes
        stop = peer.overfull or peer.unread or any(unruly or full.overrun for full in peer.full)
        for connection in peer.connections:
            if stop:
                connection.pause_reading()
            else:
                connection.resume_reading()

    def _tell_sender(self, peer: Peer, lane: Lane) -> None:
        if lane.paused:
            peer.full.add(lane)
        else:
            peer.full.discard(lane)
        lane.answers = lane.paused and bool(peer.requests.out)
        for connection in peer.connections:
            if not connection.plain:
                connection.tell_flow(lane.stream_id, lane.paused, lane.answers)

    def asks(self, peer: Peer) -> None:
        """A request goes out to a peer that was told to stop: its answer is welcome all the same."""
        for lane in list(peer.full):
            if not lane.answers:
                self._tell_sender(peer, lane)

    def announce(self, ports: tuple[int, ...]) -> None:
        """We listen on these now: for the next hellos, and for peers whose hello came before."""
        self.door.ports = ports = ports[:MAX_PORTS]
        for connection in self.table.connections:
            if not connection.plain:
                connection.tell_ports(ports)
