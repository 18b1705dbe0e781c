"""The object that programs without ``async`` hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, overload

from ..address import Address
from ..config import Config
from ..message import DEFAULT_STREAM, Message, Receipt, StreamId
from ..peer import Peer as AsyncPeer
from ..routing.router import Explanation
from ..stats import Stats
from ..transport import Listener as AsyncListener
from ..typed import TypedMessage
from .background import Background
from .handlers import Handling, handling
from .life import Life
from .peer import Peer, PeerEvent

Handler = Callable[[Peer, Message], object]
Undelivered = Callable[[Peer, Message, str], object]

PeerHandler = Callable[[PeerEvent], object]

H = TypeVar("H", bound=Handler)
T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound=PeerHandler)
U = TypeVar("U", bound=Undelivered)

# Handlers of one transport that may block at a time: an agent has tens of peers at work, and a thread that
# waits takes some 50 kB.
WORKERS = 64


class Listener:
    """A port that a transport listens on."""

    def __init__(self, listener: AsyncListener, background: Background) -> None:
        self._listener = listener
        self._background = background
        self.host = listener.host
        self.port = listener.port
        self.secure = listener.secure
        # What it really listens with: "websocket" (TCP), "quic" (UDP, the same port number).
        self.backends = listener.backends
        # Why it does not with the others.
        self.unavailable = listener.unavailable

    @property
    def address(self) -> str:
        """``ws://host:port`` or ``wss://host:port``, as bound; ``quic://`` where there is no WebSocket."""
        return self._listener.address

    def __repr__(self) -> str:
        return repr(self._listener)

    def reload_tls(self) -> None:
        """Read the certificate and key of ``Config.tls`` again now, for connections that begin from now on.

        A change of the files is noticed without this, at the next connection. Raises ``OSError`` where they
        cannot be used; then nothing has changed.
        """
        self._background.ask(self._listener.reload_tls)

    def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        self._background.call(self._listener.close)


class Transport:
    """Listens and dials; a message rides any live connection that reaches the peer before it dials.

    Made by ``openline.sync.load_transport``, and closed by ``close()`` or the end of its ``with`` block.
    Each call waits until it is done; any thread may call, also several at a time, also inside a running
    event loop, which stands still meanwhile. Ctrl-C interrupts a call that waits: it is cancelled, and the
    transport goes on. Handlers run in threads, so they may block and call all of this. In a child that came
    by fork every call raises ``Closed``. Times are seconds, sizes bytes.

    - Listening and connecting: ``listen``, ``connect``, ``ping``, ``reload_tls``
    - Sending: ``send``, ``send_batch``, ``request``, ``stream``
    - Receiving: ``on_message``, ``off_message``, ``receive``, ``messages``, ``on_undelivered``
    - Who is there: ``on_peer``, ``off_peer``, ``peer_events``
    - Looking at it: ``node_id``, ``config``, ``stats``, ``peers``, ``explain``
    - Closing: ``close``
    """

    def __init__(self, config: Config, *, workers: int = WORKERS) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        self.config = config
        self._life = life = Life(config, workers)
        self._transport = life.begin()
        self._background, self._workers = life.background, life.workers

    @property
    def node_id(self) -> str:
        """This node's id: its public key in base32."""
        return self._transport.node_id

    def __repr__(self) -> str:
        return repr(self._transport).replace("<openline transport", "<openline.sync transport")

    # Listening and connecting --------------------------------------------------------------------

    def listen(self, port: int = 0, host: str | None = None) -> Listener:
        """Accept connections on ``port``; 0 picks one. ``host`` None means all interfaces.

        On TCP for WebSocket (``wss`` where ``Config.tls`` has cert and key), and on UDP for QUIC
        where that is usable. Raises ``OSError`` (port in use, no permission) and ``Closed``.
        """
        return Listener(self._background.call(self._transport.listen, port, host), self._background)

    def reload_tls(self) -> None:
        """Read all files of ``Config.tls`` again now: what listeners show, and the CA that dialing trusts.

        A change of the files is noticed without this. Open connections stay as they are. Raises ``OSError``
        where one cannot be used; then what was read of it before stays in use.
        """
        self._background.ask(self._transport.reload_tls)

    def connect(self, address: str | Address, *, keep: bool = False) -> Peer | None:
        """Make sure that a live connection reaches ``address``; returns the peer there.

        With ``keep`` it stays so until ``close()``: whenever it is lost, it is dialed again with
        exponential backoff and full jitter, with a fresh look-up and socket each time. Then a
        failure of the first attempt is not raised but returned as None. Raises ``Unreachable`` and
        ``Refused`` where it is not kept, ``InvalidAddress`` and ``Closed``.
        """
        peer = self._background.call(self._transport.connect, address, keep=keep)
        return self._peer(peer) if peer is not None else None

    def ping(self, address: str | Address, *, timeout: float = 5.0) -> float:
        """The round trip to ``address`` in seconds, over the connection a send would take.

        Raises ``TimeoutError``, ``Unreachable``, ``Refused``, and ``NotConfirmed`` where the
        connection dies meanwhile.
        """
        return self._background.call(self._transport.ping, address, timeout=timeout)

    # Sending -------------------------------------------------------------------------------------

    def send(self, address: str | Address, message: Message, *, timeout: float | None = None) -> Receipt:
        """Send one message; returns when an openline peer has it, or a plain peer's socket does.

        ``timeout`` (default ``Config.send_timeout``) bounds all of it: waiting for a connection, for
        room on it, and for the acknowledgement. Raises ``Unreachable``, ``TimeoutError``,
        ``Refused``, ``IdentityConflict``, ``InvalidMessage``, ``MessageTooLarge`` and ``Closed``,
        none of which has let a byte leave; and ``NotConfirmed``. Do not change the message meanwhile.
        """
        return self._background.call(self._transport.send, address, message, timeout=timeout)

    def send_batch(
        self, address: str | Address, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Receipt]:
        """Send many messages, pipelined and in order, with one dial at most.

        ``timeout`` bounds each frame of them as it bounds a ``send``. Raises as ``send`` does;
        ``Unreachable.sent`` tells how many had left before, ``NotConfirmed.acked`` how many are
        confirmed. For many messages this costs far less than ``send`` for each.
        """
        # What makes them is the caller's code, and runs in the caller's thread.
        return self._background.call(self._transport.send_batch, address, list(messages), timeout=timeout)

    @overload
    def request(self, address: str | Address, message: Message, timeout: float | None = None) -> Message: ...
    @overload
    def request(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> TypedMessage[T]: ...
    def request(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> Message:
        """Send and wait for the answer to exactly this message.

        With ``returns`` the answer's payload is of that type, as with ``on_message(type=...)``. An openline
        peer's handler is cancelled when this side waits no longer. Raises ``TimeoutError`` after
        ``timeout`` seconds (default ``Config.request_timeout``), ``NotConfirmed`` where a plain peer's
        connection dies before the answer, ``RemoteError`` where an openline peer's handler fails,
        ``InvalidMessage`` for a payload that does not fit, and as ``send`` does.
        """
        if returns is None:  # the usual one, without a keyword
            return self._background.call(self._transport.request, address, message, timeout)
        return self._background.call(self._transport.request, address, message, timeout, returns=returns)

    @overload
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None
    ) -> Iterator[Message]: ...
    @overload
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> Iterator[TypedMessage[T]]: ...
    def stream(
        self, address: str | Address, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> Iterator[Message]:
        """Send, and get the answer in pieces: ``for part in t.stream(address, message): ...``.

        Each part is a ``Message``; it ends after the last one. The first step asks. The handler there is
        stopped while this side is behind with reading, and cancelled when this side leaves the loop, or gets
        no part for ``timeout`` seconds (default ``Config.request_timeout``). Connections may die meanwhile.
        Raises as ``request`` does; ``RemoteError`` where the handler fails; ``NotConfirmed`` where the peer's
        process is gone, or out of reach for ``Config.resume_timeout``; ``Closed``. ``returns`` is the type of
        each part's payload.
        """
        return self._background.each(self._transport.stream(address, message, timeout, returns=returns))

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

        A plain function, called in a thread, or a generator function, whose parts are the answer. Those of
        one (peer, stream) run one at a time, in order; of all others as many at a time as
        ``load_transport(workers=)`` says. What it raises is logged. With ``type`` ``message.payload`` is of
        it, as with ``openline.Transport.on_message``. Raises ``TypeError`` for what is not a plain function,
        and for a ``type`` that is none.
        """
        if handler is None:
            return lambda function: self._on_message(function, type, stream_id)
        return self._on_message(handler, type, stream_id)

    def _on_message(self, handler: Any, kind: Any, stream_id: StreamId | None) -> Any:
        if not callable(handler):
            raise TypeError("on_message takes a function; use on_message(stream_id=...) for one stream")
        called = self._handling(handler)
        self._background.ask(self._add, called, kind, stream_id)
        return handler

    def _add(self, called: Handling, kind: Any, stream_id: StreamId | None) -> None:
        register: Callable[[Any], Any] = self._transport.on_message(type=kind, stream_id=stream_id)
        register(called)

    def off_message(self, handler: Handler) -> None:
        """Stop calling ``handler``. A call that has begun goes on."""
        self._background.ask(self._transport.off_message, self._handling(handler))

    def on_undelivered(self, handler: U) -> U:
        """Call ``handler(peer, message, why)`` for messages that may not have arrived. Also a decorator.

        In a thread, one call after the other. To a plain peer: what left since its last sign of life, when
        its connection is lost (the last 1,024; set the handler before connecting). To an openline peer: what
        was given up unacknowledged, when it was out of reach for ``Config.resume_timeout``. Counted as
        ``stats().in_doubt`` in any case.
        """
        tell, background = self._workers.in_order(handler), self._background
        self._background.ask(
            self._transport.on_undelivered,
            lambda peer, message, why: tell(Peer(peer, background), message, why),
        )
        return handler

    def receive(
        self, address: str | Address, stream_id: StreamId = DEFAULT_STREAM, timeout: float | None = None
    ) -> Message:
        """The next message from the peer at ``address`` on that stream, within ``timeout`` seconds.

        From the first call on, messages of that stream wait here for the next one, even where
        handlers get them too. Raises ``TimeoutError`` and ``Closed``.
        """
        return self._background.call(self._transport.receive, address, stream_id, timeout)

    def messages(self, stream_id: StreamId | None = None) -> Iterator[tuple[Peer, Message]]:
        """Every message, or those of one stream, as ``(peer, message)``; ends when the transport closes.

        It begins with the first step. Each thread needs one of its own. Raises ``Closed`` where the transport
        is closed before it begins.
        """
        each = self._background.each(self._transport.messages(stream_id))
        return ((self._peer(peer), message) for peer, message in each)

    # Who is there --------------------------------------------------------------------------------

    def on_peer(self, handler: P) -> P:
        """Call ``handler(event)`` whenever a peer comes, is suspect, recovers, moves or goes.

        Also a decorator. In a thread, one event at a time, in the order in which they happened
        (``PeerEvent``). It is told what happens from now on; ``peers()`` says who is there already.
        """
        self._background.ask(self._transport.on_peer, self._watching(handler))
        return handler

    def off_peer(self, handler: PeerHandler) -> None:
        """Stop calling ``handler``. A call that has begun goes on."""
        self._background.ask(self._transport.off_peer, self._watching(handler))

    def peer_events(self) -> Iterator[PeerEvent]:
        """An iterator over what an ``on_peer`` handler would be told, from this call on.

        So ``events = t.peer_events(); peers = t.peers()`` misses nothing. It ends when the transport is
        closed and everything has been told. It collects for as long as it is kept. Raises ``Closed``.
        """
        events = self._background.each(self._background.ask(self._transport.peer_events))
        return (PeerEvent.of(event, self._background) for event in events)

    # Looking at it -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """A snapshot of all counters. Costs no wait for the loop."""
        return self._transport.stats()

    def peers(self) -> list[Peer]:
        """The peers that a live connection reaches now. Costs no wait for the loop."""
        return [self._peer(peer) for peer in self._transport.peers()]

    def explain(self, address: str | Address) -> Explanation:
        """Which connection a send to ``address`` would take, and why not the others. Sends nothing.

        Raises ``InvalidAddress``.
        """
        return self._background.ask(self._transport.explain, address)

    # Closing -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish what is under way within ``Config.close_timeout``, say goodbye, and free everything.

        Idempotent; concurrent calls wait for the same end. The last transport's ends the thread of the loop.
        A process that ends without it closes its transports then. Raises ``Closed`` in a child that came by
        fork.
        """
        self._life.end()

    def __del__(self) -> None:
        if (life := getattr(self, "_life", None)) is not None:
            life.drop()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._background.foreign:  # a child that leaves its parent's block has nothing to close
            self.close()

    # Between the two worlds ----------------------------------------------------------------------

    def _peer(self, peer: AsyncPeer) -> Peer:
        return Peer(peer, self._background)

    def _watching(self, handler: PeerHandler) -> Handling:
        background = self._background
        return handling(handler, self._workers, lambda event: (PeerEvent.of(event, background),))

    def _handling(self, handler: Handler) -> Handling:
        background = self._background  # not self: a transport with a handler can still be dropped
        return handling(handler, self._workers, lambda peer, message: (Peer(peer, background), message))


def load_transport(config: Config | None = None, *, workers: int = WORKERS) -> Transport:
    """A transport: ``with load_transport(config) as t``, or ``t = load_transport(config)`` and ``t.close()``.

    ``workers``: handlers that may run, and block, at a time; others wait for one to end. Raises ``OSError``
    and ``ssl.SSLError`` where the files of ``Config.tls`` cannot be used, and ``InvalidIdentity`` where that
    of ``Config.identity`` cannot.
    """
    return Transport(config or Config(), workers=workers)
