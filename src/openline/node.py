"""What a transport is made of underneath: makes its rooms, tells them in a fixed order what happens to
connections, and takes them down in reverse. The rules are elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import msgspec

from .address import Address
from .backends.base import CONFLICT, GOING_AWAY, NORMAL, REPLACED, By, End, Environment, Link
from .backends.select import Choice
from .config import Config
from .connection.admission import Admission
from .connection.connection import Connection
from .connection.context import Context, Listeners
from .connection.heartbeat import Heartbeat
from .connection.postponed import Postponed
from .core.frames import encode_welcome
from .core.handshake import MAX_PORTS, Hello
from .core.lifecycle import Phase, State
from .core.origin import origin
from .core.selection import Endpoint
from .errors import Closed, IdentityConflict, NotConfirmed, Refused, Unreachable
from .identity import Identity
from .known_peers.memory import KnownPeers
from .message import Message
from .peer import Peer
from .peers.conflicts import Conflicts
from .peers.doubts import Doubts
from .peers.limits import Limits
from .peers.remote import Remote, RemoteConnection
from .peers.requests import PlainRequests
from .peers.rivals import bury_predecessors, poke_rivals
from .peers.services import Services
from .peers.sessions import Sessions
from .peers.table import Table
from .receiving.dispatcher import Dispatcher
from .receiving.flow_control import regulate
from .receiving.inbox import Inbox
from .receiving.watchers import Watchers
from .routing.dialer import Dialer
from .routing.redial import Kept, Recovery
from .routing.router import Router
from .runtime.eager import Runner
from .runtime.home import Home
from .runtime.ratelog import RateLog
from .sending.sender import Sender

log = logging.getLogger("openline")

# Told of messages that may not have arrived: the peer, the message, and why.
Undelivered = Callable[[Peer, Message, str], object]


class Node:
    """All connections of one transport, and what happens to them (``connection.events.Lifecycle``)."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config = config
        self.home = Home(self._in_child)
        identity = Identity.of(config.identity)
        self.node_id = identity.node_id
        self.log = RateLog(log, asyncio.get_running_loop().time)
        self.context = context = Context(config, self.node_id, self.log, environment.stopwatch)
        self.counters, self.loop = context.counters, context.loop
        self.undelivered: list[Undelivered] = []
        self.sessions = Sessions(context, environment.wall_clock, self._forget)
        self.conflicts = Conflicts(context, self._knows, self._is_process)
        self.services = Services(context, self.sessions, self.conflicts, self)
        self.limits = Limits(context, lambda: self.inbox.full_of_strangers)
        self.known_peers = KnownPeers(config.known_peers, time.time, self._others_known)
        self.door = Admission(
            config,
            identity,
            self._link_up,
            self._lost_to,
            self.conflicts.holds,
            self._on_bad_handshake,
            self._is_process,
            self.conflicts.on_copy,
            self.limits.crowded,
            self.known_peers,
        )
        self.backends = Choice(
            *environment.backends(config, self.door, self._on_bad_handshake),
            config.dial_timeout,
            config.plaintext,
        )
        self.table = Table(self._make_remote, self.door.is_own)
        self.limits.bind(self.table)
        self.dialer = Dialer(self._dial, self._try_out)
        self.router = Router(context, self.table, self.dialer, self.backends, self.known_peers)
        chance = environment.random
        self.recovery = Recovery(context, self.home, self.router, chance)
        low, high = config.backoff_min, config.backoff_max
        self.kept = Kept(self.reach, low, high, chance.random, self.log)
        self.runner = Runner(self.loop)
        self.inbox = Inbox(
            config,
            self.counters,
            self.runner,
            self.router.receives,
            regulate,
            self.table.forget,
            self.log,
            self.sessions.retention.weigh,
        )
        plain_requests = PlainRequests()
        self.dispatcher = Dispatcher(context, self.inbox, self.table, plain_requests, self.home)
        context.bind(self.dispatcher)
        self.heartbeat: Heartbeat[Remote] = Heartbeat(context, environment.wall_clock, self._tick)
        self.doubts = Doubts(context, self.heartbeat, self.backends.distrust)
        unix_time = getattr(environment, "unix_time", time.time)  # those of others may be older than it
        self.watchers = Watchers(config, self.counters, self.runner, self.log, self.home, unix_time)
        self.services.bind(self.table, self.doubts, self.recovery, self.watchers)
        self.listeners: Listeners[Remote] = Listeners(
            self.dispatcher, self, self.heartbeat, Postponed(self.loop, self.changed)
        )
        self.sender = Sender(
            context, self.home, self.router, self.table, self.recovery.out_of_reach, plain_requests, chance
        )

    def _tick(self, now: float, wall: float) -> None:
        self.sessions.tick(now, wall)
        if self.backends.files is not None:
            self.backends.files.look()

    def _in_child(self) -> None:
        """For whatever the child's copy of the loop still runs: it neither dials nor takes anything in."""
        self.dialer.stop()
        self.heartbeat.stop()

    def _others_known(self) -> None:
        self.table.changed()

    # Peers ---------------------------------------------------------------------------------------

    def _make_remote(self, key: object, end: Endpoint) -> Remote:
        return Remote(self.services, self.sender, self.inbox, key, end, self.table.is_own(end))

    def _forget(self, remote: Remote) -> None:
        self.table.forget(remote)

    def _knows(self, node_id: str) -> bool:
        return self.table.knows(node_id)

    def _is_process(self, hello: Hello) -> bool:
        """Does it repeat the instance of a process whose session is here, though that may be gone?"""
        remote = self.table.node(hello.node_id)
        if remote is None or remote.outstanding.session is None:
            return False
        return hello.is_copy(remote.outstanding.session.process, *remote.outstanding.former)

    def _lost_to(self, node_id: str) -> list[bytes]:
        """Connections to that node that we have lost, or give up now, and that it may still hold."""
        remote = self.table.node(node_id)
        return [] if remote is None else remote.paths.dead_ends

    def in_doubt(self, remote: Remote, messages: Iterable[Message], why: str) -> None:
        """Nothing will ever confirm these."""
        messages = list(messages)
        self.counters.in_doubt += len(messages)
        self._report(remote, messages, why)

    def _report(self, remote: Remote, messages: Iterable[Message], why: str) -> None:
        for message in messages:
            for handler in self.undelivered:
                try:
                    handler(remote.peer, message, why)
                except Exception:
                    self.counters.handler_errors += 1
                    text = "on_undelivered handler %r failed"
                    self.log.about(remote, logging.ERROR, text, handler, exc_info=True)

    # Dialing -------------------------------------------------------------------------------------

    async def reach(self, address: Address) -> RemoteConnection:
        """A connection to there, which this program has asked for. Raises as ``Transport.connect`` does."""
        connection, _ = await self.router.find(address)
        connection.remote.know()
        return connection

    async def _dial(self, address: Address) -> RemoteConnection:
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

    async def _open(self, address: Address) -> RemoteConnection:
        link = await self.backends.dial(address)
        if isinstance(link.events, Connection):
            return link.events
        path = f"{link.backend} {link.endpoint.remote}"
        raise Unreachable(str(address), [(path, "died as soon as it was open")], died=True)

    def _dialed(self, address: Address, connection: RemoteConnection) -> None:
        bury_predecessors(self.table, address, connection)
        if not connection.plain:
            self.sessions.moved(address, connection.remote)

    def _on_bad_handshake(self, peer: str, reason: str) -> None:
        self.counters.malformed += 1
        host = peer.partition(" ")[0].rpartition(":")[0].strip("[]")
        self.log.line(origin(host), False, logging.WARNING, "turned away %s: %s", peer, reason)

    # Connections come and go ---------------------------------------------------------------------

    def _link_up(self, link: Link, lost: list[bytes]) -> RemoteConnection:
        end = link.endpoint
        if end.target is not None and end.target.node_id is not None:
            # That it is this node is proven by now; the address of a peer is the same however it was dialed.
            end.target = msgspec.structs.replace(end.target, node_id=None)
        connection: RemoteConnection = Connection(link, self.context, self.listeners)
        remote = self.table.add(connection)
        if not connection.plain:
            remote.outstanding.joined(connection)
        elif self.undelivered:
            connection.writer.note_doubted()
        self.router.came(connection)
        self.inbox.peer_back(remote)
        self.limits.opened(connection)
        self.heartbeat.add(connection)
        poke_rivals(self.table, connection)
        self.inbox.rebind()
        inbound = end.direction == "inbound"
        if inbound:
            self.counters.accepted += 1
        else:
            self.counters.created += 1
        log.debug("open: %r", connection)
        if not connection.plain:
            if inbound:
                link.write_binary(encode_welcome(self._lost_to(remote.node_id or "")))
            remote.paths.joined(connection, lost)
        remote.presence.look()
        if inbound:
            self._settle_dials(connection)
        for mailbox in remote.mailboxes.by_stream.values():
            if mailbox.paused:
                regulate(remote, mailbox)
        if self.home.closing:
            self.loop.call_soon(link.close, GOING_AWAY, "closing")
        return connection

    def _settle_dials(self, connection: RemoteConnection) -> None:
        """It has come in: whoever waits for a dial to the same peer need not wait any longer."""
        for address in self.dialer.waiting():
            if self.table.plan(self.router.want_now(address)).chosen is connection:
                self.dialer.settle(address, connection)

    def on_far_end_lost(self, connection: RemoteConnection, lost: list[bytes]) -> None:
        connection.remote.paths.far_end_lost(lost)

    def on_challenge_met(self, connection: RemoteConnection) -> None:
        connection.remote.paths.challenge_met(connection)

    def on_listening(self, connection: RemoteConnection, ports: tuple[int, ...]) -> None:
        """The peer listens on other ports than its hello said."""
        connection.endpoint.listens_on(ports)
        self.router.told(connection)

    def on_moved(self, connection: RemoteConnection, ip: str, port: int) -> None:
        """The peer goes on from another address: a laptop in another network, or a NAT that forgot."""
        before = connection.endpoint.remote
        self.table.moved(connection, ip, port)
        self.counters.migrations += 1
        self.log.about(connection.remote, logging.INFO, "moved: %r was at %s", connection, before)
        connection.remote.presence.look()
        self.router.told(connection)

    def changed(self) -> None:
        """What a send may depend on is not as it was."""
        self.table.changed()
        self.inbox.rebind()

    def on_state(self, connection: RemoteConnection) -> None:
        self._on_state(connection)
        connection.remote.presence.look()

    def _on_state(self, connection: RemoteConnection) -> None:
        self.changed()
        paths = connection.remote.paths
        if connection.plain:
            if connection.state is State.LIVE:
                self._retire_if_replaced(connection)
        elif connection.state is State.LIVE:
            paths.settle()
        elif connection is paths.carrier:
            if connection.state is State.DRAINING:
                paths.gave_up_carrier()
            paths.check()

    def _retire_if_replaced(self, connection: RemoteConnection) -> None:
        """A plain one was suspect, and is not; if we dialed a replacement meanwhile, one is enough."""
        if connection.endpoint.target is None:
            return
        others = [c for c in connection.remote.connections if c is not connection and c.endpoint.target]
        if any(other.state is State.LIVE for other in others):
            connection.set_state(State.DRAINING)
            connection.link.close(NORMAL, "replaced")

    def on_lost(self, connection: RemoteConnection, end: End) -> None:
        self.counters.closed += 1
        if end.by is By.BAD_INPUT:
            self.counters.malformed += 1
            self.log.about(connection.remote, logging.WARNING, "closed %r: %s", connection, end.text)
        else:
            log.debug("gone: %r: %s", connection, end.text)
        remote = connection.remote
        self.limits.closed(connection)
        self.router.went(connection)
        self.table.remove(connection)
        self.heartbeat.remove(connection)
        self.doubts.forget(connection)
        self.inbox.rebind()
        if not connection.plain:
            self._session_lost(connection, end)
        elif not end.clean:
            self.counters.in_doubt += connection.writer.tx - connection.tx_heard
            self._report(remote, connection.writer.doubted, f"the connection was lost: {end.text}")
        if connection.plain:
            error = NotConfirmed(
                f"the connection to {remote.address} was lost before the answer came: {end.text}"
            )
            remote.requests.fail(connection, error)
            if not remote.connections:
                remote.answers.lose()
        remote.presence.lost(connection, end.text)
        if not remote.connections:
            self.inbox.peer_gone(remote)
            for stream_id in list(remote.outstanding.gates):
                remote.outstanding.gates.go_on(stream_id)

    def _session_lost(self, connection: RemoteConnection, end: End) -> None:
        paths = connection.remote.paths
        if end.by is By.PEER:
            self._said_goodbye(connection, end.code)
        elif end.by is not By.US:
            paths.lost_unnoticed(connection)
        paths.ended(connection)

    def _said_goodbye(self, connection: RemoteConnection, code: int | None) -> None:
        remote = connection.remote
        if code == GOING_AWAY:
            self.recovery.said_goodbye(remote)
        elif code == REPLACED:
            remote.paths.replaced(connection)
        elif code == CONFLICT:
            remote.paths.told_of_conflict()

    def announce(self, ports: tuple[int, ...]) -> None:
        """We listen on these now: for the next hellos, and for peers whose hello came before."""
        ports = ports[:MAX_PORTS]
        self.door.announce(ports)
        for connection in self.table.connections:
            if not connection.plain:
                connection.writer.tell_ports(ports)

    # The end -------------------------------------------------------------------------------------

    async def stop_dialing(self) -> None:
        """Nothing is dialed any more, nor kept connected."""
        self.home.enter(Phase.CLOSING)
        await self.kept.close()
        await self.recovery.close()
        await self.dialer.close()

    async def close(self) -> None:
        """Finish what is under way within ``Config.close_timeout``, say goodbye, and free everything."""
        self.home.enter(Phase.LEAVING)
        try:
            async with asyncio.timeout(self.config.close_timeout):
                await self.known_peers.close()
                await self._finish()
                self.home.enter(Phase.CLOSED)
                await self._say_goodbye()
                await self.watchers.idle()
        except TimeoutError:
            count = len(self.table.connections)
            log.warning("close: close_timeout is over; cutting handlers, and connections: %d", count)
        self.home.enter(Phase.CLOSED)
        for connection in list(self.table.connections):
            connection.link.abort()
            connection.on_closed(End.lost("cut at close"))
        await self.watchers.settle()
        self.sessions.close()
        self.heartbeat.stop()
        self.sender.close()
        self.inbox.close()
        self.watchers.close()
        await self.runner.close()
        self.log.close()
        await asyncio.sleep(0)  # let aborted sockets go

    async def _finish(self) -> None:
        """Until handlers have ended, and what was sent is acknowledged or written."""
        cutting = self.loop.call_later(self.config.close_timeout / 2, self._cut_answers)
        await self.runner.idle()
        cutting.cancel()
        for remote in self.table:
            remote.requests.close(Closed("the transport is closed"))
        await asyncio.sleep(0)  # whoever reads an answer in pieces leaves, and its handler is to hear of it
        self.dispatcher.flush()
        await self.sessions.drain()
        for connection in list(self.table.connections):
            connection.writer.flush()
            await connection.writer.room()

    def _cut_answers(self) -> None:
        """Answers in pieces may go on without end."""
        for remote in list(self.table):
            remote.answers.cut(Closed("the transport there is closed"))

    async def _say_goodbye(self) -> None:
        for connection in list(self.table.connections):
            connection.resume_reading()
            connection.link.close(GOING_AWAY, "closing")
        while self.table.connections:
            await _gone(next(iter(self.table.connections)))


async def _gone(connection: RemoteConnection) -> None:
    changed = asyncio.Event()
    connection.when_changed(changed.set)
    while connection.state is not State.CLOSED:
        changed.clear()
        await changed.wait()
