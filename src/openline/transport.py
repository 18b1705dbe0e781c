"""The object that users hold: it listens, dials, sends and receives."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .address import Address, join
from .backends.base import Environment
from .backends.select import Doors
from .backends.sockets import Opener
from .config import Config
from .core.lifecycle import Phase
from .errors import Closed, NotConfirmed
from .message import DEFAULT_STREAM, Message, Receipt, StreamId
from .node import Node, Undelivered
from .peer import Peer
from .peers.mailbox import Handler
from .receiving.watchers import PeerEvents, PeerHandler
from .routing.router import Explanation
from .runtime.environment import RealEnvironment
from .stats import Counters, Stats
from .typed import TypedHandler, TypedMessage, answer, parts

if TYPE_CHECKING:
    from .backends.quic.udp import UdpOpener

log = logging.getLogger("openline")

H = TypeVar("H", bound=Handler)
T = TypeVar("T")
R = TypeVar("R", bound=Awaitable[Any] | AsyncIterator[Any] | None)
P = TypeVar("P", bound=PeerHandler)


class Listener:
    """A port that a transport listens on."""

    def __init__(self, transport: Transport, acceptor: Doors, host: str | None) -> None:
        self._transport = transport
        self._acceptor = acceptor
        self.host = host or "0.0.0.0"
        self.port = acceptor.port
        self.secure = acceptor.secure
        # What it really listens with: "websocket" (TCP), "quic" (UDP, the same port number).
        self.backends = acceptor.backends
        # Why it does not with the others.
        self.unavailable = acceptor.unavailable

    @property
    def address(self) -> str:
        """``ws://host:port`` or ``wss://host:port``, as bound; ``quic://`` where there is no WebSocket."""
        scheme = "quic" if self.backends == ("quic",) else "wss" if self.secure else "ws"
        return f"{scheme}://{join(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"<listening on {self.address} ({', '.join(self.backends)})>"

    def reload_tls(self) -> None:
        """Read the certificate and key of ``Config.tls`` again now, for connections that begin from now on.

        A change of the files is noticed without this, at the next connection. Raises ``OSError`` where they
        cannot be used; then nothing has changed.
        """
        self._transport._home.check_call()
        self._transport._reload_certificate()

    async def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        await self._transport._stop_listening(self)


class Transport:
    """Listens and dials; a message rides any live connection that reaches the peer before it dials.

    Made by ``load_transport``. Belongs to the event loop it was made on: calls from another loop or thread
    raise ``WrongLoop``, and in a child that came by fork ``Closed``, before anything happens. Times are
    seconds, sizes bytes. ``openline.sync`` has the same without ``async``.

    - Listening and connecting: ``listen``, ``connect``, ``ping``, ``reload_tls``
    - Sending: ``send``, ``send_batch``, ``request``, ``stream``
    - Receiving: ``on_message``, ``off_message``, ``receive``, ``messages``, ``on_undelivered``
    - Who is there: ``on_peer``, ``off_peer``, ``peer_events``
    - Looking at it: ``node_id``, ``config``, ``stats``, ``peers``, ``explain``
    - Closing: ``close``, or the end of its ``async with`` block
    """

    def __init__(self, config: Config, environment: Environment | None = None) -> None:
        """Must be called with an event loop running. ``environment`` replaces network and clocks."""
        self.config = config
        self._node = node = Node(config, environment or RealEnvironment())
        self._home = node.home
        self._table = node.table
        self._router = node.router
        self._inbox = node.inbox
        self._sender = node.sender
        self._listeners: list[Listener] = []
        self._closing: asyncio.Task[None] | None = None

    @property
    def node_id(self) -> str:
        """This node's id: its public key in base32."""
        return self._node.node_id

    def __repr__(self) -> str:
        closed = "another process's" if self._home.foreign else "closed" if self._home.closed else ""
        state = closed or f"{len(self._table.connections)} connections"
        return f"<openline transport {self.config.name!r}, {state}>"

    # Listening and connecting --------------------------------------------------------------------

    async def listen(self, port: int = 0, host: str | None = None) -> Listener:
        """Accept connections on ``port``; 0 picks one. ``host`` None means all interfaces.

        On TCP for WebSocket (``wss`` where ``Config.tls`` has cert and key), and on UDP for QUIC
        where that is usable. Raises ``OSError`` (port in use, no permission) and ``Closed``.
        """
        self._home.check_open()
        acceptor = await self._node.backends.listen(host, port)
        listener = Listener(self, acceptor, host)
        self._listeners.append(listener)
        self._announce()
        return listener

    async def _stop_listening(self, listener: Listener) -> None:
        self._home.check()
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._announce()
            await listener._acceptor.close()

    def _announce(self) -> None:
        self._node.announce(tuple(dict.fromkeys(listener.port for listener in self._listeners)))

    def _reload_certificate(self) -> None:
        files = self._node.backends.files
        if files is not None:
            files.shown.reload()

    def reload_tls(self) -> None:
        """Read all files of ``Config.tls`` again now: what listeners show, and the CA that dialing trusts.

        A change of the files is noticed without this. Open connections stay as they are. Raises ``OSError``
        where one cannot be used; then what was read of it before stays in use.
        """
        self._home.check_call()
        try:
            self._reload_certificate()
        finally:
            if (files := self._node.backends.files) is not None:
                files.trusted.reload()

    async def connect(self, address: str | Address, *, keep: bool = False) -> Peer | None:
        """Make sure that a live connection reaches ``address``; returns the peer there.

        With ``keep`` it stays so until ``close()``: whenever it is lost, it is dialed again with
        exponential backoff and full jitter, with a fresh look-up and socket each time. Then a
        failure of the first attempt is not raised but returned as None. Raises ``Unreachable`` and
        ``Refused`` where it is not kept, ``InvalidAddress`` and ``Closed``.
        """
        self._home.check_open()
        target = Address.parse(address)
        if keep:
            connection = await self._node.kept.keep(target)
            return connection.remote.peer if connection is not None else None
        return (await self._node.reach(target)).remote.peer

    async def ping(self, address: str | Address, *, timeout: float = 5.0) -> float:
        """The round trip to ``address`` in seconds, over the connection a send would take.

        Raises ``TimeoutError``, ``Unreachable``, ``Refused``, and ``NotConfirmed`` where the
        connection dies meanwhile.
        """
        self._home.check_open()
        try:
            async with asyncio.timeout(timeout):
                connection = await self._node.reach(Address.parse(address))
                return await connection.ping()
        except ConnectionError as error:
            raise NotConfirmed(f"no answer from {address}: {error}") from None
        except TimeoutError:
            raise TimeoutError(f"no answer from {address} within {timeout:g} s") from None

    # Sending -------------------------------------------------------------------------------------

    def send(
        self, address: str | Address, message: Message, *, timeout: float | None = None
    ) -> Coroutine[Any, Any, Receipt]:
        """Send one message; returns when an openline peer has it, or a plain peer's socket does.

        ``timeout`` (default ``Config.send_timeout``) bounds all of it: waiting for a connection, for
        room on it, and for the acknowledgement. Raises ``Unreachable``, ``TimeoutError``,
        ``Refused``, ``IdentityConflict``, ``InvalidMessage``, ``MessageTooLarge`` and ``Closed``,
        none of which has let a byte leave; and ``NotConfirmed``. Do not change the message meanwhile.
        """
        return self._sender.send(address, message, timeout=timeout)

    def send_batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Coroutine[Any, Any, list[Receipt]]:
        """Send many messages, pipelined and in order, with one dial at most.

        ``timeout`` bounds each frame of them as it bounds a ``send``. Raises as ``send`` does;
        ``Unreachable.sent`` tells how many had left before, ``NotConfirmed.acked`` how many are
        confirmed.
        """
        return self._sender.batch(address, messages, timeout=timeout)

    @overload
    def request(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Coroutine[Any, Any, Message]: ...
    @overload
    def request(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> Coroutine[Any, Any, TypedMessage[T]]: ...
    def request(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Message]:
        """Send and wait for the answer to exactly this message.

        With ``returns`` the answer's payload is of that type, as with ``on_message(type=...)``. An openline
        peer's handler is cancelled when this side is, or waits no longer. Raises ``TimeoutError`` after
        ``timeout`` seconds (default ``Config.request_timeout``), ``NotConfirmed`` where a plain peer's
        connection dies before the answer, ``RemoteError`` where an openline peer's handler fails,
        ``InvalidMessage`` for a payload that does not fit, and as ``send`` does.
        """
        asking = self._sender.request(address, message, timeout)
        return asking if returns is None else answer(asking, returns, address)

    @overload
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> AsyncGenerator[Message, None]: ...
    @overload
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> AsyncGenerator[TypedMessage[T], None]: ...
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> AsyncGenerator[Message, None]:
        """Send, and get the answer in pieces: ``async for part in t.stream(address, message): ...``.

        Each part is a ``Message``; it ends after the last one. The handler there is an async generator, or
        calls ``peer.reply(message, part, more=True)``. It is stopped while this side is behind with reading,
        and cancelled when this side leaves the loop, is cancelled, or gets no part for ``timeout`` seconds
        (default ``Config.request_timeout``). Connections may die meanwhile. Raises as ``request`` does;
        ``RemoteError`` where the handler fails; ``NotConfirmed`` where the peer's process is gone, or out of
        reach for ``Config.resume_timeout``; ``Closed``. ``returns`` is the type of each part's payload.
        """
        stream = self._sender.stream(address, message, timeout)
        return stream if returns is None else parts(stream, returns, address)

    # Receiving -----------------------------------------------------------------------------------

    @overload
    def on_message(self, handler: H, /, *, stream_id: StreamId | None = None) -> H: ...
    @overload
    def on_message(
        self, /, *, type: type[T], stream_id: StreamId | None = None
    ) -> Callable[[Callable[[Peer, TypedMessage[T]], R]], Callable[[Peer, TypedMessage[T]], R]]: ...
    @overload
    def on_message(self, /, *, type: Any = None, stream_id: StreamId | None = None) -> Callable[[H], H]: ...
    def on_message(
        self, handler: Any = None, /, *, type: Any = None, stream_id: StreamId | None = None
    ) -> Any:
        """Call ``handler(peer, message)`` for every message, or those of one stream. Also a decorator.

        Sync or async, or an async generator, whose parts are the answer. Handlers of one (peer, stream) run
        one at a time, in order. With ``type`` (of the payload: a ``msgspec.Struct``, a dataclass, a
        ``TypedDict``, a pydantic model, ...) ``message.payload`` is of it; one that does not fit reaches no
        such handler, is logged and counted (``stats().malformed``), and answered with an error that says
        where. Raises ``TypeError`` for a ``type`` that is none.
        """
        if handler is None:
            return lambda function: self._on_message(function, type, stream_id)
        return self._on_message(handler, type, stream_id)

    def _on_message(self, handler: Any, kind: Any, stream_id: StreamId | None) -> Any:
        if not callable(handler):
            raise TypeError("on_message takes a function; use on_message(stream_id=...) for one stream")
        self._home.check_call()
        self._inbox.add_handler(handler if kind is None else TypedHandler(handler, kind), stream_id)
        return handler

    def on_undelivered(self, handler: Undelivered) -> Undelivered:
        """Call ``handler(peer, message, why)`` for messages that may not have arrived. Also a decorator.

        To a plain peer: what left since its last sign of life, when its connection is lost (the
        last 1,024; set the handler before connecting). To an openline peer: what was given up
        unacknowledged, when it was out of reach for ``Config.resume_timeout``. Counted as
        ``stats().in_doubt`` in any case.
        """
        self._home.check_call()
        self._node.undelivered.append(handler)
        return handler

    def off_message(self, handler: Handler) -> None:
        """Stop calling ``handler``."""
        self._home.check_call()
        self._inbox.remove_handler(handler)

    async def receive(
        self, address: str | Address, stream_id: StreamId = DEFAULT_STREAM, timeout: float | None = None
    ) -> Message:
        """The next message from the peer at ``address`` on that stream.

        From the first call on, messages of that stream wait here for the next one, even where
        handlers get them too. Raises ``TimeoutError`` and ``Closed``.
        """
        self._home.check_open()
        want = await self._router.want(Address.parse(address))
        consumer = self._inbox.consumer_for(want, stream_id)
        try:
            async with asyncio.timeout(timeout):
                _, message = await self._inbox.take(consumer)
                return message
        except TimeoutError:
            raise TimeoutError(
                f"no message from {address} on stream {stream_id!r} within {timeout} s"
            ) from None

    async def messages(self, stream_id: StreamId | None = None) -> AsyncIterator[tuple[Peer, Message]]:
        """Every message, or those of one stream, as ``(peer, message)``; ends when the transport closes."""
        self._home.check_open()
        consumer = self._inbox.begin(stream_id)
        try:
            while True:
                yield await self._inbox.take(consumer)
        except Closed:
            return
        finally:
            self._inbox.end(consumer)

    # Who is there --------------------------------------------------------------------------------

    def on_peer(self, handler: P) -> P:
        """Call ``handler(event)``, sync or async, whenever a peer comes, is suspect, recovers, moves or goes.

        Also a decorator. One event at a time, in the order in which they happened (``PeerEvent``). It is told
        what happens from now on; ``peers()`` says who is there already.
        """
        self._home.check_call()
        if not callable(handler):
            raise TypeError("on_peer takes a function")
        self._node.watchers.add_handler(handler)
        return handler

    def off_peer(self, handler: PeerHandler) -> None:
        """Stop calling ``handler``."""
        self._home.check_call()
        self._node.watchers.remove_handler(handler)

    def peer_events(self) -> PeerEvents:
        """An async iterator over what an ``on_peer`` handler would be told, from this call on.

        So ``events = t.peer_events(); peers = t.peers()`` misses nothing. It ends when the transport is
        closed and everything has been told, the end of each connection included. It collects for as long as
        it is kept, or until ``await events.aclose()``. Raises ``Closed``.
        """
        self._home.check_open()
        return self._node.watchers.events()

    # Looking at it -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """A snapshot of all counters. Any thread may ask."""
        self._home.check_process()
        connections = list(self._table.connections)
        idle = sum(c.heard != self._node.context.now and c.writer.tx == c.tx_heard for c in connections)
        acceptors = [listener._acceptor for listener in list(self._listeners)]
        files = self._node.backends.files
        return Stats(
            **{name: getattr(self._node.counters, name) for name in Counters.__struct_fields__},
            active=len(connections),
            idle=idle,
            pending_handshakes=sum(a.pending for a in acceptors),
            handshakes_evicted=sum(a.evicted for a in acceptors),
            strangers_cut=self._node.door.unfinished.cut,
            backends=dict(Counter(connection.link.backend for connection in connections)),
            certificate_days=files.shown.days if files is not None else None,
        )

    def peers(self) -> list[Peer]:
        """The peers that a live connection reaches now. Any thread may ask."""
        self._home.check_process()
        return [remote.peer for remote in list(self._table) if remote.connections]

    def explain(self, address: str | Address) -> Explanation:
        """Which connection a send to ``address`` would take, and why not the others. Sends nothing.

        Raises ``InvalidAddress``.
        """
        self._home.check_call()
        return self._router.explain(Address.parse(address))

    # Closing -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what is under way within ``Config.close_timeout``, say goodbye, and free everything.

        Idempotent; concurrent calls wait for the same end.
        """
        if self._closing is not None and self._closing.done():
            return
        self._home.check()
        if self._closing is None:
            self._home.enter(Phase.CLOSING)
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._home.foreign:  # a child that leaves its parent's block has nothing to close
            await self.close()

    async def _close(self) -> None:
        await self._node.stop_dialing()
        for listener in list(self._listeners):
            self._listeners.remove(listener)
            await listener._acceptor.close()
        await self._node.close()


class _Loading:
    """``await load_transport(...)`` and ``async with load_transport(...)`` both work."""

    def __init__(self, config: Config, environment: Environment) -> None:
        self._config = config
        self._environment = environment
        self._transport: Transport | None = None

    def __await__(self) -> Generator[Any, None, Transport]:
        return self._load().__await__()

    async def __aenter__(self) -> Transport:
        self._transport = await self._load()
        return self._transport

    async def __aexit__(self, *exc: object) -> None:
        assert self._transport is not None
        await self._transport.__aexit__(*exc)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"{name!r}: load_transport() has not been awaited; write  async with load_transport(...) as t  "
            "or  t = await load_transport(...)"
        )

    async def _load(self) -> Transport:
        return Transport(self._config, self._environment)


def load_transport(
    config: Config | None = None,
    *,
    opener: Opener | None = None,
    udp_opener: UdpOpener | None = None,
    environment: Environment | None = None,
) -> _Loading:
    """A transport: ``async with load_transport(config) as t`` or ``t = await load_transport(config)``.

    Raises ``OSError`` and ``ssl.SSLError`` where the files of ``Config.tls`` cannot be used, and
    ``InvalidIdentity`` where that of ``Config.identity`` cannot. For tests: ``opener`` and
    ``udp_opener`` replace how sockets are dialed (without the second one nothing goes by QUIC),
    ``environment`` network and clocks (``openline.testing.Network``).
    """
    if environment is None:
        environment = RealEnvironment(opener, udp_opener)
    return _Loading(config or Config(), environment)
