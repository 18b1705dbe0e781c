"""What the QUIC backend stands on: a QUIC connection, a clock and UDP sockets.

Links, engines, dials and listeners know these protocols and nothing below them. ``native`` has the parts
of a real machine: qh3's connection, the monotonic clock and the system's sockets. A simulation brings
its own (``openline.testing.simulation.quicnet``). ``D`` is a datagram: bytes, or whatever travels there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ...address import Address
from ...config import Config
from ...core.doubt import Sending
from ..binding import Where
from ..certificates import TlsFiles
from ..sockets import SockAddr
from .clock import Clock

D = TypeVar("D")

# As the system writes it: an IP, a port, and for IPv6 two more numbers.
Addr = tuple[Any, ...]
# Takes what has come on a stream: its number, the bytes, and whether the stream ends there.
TakeData = Callable[[int, bytes, bool], None]


class Broken(Exception):
    """The core cannot go on with its connection; the text says why. Nothing more is asked of it."""


# A connection ----------------------------------------------------------------------------------------


class CoreEvents(Protocol):
    """Whom a core tells of everything but stream data, in ``deliver``."""

    def on_handshake(self) -> None:
        """TLS is done; the far end's certificate has still to be judged."""
        ...

    def on_id(self, cid: bytes, issued: bool) -> None:
        """A connection id by which the far end may call this one from now on, or not any more."""
        ...

    def on_pong(self, uid: int) -> None: ...
    def on_end(self, code: int, by_program: bool, reason: str) -> None:
        """It is over: closed by the peer, its program or its protocol, or silent for too long."""
        ...

    def on_forgotten(self) -> None:
        """Nothing has to be answered any more; comes after ``on_end``, if that was not of this side."""
        ...


class Core(Protocol[D]):
    """One QUIC connection (RFC 9000), without clock and sockets: streams, acknowledgements, loss.

    ``now`` never goes back. ``receive``, ``deliver``, ``poll`` and ``handle_timer`` raise ``Broken``.
    """

    # Is TLS done?
    established: bool
    # Hand nothing over: what comes stays here, and its windows bound it.
    holding: bool
    # It has handed over its share of this turn of the loop. Set it to False for the next share.
    resting: bool
    # Bytes that have come and that it cannot hand over: what is in front of them is missing, or the far
    # end is not in yet.
    kept: int
    # Datagrams that ``poll`` returns at most: there may be more where it returns so many.
    burst: int
    # Seconds without a packet after which it ends: this side's, and the peer's where that has said one.
    idle_timeout: float
    peer_idle_timeout: float | None

    def connect(self, addr: Addr, now: float) -> None:
        """A client: begin."""
        ...

    def receive(self, batch: list[D], addr: Addr, now: float) -> bool:
        """True where one of them at least is authentic: the far end is alive."""
        ...

    def entered(self) -> None:
        """The far end has proven itself: what comes is its own from now on."""
        ...

    def deliver(self, take: TakeData, events: CoreEvents) -> None:
        """Hand over what has come, unless ``holding`` or ``resting``."""
        ...

    def poll(self, now: float) -> list[tuple[D, Addr]]:
        """Datagrams that may leave, each with its target."""
        ...

    @property
    def timer(self) -> float | None:
        """When ``handle_timer`` has something to do."""
        ...

    def handle_timer(self, now: float) -> None: ...

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes of a stream; where the connection is over, nothing happens."""
        ...

    def ping(self, uid: int) -> None:
        """``on_pong`` follows when it is acknowledged, unless ``uid`` is 0."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Tell the peer; what has not left stays behind."""
        ...

    def let_go(self) -> None:
        """It is over, and everything with it: keep nothing that keeps something else."""
        ...

    def waiting(self, stream: int | None = None) -> int:
        """Bytes of a stream, or of all, that have not left."""
        ...

    def sending(self, stream: int) -> Sending:
        """How a stream gets on: more of it leaves only while what has left is acknowledged."""
        ...

    @property
    def stream_limit(self) -> int:
        """Unidirectional streams that the peer lets this side open."""
        ...

    @property
    def unanswered(self) -> int:
        """Probes in a row that nothing has answered (RFC 9002 section 6.2)."""
        ...

    @property
    def place(self) -> Addr | None:
        """The peer's address that has been validated last."""
        ...

    @property
    def over(self) -> bool:
        """Has it ended, told or not?"""
        ...

    @property
    def datagram_size(self) -> int:
        """The largest that leaves now, but for probes."""
        ...

    def shrink(self) -> bool:
        """No datagrams but the smallest from now on; False where they are that already."""
        ...

    def change_id(self) -> None:
        """Go by another connection id, where there is one."""
        ...


class ClientCore(Core[D], Protocol):
    """The core of a dial. ``certificate`` is there from ``on_handshake`` until ``trust_it``."""

    # What the server shows, in DER form, or showed on the connection that this one resumes.
    certificate: bytes

    @property
    def resumes(self) -> bool:
        """Has it a ticket, so that something may be written before the server has answered?"""
        ...

    def check(self, address: Address) -> None:
        """Is the certificate what ``quic://`` asks for? Raises ``Refused``."""
        ...

    def trust_it(self) -> None:
        """The certificate will do: tickets of that server may be used for the next dial."""
        ...


# Sockets ---------------------------------------------------------------------------------------------


class Outlet(Protocol[D]):
    """What datagrams leave by."""

    def send(self, batch: list[D], addr: Addr) -> int:
        """The size of the largest that is too large for this host's way there; else 0."""
        ...


class Inlet(Protocol[D]):
    """Whom a socket tells, out of callbacks of the loop."""

    def on_datagrams(self, batch: list[D], addr: Addr) -> None: ...
    def on_error(self, error: OSError) -> None: ...
    def on_full(self, full: bool) -> None:
        """The system takes no more just now; and then it does again."""
        ...


class ClientSocket(Outlet[D], Protocol):
    """A UDP socket of one dial, connected."""

    @property
    def local_ip(self) -> str: ...
    async def start(self, inlet: Inlet[D]) -> None:
        """Raises ``OSError``."""
        ...

    def path_mtu(self) -> int | None:
        """In bytes, as routers have told this host; None where nobody says."""
        ...

    def close(self) -> None:
        """What has been sent leaves all the same; ``inlet`` is told nothing more."""
        ...


class Owner(Protocol):
    """Who keeps a connection: told of what is no business of its link's."""

    def on_id(self, cid: bytes, issued: bool) -> None:
        """As ``CoreEvents.on_id``."""
        ...

    def on_silence(self) -> None:
        """Probes go unanswered, each one later than the one before (RFC 9002 section 6.2)."""
        ...

    def on_finished(self) -> None:
        """It is over."""
        ...

    def on_gone(self) -> None:
        """Nothing is left of it, some time after that. The last that is told."""
        ...


class Accepted(Protocol[D]):
    """A connection, as the port sees it that it has come to."""

    outlet: Outlet[D]

    def received(self, batch: list[D], addr: Addr) -> None: ...
    def set_blocked(self, blocked: bool) -> None: ...
    def forget(self) -> None:
        """Leave nothing of it; its owner is told."""
        ...


class Accepts(Protocol[D]):
    """A listener, as its port sees it."""

    config: Config
    # No new connections.
    closed: bool

    @property
    def wary(self) -> bool:
        """So many handshakes are unfinished that clients have to show their address first."""
        ...

    def make_room(self) -> None:
        """For one more handshake."""
        ...

    def accept(
        self, core: Core[D], outlet: Outlet[D], owner: Owner, addr: Addr, certificate: bytes
    ) -> Accepted[D]:
        """A new connection; ``certificate`` is the one it is shown, in DER form."""
        ...

    def ended(self, connection: Accepted[D]) -> None:
        """One that it has accepted is over."""
        ...


class Ports(Protocol):
    """The sockets of one port that is listened on. Finds out which connection a datagram belongs to."""

    @property
    def number(self) -> int: ...

    # IPs of a name that are listened on, and why not on the others, by address.
    hosts: tuple[str, ...]
    failed: dict[str, str]

    def close(self) -> None:
        """All of it, and whatever is left of connections."""
        ...


# All of it -------------------------------------------------------------------------------------------


class Parts(Protocol[D]):
    """Makes cores and sockets for the backend of one transport."""

    # Certificates that may be renewed while a transport runs, if any.
    files: TlsFiles | None

    # Seconds, by a clock that nobody sets.
    clock: Clock

    async def dial(
        self, address: Address, family: socket.AddressFamily, sockaddr: SockAddr
    ) -> tuple[ClientSocket[D], ClientCore[D]]:
        """For one of the addresses of a host. Raises ``OSError``."""
        ...

    async def reopen(self, family: socket.AddressFamily, sockaddr: SockAddr) -> ClientSocket[D]:
        """A fresh socket for a connection that goes on. Raises ``OSError``."""
        ...

    async def listen(self, listener: Accepts[D], where: Where, port: int) -> Ports:
        """Each new connection is the ``listener``'s. Raises ``OSError``."""
        ...
