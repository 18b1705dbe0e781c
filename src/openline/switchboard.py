"""What connections report to, and what a transport is made of underneath.

Everything here is called from below: by backends when a link is up, by connections when something
has arrived or a state has changed, by the inbox when a lane is full.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from .address import Address
from .backends.base import Link, LinkEvents
from .backends.sockets import Opener
from .backends.websocket import WebSocketBackend
from .backends.wslink import GOING_AWAY, NORMAL
from .config import Config
from .connection import Connection, State
from .core.frames import Flow, encode_flow, encode_listening
from .core.handshake import MAX_PORTS, Hello
from .core.selection import Rank, Reject, Want, match
from .eager import Runner
from .errors import Closed, NotConfirmed, Refused, Unreachable
from .identity import Identity
from .inbox import FULL_LANES_PER_PEER, Inbox
from .lanes import Lane
from .message import Message
from .peers import Dialer, Peer, PeerTable
from .requests import Pending
from .router import Router
from .sending import Sender
from .stats import Counters
from .watch import Watch

log = logging.getLogger("openline")

# How a connection may end without leaving its last messages in doubt.
CLEAN_ENDS = ("closed by this side", "the peer closed it (100", "the peer closed it (0")


class Switchboard:
    """All connections of one transport, and what happens on them."""

    def __init__(self, config: Config, opener: Opener) -> None:
        self.config = config
        self.counters = Counters()
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        self.dispatching = False
        self.dirty: list[Connection] = []
        self.paused: dict[Connection, None] = {}
        self.identity = Identity()
        self._nonce = secrets.token_urlsafe(24)
        self._ports: tuple[int, ...] = ()
        # Closing: goodbye to whatever still comes up. Closed: nothing is sent or taken in.
        self.closing = self.closed = False
        self.backend = WebSocketBackend(config, self._hello, self._link_up, self._on_bad_handshake, opener)
        self.table = PeerTable(lambda key, end: Peer(self.sender, key, end))
        self.dialer = Dialer(self._dial)
        self.router = Router(self.table, self.dialer, config.plain_reuse, self.loop)
        self.runner = Runner(self.loop)
        self.inbox = Inbox(
            config, self.counters, self.runner, self.table.matches, self._regulate, self.table.forget
        )
        self.sender = Sender(self)
        self.watch = Watch(self)

    def check_open(self) -> None:
        if self.closing:
            raise Closed("the transport is closed")

    def _hello(self) -> Hello:
        return Hello(self.identity.node_id, self._nonce, self._ports, self.config.name)

    async def _dial(self, address: Address) -> Connection:
        self.counters.dials += 1
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                connection = await self.backend.dial(address)
        except TimeoutError:
            self.counters.dial_failures += 1
            reason = f"no answer within dial_timeout={self.config.dial_timeout:g} s"
            raise Unreachable(str(address), [(f"dial {address}", reason)], no_route=True) from None
        except (Unreachable, Refused):
            self.counters.dial_failures += 1
            raise
        assert isinstance(connection, Connection)
        return connection

    def _on_bad_handshake(self, peer: str, reason: str) -> None:
        self.counters.malformed += 1
        log.warning("turned away %s: %s", peer, reason)

    def _link_up(self, link: Link) -> LinkEvents:
        connection = Connection(link, self)
        peer = self.table.add(connection)
        self.router.came(connection)
        self.inbox.peer_back(peer)
        self.watch.add(connection)
        self.inbox.rebind()
        if link.endpoint.direction == "outbound":
            self.counters.created += 1
        else:
            self.counters.accepted += 1
        log.debug("open: %r", connection)
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

    def on_messages(self, connection: Connection, messages: list[Message], size: int) -> None:
        counters = self.counters
        counters.messages_received += len(messages)
        counters.bytes_received += size
        if self.closed:
            counters.undelivered += len(messages)
            return
        peer = connection.peer
        plain = connection.plain
        if plain:
            _take_hint(connection, messages[0])
        if peer.requests.out or (plain and connection.endpoint.ip in self.sender.asked):
            messages = [m for m in messages if not self._claim(connection, m)]
        self.dispatching = True
        try:
            self.inbox.feed(peer, messages, size)
        finally:
            self.dispatching = False
            if self.dirty:
                self._flush_dirty()

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
        return isinstance(verdict, Rank) or verdict is Reject.DIAL_FIRST

    def _flush_dirty(self) -> None:
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.flush()

    def on_flow(self, connection: Connection, flow: Flow) -> None:
        """The peer's inbox for a stream is full, or has room again."""
        peer = connection.peer
        if not flow.paused:
            peer.go_on(flow.stream_id)
        elif len(peer.stopped) < self.config.max_streams:
            peer.stop(flow.stream_id)

    def on_listening(self, connection: Connection, ports: tuple[int, ...]) -> None:
        """The peer listens on other ports than its hello said."""
        hello = connection.endpoint.hello
        assert hello is not None
        connection.endpoint.hello = Hello(hello.node_id, hello.nonce, ports, hello.name)
        self._changed()

    def on_state(self, connection: Connection) -> None:
        self._changed()
        if connection.state is State.LIVE:
            self._retire_if_replaced(connection)

    def _retire_if_replaced(self, connection: Connection) -> None:
        """It was suspect, and is not; if we dialed a replacement meanwhile, one of them is enough."""
        if connection.endpoint.target is None:
            return
        others = [c for c in connection.peer.connections if c is not connection and c.endpoint.target]
        if any(other.state is State.LIVE for other in others):
            connection.set_state(State.DRAINING)
            connection.flush()
            connection.link.close(NORMAL, "replaced")

    def on_lost(self, connection: Connection, reason: str) -> None:
        self.counters.closed += 1
        if reason.startswith("bad input"):
            self.counters.malformed += 1
            log.warning("closed %r: %s", connection, reason)
        else:
            log.debug("gone: %r: %s", connection, reason)
        if not reason.startswith(CLEAN_ENDS):
            self.counters.in_doubt += connection.tx - connection.tx_heard
        peer = connection.peer
        self.router.went(connection)
        self.table.remove(connection)
        self.watch.remove(connection)
        self.inbox.rebind()
        if connection.plain:
            error = NotConfirmed(
                f"the connection to {peer.address} was lost before the answer came: {reason}"
            )
            peer.requests.fail(connection, error)
        if not peer.connections:
            self.inbox.peer_gone(peer)
            for stream_id in list(peer.stopped):
                peer.go_on(stream_id)

    def _changed(self) -> None:
        self.table.generation += 1
        self.inbox.rebind()

    def evict(self, connection: Connection) -> None:
        """It failed when it was used: no send shall choose it again; its last bytes are still read."""
        self.counters.evictions += 1
        log.info("evicted: %r", connection)
        connection.set_state(State.DRAINING)
        self.table.remove(connection)

    def _regulate(self, peer: Peer, lane: Lane | None) -> None:
        """A lane, or the peer as a whole, has become full, or roomy: tell the sender.

        An openline peer is told per stream. A plain peer, and an openline peer that fills very
        many streams or does not listen, is stopped by not reading its connections.
        """
        if lane is not None:
            self._tell_sender(peer, lane)
        unruly = peer.plain or peer.held > FULL_LANES_PER_PEER * self.config.inbox_bytes
        stop = peer.overfull or any(unruly or full.overrun for full in peer.full)
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
        for connection in peer.connections:
            if not connection.plain:
                connection.send_control(encode_flow(lane.stream_id, lane.paused))

    def announce(self, ports: tuple[int, ...]) -> None:
        """We listen on these now: for the next hellos, and for peers whose hello came before."""
        self._ports = ports = ports[:MAX_PORTS]
        for connection in self.table.connections:
            if not connection.plain:
                connection.send_control(encode_listening(ports))


def _take_hint(connection: Connection, message: Message) -> None:
    source = message.metadata.get("sourceNodeId") if message.metadata else None
    if isinstance(source, str):
        connection.endpoint.hint = connection.peer.name = source[:128]
