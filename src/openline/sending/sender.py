"""Getting a message out: find a connection, wait for the turn and for room, post, wait for the outcome."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from sys import get_asyncgen_hooks
from typing import Any

from ..address import Address
from ..connection.context import Context
from ..core.backoff import full_jitter
from ..core.frames import FRAME_BYTES
from ..core.lifecycle import Phase, State
from ..core.pieces import MAX_ID
from ..core.session import Blocked
from ..errors import Closed, InvalidMessage, NotConfirmed, Unreachable
from ..message import BY_ADDRESS, Message, Receipt, StreamId
from ..peers.in_flight import Request, Send
from ..peers.remote import Remote, RemoteConnection
from ..peers.requests import PlainRequests
from ..peers.streams import Stream
from ..peers.table import Table
from ..receiving.flow_control import welcome_answers
from ..routing.out_of_reach import OutOfReach
from ..routing.router import Router
from ..runtime.home import Home
from .deadlines import Deadlines
from .turns import Place, Turns

LIVE, CLOSED = State.LIVE, Phase.CLOSED

# Messages of the first chunk of a batch; later ones are sized by what the first took.
FIRST_CHUNK = 32
# Connections that turn out to be dead when they are used, besides ``Config.max_attempts`` fresh ones.
DEAD_ONES = 16
# Plain sends in a row before the loop gets a turn: a tight loop of sends must not starve it. Others
# wait for their acknowledgement anyway.
SENDS_PER_TURN = 256
# Shorter waits for an acknowledgement than this are timed exactly, longer ones by the liveness tick.
EXACT_BELOW = 5.0

# Writes to a connection, at which attempt. False: nothing of it left. Raises ``InvalidMessage``, ``Blocked``.
Write = Callable[[RemoteConnection, int], bool]


class Sender:
    """Sends for one transport. The public methods of ``Transport`` say what is raised."""

    def __init__(
        self,
        context: Context,
        home: Home,
        router: Router,
        table: Table,
        out_of_reach: OutOfReach,
        plain_requests: PlainRequests,
        chance: random.Random,
    ) -> None:
        self._context = context
        self._config = context.config
        self._counters = context.counters
        self._loop = context.loop
        self._home = home
        self._router = router
        self._table = table
        self._out_of_reach = out_of_reach
        self._plain_requests = plain_requests
        self._random = chance
        self._deadlines = Deadlines(context.loop)
        self._turns = Turns()
        self._limit = context.config.send_timeout
        self._exact = self._limit < EXACT_BELOW

    def close(self) -> None:
        self._deadlines.close()

    # One message ---------------------------------------------------------------------------------

    async def send(
        self, address: str | Address, message: Message, *, timeout: float | None = None
    ) -> Receipt:
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        route = self._router.quick(address)
        if route is None:
            return await self._send(self._target(address), message, timeout)
        _, connection, target, matched = route
        remote = connection.remote
        outstanding = remote.outstanding
        if outstanding.gates or (self._turns.lines and self._turns.has(target, message)):
            return await self._send(target, message, timeout)
        if not remote.known:
            remote.know()
        if not connection.plain:
            if remote.paths.carrier is not connection:
                return await self._send(target, message, timeout)
            shares = timeout is None and not self._exact
            limit = self._limit if timeout is None else timeout
            try:
                if shares and connection.writer.gathering:
                    future = outstanding.join(message, target, connection)
                    if future is not None:
                        self._counters.reuses += 1
                        return await future
                send = Send(self._loop, [message], target, limit, self._context.now + limit, matched)
                written = outstanding.post(send, connection)
            except Blocked:
                return await self._send(target, message, timeout)
            if written:
                self._counters.reuses += 1
                if not shares:
                    return await self._within(send)
                if connection.writer.gathering:
                    outstanding.gathers(send, connection)
                return await send
        elif connection.writer.send(message):
            self._counters.reuses += 1
            if not self._counters.messages_sent % SENDS_PER_TURN:
                await asyncio.sleep(0)
            return connection.receipts[matched]
        self._router.evict(connection)
        return await self._send(target, message, timeout, attempts=1)

    async def send_to(self, remote: Remote, message: Message, *, timeout: float | None = None) -> Receipt:
        """``send`` for a peer in hand; ``peer.send`` and ``peer.reply`` come here."""
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        if not remote.known and (message.metadata is None or message.reply_to is None):
            remote.know()  # to answer whoever asks is no reason
        connections = remote.paths.connections
        queued = self._turns.lines and self._turns.has(remote, message)
        held_up = remote.outstanding.gates or self._home.phase is CLOSED or queued
        connection = connections[0] if len(connections) == 1 else None
        if connection is None or held_up or connection.state is not LIVE or connection.link.congested:
            return await self._send(remote, message, timeout)
        if connection.plain:
            if connection.writer.send(message):
                self._counters.reuses += 1
                return connection.receipts[BY_ADDRESS]
        elif remote.paths.carrier is connection:
            limit = self._limit if timeout is None else timeout
            send = Send(self._loop, [message], None, limit, self._context.now + limit)
            try:
                written = remote.outstanding.post(send, connection)
            except Blocked:
                written = False
            if written:
                self._counters.reuses += 1
                return await (send if timeout is None and not self._exact else self._within(send))
        return await self._send(remote, message, timeout)

    async def _within(self, send: Send, until: float | None = None) -> Receipt:
        self._deadlines.add(send, until)
        try:
            return await send
        finally:
            self._deadlines.remove(send)

    def _target(self, to: str | Address) -> Address:
        self._home.check_open()
        return Address.parse(to)

    async def _send(
        self, to: Address | Remote, message: Message, timeout: float | None, attempts: int = 0
    ) -> Receipt:
        send = self._new_send([message], to, timeout)
        stream_id, answer = message.stream_id, message.reply_to is not None
        connection, attempts = await self._hand_over(
            to, stream_id, answer, self._writing(send, to), send.limit, attempts
        )
        return await self._confirmed(send, connection, attempts)

    def _new_send(self, messages: list[Message], to: Address | Remote, timeout: float | None) -> Send:
        limit = self._limit if timeout is None else timeout
        address = to if isinstance(to, Address) else None
        # One bound for all of it: the connection, room on it, and the acknowledgement.
        return Send(self._loop, messages, address, limit, self._loop.time() + limit)

    def _writing(self, send: Send, to: Address | Remote) -> Write:
        def write(connection: RemoteConnection, attempts: int) -> bool:
            send.written(attempts, self._router.matched(to, connection))
            if connection.plain:
                return connection.writer.send_many(send.messages)
            return connection.remote.post(send, connection)

        return write

    async def _confirmed(self, send: Send, connection: RemoteConnection, attempts: int) -> Receipt:
        if send.out is not None:
            return await self._within(send, send.deadline)
        # A plain peer confirms nothing.
        receipts = connection.receipts
        return receipts[send.matched] if attempts == 1 else receipts.after(attempts, send.matched)

    # Finding a connection ------------------------------------------------------------------------

    async def _hand_over(
        self,
        to: Address | Remote,
        stream_id: StreamId,
        answer: bool,
        write: Write,
        limit: float,
        attempts: int = 0,
    ) -> tuple[RemoteConnection, int]:
        """Find a connection, wait for room, write; evict and try again where it has died."""
        label = to.address if isinstance(to, Remote) else str(to)
        failed: list[tuple[str, str]] = []
        place = self._turns.enter(to, stream_id, answer)
        try:
            async with asyncio.timeout(limit):
                tried: list[tuple[str, str]] = []
                most = self._config.max_attempts
                dialed = 0
                # Several that were open may have died at once; that is no reason not to dial.
                while dialed < most and attempts < DEAD_ONES + most:
                    try:
                        connection, reused = await self._ready(to, stream_id, place, failed)
                    except Unreachable as error:
                        if not error.died or dialed + 1 >= most:
                            raise
                        attempts, dialed, tried = attempts + 1, dialed + 1, [*tried, *error.tried]
                        continue
                    if not answer:
                        connection.remote.know()  # to answer whoever asks is no reason to know it
                    try:
                        written = write(connection, attempts + 1)
                    except Blocked:
                        await connection.remote.outstanding.unblocked()
                        continue
                    attempts += 1
                    dialed += not reused
                    if written:
                        self._counters.reuses += reused
                        self._counters.retries += attempts > 1
                        return connection, attempts
                    tried.append((repr(connection), "died before anything was written"))
                    self._router.evict(connection)
                raise Unreachable(label, tried)
        except TimeoutError:
            text = f"no connection to {label}, or no room on it, within {limit:g} s"
            reasons = "; ".join(f"{path}: {reason}" for path, reason in failed)
            raise TimeoutError(f"{text}; tried {reasons}" if failed else text) from None
        finally:
            place.leave()

    async def _ready(
        self, to: Address | Remote, stream_id: StreamId, place: Place, failed: list[tuple[str, str]]
    ) -> tuple[RemoteConnection, bool]:
        """A connection with room, to a peer for which this stream is not held up, when it is our turn.

        ``failed`` gets the reasons for which there was none at the last look.
        """
        failures = 0
        while True:
            if self._home.closed:
                raise Closed("the transport is closed")
            # All who wait look together: they share one dial, and its failure.
            try:
                connection, reused = await self._find(to)
            except Unreachable as error:
                remote = self._waits_for(to)
                if remote is None:
                    raise
                failed[:] = error.tried
                failures += 1
                await self._wait_for(remote, place, failures)
                continue
            failed.clear()
            gate = connection.remote.outstanding.gates.get(stream_id)
            if not place.first:
                place.wake_first()
                await place.turn()
            elif connection.link.congested and not connection.link.closing:
                await connection.writer.room()
            elif gate is not None and not gate.passes(place.answer):
                await gate.wait(place.answer)
            else:
                return connection, reused

    def _find(self, to: Address | Remote) -> Coroutine[object, None, tuple[RemoteConnection, bool]]:
        return self._router.find_for(to) if isinstance(to, Remote) else self._router.find(to)

    def _waits_for(self, to: Address | Remote) -> Remote | None:
        """There is no way to it: is something under way to it already, that waits for one as well?"""
        if self._home.closing:
            return None
        if isinstance(to, Remote):
            return self._out_of_reach.remote_at(to, ())
        return self._out_of_reach.remote_at(to, self._router.ips_now(to))

    async def _wait_for(self, remote: Remote, place: Place, failures: int) -> None:
        """Of those who wait the first one goes on looking, with growing pauses."""
        if not place.first:
            await place.turn()
            return
        chance = self._random.random()
        pause = full_jitter(failures, self._config.backoff_min, self._config.backoff_max, chance)
        await self._out_of_reach.back(remote, place, pause)

    # Many messages -------------------------------------------------------------------------------

    async def batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Receipt]:
        target = self._target(address)
        waiting = list(messages)
        sent: list[tuple[Send, int, RemoteConnection, int]] = []
        count, size = 0, FIRST_CHUNK
        while count < len(waiting):
            chunk = _one_stream_at_a_time(waiting, count, size)
            send = self._new_send(chunk, target, timeout)
            before = self._counters.bytes_sent
            answer = len(chunk) == 1 and chunk[0].reply_to is not None
            write = self._writing(send, target)
            try:
                connection, attempts = await self._hand_over(
                    target, chunk[0].stream_id, answer, write, send.limit
                )
            except Unreachable as error:
                error.sent = count
                raise
            except TimeoutError as error:
                text = f"{error}; {count} of {len(waiting)} messages were handed over before"
                raise TimeoutError(text) from None
            sent.append((send, len(send.messages), connection, attempts))
            count += len(send.messages)
            taken = max(1, self._counters.bytes_sent - before)
            size = max(1, len(send.messages) * FRAME_BYTES // taken)
            await asyncio.sleep(0)
        return await self._receipts(sent)

    async def _receipts(self, sent: list[tuple[Send, int, RemoteConnection, int]]) -> list[Receipt]:
        receipts: list[Receipt] = []
        for send, count, connection, attempts in sent:
            try:
                receipt = await self._confirmed(send, connection, attempts)
            except NotConfirmed as error:
                error.acked += len(receipts)
                raise
            receipts += [receipt] * count
        return receipts

    # Requests ------------------------------------------------------------------------------------

    async def request(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Message:
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        route = self._router.quick(address)
        if route is None:
            return await self._request(self._target(address), message, timeout)
        _, connection, target, _ = route
        remote = connection.remote
        if remote.outstanding.gates or (self._turns.lines and self._turns.has(target, message)):
            return await self._request(target, message, timeout)
        request = self._new_request(target, message, timeout)
        try:
            try:
                asked = self._ask(request, connection)
            except Blocked:
                asked = False
            if not asked:
                await self._hand_over(target, message.stream_id, False, self._asking(request), request.limit)
            return await request
        finally:
            self._deadlines.remove(request)
            # The usual case, that it has been answered over a session that goes on, leaves nothing to do.
            usual = request.connection is connection and not connection.plain and remote.paths.connections
            if not usual or request.id in remote.requests.out:
                self._give_up(request)

    async def request_of(self, remote: Remote, message: Message, timeout: float | None = None) -> Message:
        """``request`` for a peer in hand; ``peer.request`` comes here."""
        if get_asyncgen_hooks()[0] is not self._home.mark:
            self._home.check()
        return await self._request(remote, message, timeout)

    async def _request(self, to: Address | Remote, message: Message, timeout: float | None) -> Message:
        request = self._new_request(to, message, timeout)
        try:
            await self._hand_over(to, message.stream_id, False, self._asking(request), request.limit)
            return await request
        finally:
            self._deadlines.remove(request)
            self._give_up(request)

    def _new_request(self, to: Address | Remote, message: Message, timeout: float | None) -> Request:
        limit = self._config.request_timeout if timeout is None else timeout
        request = Request(self._loop, message, to if isinstance(to, Address) else None, to, limit)
        self._deadlines.add(request)
        return request

    def _asking(self, request: Request) -> Write:
        return lambda connection, attempts: self._ask(request, connection)

    def _ask(self, request: Request, connection: RemoteConnection) -> bool:
        """False: nothing of it left. Raises ``InvalidMessage`` and ``Blocked``."""
        remote = connection.remote
        remote.requests.add(request)
        request.asked(remote, connection, self._context.now)
        if remote.mailboxes.full:
            welcome_answers(remote)
        written = False
        try:
            if remote.paths.carrier is connection:
                written = remote.outstanding.post(request, connection)
            elif not connection.plain:
                written = remote.post(request, connection)
            elif connection.writer.send(request.messages[0]):
                self._plain_requests.add(connection.endpoint.ip, request)
                written = True
        finally:
            if not written:
                remote.requests.remove(request)
                request.not_asked()
        return written

    def _give_up(self, request: Request) -> None:
        """Nobody waits for it any more: its answer may come late, and its handler is cancelled."""
        remote, connection = request.remote, request.connection
        if remote is None or connection is None:
            return
        if remote.requests.out.get(request.id) is request:  # else it has been answered
            if request.in_pieces:
                remote.requests.leave(request)
            else:
                remote.requests.remove(request, self._context.now)
            request.withdraw()
        if connection.plain:
            self._plain_requests.remove(connection.endpoint.ip, request)
        if not remote.connections:
            self._table.forget(remote)

    # Answers in pieces ---------------------------------------------------------------------------

    async def stream(
        self, to: str | Address | Remote, message: Message, timeout: float | None = None
    ) -> AsyncGenerator[Message, None]:
        self._home.check()
        target = to if isinstance(to, Remote) else self._target(to)
        stream = self._new_stream(target, message, timeout)
        try:
            await self._hand_over(target, message.stream_id, False, self._asking(stream), stream.limit)
            while True:
                parts = stream.take()
                for part in parts:
                    yield part
                if parts:
                    stream.took(len(parts))
                elif stream.over:
                    break
                else:
                    await self._next(stream)
            stream.finish()
        finally:
            stream.leave()
            self._give_up(stream)

    async def _next(self, stream: Stream) -> None:
        """Wait for a part."""
        if self._home.closed:
            raise Closed("the transport is closed")
        self._deadlines.add(stream)
        try:
            await stream.wait()
        finally:
            self._deadlines.remove(stream)

    def _new_stream(self, to: Address | Remote, message: Message, timeout: float | None) -> Stream:
        config = self._config
        limit = config.request_timeout if timeout is None else timeout
        if type(message.id) is str and len(message.id) > MAX_ID:
            raise InvalidMessage(f"the id of what is answered in pieces has {MAX_ID} characters at most")
        address = to if isinstance(to, Address) else None
        inbox = config.inbox_messages, config.inbox_bytes
        return Stream(self._loop, message, address, to, limit, inbox, 2 * config.max_message_size)

    async def part_to(self, remote: Remote, message: Message, payload: Any, kind: str, more: bool) -> Receipt:
        """``peer.reply`` in pieces."""
        self._home.check()
        return await remote.answers.reply(message, payload, kind, more)


def _one_stream_at_a_time(messages: list[Message], start: int, size: int) -> list[Message]:
    """The next chunk. A chunk holds one stream, so that a stopped stream stops only itself."""
    stream = messages[start].stream_id
    end = start + 1
    while end < len(messages) and end - start < size and messages[end].stream_id == stream:
        end += 1
    return messages[start:end]
