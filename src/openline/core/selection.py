"""Which connection carries a message (rule 3.1). Pure: looks at facts, returns a plan.

An ``Endpoint`` is what is known of the far side of one connection, a ``Want`` what a send asks
for. ``match`` says whether and why one answers for the other; ``plan`` picks the best and keeps
the reason for every connection it passed over, which is what ``explain()`` shows.

A claim never beats what is certain. Certain are a proven node id, an end that was dialed, and the
exact remote end; a port in a hello is a claim, and a plain peer recognised by its IP a guess. Where
somebody certain is, or lately was, nobody else's claim counts: docs/design.md has the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from ..address import Address
from .endpoints import (
    RANK_TEXT,
    Certainty,
    Direction,
    Endpoint,
    Quality,
    Rank,
    Reject,
    Want,
    matched,
)

__all__ = [
    "RANK_TEXT",
    "Candidate",
    "Certainty",
    "Direction",
    "Endpoint",
    "Plan",
    "Quality",
    "Rank",
    "Reject",
    "Want",
    "best_of",
    "crowd",
    "match",
    "matched",
    "plan",
]


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
    """Choose for ``want`` among live connections: by certainty, then quality, then rank.

    Where the certain one is suspect the caller dials; nobody's claim takes its place.
    """
    around = _Around(want, [candidate.endpoint for candidate in candidates])
    fits: list[tuple[C, Rank]] = []
    passed: list[tuple[C, str]] = []
    for candidate in candidates:
        verdict = _match(want, candidate.endpoint, around)
        if isinstance(verdict, Rank):
            fits.append((candidate, verdict))
        else:
            passed.append((candidate, verdict.value))
    if not fits:
        return Plan(None, None, passed)
    best, rank = max(fits, key=lambda fit: (fit[1].certainty, fit[0].quality, fit[1], fit[0].number))
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
    return _match(want, end, _Around(want, all_ends))


def crowd(gone: Endpoint, others: Iterable[Endpoint]) -> None:
    """``gone`` has ended: plain sockets that were open beside it are other peers'.

    Unless both gave the same hint: then it is one peer that has connected anew.
    """
    if not gone.plain or gone.direction != "inbound":
        return
    for other in others:
        if other.plain and other.direction == "inbound" and not (gone.hint and gone.hint == other.hint):
            other.crowded = True


class _AtIp:
    """What the connections with one IP say of the wanted port."""

    __slots__ = ("claims", "client", "plain_clients", "plain_servers", "sound_claims")

    def __init__(self) -> None:
        # Node ids that say they listen there; and those whose connection is in no doubt.
        self.claims: set[str] = set()
        self.sound_claims: set[str] = set()
        # Is it the remote end of a connection that came in?
        self.client = False
        self.plain_clients = 0
        # Ports at which plain peers were dialed.
        self.plain_servers: set[int] = set()


class _Around:
    """All that might answer for an address, looked at once: what contradicts what."""

    def __init__(self, want: Want, ends: Iterable[Endpoint]) -> None:
        self._want = want
        self._ips: dict[str, _AtIp] = {}
        # Whose ends are certainly at that place, and how many.
        self._there: set[str] = set()
        # How many of them were dialed there.
        self._dialed: Counter[str] = Counter()
        for end in ends:
            self._look_at(end)

    def at(self, ip: str) -> _AtIp:
        return self._ips.setdefault(ip, _AtIp())

    def _look_at(self, end: Endpoint) -> None:
        port, here = self._want.address.port, self.at(end.ip)
        if self._is_there(end):
            self._there.add(end.owner)
        if self._is_dialed(end):
            self._dialed[end.owner] += 1
        if end.claims(port):
            here.claims.add(end.owner)
            if not end.doubtful:
                here.sound_claims.add(end.owner)
        if end.direction == "inbound":
            here.client = here.client or (end.port == port and end.protocol == "tcp")
            here.plain_clients += end.plain
        elif end.plain:
            here.plain_servers.add(end.port)

    def _is_there(self, end: Endpoint) -> bool:
        """Is it certain that this is at the wanted place, whatever else the address asks for?"""
        return self._is_dialed(end) or (self._has_port(end) and end.protocol == _protocol(self._want.address))

    def _is_dialed(self, end: Endpoint) -> bool:
        """Has a dial shown that? A client's own port shows nothing of who listens there."""
        place = self._want.address.host, self._want.address.port
        targets = (*end.aliases, *((end.target,) if end.target is not None else ()))
        if any((target.host, target.port) == place for target in targets):
            return True
        return end.direction == "outbound" and self._has_port(end)

    def _has_port(self, end: Endpoint) -> bool:
        return end.ip in self._want.ips and end.port == self._want.address.port

    def others_there(self, end: Endpoint) -> bool:
        return any(owner != end.owner for owner in self._there)

    def same_node_there(self, end: Endpoint) -> bool:
        """Another connection of that node was dialed there, or it answered when that was dialed."""
        itself = self._is_dialed(end)
        answered = end.owner in self._want.reached or end.owner == self._want.known
        return answered or self._dialed[end.owner] > itself


def _protocol(address: Address) -> str:
    return "udp" if address.scheme == "quic" else "tcp"


def _match(want: Want, end: Endpoint, around: _Around) -> Rank | Reject:
    verdict = _match_any(want, end, around)
    if want.known is not None and end.node_id != want.known and isinstance(verdict, Rank):
        return Reject.OTHER_THAN_KNOWN
    return verdict


def _match_any(want: Want, end: Endpoint, around: _Around) -> Rank | Reject:
    verdict = _certain(want, want.address, end)
    # Its answers ride what it rode.
    down = verdict is not Rank.EXACT_REMOTE and end.steps_down(want.address, want.sealed)
    if down and not isinstance(verdict, Reject):
        return Reject.PLAIN_TEXT
    if verdict is Reject.NOT_PROVEN and want.address.scheme == end.backend == "quic" and not want.certified:
        verdict = _certain(want, msgspec.structs.replace(want.address, scheme=None), end)
    if verdict is not None:
        return verdict
    if end.hello is not None:
        return _match_claim(want, end, around)
    return _match_plain_by_ip(want, end, around)


def _certain(want: Want, address: Address, end: Endpoint) -> Rank | Reject | None:
    """What is no matter of claims; None for what is. ``address`` may ask for less than the one wanted."""
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
    if end.direction == "inbound" and end.port == address.port:
        if end.protocol == _protocol(want.address):
            return Rank.EXACT_REMOTE
        if not end.claims(address.port):
            return Reject.OTHER_PROTOCOL
    if end.plain and end.direction == "outbound":
        return Reject.OTHER_ADDRESS
    return None


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


def _match_claim(want: Want, end: Endpoint, around: _Around) -> Rank | Reject:
    """An openline peer at that IP: does it say that it listens there, and does that count?"""
    if not end.claims(want.address.port):
        return Reject.OTHER_PORT
    if around.same_node_there(end):
        return Rank.SAME_NODE
    here = around.at(end.ip)
    claims = here.claims if end.doubtful else here.sound_claims
    if len(claims) > 1:
        return Reject.TWO_CLAIMS
    if around.others_there(end) or want.taken - {end.owner}:
        return Reject.TAKEN
    if (want.formerly | here.claims) - {end.owner} and not want.no_route:
        return Reject.DIAL_FIRST
    return Rank.HELLO


def _match_plain_by_ip(want: Want, end: Endpoint, around: _Around) -> Rank | Reject:
    if want.plain_reuse == "never":
        return Reject.PLAIN_NEVER
    port, here = want.address.port, around.at(end.ip)
    if here.claims or here.client or end.ip in want.others:
        return (
            Reject.PLAIN_STANDS_FOR_OTHER
        )  # that port is an openline node's, or another socket's remote end
    if port in end.not_at:
        return Reject.PLAIN_NOT_THERE
    if want.plain_reuse == "newest":
        return Rank.PLAIN_BY_IP
    if here.plain_clients > 1:
        return Reject.PLAIN_AMBIGUOUS
    if end.bound_port not in (None, port) or here.plain_servers - {port}:
        return Reject.PLAIN_STANDS_FOR_OTHER
    if end.hint and want.hints.get(end.ip, end.hint) != end.hint:
        return Reject.PLAIN_STANDS_FOR_OTHER
    if end.bound_port is not None:
        return Rank.PLAIN_BY_IP
    if end.crowded:
        return Reject.PLAIN_AMBIGUOUS
    tried = end.ip in want.dialed or bool(end.not_at)
    if here.plain_servers or (tried and not want.no_route):
        return Reject.DIAL_FIRST
    return Rank.PLAIN_BY_IP
