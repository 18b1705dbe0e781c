"""The interface between a connection and what carries its bytes.

A backend opens links (``dial``, ``listen``) and hands each one over when it is up. From then on
it calls the link's ``LinkEvents`` straight from the socket callback, and the connection calls the
link's methods. Methods of a link never raise for a dead peer: the next event says it is gone.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..address import Address
from ..config import Config
from ..core.doubt import Sending
from ..core.handshake import Hello, Transcript
from ..core.liveness import Progress
from ..core.selection import Endpoint
from ..identity import Identity

if TYPE_CHECKING:
    from .unfinished import Unfinished

# Close codes, RFC 6455 section 7.4.1, and 4000 to 4999 for private use.
NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY, TOO_BIG = 1000, 1001, 1002, 1008, 1009
# Another connection between the same two nodes stays (rule 3.3): do not dial again.
REPLACED = 4001
# Two processes present the same identity.
CONFLICT = 4002
# There is no room just now (RFC 6455's registry; a WebSocket that is not open yet says HTTP 503).
TRY_AGAIN = 1013
# The client may not come in (a WebSocket says HTTP 403 instead).
REFUSED = 4003

# Larger messages leave in pieces of this size, so that pings and pongs get in between.
FRAGMENT = 64 * 1024


# A WebSocket's close frame may have no code at all.
NO_CODE = 0
# Codes with which a peer that closes has taken all there was: none, and those of RFC 6455 section 7.4.1.
CLEAN_CODES = (NO_CODE, *range(1000, 1010))


class By(Enum):
    """Who, or what, ended a link."""

    US = "this side"  # it has said goodbye
    PEER = "the peer"  # it has said goodbye
    LOST = "nobody"  # no goodbye: a reset, a time-out, an abort, or cut from here for want of room
    BAD_INPUT = "bad input"  # cut by this side for what the peer sent


class End(msgspec.Struct, frozen=True):
    """How a link ended: ``code`` is that of the close, None where there was none; ``text`` is for people."""

    by: By
    code: int | None
    text: str

    @classmethod
    def by_us(cls, code: int, why: str = "") -> End:
        return cls(By.US, code, f"closed by this side{': ' + why if why else ''}")

    @classmethod
    def by_peer(cls, code: int, reason: str) -> End:
        return cls(By.PEER, code, f"the peer closed it ({code}{': ' + reason if reason else ''})")

    @classmethod
    def lost(cls, text: str) -> End:
        return cls(By.LOST, None, text)

    @classmethod
    def bad_input(cls, code: int, reason: str) -> End:
        return cls(By.BAD_INPUT, code, f"bad input: {reason}")

    @property
    def clean(self) -> bool:
        """Has the peer, as far as anybody can tell, what was sent last?"""
        return self.by is By.US or (self.by is By.PEER and self.code in CLEAN_CODES)


class LinkEvents(Protocol):
    """What a connection is told. ``data`` is valid only during the call."""

    @property
    def known(self) -> bool:
        """Has this program a reason to know the far side? Else what it takes is a stranger's."""
        ...

    def on_text(self, data: memoryview) -> None: ...
    def on_binary(self, data: memoryview) -> None: ...
    def on_ping(self, payload: bytes) -> None: ...
    def on_pong(self, payload: bytes) -> None: ...
    def on_alive(self) -> None:
        """The far side has shown itself below the level of frames, where a link can tell."""
        ...

    def on_silent(self) -> None:
        """What was sent a while ago, and again, is not acknowledged, where a link can tell."""
        ...

    def on_moved(self, ip: str, port: int) -> None:
        """The far side has another address now, where a link survives that."""
        ...

    def on_writable(self) -> None:
        """The write buffer has drained below its low-water mark."""
        ...

    def on_closed(self, end: End) -> None:
        """The link is gone. Called exactly once, after which nothing is called."""
        ...


class _Nobody:
    """Whom a link tells once it has told its end."""

    known = False

    def on_text(self, data: memoryview) -> None: ...
    def on_binary(self, data: memoryview) -> None: ...
    def on_ping(self, payload: bytes) -> None: ...
    def on_pong(self, payload: bytes) -> None: ...
    def on_alive(self) -> None: ...
    def on_silent(self) -> None: ...
    def on_moved(self, ip: str, port: int) -> None: ...
    def on_writable(self) -> None: ...
    def on_closed(self, end: End) -> None: ...


NOBODY: LinkEvents = _Nobody()


class Link(ABC):
    """One live full-duplex link."""

    backend: str
    endpoint: Endpoint
    events: LinkEvents
    # The largest message taken in now, where it is put together from pieces.
    limit: int
    # Too much is waiting to be written; read on every send, so an attribute.
    congested: bool = False
    # Does it carry several tracks, each in order by itself? Then ``backlog`` says that something
    # of what was written has not left yet.
    multiplexed: bool = False
    backlog: bool = False
    # Does the far end's link answer pings itself? Then nobody there is told of them.
    answers_pings: bool = False

    @property
    @abstractmethod
    def closing(self) -> bool:
        """Nothing more can be written."""

    @abstractmethod
    def write_text(self, data: bytes) -> None:
        """Send one text message."""

    @abstractmethod
    def write_binary(self, buffer: bytearray, track: int = 0) -> None:
        """Send ``buffer[HEADROOM:]`` as one binary message; the link owns the buffer afterwards.

        On that ``track``, where the link has several.
        """

    @abstractmethod
    def ping(self, payload: bytes) -> None: ...

    @abstractmethod
    def pong(self, payload: bytes) -> None: ...

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Say goodbye after what is buffered; ``on_closed`` follows when the peer agrees."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the link now; ``on_closed`` follows."""

    @abstractmethod
    def cut(self, code: int, reason: str) -> None:
        """Tell the peer why, as far as that can be done now, and be gone: nothing is waited for."""

    @abstractmethod
    def pause_reading(self) -> None: ...

    @abstractmethod
    def resume_reading(self) -> None: ...

    @abstractmethod
    def broken(self) -> bool:
        """Does the kernel already know that the link is gone, though no event has come yet?"""

    @abstractmethod
    def progress(self) -> Progress | None:
        """The kernel's counters, or None where it does not tell."""

    @abstractmethod
    def taken(self) -> int:
        """Grows when the far end, or its kernel, takes what waits to be written, while nothing is written."""

    def sending(self, track: int) -> Sending | None:
        """How what was written to a track gets on, or None where nobody tells."""
        return None

    def relieve(self) -> None:  # noqa: B027 - most links can do nothing
        """What is sent does not get through, perhaps for its size: do what can be done here."""


def hang_up(link: Link) -> None:
    """It is up, and another way there was faster. Between two nodes rule 3.3 says which of them stays."""
    if link.endpoint.plain:
        link.close(NORMAL, "another way was faster")


class Visitor:
    """A client whose hello we have answered, and whose proof has still to come.

    ``answer`` is our hello, with our proof: what the client is sent. ``crowded(ip, backend)`` says why
    there is no room for it, if so.
    """

    __slots__ = ("answer", "crowded", "hello", "transcript")

    def __init__(
        self,
        hello: Hello,
        answer: str,
        transcript: Transcript,
        crowded: Callable[[str, str], str | None] = lambda ip, backend: None,
    ) -> None:
        self.crowded = crowded
        self.hello = hello
        self.answer = answer
        self.transcript = transcript


class Doorkeeper(Protocol):
    """Who gets in (rule 3.6). Backends carry the hellos; the doorkeeper writes and judges them.

    ``certificate`` is the DER certificate that the *server* shows on this connection, None
    without TLS.
    """

    identity: Identity
    # What links hold that has not come whole.
    unfinished: Unfinished

    def hello(self, certified: bool = False) -> str:
        """A client: our hello, fresh for this dial. ``certified``: it is held to pins or a CA."""
        ...

    def answer(self, hello: str | None, certificate: bytes | None) -> Visitor | None:
        """A server: judge the client's hello. None for a plain peer.

        Raises ``Malformed`` (answer 400), ``Refused`` (403) and ``IdentityConflict`` (409).
        """
        ...

    def crowded(self, ip: str, backend: str) -> str | None:
        """A server: why there is no room for a plain peer from there; None where there is."""
        ...

    def greeted(
        self, address: Address, mine: str, theirs: str | None, certificate: bytes | None, ip: str = ""
    ) -> Hello | None:
        """A client: judge the server's answer to ``mine``. None for a plain peer.

        ``ip`` is where it was found, and matters where TLS may be ended by a proxy there.
        Raises ``Refused``, ``IdentityConflict``, ``Malformed``.
        """
        ...

    def admit(self, link: Link, visitor: Visitor | None, entered: Callable[[], None]) -> LinkEvents:
        """A server's link is open; returns its first events. ``entered`` is called when the visitor is in.

        A plain peer is in at once; an openline peer when its proof, the first thing it sends, is
        right. Sets ``link.events`` then. A wrong proof raises ``Malformed`` from ``on_binary``.
        """
        ...

    def enter(self, link: Link) -> LinkEvents:
        """A client's link is open: sends our proof if there was a hello; returns the events."""
        ...


class Door(Protocol):
    """What listens for a backend."""

    evicted: int

    @property
    def port(self) -> int: ...
    @property
    def pending(self) -> int:
        """Handshakes that have not become a connection yet."""
        ...

    async def close(self) -> None:
        """Stop accepting, and cut pending handshakes; connections that are open stay."""
        ...


class Backend(Protocol):
    """Opens and accepts links for one transport."""

    name: str
    # Those of addresses that it dials.
    schemes: tuple[str, ...]

    @property
    def secure(self) -> bool:
        """Do listeners encrypt?"""
        ...

    async def dial(self, address: Address) -> Link:
        """Open a link, and let the doorkeeper judge it; the caller bounds the time.

        The link has the events that ``Doorkeeper.enter`` gave it, or ``NOBODY`` where it has ended since.
        Raises ``Unreachable``, ``Refused`` or ``IdentityConflict``.
        """
        ...

    def distrust(self, address: Address) -> None:
        """A link to there was up, and what was sent over it did not get through."""
        ...

    async def listen(self, host: Any, port: int) -> Door:
        """On all interfaces (None), a host, or several IPs where a backend before this one had those.

        Raises ``OSError`` where the port cannot be had. A door that has ``hosts`` (IPs) and ``failed``
        (reasons, by address) tells which of a name's addresses it has, and why not the others.
        """
        ...


# Told of every handshake that brought something else than one: who, and what was wrong.
OnBad = Callable[[str, str], None]


class Environment(Protocol):
    """What a transport takes from outside itself: network, clocks, chance. Simulations have their own."""

    random: random.Random

    def backends(
        self, config: Config, door: Doorkeeper, on_bad: OnBad
    ) -> tuple[list[Backend], dict[str, str]]:
        """Those that are usable, the preferred one first; and why each other one is not."""
        ...

    def stopwatch(self) -> float:
        """Seconds, finely; for measuring round trips."""
        ...

    def wall_clock(self) -> float:
        """Seconds on a clock that goes on while the machine sleeps."""
        ...

    def unix_time(self) -> float:
        """Seconds since 1970: what programs are told of when something happened."""
        ...
