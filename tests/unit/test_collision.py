"""Which of several connections between two nodes stays (rule 3.3)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from openline import Identity, node_id_of
from openline.core.collision import Claim, rank_of, surplus, winner

# In base32 the digits come after the letters, in text before them: "2…" is the greater key.
LOW, HIGH = node_id_of(b"\x02" + bytes(31)), node_id_of(b"\xd0" + bytes(31))
WS, WSS, QUIC = (rank_of(*of) for of in (("websocket", False), ("websocket", True), ("quic", True)))


class Rival(NamedTuple):
    claim: Claim
    name: object = ""


def test_the_two_nodes_compare_otherwise_as_text() -> None:
    assert (HIGH[0], LOW[0]) == ("2", "a")
    assert HIGH < LOW


# The claims, as (rank, initiator, dial), and which of them stays.
VECTORS: dict[str, tuple[list[tuple[int, str, int]], int]] = {
    "alone": ([(WS, LOW, 1)], 0),
    "the greater key's dial": ([(WS, LOW, 1), (WS, HIGH, 1)], 1),
    "the greater key's dial, however old": ([(WS, LOW, 999), (WS, HIGH, 1)], 1),
    "the later of two in one direction": ([(WS, HIGH, 1), (WS, HIGH, 2)], 1),
    "the later of two of the lesser key": ([(WS, LOW, 7), (WS, LOW, 6)], 0),
    "numbers, not digits": ([(WS, LOW, 9), (WS, LOW, 10)], 1),
    "the last of the greater key's": ([(WS, LOW, 9), (WS, HIGH, 1), (WS, HIGH, 2), (WS, LOW, 10)], 2),
    "wss before ws": ([(WS, HIGH, 1), (WSS, LOW, 1)], 1),
    "wss before a later ws": ([(WS, LOW, 5), (WSS, LOW, 1)], 1),
    "wss twice: the greater key's": ([(WSS, LOW, 1), (WSS, HIGH, 1)], 1),
    "quic before wss": ([(WSS, HIGH, 2), (QUIC, LOW, 1)], 1),
    "quic before ws": ([(WS, HIGH, 2), (QUIC, LOW, 1)], 1),
    "quic twice: the greater key's": ([(QUIC, LOW, 5), (QUIC, HIGH, 1)], 1),
    "to oneself: the later": ([(WS, HIGH, 3), (WS, HIGH, 4)], 1),
    "a dial of the largest number": ([(WS, LOW, 2**53 - 1), (WS, LOW, 2**53 - 2)], 0),
}


@pytest.mark.parametrize(("claims", "stays"), VECTORS.values(), ids=list(VECTORS))
def test_which_stays(claims: list[tuple[int, str, int]], stays: int) -> None:
    rivals = [Rival(Claim(*claim)) for claim in claims]
    for order in itertools.permutations(rivals):
        assert winner(LOW, HIGH, order) is rivals[stays]
        assert winner(HIGH, LOW, order) is rivals[stays]


def test_encrypted_without_tcp_goes_before_encrypted_before_plain() -> None:
    assert QUIC > WSS > WS
    assert rank_of("quic", False) == QUIC
    assert rank_of("memory", False) == WS
    assert rank_of("carrier pigeon", False) < WS


identities = st.binary(min_size=32, max_size=32).map(
    lambda seed: Identity(Ed25519PrivateKey.from_private_bytes(seed)).node_id
)


@st.composite
def encounters(draw: st.DrawFn) -> tuple[str, str, list[Rival]]:
    one, other = draw(identities), draw(identities)
    dials = draw(
        st.lists(st.tuples(st.sampled_from([WS, WSS, QUIC]), st.sampled_from([one, other])), min_size=1)
    )
    return one, other, [Rival(Claim(rank, who, n)) for n, (rank, who) in enumerate(dials)]


@given(encounters(), st.randoms())
def test_both_sides_choose_the_same_in_whatever_order_they_look(
    encounter: tuple[str, str, list[Rival]], random: object
) -> None:
    one, other, rivals = encounter
    chosen = winner(one, other, rivals)
    shuffled = rivals.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert winner(other, one, shuffled) is chosen


@given(encounters(), st.data())
def test_a_loser_more_or_less_changes_nothing(
    encounter: tuple[str, str, list[Rival]], data: st.DataObject
) -> None:
    """So that it does not matter which of the losers have been closed by now."""
    one, other, rivals = encounter
    chosen = winner(one, other, rivals)
    others = [rival for rival in rivals if rival is not chosen]
    some = data.draw(st.lists(st.sampled_from(others), unique_by=id)) if others else []
    assert winner(one, other, [*some, chosen]) is chosen


@given(encounters())
def test_the_ones_that_stay_one_after_the_other_are_in_one_order(
    encounter: tuple[str, str, list[Rival]],
) -> None:
    """Taking the winner away again and again sorts them by rank, initiator and dial."""
    one, other, rivals = encounter
    greater = max(one, other, key=_bits)
    left, order = rivals.copy(), []
    while left:
        order.append(winner(one, other, left))
        left.remove(order[-1])
    keys = [(r.claim.rank, r.claim.initiator == greater, r.claim.dial) for r in order]
    assert keys == sorted(keys, reverse=True)


def _bits(node_id: str) -> list[int]:
    """What the text stands for, without asking the code."""
    return ["abcdefghijklmnopqrstuvwxyz234567".index(c) for c in node_id]


def test_real_identities_agree_with_their_public_keys() -> None:
    for _ in range(50):
        one, other = Identity(), Identity()
        rivals = [Rival(Claim(WS, who.node_id, 1), who) for who in (one, other)]
        assert winner(one.node_id, other.node_id, rivals).name is max(
            (one, other), key=lambda who: who.public_key
        )


# Two nodes that see things at different times --------------------------------------------------------


class Line:
    """One connection, as each side sees it: not yet, open, or over."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.seen = {LOW: "not yet", HIGH: "not yet"}

    def events(self) -> Iterable[tuple[str, str]]:
        """What may happen next: a side learns that it is open, or over."""
        dead = "over" in self.seen.values()
        for side, state in self.seen.items():
            # A server's side opens once the client's has: its proof is on the way.
            other = self.seen[HIGH if side == LOW else LOW]
            if state == "not yet" and not dead and (side == self.claim.initiator or other == "open"):
                yield side, "open"
            if state == "open" and dead:
                yield side, "over"
            if state == "not yet" and dead and side != self.claim.initiator:
                yield side, "over"


class Model:
    """The rule and nothing else: each side knows what it has learnt, and HIGH alone closes."""

    def __init__(self, claims: list[Claim]) -> None:
        self.lines = [Line(claim) for claim in claims]

    def open_at(self, side: str) -> list[Line]:
        return [line for line in self.lines if line.seen[side] == "open"]

    def happen(self, line: Line, side: str, state: str) -> None:
        line.seen[side] = state
        mine = self.open_at(HIGH)
        if mine:
            stays = winner(LOW, HIGH, mine)
            for other in mine:
                if other is not stays:
                    other.seen[HIGH] = "over"

    def crash(self, line: Line) -> None:
        for side, state in line.seen.items():
            if state == "open":
                line.seen[side] = "over"
                return  # the other side learns later


claims = st.lists(
    st.builds(Claim, st.sampled_from([WS, WSS]), st.sampled_from([LOW, HIGH]), st.integers(1, 9)),
    min_size=1,
    max_size=4,
    unique_by=lambda claim: (claim.initiator, claim.dial),
)


@given(claims, st.data())
def test_whatever_each_side_learns_when_both_end_with_the_same_one(
    claims: list[Claim], data: st.DataObject
) -> None:
    """Any interleaving of dials and one crash: one connection stays, if one is left, and it is the same."""
    model = Model(claims)
    crash = data.draw(st.none() | st.integers(0, 12))
    for turn in itertools.count():
        if turn == crash:
            model.crash(data.draw(st.sampled_from(model.lines)))
        events = [(line, *event) for line in model.lines for event in line.events()]
        if not events:
            break
        model.happen(*data.draw(st.sampled_from(events)))
    assert model.open_at(LOW) == model.open_at(HIGH)
    assert len(model.open_at(LOW)) == 1 or crash is not None
    assert len(model.open_at(LOW)) <= 1


# Certificates that were asked for --------------------------------------------------------------------


def test_one_whose_certificate_was_asked_for_wins_whatever_else_speaks_for_others() -> None:
    asked = Rival(Claim(WSS, LOW, 1, certified=True))
    quic = Rival(Claim(QUIC, HIGH, 9))
    assert winner(LOW, HIGH, [quic, asked]) is winner(HIGH, LOW, [asked, quic]) is asked
    assert surplus(asked, [quic, asked]) == [quic]


def test_each_side_keeps_its_own_best_of_those_whose_certificate_was_asked_for() -> None:
    mine, better = Rival(Claim(WSS, LOW, 1, certified=True)), Rival(Claim(QUIC, LOW, 2, certified=True))
    theirs, other = Rival(Claim(WSS, HIGH, 1, certified=True)), Rival(Claim(WSS, HIGH, 2))
    rivals = [mine, better, theirs, other]
    assert winner(LOW, HIGH, rivals) is better
    assert surplus(better, rivals) == [mine, other]
    assert surplus(theirs, rivals) == [mine, other]
