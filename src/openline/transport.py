"""The object that users hold: it listens, dials, sends and receives."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeVar, overload

from .address import Address, join
from .backends.acceptor import Acceptor
from .backends.base import Link, LinkEvents
from .backends.sockets import Opener, open_socket
from .backends.websocket import WebSocketBackend
from .backends.wslink import GOING_AWAY
from .config import Config
from .connection import FRAME_BYTES, Connection, State
from .core.frames import Flow, encode_flow, encode_listening
from .core.handshake import Hello
from .eager import Runner
from .errors import Closed, NotConfirmed, Refused, Unreachable
from .identity import Identity
from .inbox import FULL_LANES_PER_PEER, Handler, Inbox, Lane
from .keeper import Keeper
from .message import DEFAULT_STREAM, Message, Receipt, StreamId
from .peers import Dialer, Peer, PeerTable
from .requests import Pending
from .router import Explanation, Router
from .stats import Counters, Stats
from .watch import Watch

log = logging.getLogger("openline")

# Messages of the first chunk of a batch; later ones are sized by what the first took.
FIRST_CHUNK = 32
# Sends in a row before the loop gets a turn: a tight loop of sends must not starve it.
SENDS_PER_TURN = 256

H = TypeVar("H", bound=Handler)
Find = Callable[[], Awaitable[tuple[Connection, bool]]]


class Listener:
    """A port that a transport listens on."""

    def __init__(self, transport: Transport, acceptor: Acceptor, host: str | None, secure: bool) -> None:
        self._transport = transport
        self._acceptor = acceptor
        self.host = host or "0.0.0.0"
        self.port = acceptor.port
        self.secure = secure

    @property
    def address(self) -> str:
        """``ws://host:port`` or ``wss://host:port``, as bound."""
        return f"{'wss' if self.secure else 'ws'}://{join(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"<listening on {self.address}>"

    async def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        await self._transport._stop_listening(self)


class Transport:
    """Listens and dials; a message rides any live connection that reaches the peer before it dials.

    Made by ``load_transport``. Belongs to the event loop it was made on; not thread safe.
    """

    def __init__(self, config: Config, *, opener: Opener = open_socket) -> None:
        """Must be called with an event loop running. ``opener`` replaces how sockets are dialed (tests)."""
        self.config = config
        self.counters = Counters()
        self.loop = asyncio.get_running_loop()
        self.dispatching = False
        self.dirty: list[Connection] = []
        self.identity = Identity()
        self._nonce = secrets.token_urlsafe(24)
        self._backend = WebSocketBackend(config, self._hello, self._link_up, opener)
        self._table = PeerTable(self)
        self._dialer = Dialer(self._dial)
        self._router = Router(self._table, self._dialer, config.plain_reuse, self.loop)
        self._runner = Runner(self.loop)
        self._inbox = Inbox(config, self.counters, self._runner, self._table.matches, self._regulate)
        self._watch = Watch(self, self._table.connections)
        self._listeners: list[Listener] = []
        self._keeper = Keeper(self._reach, config.backoff_min, config.backoff_max)
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def node_id(self) -> str:
        """This node's id: its public key in base32."""
        return self.identity.node_id

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._table.connections)} connections"
        return f"<openline transport {self.config.name!r}, {state}>"

    # Listening and connecting --------------------------------------------------------------------

    async def listen(self, port: int = 0, host: str | None = None) -> Listener:
        """Accept connections on ``port``; 0 picks one. ``host`` None means all interfaces.

        Serves ``wss`` where ``Config.tls`` has cert and key. Raises ``OSError`` (port in use, no
        permission) and ``Closed``.
        """
        self._check_open()
        acceptor = await self._backend.listen(host, port)
        listener = Listener(self, acceptor, host, self._backend.secure)
        self._listeners.append(listener)
        self._announce()
        return listener

    async def _stop_listening(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._announce()
            await listener._acceptor.close()

    async def connect(self, address: str | Address, *, keep: bool = False) -> Peer | None:
        """Make sure that a live connection reaches ``address``; returns the peer there.

        With ``keep`` it stays so until ``close()``: whenever it is lost, it is dialed again with
        exponential backoff and full jitter, with a fresh look-up and socket each time. Then a
        failure of the first attempt is not raised but returned as None. Without it raises
        ``Unreachable`` or ``Refused``.
        """
        self._check_open()
        target = Address.parse(address)
        if keep:
            connection = await self._keeper.keep(target)
            return connection.peer if connection is not None else None
        return (await self._reach(target)).peer

    async def _reach(self, address: Address) -> Connection:
        connection, _ = await self._router.find(address)
        return connection

    async def ping(self, address: str | Address, *, timeout: float = 5.0) -> float:
        """The round trip to ``address`` in seconds, over the connection a send would take.

        Raises ``TimeoutError``, ``Unreachable``, ``Refused``, and ``NotConfirmed`` where the
        connection dies meanwhile.
        """
        self._check_open()
        async with asyncio.timeout(timeout):
            connection = await self._reach(Address.parse(address))
            try:
                return await connection.ping()
            except ConnectionError as error:
                raise NotConfirmed(f"no answer from {address}: {error}") from None

    # Sending -------------------------------------------------------------------------------------

    async def send(
        self, address: str | Address, message: Message, *, timeout: float | None = None
    ) -> Receipt:
        """Send one message. ``timeout`` (default ``Config.send_timeout``) bounds waiting for a
        connection and for room on it.

        Raises ``Unreachable`` (no byte left), ``Refused``, ``InvalidMessage``, ``MessageTooLarge``,
        ``Closed`` and ``TimeoutError``.
        """
        connection = self._router.quick(address)
        if connection is None or connection.peer.stopped:
            return await self._send(self._finder(address), str(address), message, timeout)
        if not connection.send(message):
            self._evict(connection)
            return await self._send(self._finder(address), str(address), message, timeout, attempts=1)
        self.counters.reuses += 1
        if not self.counters.messages_sent % SENDS_PER_TURN:
            await asyncio.sleep(0)
        return connection.receipt

    async def send_to(self, peer: Peer, message: Message, *, timeout: float | None = None) -> Receipt:
        """``send`` for a peer in hand; ``peer.send`` and ``peer.reply`` come here."""
        if len(peer.connections) == 1 and not peer.stopped:
            connection = peer.connections[0]
            if connection.usable and not self._closed and connection.send(message):
                self.counters.reuses += 1
                return connection.receipt
        return await self._send(lambda: self._router.find_for(peer), peer.address, message, timeout)

    def _finder(self, address: str | Address) -> Find:
        self._check_open()
        target = Address.parse(address)
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
        try:
            async with asyncio.timeout(self.config.send_timeout if timeout is None else timeout):
                tried: list[tuple[str, str]] = []
                while attempts < self.config.max_attempts:
                    connection, reused = await self._ready(find, stream_id)
                    attempts += 1
                    if write(connection):
                        self.counters.reuses += reused
                        self.counters.retries += attempts > 1
                        return connection, attempts
                    tried.append((repr(connection), "died before anything was written"))
                    self._evict(connection)
                raise Unreachable(label, tried)
        except TimeoutError:
            raise TimeoutError(f"no room to send to {label} in time; nothing of the message left") from None

    async def _ready(self, find: Find, stream_id: StreamId | None) -> tuple[Connection, bool]:
        """A connection with room, to a peer that has not stopped this stream."""
        while True:
            if self._closed:
                raise Closed("the transport is closed")
            connection, reused = await find()
            if connection.link.congested and not connection.link.closing:
                await connection.room()
            elif stream_id is not None and stream_id in connection.peer.stopped:
                await self._until_flowing(connection.peer, stream_id)
            else:
                return connection, reused

    async def _until_flowing(self, peer: Peer, stream_id: StreamId) -> None:
        waiter = self.loop.create_future()
        peer.stopped[stream_id].append(waiter)
        await waiter

    async def send_batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Receipt]:
        """Send many messages, pipelined and in order, with one dial at most.

        ``timeout`` bounds each wait for room. Raises as ``send`` does; an ``Unreachable`` then
        tells in ``sent`` how many were handed over before.
        """
        find = self._finder(address)
        waiting = list(messages)
        receipts: list[Receipt] = []
        size = FIRST_CHUNK
        while len(receipts) < len(waiting):
            chunk = _one_stream_at_a_time(waiting, len(receipts), size)
            before = self.counters.bytes_sent
            try:
                connection, attempts = await self._hand_over(
                    find, str(address), chunk[0].stream_id, partial(_write_many, chunk), timeout
                )
            except Unreachable as error:
                error.sent = len(receipts)
                raise
            receipts += [_receipt(connection, attempts)] * len(chunk)
            taken = max(1, self.counters.bytes_sent - before)
            size = max(1, len(chunk) * FRAME_BYTES // taken)
            await asyncio.sleep(0)
        return receipts

    async def request(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Message:
        """Send and wait for the answer to exactly this message.

        Raises ``TimeoutError`` after ``timeout`` seconds (default ``Config.request_timeout``),
        ``NotConfirmed`` where a plain peer's connection dies before the answer, and as ``send`` does.
        """
        connection = self._router.quick(address)
        if connection is not None and connection.peer.stopped:
            connection = None
        return await self._request(connection, lambda: self._finder(address), str(address), message, timeout)

    async def request_of(self, peer: Peer, message: Message, timeout: float | None = None) -> Message:
        """``request`` for a peer in hand; ``peer.request`` comes here."""
        return await self._request(
            None, lambda: lambda: self._router.find_for(peer), peer.address, message, timeout
        )

    async def _request(
        self,
        connection: Connection | None,
        finder: Callable[[], Find],
        label: str,
        message: Message,
        timeout: float | None,
    ) -> Message:
        limit = self.config.request_timeout if timeout is None else timeout
        pending = Pending(message, self.loop.create_future())
        timer = self.loop.call_later(limit, _expire, pending, label, limit)
        try:
            if connection is None or not self._write_request(connection, message, pending):
                find = finder()
                await self._hand_over(
                    find, label, message.stream_id, lambda c: self._write_request(c, message, pending), limit
                )
            return await pending.answer
        finally:
            timer.cancel()
            if pending.connection is not None:
                peer = pending.connection.peer
                peer.requests.remove(pending)
                if not peer.connections:
                    self._table.forget(peer)

    def _write_request(self, connection: Connection, message: Message, pending: Pending) -> bool:
        connection.peer.requests.add(pending)
        pending.connection = connection
        if connection.send(message):
            return True
        connection.peer.requests.remove(pending)
        return False

    # Receiving -----------------------------------------------------------------------------------

    @overload
    def on_message(self, handler: H, /, *, stream_id: StreamId | None = None) -> H: ...
    @overload
    def on_message(self, /, *, stream_id: StreamId | None = None) -> Callable[[H], H]: ...
    def on_message(self, handler: Any = None, /, *, stream_id: StreamId | None = None) -> Any:
        """Call ``handler(peer, message)`` for every message, or those of one stream. Also a decorator.

        Sync or async. Handlers of one (peer, stream) run one at a time, in order.
        """
        if handler is None:
            return lambda function: self.on_message(function, stream_id=stream_id)
        if not callable(handler):
            raise TypeError("on_message takes a function; use on_message(stream_id=...) for one stream")
        self._inbox.add_handler(handler, stream_id)
        return handler

    def off_message(self, handler: Handler) -> None:
        """Stop calling ``handler``."""
        self._inbox.remove_handler(handler)

    async def receive(
        self, address: str | Address, stream_id: StreamId = DEFAULT_STREAM, timeout: float | None = None
    ) -> Message:
        """The next message from the peer at ``address`` on that stream.

        From the first call on, messages of that stream wait here for the next one, even where
        handlers get them too. Raises ``TimeoutError`` and ``Closed``.
        """
        self._check_open()
        want = await self._router.want(Address.parse(address))
        use = self._inbox.use_for(want, stream_id)
        try:
            async with asyncio.timeout(timeout):
                _, message = await self._inbox.take(use)
                return message
        except TimeoutError:
            raise TimeoutError(
                f"no message from {address} on stream {stream_id!r} within {timeout} s"
            ) from None

    async def messages(self, stream_id: StreamId | None = None) -> AsyncIterator[tuple[Peer, Message]]:
        """Every message, or those of one stream, as ``(peer, message)``; ends when the transport closes."""
        self._check_open()
        use = self._inbox.begin(stream_id)
        try:
            while True:
                yield await self._inbox.take(use)
        except Closed:
            return
        finally:
            self._inbox.end(use)

    # Looking at it -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """A snapshot of all counters."""
        connections = self._table.connections
        idle = sum(c.rx == c.rx_mark and c.tx == c.tx_mark for c in connections)
        acceptors = [listener._acceptor for listener in self._listeners]
        return Stats(
            **{name: getattr(self.counters, name) for name in Counters.__struct_fields__},
            active=len(connections),
            idle=idle,
            pending_handshakes=sum(a.pending for a in acceptors),
            handshakes_evicted=sum(a.evicted for a in acceptors),
        )

    def peers(self) -> list[Peer]:
        """The peers that a live connection reaches now."""
        return [peer for peer in self._table if peer.connections]

    def explain(self, address: str | Address) -> Explanation:
        """Which connection a send to ``address`` would take, and why not the others. Sends nothing."""
        return self._router.explain(Address.parse(address))

    # Closing -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what is under way within ``Config.close_timeout``, say goodbye, and free everything.

        Idempotent; concurrent calls wait for the same end.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _close(self) -> None:
        await self._keeper.close()
        await self._dialer.close()
        for listener in list(self._listeners):
            self._listeners.remove(listener)
            await listener._acceptor.close()
        try:
            async with asyncio.timeout(self.config.close_timeout):
                await self._runner.idle()
                for connection in list(self._table.connections):
                    connection.flush()
                    await connection.room()
                self._closed = True
                await self._say_goodbye()
        except TimeoutError:
            log.warning("close: cutting %d connections after close_timeout", len(self._table.connections))
        self._closed = True
        for connection in list(self._table.connections):
            connection.link.abort()
            connection.on_closed("cut at close")
        self._watch.stop()
        self._inbox.close()
        await self._runner.close()
        await asyncio.sleep(0)  # let aborted sockets go

    async def _say_goodbye(self) -> None:
        for connection in list(self._table.connections):
            connection.resume_reading()
            connection.link.close(GOING_AWAY, "closing")
        while self._table.connections:
            await self._lost(next(iter(self._table.connections)))

    async def _lost(self, connection: Connection) -> None:
        changed = asyncio.Event()
        connection.when_changed(changed.set)
        while connection.state is not State.CLOSED:
            changed.clear()
            await changed.wait()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Closed("the transport is closed")

    # From below: connections and backends ---------------------------------------------------------

    def _hello(self) -> Hello:
        ports = tuple(dict.fromkeys(listener.port for listener in self._listeners))
        return Hello(self.node_id, self._nonce, ports, self.config.name)

    async def _dial(self, address: Address) -> Connection:
        self.counters.dials += 1
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                connection = await self._backend.dial(address)
        except TimeoutError:
            self.counters.dial_failures += 1
            reason = f"no answer within dial_timeout={self.config.dial_timeout:g} s"
            raise Unreachable(str(address), [(f"dial {address}", reason)]) from None
        except (Unreachable, Refused):
            self.counters.dial_failures += 1
            raise
        assert isinstance(connection, Connection)
        return connection

    def _link_up(self, link: Link) -> LinkEvents:
        connection = Connection(link, self)
        peer = self._table.add(connection)
        self._inbox.rebind()
        if link.endpoint.direction == "outbound":
            self.counters.created += 1
        else:
            self.counters.accepted += 1
        log.debug("open: %r", connection)
        for address in self._dialer.waiting():
            want = self._router.want_now(address)
            if link.endpoint.direction == "inbound" and self._table.plan(want).chosen is connection:
                self._dialer.settle(address, connection)
        for lane in peer.lanes.values():
            if lane.paused:
                self._regulate(lane)
        if self._closing is not None:
            self.loop.call_soon(link.close, GOING_AWAY, "closing")
        return connection

    def on_messages(self, connection: Connection, messages: list[Message], size: int) -> None:
        counters = self.counters
        counters.messages_received += len(messages)
        counters.bytes_received += size
        if self._closed:
            counters.undelivered += len(messages)
            return
        peer = connection.peer
        plain = connection.plain
        if plain:
            _take_hint(peer, messages[0])
        if peer.requests:
            messages = [m for m in messages if not peer.requests.claim(m, plain)]
        self.dispatching = True
        try:
            self._inbox.feed(peer, messages, size)
        finally:
            self.dispatching = False
            if self.dirty:
                self._flush_dirty()

    def _flush_dirty(self) -> None:
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.flush()

    def on_flow(self, connection: Connection, flow: Flow) -> None:
        """The peer's inbox for a stream is full, or has room again."""
        stopped = connection.peer.stopped
        if not flow.paused:
            _wake_all(stopped.pop(flow.stream_id, []))
        elif len(stopped) < self.config.max_streams:
            stopped.setdefault(flow.stream_id, [])

    def on_listening(self, connection: Connection, ports: tuple[int, ...]) -> None:
        """The peer listens on other ports than its hello said."""
        hello = connection.endpoint.hello
        assert hello is not None
        connection.endpoint.hello = Hello(hello.node_id, hello.nonce, ports, hello.name)
        self._changed()

    def on_state(self, connection: Connection) -> None:
        self._changed()

    def on_lost(self, connection: Connection, reason: str) -> None:
        self.counters.closed += 1
        if reason.startswith("bad input"):
            self.counters.malformed += 1
            log.warning("closed %r: %s", connection, reason)
        else:
            log.debug("gone: %r: %s", connection, reason)
        if not reason.startswith(_CLEAN):
            self.counters.in_doubt += connection.tx - connection.tx_life
        peer = connection.peer
        self._router.went(connection)
        self._table.remove(connection)
        self._inbox.rebind()
        if connection.plain:
            error = NotConfirmed(
                f"the connection to {peer.address} was lost before the answer came: {reason}"
            )
            peer.requests.fail(connection, error)
        if not peer.connections:
            for waiters in peer.stopped.values():
                _wake_all(waiters)
            peer.stopped.clear()

    def _changed(self) -> None:
        self._table.generation += 1
        self._inbox.rebind()

    def _evict(self, connection: Connection) -> None:
        """It failed when it was used: no send shall choose it again; its last bytes are still read."""
        self.counters.evictions += 1
        log.info("evicted: %r", connection)
        connection.set_state(State.DRAINING)
        self._table.remove(connection)

    def _regulate(self, lane: Lane) -> None:
        """A lane has become full, or roomy: tell its sender.

        An openline peer is told per stream. A plain peer, and an openline peer that fills very
        many streams or does not listen, is stopped by not reading its connections.
        """
        peer = lane.peer
        hard = peer.plain or peer.held > FULL_LANES_PER_PEER * self.config.inbox_bytes
        for connection in peer.connections:
            if not connection.plain:
                connection.send_control(encode_flow(lane.stream_id, lane.paused))
            if lane.paused and hard:
                connection.pause_reading()
            elif not any(other.paused for other in peer.lanes.values()) or not hard:
                connection.resume_reading()

    def _announce(self) -> None:
        """Openline peers learn of ports that were not in the hello."""
        ports = self._hello().ports
        for connection in self._table.connections:
            if not connection.plain:
                connection.send_control(encode_listening(ports))


_CLEAN = ("closed by this side", "the peer closed it (100", "the peer closed it (0")


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


def _expire(pending: Pending, label: str, limit: float) -> None:
    if not pending.answer.done():
        error = TimeoutError(f"no answer from {label} to request {pending.id!r} within {limit:g} s")
        pending.answer.set_exception(error)


def _take_hint(peer: Peer, message: Message) -> None:
    source = message.metadata.get("sourceNodeId") if message.metadata else None
    if isinstance(source, str):
        peer.name = source[:128]


def _wake_all(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


class _Loading:
    """``await load_transport(...)`` and ``async with load_transport(...)`` both work."""

    def __init__(self, config: Config, opener: Opener) -> None:
        self._config = config
        self._opener = opener
        self._transport: Transport | None = None

    def __await__(self) -> Generator[Any, None, Transport]:
        return self._load().__await__()

    async def __aenter__(self) -> Transport:
        self._transport = await self._load()
        return self._transport

    async def __aexit__(self, *exc: object) -> None:
        assert self._transport is not None
        await self._transport.close()

    async def _load(self) -> Transport:
        return Transport(self._config, opener=self._opener)


def load_transport(config: Config | None = None, *, opener: Opener = open_socket) -> _Loading:
    """A transport: ``async with load_transport(config) as t`` or ``t = await load_transport(config)``.

    Raises ``OSError`` and ``ssl.SSLError`` where the files of ``Config.tls`` cannot be used.
    ``opener`` replaces how sockets are dialed, for tests that inject faults.
    """
    return _Loading(config or Config(), opener)
