"""Getting a message out: find a connection, wait for room, write; evict and try again where it died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from .address import Address
from .connection import Connection
from .core.frames import FRAME_BYTES
from .errors import Closed, Unreachable
from .message import Message, Receipt, StreamId
from .peers import Gate, Peer
from .requests import Asked, Deadlines, Pending

if TYPE_CHECKING:
    from .switchboard import Switchboard

# Messages of the first chunk of a batch; later ones are sized by what the first took.
FIRST_CHUNK = 32
# Sends in a row before the loop gets a turn: a tight loop of sends must not starve it.
SENDS_PER_TURN = 256

Find = Callable[[], Awaitable[tuple[Connection, bool]]]


class Sender:
    """Sends for one transport. The public methods of ``Transport`` say what is raised."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._counters = board.counters
        self._router = board.router
        self._deadlines = Deadlines(board.loop)
        self.asked = Asked()

    def close(self) -> None:
        self._deadlines.close()

    async def send(
        self, address: str | Address, message: Message, *, timeout: float | None = None
    ) -> Receipt:
        connection = self._router.quick(address)
        if connection is None or connection.peer.stopped:
            return await self._send(self._finder(address), str(address), message, timeout)
        if not connection.send(message):
            self._board.evict(connection)
            return await self._send(self._finder(address), str(address), message, timeout, attempts=1)
        self._counters.reuses += 1
        if not self._counters.messages_sent % SENDS_PER_TURN:
            await asyncio.sleep(0)
        return connection.receipt

    async def send_to(self, peer: Peer, message: Message, *, timeout: float | None = None) -> Receipt:
        """``send`` for a peer in hand; ``peer.send`` and ``peer.reply`` come here."""
        connections = peer.connections
        if len(connections) == 1 and not peer.stopped and not self._board.closed:
            connection = connections[0]
            if connection.usable and connection.send(message):
                self._counters.reuses += 1
                return connection.receipt
        return await self._send(self._finder(peer), peer.address, message, timeout)

    def _finder(self, to: str | Address | Peer) -> Find:
        if isinstance(to, Peer):
            return lambda: self._router.find_for(to)
        self._board.check_open()
        target = Address.parse(to)
        return lambda: self._router.find(target)

    async def _send(
        self, find: Find, label: str, message: Message, timeout: float | None, attempts: int = 0
    ) -> Receipt:
        connection, attempts = await self._hand_over(
            find, label, message.stream_id, lambda c: c.send(message), timeout, attempts
        )
        return _receipt(connection, attempts)

    async def _hand_over(
        self,
        find: Find,
        label: str,
        stream_id: StreamId | None,
        write: Callable[[Connection], bool],
        timeout: float | None,
        attempts: int = 0,
    ) -> tuple[Connection, int]:
        """Find a connection, wait for room, write; evict and try again where it has died."""
        limit = self._board.config.send_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                tried: list[tuple[str, str]] = []
                while attempts < self._board.config.max_attempts:
                    connection, reused, gate = await self._ready(find, stream_id)
                    attempts += 1
                    try:
                        written = write(connection)
                    finally:
                        if gate is not None and stream_id is not None:
                            connection.peer.pass_on(stream_id, gate)
                    if written:
                        self._counters.reuses += reused
                        self._counters.retries += attempts > 1
                        return connection, attempts
                    tried.append((repr(connection), "died before anything was written"))
                    self._board.evict(connection)
                raise Unreachable(label, tried)
        except TimeoutError:
            text = f"no connection to {label}, or no room on it, within {limit:g} s"
            raise TimeoutError(text) from None

    async def _ready(self, find: Find, stream_id: StreamId | None) -> tuple[Connection, bool, Gate | None]:
        """A connection with room, to a peer that has not stopped this stream.

        Where it had, also the gate: whoever has passed must let the next one pass.
        """
        passed: Gate | None = None
        peer: Peer | None = None
        try:
            while True:
                if self._board.closed:
                    raise Closed("the transport is closed")
                connection, reused = await find()
                peer = connection.peer
                gate = peer.stopped.get(stream_id) if stream_id is not None else None
                if connection.link.congested and not connection.link.closing:
                    await connection.room()
                elif gate is None or (gate is passed and gate.open):
                    return connection, reused, gate
                else:
                    again, passed = gate is passed, None
                    await gate.wait(again)
                    passed = gate
        except BaseException:
            if passed is not None and peer is not None and stream_id is not None:
                peer.pass_on(stream_id, passed)
            raise

    async def batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Receipt]:
        find = self._finder(address)
        waiting = list(messages)
        receipts: list[Receipt] = []
        size = FIRST_CHUNK
        while len(receipts) < len(waiting):
            chunk = _one_stream_at_a_time(waiting, len(receipts), size)
            before = self._counters.bytes_sent
            try:
                connection, attempts = await self._hand_over(
                    find, str(address), chunk[0].stream_id, partial(_write_many, chunk), timeout
                )
            except Unreachable as error:
                error.sent = len(receipts)
                raise
            except TimeoutError as error:
                text = f"{error}; {len(receipts)} of {len(waiting)} messages were handed over before"
                raise TimeoutError(text) from None
            receipts += [_receipt(connection, attempts)] * len(chunk)
            taken = max(1, self._counters.bytes_sent - before)
            size = max(1, len(chunk) * FRAME_BYTES // taken)
            await asyncio.sleep(0)
        return receipts

    async def request(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Message:
        connection = self._router.quick(address)
        if connection is not None and connection.peer.stopped:
            connection = None
        return await self._request(connection, address, message, timeout)

    async def request_of(self, peer: Peer, message: Message, timeout: float | None = None) -> Message:
        """``request`` for a peer in hand; ``peer.request`` comes here."""
        return await self._request(None, peer, message, timeout)

    async def _request(
        self, connection: Connection | None, to: str | Address | Peer, message: Message, timeout: float | None
    ) -> Message:
        limit = self._board.config.request_timeout if timeout is None else timeout
        pending = Pending(message, self._board.loop.create_future(), to, limit)
        self._deadlines.add(pending)
        try:
            if connection is None or not self._write_request(connection, message, pending):
                write = partial(self._write_request, message=message, pending=pending)
                await self._hand_over(self._finder(to), str(to), message.stream_id, write, limit)
            return await pending.answer
        except BaseException:
            pending.abandon()
            raise
        finally:
            self._deadlines.remove(pending)
            if pending.connection is not None:
                self._finish(pending, pending.connection)

    def _write_request(self, connection: Connection, message: Message, pending: Pending) -> bool:
        peer = connection.peer
        peer.requests.add(pending)
        pending.connection = connection
        if connection.send(message):
            if connection.plain:
                self.asked.add(connection.endpoint.ip, pending)
            return True
        peer.requests.remove(pending)
        pending.connection = None
        return False

    def _finish(self, pending: Pending, connection: Connection) -> None:
        peer = connection.peer
        if peer.requests.out.get(pending.id) is pending:  # else it has been answered
            peer.requests.remove(pending, self._board.now)
        if connection.plain:
            self.asked.remove(connection.endpoint.ip, pending)
        if not peer.connections:
            self._board.table.forget(peer)


def _write_many(chunk: list[Message], connection: Connection) -> bool:
    return connection.send_many(chunk)


def _receipt(connection: Connection, attempts: int) -> Receipt:
    first = connection.receipt
    return first if attempts == 1 else Receipt(attempts, False, first.backend, first.direction, first.rtt)


def _one_stream_at_a_time(messages: list[Message], start: int, size: int) -> list[Message]:
    """The next chunk. A chunk holds one stream, so that a stopped stream stops only itself."""
    stream = messages[start].stream_id
    end = start + 1
    while end < len(messages) and end - start < size and messages[end].stream_id == stream:
        end += 1
    return messages[start:end]
