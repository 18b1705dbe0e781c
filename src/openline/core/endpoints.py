"""What rule 3.1 looks at: the far sides of connections, and what a send asks for. Pure."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Literal

import msgspec

from ..address import Address, join
from ..message import BY_ADDRESS, BY_CLAIM, BY_IP, BY_NODE_ID
from .handshake import Hello

Direction = Literal["inbound", "outbound"]
# A port number means one thing with TCP and another with UDP.
Protocol = Literal["tcp", "udp"]


class Quality(IntEnum):
    """How good a live connection is now; the best available is chosen."""

    DRAINING = 0
    SUSPECT = 1
    CONGESTED = 2
    GOOD = 3


class Rank(IntEnum):
    """Why a connection answers for an address; greater goes first."""

    PLAIN_BY_IP = 1
    HELLO = 2
    EXACT_REMOTE = 3
    SAME_NODE = 4
    ALIAS = 5
    DIALED = 6
    NODE = 7

    @property
    def certainty(self) -> Certainty:
        if self >= Rank.EXACT_REMOTE:
            return Certainty.CERTAIN
        return Certainty.CLAIMED if self is Rank.HELLO else Certainty.GUESSED


class Certainty(IntEnum):
    """What goes before quality: a claim never overtakes what is certain."""

    GUESSED = 0
    CLAIMED = 1
    CERTAIN = 2


class Reject(Enum):
    """Why a connection does not answer for an address."""

    OTHER_ADDRESS = "reaches another address"
    OTHER_NODE = "is not the node that the address names"
    NOT_PROVEN = "has not proven the identity the address asks for"
    OTHER_THAN_KNOWN = "another node is known to answer there (Config.known_peers)"
    OTHER_PORT = "its openline hello does not name that port"
    OTHER_PROTOCOL = "that is its UDP port, and the address asks for TCP (write quic:// for it)"
    TWO_CLAIMS = "two nodes at that IP claim that port"
    TAKEN = "it only says that it listens there, and somebody else is, or lately was, at that port"
    PLAIN_AMBIGUOUS = "more than one plain peer at that IP"
    PLAIN_STANDS_FOR_OTHER = "the plain peer at that IP may be another port's"
    PLAIN_NOT_THERE = "somebody else answered when that port was dialed"
    DIAL_FIRST = "somebody else was, or may be, at that port, so a dial comes first"
    PLAIN_NEVER = 'plain_reuse is "never"'
    PLAIN_TEXT = "is plain text, and what the address names was reached encrypted (ws:// asks for no more)"


RANK_TEXT = {
    Rank.NODE: "has proven the node id that the address names",
    Rank.ALIAS: "reaches the node that this address was dialed to",
    Rank.DIALED: "outbound connection to this address",
    Rank.SAME_NODE: "the node that answered when this port was dialed, and says that it listens there",
    Rank.HELLO: "openline peer at that IP that says it listens on that port",
    Rank.EXACT_REMOTE: "this address is its remote end",
    Rank.PLAIN_BY_IP: "the one plain peer at that IP",
}

_MATCHED = {Rank.NODE: BY_NODE_ID, Rank.HELLO: BY_CLAIM, Rank.PLAIN_BY_IP: BY_IP}


def matched(address: Address, rank: Rank) -> str:
    """How a connection of that rank was recognised."""
    return BY_NODE_ID if address.node_id is not None else _MATCHED.get(rank, BY_ADDRESS)


class Endpoint:
    """The far side of one connection.

    ``bound_port`` is the port a plain inbound socket stands for: the first send by IP alone binds
    it, as one socket cannot be two listeners; ``not_at`` are ports at which a dial has reached
    somebody else. ``crowded``: another plain peer's socket from this IP was open beside it. ``hint``
    is the ``metadata.sourceNodeId`` it last sent. ``aliases`` are addresses dialed to the same node by
    connections that this one has replaced (rule 3.3). ``certified``: it was dialed with pins, or a CA,
    which the certificate shown on it has satisfied. ``downgraded``: it is plain text, and its node was
    reached encrypted before.
    """

    __slots__ = (
        "aliases",
        "backend",
        "bound_port",
        "certificate",
        "certified",
        "crowded",
        "direction",
        "doubtful",
        "downgraded",
        "hello",
        "hint",
        "ip",
        "not_at",
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
        self.not_at: tuple[int, ...] = ()
        self.crowded = False
        # Suspect or draining: what it claims contradicts nobody who is there.
        self.doubtful = False
        self.hint = ""
        self.aliases: tuple[Address, ...] = ()
        # The far side's TLS certificate (DER), until the hello has been judged.
        self.certificate: bytes | None = None
        self.certified = False
        self.downgraded = False

    @property
    def in_the_clear(self) -> bool:
        """Can who listens on the path read it? What is in memory has none."""
        return not self.secure and self.backend != "memory"

    def steps_down(self, address: Address, sealed: bool = False) -> bool:
        """A bare address asks for encryption where it has been had (rule 3.8): of this node, or, ``sealed``,
        of that address."""
        return address.scheme is None and (self.downgraded or (sealed and self.in_the_clear))

    def was_encrypted(self) -> None:
        """Its node has been reached encrypted, by this connection or another one."""
        self.downgraded = self.in_the_clear

    def listens_on(self, ports: tuple[int, ...]) -> None:
        """It has other ports than its hello said."""
        if self.hello is not None:
            self.hello = msgspec.structs.replace(self.hello, ports=ports)

    @property
    def node_id(self) -> str | None:
        """Proven: a connection is not open before its hello's proof is right."""
        return self.hello.node_id if self.hello is not None else None

    @property
    def owner(self) -> str:
        """Whose end it is: the node id, or nothing for a plain peer, who proves none."""
        return self.hello.node_id if self.hello is not None else ""

    @property
    def protocol(self) -> Protocol:
        return "udp" if self.backend == "quic" else "tcp"

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

    For claims, by node id, a plain peer's being empty: ``reached`` are who answered when this place
    was dialed lately, ``taken`` whose end it lately was (dialed, or come from there), and
    ``formerly`` who answered there longer ago, or lately claimed it and is gone. ``no_route``: a dial has
    just found no way there.

    ``known``: nobody but that node may get what is for this address, as it answered there before
    (``Config.known_peers``).
    """

    address: Address
    ips: tuple[str, ...]
    plain_reuse: str = "unambiguous"
    # Does quic:// ask for a certificate here (pins, a CA)? Else it asks for QUIC, and for no more.
    certified: bool = True
    others: frozenset[str] = frozenset()
    dialed: frozenset[str] = frozenset()
    hints: dict[str, str] = {}
    reached: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    formerly: frozenset[str] = frozenset()
    no_route: bool = False
    # Was who listens there reached encrypted? Then plain text will not do (rule 3.8).
    sealed: bool = False
    known: str | None = None
