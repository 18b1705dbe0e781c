"""The WebSocket backend: dialing, listening and the upgrade, with the hello in its headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import weakref
from collections.abc import Callable
from typing import Any

from picows import (
    WSAutoPingStrategy,
    WSHandshakeError,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # the acceptor needs the protocol itself; hence picows ~= 2.3

from ...address import Address, join
from ...config import Config
from ...core.frames import FRAME_BYTES, Malformed
from ...core.handshake import HEADER, REFUSED_HEADER
from ...core.selection import Endpoint
from ...core.text import printable, printable_lines
from ...errors import Error, IdentityConflict, Refused, Unreachable
from ...runtime.ratelog import process_log
from .. import tls
from ..base import Doorkeeper, Link, OnBad
from ..binding import Where, bind
from ..certificates import Made, TlsFiles
from ..descriptors import max_pending
from ..sockets import Opener, connect, describe, ip_of, open_narrow, open_socket
from . import deflate
from .bare import BareDial, WhyNotPlain
from .link import WebSocketLink
from .listener import Acceptor, Done
from .origins import may_connect
from .reader import BoundedReader
from .tunnel import READ_SIZE, Tunnel

log = logging.getLogger("openline")

_SEALED_ONLY = (
    "an openline node answers in plain text, which is not used for it unless the address says ws:// "
    '(or Config.plaintext is "allow")'
)
_EXTENSIONS = "Sec-WebSocket-Extensions"
# The smallest picows takes; it grows with traffic. 10,000 idle connections are the reason.
_READ_BUFFER = 2048
# A binary frame may carry other messages, its kind and a count besides a message of full size.
_FRAME_OVERHEAD = FRAME_BYTES + 64


class _PicowsLog(logging.LoggerAdapter[logging.Logger]):
    """picows reports each connect and every hostile frame; openline says so itself, once.

    An adapter, because for a plain logger picows makes a child logger per connection.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if level >= logging.ERROR and kwargs.get("exc_info"):
            process_log.line("picows", True, level, str(msg), *args, **kwargs)
        else:
            super().log(logging.DEBUG, msg, *args, **kwargs)


_picows_log = _PicowsLog(logging.getLogger("openline.picows"), {})


class _Protocol(WSProtocol):  # type: ignore[misc]
    """picows's protocol, safe against a connection that was lost before it was made."""

    __slots__ = ()

    def connection_lost(self, exc: Exception | None) -> None:
        # connection_made fails on a socket that is closed by then, and leaves no transport; the
        # compiled connection_lost writes to it all the same, which corrupts memory.
        if self.transport is not None:
            super().connection_lost(exc)
            # asyncio's TLS keeps the protocol's methods, and with them all that has been received;
            # unless it has been closed twice, upon which it knows nothing any more.
            with contextlib.suppress(AttributeError):
                self.transport.underlying_transport.set_protocol(_NO_PROTOCOL)


# In place of a protocol whose connection is lost.
_NO_PROTOCOL = asyncio.BufferedProtocol()


class _ClientProtocol(_Protocol):
    """picows gives a client the error of its connection in a future. It has been told by then; where
    nobody asks for it, asyncio would log it."""

    __slots__ = ()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.transport is None:
            return
        ended = self.transport.wait_disconnected()
        try:
            ended.send(None)
        except StopIteration:
            return
        except Exception as error:
            log.debug("picows: %r", error)
        ended.close()


class _ServerProtocol(_Protocol):
    """Tells the acceptor when a handshake ends without having become a connection."""

    __slots__ = ("__weakref__", "done")

    done: Done

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        done, self.done = self.done, _told
        done(False)  # unless its end has been told


# Paths whose MTU is less than their ends think: as long as the choice among backends is remembered.
NARROW_FOR = 600.0
MAX_NARROW = 4096
# Plain peers that speak no TLS: the same.
PLAIN_PEER_FOR = 600.0
MAX_PLAIN_PEERS = 4096


class WebSocketBackend:
    """Opens and accepts WebSocket links for one transport."""

    name = "websocket"
    schemes: tuple[str, ...] = ("ws", "wss")

    def __init__(
        self,
        config: Config,
        door: Doorkeeper,
        on_bad: OnBad,
        opener: Opener = open_socket,
        files: TlsFiles | None = None,
    ) -> None:
        self._config = config
        self._door = door
        self._on_bad = on_bad
        self._opener = opener
        # Where to, and until when, segments are to be small.
        self._narrow: dict[tuple[str, int], float] = {}
        # Where, and until when, a plain peer is expected, so that plain text goes first.
        self._plain_peers: dict[tuple[str, int], float] = {}
        self.files = files or TlsFiles(config.tls)
        settings = config.tls
        # That of ``Config.tls``, or else, once it is needed, one of the node's key.
        self._own_context: Made[tls.ServerContext] | None = None
        if settings is not None and settings.cert is not None:
            self._own_context = self.files.shown.use(lambda _: tls.server_context(settings))
        self._any_context = tls.any_certificate_context()
        self._shared = memoryview(bytearray(READ_SIZE))
        # Loading the trust store takes 20 ms, so only where it is configured or first needed.
        self._client_context: Made[ssl.SSLContext] | None = None
        if settings is not None:
            self._client_context = self.files.trusted.use(lambda _: tls.client_context(settings))

    @property
    def secure(self) -> bool:
        """Do listeners serve ``wss`` with a certificate of ``Config.tls``, and nothing but that?"""
        return self._own_context is not None

    # Listening -----------------------------------------------------------------------------------

    async def listen(self, host: Where, port: int) -> Acceptor:
        """Raises ``OSError`` where the port cannot be had."""
        config = self._config
        acceptor = Acceptor(
            self._server_protocol,
            self._shown_context(),
            not self.secure and config.plaintext != "never",
            config.handshake_timeout,
            max_pending(config),
            self._on_bad,
        )
        acceptor.start(await bind(host, port))
        return acceptor

    def _shown_context(self) -> Callable[[], tls.ServerContext]:
        if self._own_context is not None:
            return self._own_context.current
        context = tls.node_context(self._door.identity)
        return lambda: context

    def _server_protocol(self, done: Done) -> BoundedReader:
        # picows lets go of its listener factory when that is called, which may be never.
        itself: weakref.ref[_ServerProtocol]
        protocol = _ServerProtocol(
            *self._protocol_args(None, None, False, lambda request: self._accept(request, itself)),
            self._config.handshake_timeout,
            *self._protocol_tail(None),
        )
        itself = weakref.ref(protocol)
        protocol.done = done
        return BoundedReader(protocol, _READ_BUFFER)

    def _accept(
        self, request: WSUpgradeRequest, itself: weakref.ref[_ServerProtocol]
    ) -> WSUpgradeResponseWithListener:
        protocol = itself()
        assert protocol is not None  # it is calling this
        headers = request.headers
        if headers.get("upgrade", "").lower() != "websocket":
            return _turn_away(426, "This port speaks WebSocket (openline).\n")
        if headers.get("sec-websocket-version") != "13":
            return _turn_away(426, "This port speaks WebSocket version 13 (RFC 6455).\n")
        origin = headers.get("origin")
        if not may_connect(origin, headers.get("host"), self._config.origins):
            self._turned_away(protocol, f"a page from {printable(origin or '')!r}")
            return _turn_away(403, "Pages from that site may not connect here (Config.origins).\n")
        # Firefox sends "keep-alive, Upgrade", which RFC 6455 section 4.2.1 allows and picows does not.
        if "upgrade" in (token.strip().lower() for token in headers.get("connection", "").split(",")):
            headers["Connection"] = "upgrade"
        shown = _shown_to(protocol)
        try:
            visitor = self._door.answer(headers.get(HEADER), shown)
        except Malformed as error:
            return _turn_away(400, f"{error}\n")
        except Error as error:
            self._turned_away(protocol, str(error))
            status = 409 if isinstance(error, IdentityConflict) else 403
            return _turn_away(status, f"{error}\n", [(REFUSED_HEADER, "1")])
        ip, port = _peername(protocol)
        crowded = visitor.crowded(ip, self.name) if visitor else self._door.crowded(ip, self.name)
        if crowded is not None:
            protocol.done(True)
            protocol.done = _told
            return _turn_away(503, f"There is no room just now: {crowded}.\n", [("Retry-After", "5")])
        protocol.done(None)
        endpoint = Endpoint("inbound", ip, port, secure=shown is not None)
        answer = [(HEADER, visitor.answer)] if visitor else []
        window = 0
        agreed = deflate.accept_offer(headers.get(_EXTENSIONS, "")) if self._config.compression else None
        if agreed:
            extension, window = agreed
            answer.append((_EXTENSIONS, extension))

        def entered() -> None:
            if (visited := itself()) is not None:
                visited.done(True)
                visited.done = _told

        def up(link: Link) -> None:
            link.events = self._door.admit(link, visitor, entered)

        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(answer), self._make_link(endpoint, up, window)
        )

    def _turned_away(self, protocol: _ServerProtocol, reason: str) -> None:
        self._on_bad(join(*_peername(protocol)), reason)
        protocol.done(True)
        protocol.done = _told

    # Dialing -------------------------------------------------------------------------------------

    def distrust(self, address: Address) -> None:
        """For a while, segments to and from there are small enough for any path."""
        place = address.host, address.port
        self._narrow.pop(place, None)
        _note(self._narrow, place, MAX_NARROW, NARROW_FOR)

    async def dial(self, address: Address) -> Link:
        """Open a link; the caller bounds the time. Raises ``Unreachable`` or ``Refused``.

        A bare address by TLS; ``dial_bare`` falls back to plain text.
        """
        if address.scheme == "ws" and self._config.plaintext == "never":
            raise Refused(f'{address}: plain text, and Config.plaintext is "never"; nothing was sent')
        return await self._dial(address, address.scheme != "ws")

    async def dial_bare(self, address: Address, why_not_plain: WhyNotPlain) -> Link:
        """TLS, or else, where a plain peer is there that speaks none, plain text (rule 3.8).

        ``why_not_plain(host, port)`` forbids that; ``host`` may be the IP. Raises as ``dial`` does.
        """
        if self._config.plaintext == "never":
            return await self._dial(address, True)
        place = address.host, address.port
        first = self._plain_peers.get(place, 0.0) > asyncio.get_running_loop().time()
        link = await BareDial(address, self._dial, why_not_plain, first).run()
        self._plain_peers.pop(place, None)
        if not link.endpoint.secure and link.endpoint.plain:
            _note(self._plain_peers, place, MAX_PLAIN_PEERS, PLAIN_PEER_FOR)
        return link

    async def _dial(
        self, address: Address, secure: bool, reached: Callable[[], object] = lambda: None
    ) -> Link:
        until = self._narrow.get((address.host, address.port), 0.0)
        narrow = asyncio.get_running_loop().time() < until
        sock = await connect(address, open_narrow if narrow and self._opener is open_socket else self._opener)
        try:
            ip, port = ip_of(sock.getpeername()), sock.getpeername()[1]
        except OSError as error:  # reset since it was connected
            sock.close()
            raise Unreachable(str(address), [(f"tcp {address.netloc}", describe(error))]) from None
        reached()
        endpoint = Endpoint("outbound", ip, port, target=address, secure=secure)
        protocol: WSProtocol | None = None
        try:
            protocol = await self._open(address, sock, endpoint)
            await protocol.wait_until_handshake_complete()
            if protocol.transport.is_disconnected or protocol.listener is None:
                raise ConnectionResetError("the peer closed the connection during the upgrade")
            link: Link = protocol.listener
            return link
        except BaseException as error:
            if protocol is not None and protocol.transport is not None:
                protocol.transport.disconnect(graceful=False)
            protocol = None  # it holds the error, whose traceback holds this frame
            sock.close()
            raise self._dial_error(address, endpoint, error) from None

    async def _open(self, address: Address, sock: Any, endpoint: Endpoint) -> WSProtocol:
        hello = self._door.hello(address.scheme == "wss")
        args = self._protocol_args(
            address.authority,
            address.path,
            True,
            lambda _, response: self._connected(response, endpoint, hello),
        )
        offer = [(HEADER, hello)]
        if self._config.compression:
            offer.append((_EXTENSIONS, deflate.OFFER))

        def make() -> WSProtocol:
            return _ClientProtocol(*args, None, *self._protocol_tail(offer))

        if not endpoint.secure:
            _, protocol = await asyncio.get_running_loop().create_connection(make, sock=sock)
            return protocol
        tunnel = await self._start_tls(address, sock, endpoint)
        try:
            endpoint.certificate = tunnel.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if address.scheme == "wss":
                tls.check_pins(self._config.tls, endpoint.certificate, str(address))
                endpoint.certified = True  # by a pin, or else by the context's CA
            protocol = make()
            tunnel.begin(protocol)
        except BaseException:
            tunnel.abort()
            raise
        return protocol

    async def _start_tls(self, address: Address, sock: Any, endpoint: Endpoint) -> Tunnel:
        host, context = address.host.partition("%")[0], self._trusting(address)
        transport, tunnel = await asyncio.get_running_loop().create_connection(
            lambda: Tunnel(context, self._shared, server=False, host=host), sock=sock
        )
        try:
            await tunnel.established()
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            what = error.reason if isinstance(error, ssl.SSLError) and error.reason else describe(error)
            hint = "; wss asks for TLS, and this port may not speak it" if address.scheme else ""
            reason = f"no TLS handshake ({what}){hint}"
            raise Unreachable(str(address), [(f"wss {endpoint.remote}", reason)]) from None
        except BaseException:
            transport.abort()
            raise
        return tunnel

    def _trusting(self, address: Address) -> ssl.SSLContext:
        """Only ``wss`` asks for a certificate."""
        if address.scheme != "wss":
            return self._any_context
        if self._client_context is None:
            self._client_context = self.files.trusted.use(lambda _: tls.client_context(None))
        return self._client_context.current()

    def _connected(self, response: WSUpgradeResponse, endpoint: Endpoint, hello: str) -> WebSocketLink:
        assert endpoint.target is not None
        theirs = response.headers.get(HEADER)
        if theirs is not None and self._would_weaken(endpoint):
            raise Unreachable(str(endpoint.target), [(f"ws {endpoint.remote}", _SEALED_ONLY)])
        certificate = endpoint.certificate
        endpoint.hello = self._door.greeted(endpoint.target, hello, theirs, certificate, endpoint.ip)
        endpoint.certificate = None
        extensions = ", ".join(response.headers.getall(_EXTENSIONS, []))
        compressed = deflate.check_answer(extensions)
        if compressed and not self._config.compression:
            raise Malformed("the peer compresses without having been asked to")

        def up(link: Link) -> None:
            link.events = self._door.enter(link)

        return self._make_link(endpoint, up, 15 if compressed else 0)

    def _would_weaken(self, endpoint: Endpoint) -> bool:
        """Nothing goes in plain text to an openline node unless somebody has asked for that (rule 3.8)."""
        assert endpoint.target is not None
        bare = endpoint.target.scheme is None
        return bare and not endpoint.secure and self._config.plaintext != "allow"

    def _dial_error(self, address: Address, endpoint: Endpoint, error: BaseException) -> BaseException:
        path = f"{'wss' if endpoint.secure else 'ws'} {endpoint.remote}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return Refused(f"{address}: the peer's certificate is not trusted: {error.verify_message}")
        if isinstance(error, Refused | IdentityConflict | Unreachable | asyncio.CancelledError):
            return error
        if isinstance(error, WSHandshakeError):
            if error.response is not None and REFUSED_HEADER in error.response.headers:
                conflict = int(error.response.status) == 409
                kind = IdentityConflict if conflict else Refused
                return kind(f"{address} refuses this node: {_body(error)}")
            return Unreachable(str(address), [(path, _upgrade_refusal(error))])
        if isinstance(error, OSError | Malformed):
            return Unreachable(str(address), [(path, describe(error))])
        return error

    # What both ends share ------------------------------------------------------------------------

    def _make_link(self, endpoint: Endpoint, up: Callable[[Link], None], window: int) -> WebSocketLink:
        config = self._config
        return WebSocketLink(
            endpoint,
            up,
            config.max_message_size + _FRAME_OVERHEAD,
            config.write_high_water,
            window,
            self._door.unfinished,
        )

    def _protocol_args(
        self, host: str | None, path: str | None, client: bool, factory: Any
    ) -> tuple[Any, ...]:
        """host, path, is_client_side, listener_factory, logger, disconnect_on_exception"""
        return host, path, client, factory, _picows_log, True

    def _protocol_tail(self, headers: list[tuple[str, str]] | None) -> tuple[Any, ...]:
        """auto ping (off) and its three settings, auto pong (off), max frame, headers, read buffer"""
        limit = self._config.max_message_size + _FRAME_OVERHEAD
        return False, 10, 10, WSAutoPingStrategy.PING_WHEN_IDLE, False, limit, headers, _READ_BUFFER


def _note(notes: dict[tuple[str, int], float], place: tuple[str, int], most: int, seconds: float) -> None:
    notes[place] = asyncio.get_running_loop().time() + seconds
    if len(notes) > most:
        del notes[next(iter(notes))]


def _told(good: bool | None) -> None:
    """In place of a handshake's ``done`` once that has been called: it holds on to a task and more."""


def _peername(protocol: WSProtocol) -> tuple[str, int]:
    name = protocol.transport.underlying_transport.get_extra_info("peername")
    return ip_of(name), name[1]


def _shown_to(protocol: WSProtocol) -> bytes | None:
    """The certificate that this client saw: that of the context its TLS began with."""
    tunnel = protocol.transport.underlying_transport.get_extra_info("ssl_object")
    return tunnel.context.certificate if tunnel is not None else None


def _turn_away(
    status: int, text: str, headers: list[tuple[str, str]] | None = None
) -> WSUpgradeResponseWithListener:
    if status == 426:
        headers = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    response = WSUpgradeResponse.create_error_response(status, text.encode(), headers or [])
    return WSUpgradeResponseWithListener(response, None)


def _body(error: WSHandshakeError) -> str:
    return printable_lines((error.raw_body or b"").decode(errors="replace"))


def _upgrade_refusal(error: WSHandshakeError) -> str:
    if error.response is None:
        return printable_lines(str(error))
    body = _body(error)
    return f"HTTP {int(error.response.status)} instead of an upgrade{': ' + body if body else ''}"
