"""Which of several connections between the same two processes stays (rule 3.3; RFC 4271 section 6.8).

Pure, and the same on both sides: it looks only at what both know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from ..identity import public_key_of

# Greater is better: what is encrypted and needs no TCP first.
BACKEND_RANK = {"quic": 3, "websocket": 1, "memory": 1}
# TLS is worth a rank: a connection that an address with wss may need is not given up for one without.
SECURE_RANK = 1

# How long the connection that lost is still read: what the other side sent before it knew is in
# flight, for a round trip of a bad link at most. What does not arrive by then is sent again.
DRAIN_GRACE = 1.0


class Claim(msgspec.Struct, frozen=True):
    """What decides for a connection: its rank, who dialed it, and that node's count of dials."""

    rank: int
    initiator: str
    dial: int


class Rival(Protocol):
    """Something that has a claim."""

    @property
    def claim(self) -> Claim: ...


R = TypeVar("R", bound=Rival)


def rank_of(backend: str, secure: bool) -> int:
    rank = BACKEND_RANK.get(backend, 0)
    return rank + SECURE_RANK if secure and backend != "quic" else rank


def winner(one: str, other: str, rivals: Iterable[R]) -> R:
    """The connection that stays between the nodes ``one`` and ``other`` (in any order).

    By backend rank; then the one initiated by the node with the greater public key; then the one
    that this node dialed last.
    """
    greater = max(one, other, key=public_key_of)
    return max(rivals, key=lambda r: (r.claim.rank, r.claim.initiator == greater, r.claim.dial))
