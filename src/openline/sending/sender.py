"""Getting a message out: find a connection, wait for room, write, wait for the acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from sys import get_asyncgen_hooks
from typing import TYPE_CHECKING, Any, Protocol

from ..address import Address
from ..connection.connection import Connection
from ..core.backoff import full_jitter
from ..core.frames import FRAME_BYTES
from ..core.session import Blocked
from ..errors import Closed, Error, InvalidMessage, NotConfirmed, Unreachable
from ..message import BY_ADDRESS, Message, Receipt, StreamId
from ..peers.in_flight import Parcel
from ..peers.requests import Asked, Deadlines, Pending
from ..peers.table import Peer
from ..runtime.inline_future import Waiter
from .turns import Lines, Place

if TYPE_CHECKING:
    from ..node import Switchboard

# Messages of the first chunk of a batch; later ones are sized by what the first took.
FIRST_CHUNK = 32
# Connections that turn out to be dead when they are used, besides ``Config.max_attempts`` fresh ones.
DEAD_ONES = 16
# Plain sends in a row before the loop gets a turn: a tight loop of sends must not starve it. Others
# wait for their acknowledgement anyway.
SENDS_PER_TURN = 256
# Where a peer's session takes nothing just now: until the next look.
BLOCKED_RETRY = 0.1
# Shorter waits for an acknowledgement than this are timed exactly, longer ones by the liveness tick.
EXACT_BELOW = 5.0


class Cargo(Protocol):
    """What is to be written to a connection, once there is one."""

    @property
    def stream_id(self) -> StreamId: ...
    @property
    def answer(self) -> bool:
        """Does it answer a request?"""
        ...

    def write(self, connection: Connection, attempts: int) -> bool:
        """False: no byte of it left. Raises ``InvalidMessage`` and ``Blocked``."""
        ...


class Sender:
    """Sends for one transport. The public methods of ``Transport`` say what is raised."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._loop = board.loop
        self._home = board.home
        self._counters = board.counters
        self._router = board.router
        self._deadlines = Deadlines(board.loop)
        self.asked = Asked()
        self._lines = Lines()
        self._limit = board.config.send_timeout
        self._exact = self._limit < EXACT_BELOW

    def close(self) -> None:
        self._deadlines.close()

    async def send(
        self, address: str | Address, message: Message, *, timeout: float | None = None
    ) -> Receipt:
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        route = self._router.quick(address)
        if route is None or route[1].peer.stopped or self._lines.has(route[2], message):
            return await self._send(self._target(address), message, timeout)
        connection = route[1]
        connection.peer.known = True
        if not connection.plain:
            if connection.peer.carrier is not connection:
                return await self._send(route[2], message, timeout)
            limit = self._limit if timeout is None else timeout
            parcel = Parcel(self._loop, [message], route[2], limit, self._board.now + limit)
            parcel.matched = route[3]
            try:
                written = connection.post(parcel)
            except Blocked:
                return await self._send(route[2], message, timeout)
            if written:
                self._counters.reuses += 1
                return await (parcel if timeout is None and not self._exact else self._within(parcel))
        elif connection.send(message):
            self._counters.reuses += 1
            if not self._counters.messages_sent % SENDS_PER_TURN:
                await asyncio.sleep(0)
            return connection.receipts[route[3]]
        self._board.evict(connection)
        return await self._send(route[2], message, timeout, attempts=1)

    async def send_to(self, peer: Peer, message: Message, *, timeout: float | None = None) -> Receipt:
        """``send`` for a peer in hand; ``peer.send`` and ``peer.reply`` come here."""
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        if not peer.known and message.reply_to is None:
            peer.known = True
        connections = peer.connections
        idle = not (peer.stopped or self._board.closed or self._lines.has(peer, message))
        if idle and len(connections) == 1:
            connection = connections[0]
            if not connection.usable:
                pass
            elif connection.plain:
                if connection.send(message):
                    self._counters.reuses += 1
                    return connection.receipts[BY_ADDRESS]
            elif peer.carrier is connection:
                limit = self._limit if timeout is None else timeout
                parcel = Parcel(self._loop, [message], None, limit, self._board.now + limit)
                try:
                    written = connection.post(parcel)
                except Blocked:
                    written = False
                if written:
                    self._counters.reuses += 1
                    return await (parcel if timeout is None and not self._exact else self._within(parcel))
        return await self._send(peer, message, timeout)

    async def _within(self, parcel: Parcel, until: float | None = None) -> Receipt:
        self._deadlines.add(parcel, until)
        try:
            return await parcel
        finally:
            self._deadlines.remove(parcel)

    def _target(self, to: str | Address) -> Address:
        self._board.check_open()
        return Address.parse(to)

    async def _send(
        self, to: Address | Peer, message: Message, timeout: float | None, attempts: int = 0
    ) -> Receipt:
        cargo = _Load(self, [message], to, timeout)
        connection, attempts = await self._hand_over(to, cargo, timeout, attempts)
        return await self._confirmed(cargo, connection, attempts)

    async def _confirmed(self, cargo: _Load, connection: Connection, attempts: int) -> Receipt:
        if cargo.parcel is not None:
            return await self._within(cargo.parcel, cargo.until)
        receipts = connection.receipts
        return receipts[cargo.matched] if attempts == 1 else receipts.after(attempts, cargo.matched)

    async def _hand_over(
        self, to: Address | Peer, cargo: Cargo, timeout: float | None, attempts: int = 0
    ) -> tuple[Connection, int]:
        """Find a connection, wait for room, write; evict and try again where it has died."""
        limit = self._limit if timeout is None else timeout
        label = to.address if isinstance(to, Peer) else str(to)
        failed: list[tuple[str, str]] = []
        line = self._lines.enter(to, cargo.stream_id, cargo.answer)
        try:
            async with asyncio.timeout(limit):
                tried: list[tuple[str, str]] = []
                most = self._board.config.max_attempts
                dialed = 0
                # Several that were open may have died at once; that is no reason not to dial.
                while dialed < most and attempts < DEAD_ONES + most:
                    connection, reused = await self._ready(to, cargo.stream_id, line, failed)
                    if not cargo.answer:
                        connection.peer.known = True  # to answer whoever asks is no reason to know it
                    try:
                        written = cargo.write(connection, attempts + 1)
                    except Blocked:
                        await asyncio.sleep(BLOCKED_RETRY)
                        continue
                    attempts += 1
                    dialed += not reused
                    if written:
                        self._counters.reuses += reused
                        self._counters.retries += attempts > 1
                        return connection, attempts
                    tried.append((repr(connection), "died before anything was written"))
                    self._board.evict(connection)
                raise Unreachable(label, tried)
        except TimeoutError:
            text = f"no connection to {label}, or no room on it, within {limit:g} s"
            reasons = "; ".join(f"{path}: {reason}" for path, reason in failed)
            raise TimeoutError(f"{text}; tried {reasons}" if failed else text) from None
        finally:
            line.leave()

    async def _ready(
        self, to: Address | Peer, stream_id: StreamId, line: Place, failed: list[tuple[str, str]]
    ) -> tuple[Connection, bool]:
        """A connection with room, to a peer for which this stream is not held up, when it is our turn.

        ``failed`` gets the reasons for which there was none at the last look.
        """
        failures = 0
        while True:
            if self._board.closed:
                raise Closed("the transport is closed")
            # All of a line look together: they share one dial, and its failure.
            try:
                connection, reused = await self._find(to)
            except Unreachable as error:
                peer = self._waits_for(to)
                if peer is None:
                    raise
                failed[:] = error.tried
                failures += 1
                await self._wait_for(peer, line, failures)
                continue
            failed.clear()
            gate = connection.peer.stopped.get(stream_id)
            if not line.first:
                line.wake_first()
                await line.turn()
            elif connection.link.congested and not connection.link.closing:
                await connection.room()
            elif gate is not None and not gate.passes(line.answer):
                await gate.wait(line.answer)
            else:
                return connection, reused

    def _waits_for(self, to: Address | Peer) -> Peer | None:
        """There is no way to it: is something under way to it already, that waits for one as well?"""
        board = self._board
        if board.closing:
            return None
        if isinstance(to, Peer):
            return board.recovery.waiting.peer_at(to, ())
        board.backends.check(to)
        return board.recovery.waiting.peer_at(to, board.router.want_now(to).ips)

    async def _wait_for(self, peer: Peer, line: Place, failures: int) -> None:
        """Of each line the first one goes on looking, with growing pauses."""
        if not line.first:
            await line.turn()
            return
        config = self._board.config
        chance = self._board.random.random()
        pause = full_jitter(failures, config.backoff_min, config.backoff_max, chance)
        await self._board.recovery.waiting.back(peer, line, pause)

    def _find(self, to: Address | Peer) -> Coroutine[Any, Any, tuple[Connection, bool]]:
        return self._router.find_for(to) if isinstance(to, Peer) else self._router.find(to)

    async def batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Receipt]:
        target = self._target(address)
        waiting = list(messages)
        sent: list[tuple[_Load, Connection, int]] = []
        count, size = 0, FIRST_CHUNK
        while count < len(waiting):
            chunk = _one_stream_at_a_time(waiting, count, size)
            cargo = _Load(self, chunk, target, timeout)
            before = self._counters.bytes_sent
            try:
                connection, attempts = await self._hand_over(target, cargo, timeout)
            except Unreachable as error:
                error.sent = count
                raise
            except TimeoutError as error:
                text = f"{error}; {count} of {len(waiting)} messages were handed over before"
                raise TimeoutError(text) from None
            sent.append((cargo, connection, attempts))
            count += len(cargo.messages)
            taken = max(1, self._counters.bytes_sent - before)
            size = max(1, len(cargo.messages) * FRAME_BYTES // taken)
            await asyncio.sleep(0)
        return await self._receipts(sent)

    async def _receipts(self, sent: list[tuple[_Load, Connection, int]]) -> list[Receipt]:
        receipts: list[Receipt] = []
        for cargo, connection, attempts in sent:
            try:
                receipt = await self._confirmed(cargo, connection, attempts)
            except NotConfirmed as error:
                error.acked += len(receipts)
                raise
            receipts += [receipt] * len(cargo.messages)
        return receipts

    # Requests ------------------------------------------------------------------------------------

    async def request(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Message:
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        route = self._router.quick(address)
        if route is None or route[1].peer.stopped or self._lines.has(route[2], message):
            return await self._request(None, self._target(address), message, timeout)
        return await self._request(route[1], route[2], message, timeout)

    async def request_of(self, peer: Peer, message: Message, timeout: float | None = None) -> Message:
        """``request`` for a peer in hand; ``peer.request`` comes here."""
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        return await self._request(None, peer, message, timeout)

    async def _request(
        self,
        connection: Connection | None,
        to: Address | Peer,
        message: Message,
        timeout: float | None,
    ) -> Message:
        limit = self._board.config.request_timeout if timeout is None else timeout
        answer: Waiter[Message] = Waiter(self._board.loop)
        pending = Pending(message, answer, to, limit)
        cargo = _Question(self, pending, message, to if isinstance(to, Address) else None)
        self._deadlines.add(pending)
        try:
            if connection is None or not self._ask(cargo, connection):
                await self._hand_over(to, cargo, limit)
            return await pending.answer
        finally:
            self._deadlines.remove(pending)
            if pending.peer is not None:
                self._finish(pending, pending.peer)

    def _ask(self, cargo: _Question, connection: Connection) -> bool:
        try:
            return cargo.write(connection, 1)
        except Blocked:
            return False

    def _finish(self, pending: Pending, peer: Peer) -> None:
        if peer.requests.out.get(pending.id) is pending:  # else it has been answered
            peer.requests.remove(pending, self._board.now)
        connection = pending.connection
        if connection is not None and connection.plain:
            self.asked.remove(connection.endpoint.ip, pending)
        if not peer.connections:
            self._board.table.forget(peer)


class _Load:
    """Messages of one stream on their way out."""

    __slots__ = ("_limit", "_sender", "_to", "matched", "messages", "parcel", "until")

    def __init__(
        self, sender: Sender, messages: list[Message], to: Address | Peer, timeout: float | None
    ) -> None:
        self.messages = messages
        # How the peer was recognised, once there is a connection.
        self.matched = ""
        self._to = to
        # What waits for the acknowledgement; None toward a plain peer, which gives none.
        self.parcel: Parcel | None = None
        self._sender = sender
        self._limit = sender._limit if timeout is None else timeout
        # One bound for all of it: the connection, room on it, and the acknowledgement.
        self.until = sender._loop.time() + self._limit

    @property
    def stream_id(self) -> StreamId:
        return self.messages[0].stream_id

    @property
    def answer(self) -> bool:
        return len(self.messages) == 1 and self.messages[0].reply_to is not None

    def write(self, connection: Connection, attempts: int) -> bool:
        to = self._to
        self.matched = self._sender._router.matched(to, connection)
        if connection.plain:
            return connection.send_many(self.messages)
        address = to if isinstance(to, Address) else None
        parcel = Parcel(self._sender._loop, self.messages, address, self._limit, self.until)
        parcel.attempts, parcel.matched = attempts, self.matched
        if not connection.post(parcel):
            return False
        self.parcel = parcel
        return True


class _Question:
    """A request on its way out."""

    __slots__ = ("_message", "_pending", "_sender", "address")

    def __init__(self, sender: Sender, pending: Pending, message: Message, address: Address | None) -> None:
        self.address = address
        self._message = message
        self._pending = pending
        self._sender = sender

    @property
    def stream_id(self) -> StreamId:
        return self._message.stream_id

    @property
    def answer(self) -> bool:
        return False

    def write(self, connection: Connection, attempts: int) -> bool:
        pending, requests = self._pending, connection.peer.requests
        requests.add(pending)
        if connection.peer.mailboxes.full:
            self._sender._board.asks(connection.peer)
        pending.connection, pending.peer = connection, connection.peer
        written = False
        try:
            written = self._written(connection)
        finally:
            if not written:
                requests.remove(pending)
                pending.connection = pending.peer = None
        return written

    def _written(self, connection: Connection) -> bool:
        sender, pending = self._sender, self._pending
        if connection.plain:
            if not connection.send(self._message):
                return False
            sender.asked.add(connection.endpoint.ip, pending)
            return True
        limit = pending.limit
        deadline = sender._board.now + limit
        parcel = _Asking(sender._board.loop, [self._message], self.address, limit, deadline)
        parcel.pending = pending
        return connection.post(parcel)


class _Asking(Parcel):
    """A request: nobody waits for its acknowledgement, as the answer says as much."""

    pending: Pending

    def expire(self) -> None:
        """The request has a time-out of its own."""

    def moved(self, old: Peer, new: Peer) -> None:
        """The answer will come from the other node."""
        old.requests.remove(self.pending)
        if self.pending.answer.done():
            return
        self.pending.peer = new
        try:
            new.requests.add(self.pending)
        except InvalidMessage as error:
            self.pending.answer.set_exception(error)
        else:
            self.pending.connection = new.carrier

    def set_exception(self, error: BaseException) -> None:
        super().set_exception(error)
        if isinstance(error, Error) and not self.pending.answer.done():
            self.pending.answer.set_exception(error)


def _one_stream_at_a_time(messages: list[Message], start: int, size: int) -> list[Message]:
    """The next chunk. A chunk holds one stream, so that a stopped stream stops only itself."""
    stream = messages[start].stream_id
    end = start + 1
    while end < len(messages) and end - start < size and messages[end].stream_id == stream:
        end += 1
    return messages[start:end]
