"""Which of several connections between the same two processes stays (rule 3.3; RFC 4271 section 6.8).

Pure, and the same on both sides: it looks only at what both know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """What decides for a connection: its rank, who dialed it, and that node's count of dials.

    ``certified``: whoever dialed it has held its certificate to pins or a CA.
    """

    rank: int
    initiator: str
    dial: int
    certified: bool = False


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

    One whose certificate was asked for, as no other may answer for the addresses that ask; by backend
    rank; then the one initiated by the node with the greater public key; then the one that this node
    dialed last.
    """
    greater = max(one, other, key=public_key_of)

    def merit(rival: R) -> tuple[object, ...]:
        claim = rival.claim
        return claim.certified, claim.rank, claim.initiator == greater, claim.dial

    return max(rivals, key=merit)


def surplus(best: R, rivals: Sequence[R]) -> list[R]:
    """Those that are one too many beside ``best``.

    Of those whose certificate was asked for, each side keeps its own best: what the other side was
    shown on its connection says nothing to this one.
    """
    kept: dict[str, R] = {}
    for rival in rivals:
        claim = rival.claim
        if claim.certified:
            last = kept.get(claim.initiator)
            if last is None or (last.claim.rank, last.claim.dial) < (claim.rank, claim.dial):
                kept[claim.initiator] = rival
    return [r for r in rivals if r is not best and r is not kept.get(r.claim.initiator)]
