"""A claim never beats what is certain (rules 3.1 and 3.10): the decision table of docs/design.md."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from openline.address import Address
from openline.core.endpoints import matched
from openline.core.handshake import Hello
from openline.core.selection import Certainty, Endpoint, Plan, Quality, Rank, Reject, Want, plan

HOST, PORT = "10.0.0.2", 8770
HONEST, MALLORY, THIRD = "a" * 52, "b" * 51 + "a", "c" * 51 + "a"
NAMES = {HONEST: "honest", MALLORY: "mallory", THIRD: "third", "": "plain"}

numbers = itertools.count(1)


@dataclasses.dataclass(eq=False, repr=False)
class Line:
    """A live connection, as far as a plan looks at it."""

    endpoint: Endpoint
    quality: Quality = Quality.GOOD
    number: int = dataclasses.field(default_factory=numbers.__next__)

    def __post_init__(self) -> None:
        self.endpoint.doubtful = self.quality <= Quality.SUSPECT

    @property
    def owner(self) -> str:
        return self.endpoint.owner

    def __repr__(self) -> str:
        end = self.endpoint
        said = end.hello.ports if end.hello else ""
        where = f"{end.direction} {end.backend} :{end.port}"
        return f"<{NAMES[end.owner]} {said} {where} {self.quality.name}>"


def hello(node: str, *ports: int) -> Hello | None:
    return Hello(node, "n" * 22, ports) if node else None


def inbound(
    port: int, node: str = "", *claims: int, backend: str = "websocket", quality: Quality = Quality.GOOD
) -> Line:
    return Line(Endpoint("inbound", HOST, port, hello=hello(node, *claims), backend=backend), quality)


def outbound(
    port: int, node: str = "", *claims: int, scheme: str = "", quality: Quality = Quality.GOOD, **more: Any
) -> Line:
    target = Address.parse(f"{scheme}{HOST}:{port}")
    said = hello(node, *claims)
    return Line(Endpoint("outbound", HOST, port, target=target, hello=said, **more), quality)


def choose(address: str, *lines: Line, ips: tuple[str, ...] = (HOST,), **known: Any) -> Plan[Line]:
    sets = {name: frozenset(value) for name, value in known.items() if isinstance(value, set)}
    return plan(Want(Address.parse(address), ips, **{"certified": False, **known, **sets}), lines)


def why_not(result: Plan[Line], line: Line) -> str:
    return next(reason for passed, reason in result.passed_over if passed is line)


@pytest.fixture
def claim() -> Line:
    return inbound(40000, MALLORY, PORT, backend="quic")


# What is certain, and connected ---------------------------------------------------------------------

CERTAIN = {
    "the remote end of a plain peer": lambda q: inbound(PORT, quality=q),
    "the remote end of a node that does not listen": lambda q: inbound(PORT, HONEST, quality=q),
    "the remote end of a node that listens elsewhere": lambda q: inbound(PORT, HONEST, 9, quality=q),
    "a plain peer that was dialed": lambda q: outbound(PORT, quality=q),
    "a node that was dialed": lambda q: outbound(PORT, HONEST, quality=q),
    "a node that was dialed and says so": lambda q: outbound(PORT, HONEST, PORT, quality=q),
    "a node that was dialed by quic": lambda q: outbound(PORT, HONEST, quality=q, backend="quic"),
}


@pytest.mark.parametrize("quality", list(Quality), ids=lambda quality: quality.name)
@pytest.mark.parametrize("kind", CERTAIN)
def test_a_claim_never_takes_the_place_of_who_is_certainly_there(
    kind: str, quality: Quality, claim: Line
) -> None:
    """However bad its connection is at the moment."""
    certain = CERTAIN[kind](quality)
    for lines in ((certain, claim), (claim, certain)):
        result = choose(f"{HOST}:{PORT}", *lines)
        assert result.chosen is certain
        assert why_not(result, claim) in (Reject.TAKEN.value, Reject.TWO_CLAIMS.value)


@pytest.mark.parametrize("kind", ["a plain peer that was dialed", "a node that was dialed by quic"])
def test_nor_does_a_claim_answer_for_another_spelling_of_that_place(kind: str, claim: Line) -> None:
    certain = CERTAIN[kind](Quality.GOOD)
    result = choose(f"quic://{HOST}:{PORT}", certain, claim)
    assert why_not(result, claim) == Reject.TAKEN.value


def test_an_address_that_was_dialed_by_name_is_that_servers_at_every_ip_of_the_name() -> None:
    dialed = Line(Endpoint("outbound", "10.0.0.9", PORT, target=Address.parse(f"svc.example:{PORT}")))
    dialed.quality = Quality.SUSPECT
    claim = inbound(40000, MALLORY, PORT)
    result = choose(f"svc.example:{PORT}", dialed, claim, ips=("10.0.0.9", HOST))
    assert (result.chosen, why_not(result, claim)) == (dialed, Reject.TAKEN.value)


def test_whom_a_replaced_connection_was_dialed_to_is_certain_too(claim: Line) -> None:
    stays = inbound(40001, HONEST, quality=Quality.SUSPECT)
    stays.endpoint.aliases = (Address.parse(f"{HOST}:{PORT}"),)
    result = choose(f"{HOST}:{PORT}", claim, stays)
    assert (result.chosen, result.rank, why_not(result, claim)) == (stays, Rank.ALIAS, Reject.TAKEN.value)


def test_the_same_node_over_another_connection_is_as_certain() -> None:
    dialed = outbound(PORT, HONEST, PORT, quality=Quality.SUSPECT)
    came_in, claim = inbound(40001, HONEST, PORT), inbound(40000, MALLORY, PORT)
    result = choose(f"{HOST}:{PORT}", dialed, came_in, claim)
    assert (result.chosen, result.rank) == (came_in, Rank.SAME_NODE)


# What is certain, and gone --------------------------------------------------------------------------


@pytest.mark.parametrize("who", [HONEST, ""], ids=["a node", "a plain peer"])
@pytest.mark.parametrize("reached", [True, False], ids=["dialed", "its remote end"])
def test_a_claim_counts_for_nothing_where_somebody_else_was_lately(
    who: str, reached: bool, claim: Line
) -> None:
    known = {"taken": {who}, "reached": {who} - {""} if reached else set()}
    result = choose(f"{HOST}:{PORT}", claim, **known)
    assert (result.chosen, why_not(result, claim)) == (None, Reject.TAKEN.value)
    # Not even where a dial has just found no way there.
    assert choose(f"{HOST}:{PORT}", claim, no_route=True, **known).chosen is None


def test_the_node_that_was_reached_by_a_dial_is_believed_beside_another_claim(claim: Line) -> None:
    honest = inbound(40001, HONEST, PORT)
    result = choose(f"{HOST}:{PORT}", claim, honest, taken={HONEST}, reached={HONEST})
    assert (result.chosen, result.rank) == (honest, Rank.SAME_NODE)
    assert why_not(result, claim) == Reject.TWO_CLAIMS.value


def test_a_node_is_not_contradicted_by_itself(claim: Line) -> None:
    """Its own source port of a while ago, say."""
    assert choose(f"{HOST}:{PORT}", claim, taken={MALLORY}).chosen is claim


def test_where_somebody_else_answered_long_ago_a_dial_comes_first_and_then_the_claim(claim: Line) -> None:
    result = choose(f"{HOST}:{PORT}", claim, formerly={HONEST})
    assert (result.chosen, why_not(result, claim)) == (None, Reject.DIAL_FIRST.value)
    assert choose(f"{HOST}:{PORT}", claim, formerly={HONEST}, no_route=True).rank is Rank.HELLO
    assert choose(f"{HOST}:{PORT}", claim, formerly={MALLORY}).rank is Rank.HELLO


@pytest.mark.parametrize("address", [f"{HOST}:{PORT}", f"ws://{HOST}:{PORT}", f"quic://{HOST}:{PORT}"])
def test_where_nobody_else_was_ever_known_a_claim_answers_without_a_dial(address: str, claim: Line) -> None:
    """The case that openline exists for."""
    neighbours = inbound(40001), inbound(40002, HONEST, 9), outbound(9, THIRD, 9)
    result = choose(address, *neighbours, claim)
    assert (result.chosen, result.rank) == (claim, Rank.HELLO)


# A port is known with its protocol -------------------------------------------------------------------


def test_a_udp_port_is_no_tcp_port() -> None:
    client = inbound(PORT, HONEST, backend="quic")
    result = choose(f"{HOST}:{PORT}", client)
    assert (result.chosen, why_not(result, client)) == (None, Reject.OTHER_PROTOCOL.value)
    assert choose(f"ws://{HOST}:{PORT}", client).chosen is None
    assert choose(f"quic://{HOST}:{PORT}", client).rank is Rank.EXACT_REMOTE
    assert choose(f"quic://{HOST}:{PORT}", client, certified=True).chosen is None


def test_nor_is_a_tcp_port_an_udp_port() -> None:
    assert choose(f"quic://{HOST}:{PORT}", inbound(PORT, HONEST)).chosen is None


def test_a_udp_port_of_that_number_contradicts_nobody_who_listens_with_tcp(claim: Line) -> None:
    client = inbound(PORT, HONEST, backend="quic")
    assert choose(f"{HOST}:{PORT}", client, claim).chosen is claim
    plain = inbound(40001)
    assert choose(f"{HOST}:{PORT}", client, plain).chosen is plain


# The one plain peer at an IP --------------------------------------------------------------------------


def test_a_plain_peer_is_not_at_a_port_where_a_dial_has_reached_somebody_else() -> None:
    plain = inbound(40001)
    plain.endpoint.not_at = (PORT,)
    for known in ({}, {"plain_reuse": "newest"}, {"no_route": True}):
        result = choose(f"{HOST}:{PORT}", plain, **known)
        assert (result.chosen, why_not(result, plain)) == (None, Reject.PLAIN_NOT_THERE.value)


def test_after_that_it_stands_for_other_ports_only_where_there_is_no_way_to_them() -> None:
    plain = inbound(40001)
    plain.endpoint.not_at = (PORT,)
    result = choose(f"{HOST}:9000", plain)
    assert (result.chosen, why_not(result, plain)) == (None, Reject.DIAL_FIRST.value)
    assert choose(f"{HOST}:9000", plain, no_route=True).rank is Rank.PLAIN_BY_IP


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (Rank.NODE, "node id"),
        (Rank.DIALED, "exact address"),
        (Rank.ALIAS, "exact address"),
        (Rank.SAME_NODE, "exact address"),
        (Rank.EXACT_REMOTE, "exact address"),
        (Rank.HELLO, "claimed port"),
        (Rank.PLAIN_BY_IP, "ip alone"),
    ],
)
def test_how_a_peer_was_recognised(rank: Rank, expected: str) -> None:
    assert matched(Address.parse(f"{HOST}:{PORT}"), rank) == expected
    assert matched(Address.parse(f"{HONEST}@{HOST}:{PORT}"), rank) == "node id"


# The property ----------------------------------------------------------------------------------------

ports = st.sampled_from([PORT, PORT + 1, 40000, 40001])
owners = st.sampled_from(sorted(NAMES))
claims = st.lists(ports, max_size=2, unique=True)
sets = st.sets(owners, max_size=2)


@st.composite
def neighbours(draw: st.DrawFn) -> list[Line]:
    """Behind one IP, and true or not what they say; a TCP port is one socket's remote end at a time."""
    lines: list[Line] = []
    for _ in range(draw(st.integers(1, 6))):
        owner, port, quality = draw(owners), draw(ports), draw(st.sampled_from(Quality))
        said = draw(claims) if owner else []
        backend = draw(st.sampled_from(["websocket", "quic"])) if owner else "websocket"
        if draw(st.booleans()):
            line = outbound(port, owner, *said, quality=quality, backend=backend)
        else:
            line = inbound(port, owner, *said, quality=quality, backend=backend)
        lines.append(line)
    return lines


@st.composite
def memories(draw: st.DrawFn) -> dict[str, set[str]]:
    """Of one place, as the router tells them; what was dialed lately was there lately."""
    dialed, came = draw(sets), draw(sets)
    return {
        "reached": dialed - {""},
        "taken": dialed | came,
        "formerly": draw(sets),
        "dialed": {HOST} if "" in dialed else set(),
        "others": {HOST} if came or dialed - {""} else set(),
    }


def certain(port: int, udp: bool, lines: list[Line], known: dict[str, set[str]]) -> set[str]:
    """Whose that place is, or lately was, beyond doubt."""
    found = set(known["taken"])
    for line in lines:
        end = line.endpoint
        if end.port == port and (end.direction == "outbound" or (end.backend == "quic") == udp):
            found.add(line.owner)
    return found


@settings(max_examples=1000)
@given(neighbours(), memories(), ports, st.sampled_from(["", "ws://", "quic://"]), st.booleans())
def test_a_message_never_goes_to_a_claimer_where_something_certain_is_known(
    lines: list[Line], known: dict[str, set[str]], port: int, scheme: str, no_route: bool
) -> None:
    result = choose(f"{scheme}{HOST}:{port}", *lines, no_route=no_route, **known)
    sure = certain(port, scheme == "quic://", lines, known)
    event(f"{result.rank.name if result.rank else 'dial'}, {'known' if sure else 'unknown'}")
    if result.chosen is None:
        return
    assert not sure or result.chosen.owner in sure
    if result.rank is Rank.HELLO:
        assert sure <= {result.chosen.owner}
        assert no_route or known["formerly"] <= {result.chosen.owner}
    if result.rank is Rank.PLAIN_BY_IP:
        assert not known["others"]


@given(neighbours(), memories(), ports, st.data())
def test_no_quality_changes_how_certain_the_choice_is(
    lines: list[Line], known: dict[str, set[str]], port: int, data: st.DataObject
) -> None:
    """What is best of the certain ones may change; that a certain one is taken may not."""
    before = choose(f"{HOST}:{port}", *lines, **known)
    for line in lines:
        line.quality = data.draw(st.sampled_from([Quality.GOOD, Quality.CONGESTED, line.quality]))
    after = choose(f"{HOST}:{port}", *lines, **known)
    if before.rank is not None and before.rank.certainty is Certainty.CERTAIN:
        assert after.rank is not None
        assert after.rank.certainty is Certainty.CERTAIN


def test_that_a_node_came_from_a_port_does_not_say_that_it_was_reached_by_dialing_it() -> None:
    """So what another node has there is not moved to it."""
    itself, other = inbound(PORT, MALLORY), inbound(40000, MALLORY, PORT)
    result = choose(f"{HOST}:{PORT}", itself, other)
    assert (result.chosen, result.rank) == (itself, Rank.EXACT_REMOTE)
    assert choose(f"{HOST}:{PORT}", other, outbound(PORT, MALLORY)).passed_over[0][1].endswith("second")
