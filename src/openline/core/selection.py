"""Which connection carries a message (rule 3.1). Pure: looks at facts, returns a plan.

An ``Endpoint`` is what is known of the far side of one connection, a ``Want`` what a send asks
for. ``match`` says whether and why one answers for the other; ``plan`` picks the best and keeps
the reason for every connection it passed over, which is what ``explain()`` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, IntEnum
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from ..address import Address, join
from .handshake import Hello

Direction = Literal["inbound", "outbound"]


class Quality(IntEnum):
    """How good a live connection is now; the best available is chosen."""

    DRAINING = 0
    SUSPECT = 1
    CONGESTED = 2
    GOOD = 3


class Rank(IntEnum):
    """Why a connection answers for an address; greater goes first."""

    PLAIN_BY_IP = 1
    EXACT_REMOTE = 2
    HELLO = 3
    ALIAS = 4
    DIALED = 5
    NODE = 6


class Reject(Enum):
    """Why a connection does not answer for an address."""

    OTHER_ADDRESS = "reaches another address"
    OTHER_NODE = "is not the node that the address names"
    NOT_PROVEN = "has not proven the identity the address asks for"
    OTHER_PORT = "its openline hello does not name that port"
    TWO_CLAIMS = "two nodes at that IP claim that port"
    PLAIN_AMBIGUOUS = "more than one plain peer at that IP"
    PLAIN_STANDS_FOR_OTHER = "the plain peer at that IP may be another port's"
    DIAL_FIRST = "that port has been dialed before, so that comes first"
    PLAIN_NEVER = 'plain_reuse is "never"'


RANK_TEXT = {
    Rank.NODE: "has proven the node id that the address names",
    Rank.ALIAS: "reaches the node that this address was dialed to",
    Rank.DIALED: "outbound connection to this address",
    Rank.HELLO: "openline peer at that IP that says it listens on that port",
    Rank.EXACT_REMOTE: "this address is its remote end",
    Rank.PLAIN_BY_IP: "the one plain peer at that IP",
}


class Endpoint:
    """The far side of one connection.

    ``bound_port`` is the port a plain inbound socket stands for: the first send by IP alone binds
    it, as one socket cannot be two listeners. ``crowded``: another plain peer's socket from this IP
    was open beside it. ``hint`` is the ``metadata.sourceNodeId`` it last sent. ``aliases`` are addresses
    dialed to the same node by connections that this one has replaced (rule 3.3).
    """

    __slots__ = (
        "aliases",
        "backend",
        "bound_port",
        "certificate",
        "crowded",
        "direction",
        "doubtful",
        "hello",
        "hint",
        "ip",
        "port",
        "secure",
        "target",
    )

    def __init__(
        self,
        direction: Direction,
        ip: str,
        port: int,
        *,
        target: Address | None = None,
        secure: bool = False,
        hello: Hello | None = None,
        backend: str = "websocket",
    ) -> None:
        self.direction: Direction = direction
        self.backend = backend
        self.ip = ip
        self.port = port
        self.target = target
        self.secure = secure
        self.hello = hello
        self.bound_port: int | None = None
        self.crowded = False
        # Suspect or draining: what it claims contradicts nobody who is there.
        self.doubtful = False
        self.hint = ""
        self.aliases: tuple[Address, ...] = ()
        # The far side's TLS certificate (DER), until the hello has been judged.
        self.certificate: bytes | None = None

    @property
    def node_id(self) -> str | None:
        """Proven: a connection is not open before its hello's proof is right."""
        return self.hello.node_id if self.hello is not None else None

    def claims(self, port: int) -> bool:
        """Does its hello say that it listens there?"""
        return self.hello is not None and port in self.hello.ports

    @property
    def connection_id(self) -> bytes | None:
        """What both sides know this connection by; None for a plain peer's."""
        return (self.hello.connection_id or None) if self.hello is not None else None

    @property
    def remote(self) -> str:
        return join(self.ip, self.port)

    @property
    def plain(self) -> bool:
        return self.hello is None


class Want(msgspec.Struct, frozen=True):
    """What a send asks for: the address, what its host resolves to now, and the policy.

    ``others`` are IPs at which the wanted port is known to be somebody's who is not a plain client
    from there: another client's far end, or an openline node's. ``dialed`` are those at which it
    has lately been dialed with success: there a dial comes before recognising a peer by IP.
    ``hints`` tell by IP what the socket that last stood for the port called itself.
    """

    address: Address
    ips: tuple[str, ...]
    plain_reuse: str = "unambiguous"
    # Does quic:// ask for a certificate here (pins, a CA)? Else it asks for QUIC, and for no more.
    certified: bool = True
    others: frozenset[str] = frozenset()
    dialed: frozenset[str] = frozenset()
    hints: dict[str, str] = {}


class Candidate(Protocol):
    """What a plan needs to know of a connection."""

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def quality(self) -> Quality: ...
    @property
    def number(self) -> int:
        """Rises with every connection opened: the newer of two wins."""
        ...


C = TypeVar("C", bound=Candidate)


class Plan(msgspec.Struct, Generic[C]):
    """The connection to use, or None to dial; and why not the others."""

    chosen: C | None
    rank: Rank | None
    passed_over: list[tuple[C, str]]


def plan(want: Want, candidates: Sequence[C]) -> Plan[C]:
    """Choose for ``want`` among live connections."""
    endpoints = [candidate.endpoint for candidate in candidates]
    fits: list[tuple[C, Rank]] = []
    passed: list[tuple[C, str]] = []
    for candidate in candidates:
        verdict = match(want, candidate.endpoint, endpoints)
        if isinstance(verdict, Rank):
            fits.append((candidate, verdict))
        else:
            passed.append((candidate, verdict.value))
    if not fits:
        return Plan(None, None, passed)
    best, rank = max(fits, key=lambda fit: (fit[0].quality, fit[1], fit[0].number))
    passed += [(other, _why_not(other, best)) for other, _ in fits if other is not best]
    return Plan(best, rank, passed)


def best_of(candidates: Iterable[C]) -> C | None:
    """The best of connections that all reach the same peer: by state, then outbound, then the newest."""
    return max(
        candidates, key=lambda c: (c.quality, c.endpoint.direction == "outbound", c.number), default=None
    )


def _why_not(other: Candidate, best: Candidate) -> str:
    if other.quality < best.quality:
        return f"{other.quality.name.lower()}, and a better one exists"
    return "reaches it too, but comes second"


def match(want: Want, end: Endpoint, all_ends: Sequence[Endpoint]) -> Rank | Reject:
    """Does ``end`` answer for ``want``? ``all_ends`` are all connections that might, for ambiguity."""
    verdict = _match(want, end, all_ends)
    if verdict is Reject.NOT_PROVEN and want.address.scheme == end.backend == "quic" and not want.certified:
        bare = msgspec.structs.replace(want.address, scheme=None)
        return _match(msgspec.structs.replace(want, address=bare), end, all_ends)
    return verdict


def _match(want: Want, end: Endpoint, all_ends: Sequence[Endpoint]) -> Rank | Reject:
    address = want.address
    if address.node_id is not None and end.node_id != address.node_id:
        if end.ip not in want.ips:
            return Reject.OTHER_ADDRESS
        return Reject.NOT_PROVEN if end.plain else Reject.OTHER_NODE
    if end.target is not None and _dialed(address, end, want.ips):
        return Rank.DIALED
    if any(_same(address, alias) for alias in end.aliases):
        return Rank.ALIAS
    if address.tls:
        # Never weaker than asked: an inbound connection has not proven a certificate.
        return Reject.NOT_PROVEN if end.ip in want.ips else Reject.OTHER_ADDRESS
    if address.node_id is not None and address.path == "/":
        return Rank.NODE
    if end.ip not in want.ips or address.path != "/":
        return Reject.OTHER_ADDRESS
    if end.hello is not None:
        return _match_hello(address, end, all_ends)
    if end.direction == "outbound":
        return Reject.OTHER_ADDRESS
    if end.port == address.port:
        return Rank.EXACT_REMOTE
    return _match_plain_by_ip(want, end, all_ends)


def crowd(gone: Endpoint, others: Iterable[Endpoint]) -> None:
    """``gone`` has ended: plain sockets that were open beside it are other peers'.

    Unless both gave the same hint: then it is one peer that has connected anew.
    """
    if not gone.plain or gone.direction != "inbound":
        return
    for other in others:
        if other.plain and other.direction == "inbound" and not (gone.hint and gone.hint == other.hint):
            other.crowded = True


def _dialed(address: Address, end: Endpoint, ips: tuple[str, ...]) -> bool:
    target = end.target
    assert target is not None
    if _same(address, target):
        return True
    if (address.port, address.path) != (target.port, target.path):
        return False
    if (address.scheme or "ws") != (target.scheme or "ws"):
        return False
    # Another spelling of the same end. Not for TLS, whose certificate names a host, and not
    # between two names, which one server may tell apart.
    same_end = end.ip in ips and end.port == address.port
    return same_end and not address.tls and (address.is_ip or target.is_ip)


def _same(address: Address, target: Address) -> bool:
    """The same place to dial; that the node is the right one has been seen to."""
    return address.place == target.place


def _match_hello(address: Address, end: Endpoint, all_ends: Sequence[Endpoint]) -> Rank | Reject:
    hello = end.hello
    assert hello is not None
    if end.direction == "inbound" and end.port == address.port and address.port not in hello.ports:
        return Rank.EXACT_REMOTE
    if address.port not in hello.ports:
        return Reject.OTHER_PORT
    claims = {
        other.hello.node_id
        for other in all_ends
        if other.hello is not None and other.ip == end.ip and address.port in other.hello.ports
        if end.doubtful or not other.doubtful
    }
    return Rank.HELLO if len(claims) == 1 else Reject.TWO_CLAIMS


def _match_plain_by_ip(want: Want, end: Endpoint, all_ends: Sequence[Endpoint]) -> Rank | Reject:
    if want.plain_reuse == "never":
        return Reject.PLAIN_NEVER
    port = want.address.port
    if any(port in other.hello.ports for other in all_ends if other.hello and other.ip == end.ip):
        return Reject.PLAIN_STANDS_FOR_OTHER  # that port is an openline node's
    there = [other for other in all_ends if other.ip == end.ip]
    if any(port == other.port for other in there if other.direction == "inbound"):
        return Reject.PLAIN_STANDS_FOR_OTHER  # that port is another socket's remote end
    plain = [other for other in there if other.plain]
    if end.ip in want.others:
        return Reject.PLAIN_STANDS_FOR_OTHER
    if want.plain_reuse == "newest":
        return Rank.PLAIN_BY_IP
    if sum(other.direction == "inbound" for other in plain) > 1:
        return Reject.PLAIN_AMBIGUOUS
    if end.bound_port not in (None, port) or any(
        other.direction == "outbound" and other.port != port for other in plain
    ):
        return Reject.PLAIN_STANDS_FOR_OTHER
    if end.hint and want.hints.get(end.ip, end.hint) != end.hint:
        return Reject.PLAIN_STANDS_FOR_OTHER
    if end.bound_port is None and end.crowded:
        return Reject.PLAIN_AMBIGUOUS
    if end.bound_port is None and (
        end.ip in want.dialed or any(other.direction == "outbound" for other in plain)
    ):
        return Reject.DIAL_FIRST
    return Rank.PLAIN_BY_IP
