"""Who is reachable over what: peers, their live connections, and one dial at a time to each."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..address import Address, join
from ..connection.connection import Connection
from ..core.handshake import Hello
from ..core.selection import Endpoint, Plan, Rank, Want, crowd, match, plan
from ..core.session import Session
from ..message import Message, Receipt, StreamId
from .in_flight import Parcel
from .mailboxes import Mailboxes
from .requests import Requests

if TYPE_CHECKING:
    from ..sending.sender import Sender
    from .mailbox import Owner

log = logging.getLogger("openline")

# Connections named as lost when a peer is dialed again: what may have died unnoticed by the other
# side within its 15 s of patience.
MAX_LOST = 8
# Addresses kept for a connection that has replaced others.
MAX_ALIASES = 16


class Peer:
    """A remote node, as seen from here. Handlers get one; ``Transport.peers()`` lists them.

    ``address`` is where to send to reach it again. ``node_id`` is proven; a plain peer has none.
    ``name`` is what it calls itself, a claim: in its hello, or a plain peer in
    ``metadata.sourceNodeId``.
    """

    def __init__(
        self, sender: Sender, inbox: Owner, key: object, endpoint: Endpoint, own: bool = False
    ) -> None:
        hello = endpoint.hello
        self.key = key
        self.node_id: str | None = hello.node_id if hello else None
        self.name = hello.name if hello else ""
        self.plain = hello is None
        # This very process, which has dialed itself.
        self.own = own
        self.connections: list[Connection] = []
        # The last known far ends, for receive() after the connection is gone.
        self.endpoint = endpoint
        self.mailboxes = Mailboxes(self, inbox)
        self.requests = Requests()
        # Streams we may not send on now, because the peer has asked us to stop or because too much
        # is unacknowledged; and who waits for it.
        self.stopped: dict[StreamId, Gate] = {}
        # Openline peers: what is unacknowledged and what has been received, and the connection
        # that carries it.
        self.session: Session[Parcel] | None = None
        # Those of other processes with its key, by ``Hello.process``: one of them may come back.
        self.former: dict[str, Session[Parcel]] = {}
        self.carrier: Connection | None = None
        # Connections to it that we have lost without a goodbye; it may not have noticed.
        self.lost: tuple[bytes, ...] = ()
        # A connection of an older process with its key, which has answered that it is still there.
        self.witness: Connection | None = None
        # It said goodbye: nothing dials it by itself before then, on the loop's clock.
        self.not_before = 0.0
        # Has this program a reason to know it: dialed it, sent to it of its own accord, or allows it by
        # name? Else what it takes is paid from the strangers' share (rule 3.10).
        self.known = False
        # quic:// asks for a certificate here, so that its address is written with its node id instead.
        self.by_name = False
        self._sender = sender

    def make_known(self) -> None:
        """From now on this program has a reason to know it."""
        self.known = True

    def stop(self, stream_id: StreamId, answers: bool = False) -> None:
        """The peer has no more room for this stream, except perhaps for answers to its requests."""
        gate = self.stopped.setdefault(stream_id, Gate())
        gate.halted, gate.answers = True, answers
        if answers:
            gate.let_pass()

    def heed(self, halts: dict[StreamId, bool], stream_id: StreamId) -> None:
        """``halts`` holds what the peer has stopped, and whether answers pass: apply it to one stream."""
        if stream_id in halts:
            self.stop(stream_id, halts[stream_id])
        else:
            self.go_on(stream_id)

    def fill(self, stream_id: StreamId) -> None:
        """As much as may be unacknowledged is."""
        self.stopped.setdefault(stream_id, Gate()).full = True

    def go_on(self, stream_id: StreamId) -> None:
        """The peer has room again."""
        gate = self.stopped.get(stream_id)
        if gate is not None:
            gate.halted = False
            self._let_pass(stream_id, gate)

    def make_room(self, stream_id: StreamId) -> None:
        """Less is unacknowledged."""
        gate = self.stopped.get(stream_id)
        if gate is not None:
            gate.full = False
            self._let_pass(stream_id, gate)

    def _let_pass(self, stream_id: StreamId, gate: Gate) -> None:
        if gate.open:
            del self.stopped[stream_id]
            gate.let_pass()
        elif not gate.full and gate.answers:
            gate.let_pass()  # answers may go on, and whoever else waits looks again

    @property
    def address(self) -> str:
        end = self.endpoint
        if end.target is not None:
            return str(end.target)
        if end.hello is not None and end.hello.ports:
            return join(end.ip, end.hello.ports[0])
        if end.protocol == "tcp":
            return end.remote
        # A UDP port: a bare ip:port would mean TCP's of that number.
        return f"{self.node_id}@{end.remote}" if self.by_name else f"quic://{end.remote}"

    @property
    def dial_address(self) -> Address | None:
        """Where a new connection could be made; None for one that only ever dialed in."""
        end = self.endpoint
        if end.target is not None:
            return end.target
        return Address(end.ip, end.hello.ports[0]) if end.hello is not None and end.hello.ports else None

    @property
    def proven(self) -> bool:
        """Is it known who this is? True for every openline peer."""
        return self.node_id is not None

    @property
    def connected(self) -> bool:
        return bool(self.connections)

    @property
    def state(self) -> str:
        """``live``, ``congested``, ``suspect``, ``draining`` or ``gone``: the best connection's."""
        best = max(self.connections, key=lambda c: c.quality, default=None)
        return best.status if best else "gone"

    def __repr__(self) -> str:
        who = "plain peer" if self.node_id is None else f"peer {self.node_id[:8]}"
        claim = f" calling itself {self.name!r}" if self.name else ""
        return f"<{who}{claim} at {self.address}, {self.state}>"

    def send(self, message: Message) -> Coroutine[Any, Any, Receipt]:
        """Send to this peer, over whatever reaches it. Raises as ``Transport.send`` does."""
        return self._sender.send_to(self, message)

    def request(self, message: Message, timeout: float | None = None) -> Coroutine[Any, Any, Message]:
        """Send and wait for the answer. Raises as ``Transport.request`` does."""
        return self._sender.request_of(self, message, timeout)

    def reply(
        self, message: Message, payload: Any = None, *, type: str = "result"
    ) -> Coroutine[Any, Any, Receipt]:
        """Answer ``message``: same stream, ``metadata.replyTo`` set to its id."""
        return self._sender.send_to(self, message.answer(payload, type))


class Gate:
    """A stream that is held up, and those who wait until it is not."""

    __slots__ = ("_waiters", "answers", "full", "halted")

    def __init__(self) -> None:
        # By the peer, whose inbox is full; and by the window of what is unacknowledged.
        self.halted = self.full = False
        # The first does not hold for answers.
        self.answers = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def open(self) -> bool:
        return not (self.halted or self.full)

    def passes(self, answer: bool) -> bool:
        """May a message, or an answer, be sent now?"""
        return not self.full and (not self.halted or (answer and self.answers))

    async def wait(self, answer: bool) -> None:
        if not self.passes(answer):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def let_pass(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class PeerTable:
    """Live connections, indexed by what a send may ask for."""

    def __init__(
        self, make_peer: Callable[[object, Endpoint], Peer], is_own: Callable[[Hello], bool]
    ) -> None:
        self._make_peer = make_peer
        self._is_own = is_own
        self._peers: dict[object, Peer] = {}
        # A program may keep a Peer; if its node comes back, so does that very object.
        self._kept: weakref.WeakValueDictionary[object, Peer] = weakref.WeakValueDictionary()
        self._by_ip: dict[str, dict[Connection, None]] = {}
        self._by_target: dict[tuple[str, int], dict[Connection, None]] = {}
        # Of connections that came in, by protocol.
        self._by_remote: dict[tuple[str, str, int], Connection] = {}
        self._aliased: dict[tuple[str, int], dict[Connection, None]] = {}
        self.connections: dict[Connection, None] = {}
        # Changes whenever a cached choice may have become wrong.
        self.generation = 0

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def add(self, connection: Connection) -> Peer:
        end = connection.endpoint
        self.connections[connection] = None
        self._by_ip.setdefault(end.ip, {})[connection] = None
        if end.target is not None:
            self._by_target.setdefault((end.target.host, end.target.port), {})[connection] = None
        else:
            self._by_remote[_remote(end)] = connection
        self.generation += 1
        key = self._key(end)
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = self._kept.get(key) or self._make_peer(key, end)
            if not end.plain or end.target is not None:
                self._kept[key] = peer  # a plain client's port may be another client's next time
        if end.hello is not None:
            peer.name = end.hello.name
        peer.connections.append(connection)
        peer.endpoint = end if end.target is not None or peer.endpoint.target is None else peer.endpoint
        connection.peer = peer
        return peer

    def _key(self, end: Endpoint) -> object:
        """What makes two connections one peer's: the proven node id, else where it is."""
        if end.hello is not None:
            # A connection to ourselves has two ends here, which are two peers.
            own = self.is_own(end)
            return ("node", end.node_id, end.direction if own else "")
        if end.target is not None:
            return str(end.target)
        return end.ip, end.port

    def is_own(self, end: Endpoint) -> bool:
        return end.hello is not None and self._is_own(end.hello)

    def remove(self, connection: Connection) -> None:
        end, peer = connection.endpoint, connection.peer
        self.connections.pop(connection, None)
        _discard(self._by_ip, end.ip, connection)
        if end.target is not None:
            _discard(self._by_target, (end.target.host, end.target.port), connection)
        elif self._by_remote.get(_remote(end)) is connection:
            del self._by_remote[_remote(end)]
        for alias in end.aliases:
            _discard(self._aliased, (alias.host, alias.port), connection)
        crowd(end, [other.endpoint for other in self._by_ip.get(end.ip, ())])
        self.generation += 1
        if connection in peer.connections:
            peer.connections.remove(connection)
        self.forget(peer)

    def moved(self, connection: Connection, ip: str, port: int) -> None:
        """Its far end is at another address now."""
        end = connection.endpoint
        _discard(self._by_ip, end.ip, connection)
        if self._by_remote.get(_remote(end)) is connection:
            del self._by_remote[_remote(end)]
        end.ip, end.port = ip, port
        self._by_ip.setdefault(ip, {})[connection] = None
        if end.target is None:
            self._by_remote[_remote(end)] = connection

    def forget(self, peer: Peer) -> None:
        """Drop a peer that is gone, has nothing left to read, and whose session is over."""
        if peer.connections or peer.requests.out or peer.session is not None:
            return
        if peer.mailboxes.idle:
            self._peers.pop(peer.key, None)

    def candidates(self, want: Want) -> Sequence[Connection]:
        """Every live connection that could possibly answer for ``want``, or make it ambiguous."""
        found: dict[Connection, None] = {}
        address = want.address
        found.update(self._by_target.get((address.host, address.port), {}))
        for ip in want.ips:
            found.update(self._by_ip.get(ip, {}))
        if address.node_id is not None:
            found.update(dict.fromkeys(self._of_node(address.node_id)))
        for connection in self._aliased.get((address.host, address.port), ()):
            found[connection] = None
        return list(found)

    def _of_node(self, node_id: str) -> list[Connection]:
        """Live connections to that node; those to ourselves are two peers'."""
        keys = [("node", node_id, ""), ("node", node_id, "inbound"), ("node", node_id, "outbound")]
        return [c for key in keys if key in self._peers for c in self._peers[key].connections]

    def alias(self, connection: Connection, target: Address) -> None:
        """``target`` was dialed to the same node, by a connection that this one has replaced."""
        end = connection.endpoint
        if target in end.aliases:
            return
        end.aliases = (*end.aliases, target)
        if len(end.aliases) > MAX_ALIASES:
            oldest, *rest = end.aliases
            end.aliases = tuple(rest)
            if all((a.host, a.port) != (oldest.host, oldest.port) for a in rest):
                _discard(self._aliased, (oldest.host, oldest.port), connection)
        self._aliased.setdefault((target.host, target.port), {})[connection] = None
        self.generation += 1

    def node(self, node_id: str) -> Peer | None:
        """The peer with that node id, also while it is gone."""
        return self._peers.get(("node", node_id, ""))

    def knows(self, node_id: str) -> bool:
        """Has this program a reason to know that node?"""
        peer = self.node(node_id)
        return peer is not None and peer.known

    def plan(self, want: Want) -> Plan[Connection]:
        return plan(want, self.candidates(want))

    def dialed_to(self, address: Address) -> Iterable[Connection]:
        """Live connections that were dialed to this host and port, by name: no look-up needed."""
        key = address.host, address.port
        return [*self._by_target.get(key, ()), *self._aliased.get(key, ())]

    def at_ip(self, ip: str) -> list[Connection]:
        return list(self._by_ip.get(ip, ()))

    def at_remote(self, ip: str, port: int, *, udp: bool = False) -> Connection | None:
        return self._by_remote.get(("udp" if udp else "tcp", ip, port))

    def matches(self, want: Want, peer: Peer) -> bool:
        """Is ``peer`` the one that ``want`` speaks of? Also for a peer that has gone since."""
        ends = [c.endpoint for c in peer.connections] or [peer.endpoint]
        all_ends = [c.endpoint for c in self.candidates(want)]
        all_ends += [end for end in ends if end not in all_ends]
        return any(isinstance(match(want, end, all_ends), Rank) for end in ends)


def _remote(end: Endpoint) -> tuple[str, str, int]:
    return end.protocol, end.ip, end.port


def _discard(index: dict[Any, dict[Connection, None]], key: object, connection: Connection) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(connection, None)
        if not entries:
            del index[key]
