"""Who is reachable over what: peers, their live connections, and one dial at a time to each."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .address import Address, join
from .connection import Connection, State
from .core.selection import Endpoint, Plan, Rank, Want, crowd, match, plan
from .errors import Closed
from .message import Message, Receipt, StreamId
from .requests import Requests

if TYPE_CHECKING:
    from .lanes import Lane
    from .sending import Sender

log = logging.getLogger("openline")


class Peer:
    """A remote node, as seen from here. Handlers get one; ``Transport.peers()`` lists them.

    ``address`` is where to send to reach it again. ``name`` and ``node_id`` come from its hello
    and are claims as long as ``proven`` is False; a plain peer has no node id, and its name is
    whatever ``metadata.sourceNodeId`` it last sent.
    """

    def __init__(self, sender: Sender, key: object, endpoint: Endpoint) -> None:
        hello = endpoint.hello
        self.key = key
        self.node_id: str | None = hello.node_id if hello else None
        self.name = hello.name if hello else ""
        self.proven = False
        self.plain = hello is None
        self.connections: list[Connection] = []
        # The last known far ends, for receive() after the connection is gone.
        self.endpoint = endpoint
        self.lanes: dict[StreamId, Lane] = {}
        self.requests = Requests()
        # Bytes received and not taken yet, over all lanes.
        self.held = 0
        # Lanes that are full: as long as there is one, a plain peer is not read.
        self.full: set[Lane] = set()
        # Something is under way on more streams than are allowed.
        self.overfull = False
        # Streams the peer has asked us to stop sending on, and who waits for it.
        self.stopped: dict[StreamId, Gate] = {}
        self._sender = sender

    def stop(self, stream_id: StreamId) -> None:
        """The peer has no more room for this stream."""
        self.stopped.setdefault(stream_id, Gate()).open = False

    def go_on(self, stream_id: StreamId) -> None:
        """It has room again."""
        gate = self.stopped.get(stream_id)
        if gate is not None:
            gate.open = True
            gate.let_pass()
            self._drop_if_unused(stream_id, gate)

    def pass_on(self, stream_id: StreamId, gate: Gate) -> None:
        """One who waited for that has sent: the next one, please."""
        gate.passed()
        self._drop_if_unused(stream_id, gate)

    def _drop_if_unused(self, stream_id: StreamId, gate: Gate) -> None:
        if gate.unused and self.stopped.get(stream_id) is gate:
            del self.stopped[stream_id]

    @property
    def address(self) -> str:
        end = self.endpoint
        if end.target is not None:
            return str(end.target)
        if end.hello is not None and end.hello.ports:
            return join(end.ip, end.hello.ports[0])
        return end.remote

    @property
    def dial_address(self) -> Address | None:
        """Where a new connection could be made; None for one that only ever dialed in."""
        if self.endpoint.target is not None:
            return self.endpoint.target
        return Address.parse(self.address) if self.address != self.endpoint.remote else None

    @property
    def connected(self) -> bool:
        return bool(self.connections)

    @property
    def state(self) -> str:
        """``live``, ``congested``, ``suspect``, ``draining`` or ``gone``: the best connection's."""
        best = max(self.connections, key=lambda c: c.quality, default=None)
        return best.status if best else "gone"

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        kind = "plain peer" if self.plain else "peer"
        return f"<{kind}{name} at {self.address}, {self.state}>"

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
    """A stream the peer has told us to stop; those who want to send on it pass one by one, in order."""

    __slots__ = ("_passing", "_waiters", "open")

    def __init__(self) -> None:
        self.open = False
        self._passing = False
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def unused(self) -> bool:
        return self.open and not self._passing and not self._waiters

    async def wait(self, first: bool) -> None:
        """Until it is this one's turn; ``first`` puts back one whose turn it was."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._passing = False
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.passed()
            raise

    def passed(self) -> None:
        """Whoever had the turn is through."""
        self._passing = False
        self.let_pass()

    def let_pass(self) -> None:
        """The next one's turn, if the gate is open and nobody is passing."""
        while self.open and not self._passing and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._passing = True
                waiter.set_result(None)


class PeerTable:
    """Live connections, indexed by what a send may ask for."""

    def __init__(self, make_peer: Callable[[object, Endpoint], Peer]) -> None:
        self._make_peer = make_peer
        self._peers: dict[object, Peer] = {}
        # A program may keep a Peer; if its node comes back, so does that very object.
        self._kept: weakref.WeakValueDictionary[object, Peer] = weakref.WeakValueDictionary()
        self._by_ip: dict[str, dict[Connection, None]] = {}
        self._by_target: dict[tuple[str, int], dict[Connection, None]] = {}
        self._by_remote: dict[tuple[str, int], Connection] = {}
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
            self._by_remote[end.ip, end.port] = connection
        self.generation += 1
        key = _peer_key(end)
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = self._kept.get(key) or self._make_peer(key, end)
            if not end.plain or end.target is not None:
                self._kept[key] = peer  # a plain client's port may be another client's next time
        peer.connections.append(connection)
        peer.endpoint = end if end.target is not None or peer.endpoint.target is None else peer.endpoint
        connection.peer = peer
        return peer

    def remove(self, connection: Connection) -> None:
        end, peer = connection.endpoint, connection.peer
        self.connections.pop(connection, None)
        _discard(self._by_ip, end.ip, connection)
        if end.target is not None:
            _discard(self._by_target, (end.target.host, end.target.port), connection)
        elif self._by_remote.get((end.ip, end.port)) is connection:
            del self._by_remote[end.ip, end.port]
        crowd(end, [other.endpoint for other in self._by_ip.get(end.ip, ())])
        self.generation += 1
        if connection in peer.connections:
            peer.connections.remove(connection)
        self.forget(peer)

    def forget(self, peer: Peer) -> None:
        """Drop a peer that is gone and has nothing left to read."""
        if not peer.connections and not peer.requests.out and all(lane.idle for lane in peer.lanes.values()):
            self._peers.pop(peer.key, None)

    def candidates(self, want: Want) -> Sequence[Connection]:
        """Every live connection that could possibly answer for ``want``, or make it ambiguous."""
        found: dict[Connection, None] = {}
        address = want.address
        found.update(self._by_target.get((address.host, address.port), {}))
        for ip in want.ips:
            found.update(self._by_ip.get(ip, {}))
        return list(found)

    def plan(self, want: Want) -> Plan[Connection]:
        return plan(want, self.candidates(want))

    def dialed_to(self, address: Address) -> Iterable[Connection]:
        """Live connections that were dialed to this host and port, by name: no look-up needed."""
        return self._by_target.get((address.host, address.port), ())

    def at_remote(self, ip: str, port: int) -> Connection | None:
        return self._by_remote.get((ip, port))

    def matches(self, want: Want, peer: Peer) -> bool:
        """Is ``peer`` the one that ``want`` speaks of? Also for a peer that has gone since."""
        ends = [c.endpoint for c in peer.connections] or [peer.endpoint]
        all_ends = [c.endpoint for c in self.candidates(want)]
        all_ends += [end for end in ends if end not in all_ends]
        return any(isinstance(match(want, end, all_ends), Rank) for end in ends)


def _peer_key(end: Endpoint) -> object:
    """What makes two connections one peer's (rule 3.1, as far as it goes without proof)."""
    if end.target is not None and end.target.authenticated:
        return "authenticated", str(end.target)  # what merely claims to be the same stays apart
    if end.hello is not None:
        return end.hello.node_id, end.ip
    if end.target is not None:
        return str(end.target)
    return end.ip, end.port


def _discard(index: dict[Any, dict[Connection, None]], key: object, connection: Connection) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(connection, None)
        if not entries:
            del index[key]


class Dialer:
    """Single flight: one dial per address at a time, and every waiter shares its result.

    A connection that comes in from the same peer meanwhile is a result too.
    """

    def __init__(self, dial: Callable[[Address], Awaitable[Connection]]) -> None:
        self._dial = dial
        self._flying: dict[
            tuple[object, ...], tuple[asyncio.Task[Connection], asyncio.Future[Connection]]
        ] = {}
        self._waiting: dict[asyncio.Future[Connection], Address] = {}

    async def connect(self, address: Address) -> Connection:
        """The shared result. Raises what the dial raises."""
        flight = self._flying.get(address.dial_key)
        if flight is None:
            flight = self._take_off(address)
        return await asyncio.shield(flight[1])

    def _take_off(self, address: Address) -> tuple[asyncio.Task[Connection], asyncio.Future[Connection]]:
        task: asyncio.Task[Connection] = asyncio.ensure_future(self._dial(address))
        result: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        flight = self._flying[address.dial_key] = task, result
        self._waiting[result] = address

        def landed(task: asyncio.Task[Connection]) -> None:
            if self._flying.get(address.dial_key) is flight:
                del self._flying[address.dial_key]
            self._waiting.pop(result, None)
            if result.done():
                _ = task.cancelled() or task.exception()
            elif task.cancelled():
                # Only close() does that; those who wait have not been cancelled themselves.
                result.set_exception(Closed("the transport is closed"))
                _ = result.exception()
            elif (error := task.exception()) is not None:
                result.set_exception(error)
                _ = result.exception()  # every waiter may have been cancelled; that is no news
            else:
                result.set_result(task.result())

        task.add_done_callback(landed)
        return flight

    def waiting(self) -> list[Address]:
        return list(self._waiting.values())

    def settle(self, address: Address, connection: Connection) -> None:
        """Another connection reaches that peer now: waiters need not wait for the dial."""
        flight = self._flying.get(address.dial_key)
        if flight is not None and not flight[1].done() and connection.state is State.LIVE:
            self._waiting.pop(flight[1], None)
            flight[1].set_result(connection)

    async def close(self) -> None:
        tasks = [task for task, _ in self._flying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
