"""Rule 3.1: which connection carries a message."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from openline.address import Address
from openline.core.selection import (
    RANK_TEXT,
    Plan,
    Quality,
    Rank,
    Reject,
    best_of,
)

from .candidates import CAROL, DAVE, HOST, NEIGHBOUR, WORSE, Line, choose, hello, inbound, outbound, reasons

# Every rank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "line", "rank"),
    [
        pytest.param(f"{HOST}:8770", outbound(f"{HOST}:8770"), Rank.DIALED, id="dialed"),
        pytest.param(f"{HOST}:8770", outbound(f"ws://{HOST}:8770"), Rank.DIALED, id="ws is the default"),
        pytest.param(f"ws://{HOST}:8770", outbound(f"{HOST}:8770"), Rank.DIALED, id="ws said aloud"),
        pytest.param("b.example:8770", outbound("b.example:8770"), Rank.DIALED, id="dialed by name"),
        pytest.param(f"{HOST}:8770", outbound("b.example:8770"), Rank.DIALED, id="the name's IP"),
        pytest.param("b.example:8770", outbound(f"{HOST}:8770"), Rank.DIALED, id="the IP's name"),
        pytest.param(f"ws://{HOST}:8770/p", outbound(f"ws://{HOST}:8770/p"), Rank.DIALED, id="same path"),
        pytest.param("wss://b.example:8770", outbound("wss://b.example:8770"), Rank.DIALED, id="wss"),
        pytest.param(f"{HOST}:8770", inbound(50001, hello(CAROL, 8770)), Rank.HELLO, id="hello"),
        pytest.param(f"{HOST}:8771", inbound(50001, hello(CAROL, 8770, 8771)), Rank.HELLO, id="second port"),
        pytest.param("b.example:8770", inbound(50001, hello(CAROL, 8770)), Rank.HELLO, id="hello, by name"),
        pytest.param(
            f"{HOST}:8771",
            outbound(f"{HOST}:8770", hello(CAROL, 8770, 8771)),
            Rank.HELLO,
            id="its other port",
        ),
        pytest.param(
            f"{HOST}:8770",
            outbound(f"wss://{HOST}:8770", hello(CAROL, 8770)),
            Rank.HELLO,
            id="stronger is fine",
        ),
        pytest.param(f"{HOST}:50001", inbound(50001), Rank.EXACT_REMOTE, id="plain remote end"),
        pytest.param(f"{HOST}:50001", inbound(50001, hello(CAROL, 8770)), Rank.EXACT_REMOTE, id="remote end"),
        pytest.param(f"{CAROL}@{HOST}:8770", inbound(50001, hello(CAROL, 8770)), Rank.NODE, id="its node id"),
        pytest.param(f"{CAROL}@{HOST}:1", inbound(50001, hello(CAROL)), Rank.NODE, id="node id, any port"),
        pytest.param(
            f"{CAROL}@{HOST}:1", inbound(1, hello(CAROL), ip=NEIGHBOUR), Rank.NODE, id="node id, any IP"
        ),
        pytest.param(CAROL, inbound(50001, hello(CAROL, 8770)), Rank.NODE, id="bare node id"),
        pytest.param(CAROL, outbound(f"wss://{HOST}:8770", hello(CAROL)), Rank.NODE, id="bare node id, wss"),
        pytest.param(
            f"{CAROL}@{HOST}:8770", outbound(f"{HOST}:8770", hello(CAROL)), Rank.DIALED, id="node id, dialed"
        ),
        pytest.param(
            f"wss://{CAROL}@{HOST}:8770",
            outbound(f"wss://{HOST}:8770", hello(CAROL)),
            Rank.DIALED,
            id="wss and node id, dialed",
        ),
        pytest.param(f"{HOST}:8770", inbound(50001), Rank.PLAIN_BY_IP, id="the one plain peer"),
        pytest.param("b.example:8770", inbound(50001), Rank.PLAIN_BY_IP, id="the one plain peer, by name"),
    ],
)
def test_what_answers_for_an_address(address: str, line: Line, rank: Rank) -> None:
    result = choose(address, line)
    assert (result.chosen, result.rank, result.passed_over) == (line, rank, [])
    assert RANK_TEXT[rank]


OTHER, UNPROVEN = Reject.OTHER_ADDRESS, Reject.NOT_PROVEN


@pytest.mark.parametrize(
    ("address", "line", "reason"),
    [
        pytest.param(f"{HOST}:8771", outbound(f"{HOST}:8770"), OTHER, id="another port"),
        pytest.param(f"{HOST}:8770", outbound(f"{NEIGHBOUR}:8770", ip=NEIGHBOUR), OTHER, id="another IP"),
        pytest.param(f"ws://{HOST}:8770/p", outbound(f"ws://{HOST}:8770/q"), OTHER, id="another path"),
        pytest.param(f"ws://{HOST}:8770/p", inbound(50001, hello(CAROL, 8770)), OTHER, id="a path is dialed"),
        pytest.param("b.example:8770", outbound("c.example:8770"), OTHER, id="two names, one IP"),
        pytest.param(f"{HOST}:8770", outbound(f"wss://{HOST}:8770"), OTHER, id="plain behind wss"),
        pytest.param(f"{HOST}:8770", inbound(8770, ip=NEIGHBOUR), OTHER, id="same port elsewhere"),
        pytest.param(
            f"{HOST}:8770", inbound(1, hello(CAROL, 8770), ip=NEIGHBOUR), OTHER, id="hello elsewhere"
        ),
        pytest.param(
            f"{HOST}:8770", inbound(50001, hello(CAROL, 8771)), Reject.OTHER_PORT, id="not its port"
        ),
        pytest.param(f"{HOST}:8770", inbound(50001, hello(CAROL)), Reject.OTHER_PORT, id="does not listen"),
        pytest.param(f"wss://{HOST}:8770", inbound(50001), UNPROVEN, id="wss, plain inbound"),
        pytest.param(f"wss://{HOST}:50001", inbound(50001), UNPROVEN, id="wss, exact remote"),
        pytest.param(f"wss://{HOST}:8770", inbound(1, hello(CAROL, 8770)), UNPROVEN, id="wss, hello"),
        pytest.param(f"wss://{HOST}:8770", outbound(f"ws://{HOST}:8770"), UNPROVEN, id="wss, dialed as ws"),
        pytest.param("wss://b.example:8770", outbound(f"wss://{HOST}:8770"), UNPROVEN, id="wss, name for IP"),
        pytest.param(f"wss://{HOST}:8770", outbound("wss://b.example:8770"), UNPROVEN, id="wss, IP for name"),
        pytest.param("wss://b.example:8770", outbound("wss://c.example:8770"), UNPROVEN, id="wss, names"),
        pytest.param(f"wss://{HOST}:8770", inbound(1, ip=NEIGHBOUR), OTHER, id="wss, elsewhere"),
        pytest.param(f"quic://{HOST}:8770", outbound(f"wss://{HOST}:8770"), UNPROVEN, id="quic is not wss"),
        pytest.param(f"quic://{HOST}:8770", inbound(1, hello(CAROL, 8770)), UNPROVEN, id="quic, hello"),
        pytest.param(
            f"{CAROL}@{HOST}:8770", inbound(1, hello(DAVE, 8770)), Reject.OTHER_NODE, id="another node"
        ),
        pytest.param(
            f"{CAROL}@{HOST}:8770",
            outbound(f"{HOST}:8770", hello(DAVE, 8770)),
            Reject.OTHER_NODE,
            id="another node, dialed",
        ),
        pytest.param(f"{CAROL}@{HOST}:8770", outbound(f"{HOST}:8770"), UNPROVEN, id="node id, plain"),
        pytest.param(f"{CAROL}@{HOST}:50001", inbound(50001), UNPROVEN, id="node id, plain's exact remote"),
        pytest.param(CAROL, inbound(1, hello(DAVE, 8770), ip=NEIGHBOUR), OTHER, id="node id, elsewhere"),
        pytest.param(
            f"ws://{CAROL}@{HOST}:8770/p", inbound(1, hello(CAROL, 8770)), OTHER, id="node id and a path"
        ),
        pytest.param(f"wss://{CAROL}@{HOST}:8770", outbound(f"wss://{HOST}:8770"), UNPROVEN, id="wss and id"),
        pytest.param(
            f"wss://{CAROL}@{HOST}:8770", inbound(1, hello(CAROL, 8770)), UNPROVEN, id="wss and id, came in"
        ),
    ],
)
def test_what_does_not_answer_for_an_address(address: str, line: Line, reason: Reject) -> None:
    result = choose(address, line)
    assert (result.chosen, result.rank, reasons(result)) == (None, None, [reason.value])


def aliased(line: Line, *targets: str) -> Line:
    """``line`` has replaced connections that had been dialed to ``targets`` (rule 3.3)."""
    line.endpoint.aliases = tuple(map(Address.parse, targets))
    return line


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("carol.example:1", "carol.example:1"),
        ("ws://carol.example:1", "carol.example:1"),
        (f"{CAROL}@carol.example:1", "carol.example:1"),
        ("ws://carol.example:1/p", "ws://carol.example:1/p"),
    ],
)
def test_what_was_dialed_to_a_replaced_connection_is_reached_by_the_one_that_stays(
    address: str, target: str
) -> None:
    line = aliased(inbound(50001, hello(CAROL)), "other.example:2", target)
    result = choose(address, line, ips=())
    assert (result.chosen, result.rank) == (line, Rank.ALIAS)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("carol.example:2", Reject.OTHER_PORT),
        ("ws://carol.example:1/p", OTHER),
        ("wss://carol.example:1", UNPROVEN),
        (f"{DAVE}@carol.example:1", Reject.OTHER_NODE),
    ],
)
def test_an_alias_is_that_address_only_and_proves_nothing(address: str, reason: Reject) -> None:
    result = choose(address, aliased(inbound(50001, hello(CAROL)), "carol.example:1"))
    assert (result.chosen, reasons(result)) == (None, [reason.value])


def test_nothing_is_there_so_dial() -> None:
    assert choose(f"{HOST}:8770") == Plan(None, None, [])


def test_mapped_ipv4_is_ipv4() -> None:
    assert choose(f"[::ffff:{HOST}]:8770", inbound(50001, hello(CAROL, 8770))).rank is Rank.HELLO


def test_a_scope_is_part_of_the_ip() -> None:
    line = inbound(50001, hello(CAROL, 8770), ip="fe80::1%en0")
    assert choose("[fe80::1%en0]:8770", line, ips=("fe80::1%en0",)).chosen is line
    assert choose("[fe80::1%en1]:8770", line, ips=("fe80::1%en1",)).chosen is None


@pytest.mark.parametrize("ip", [HOST, NEIGHBOUR])
def test_a_name_with_several_ips_reaches_a_peer_at_any_of_them(ip: str) -> None:
    line = inbound(50001, hello(CAROL, 8770), ip=ip)
    assert choose("b.example:8770", line, ips=(HOST, NEIGHBOUR)).chosen is line


def test_a_name_that_was_dialed_needs_no_look_up() -> None:
    line = outbound("b.example:8770")
    assert choose("b.example:8770", line, ips=()).chosen is line


# Which of several ---------------------------------------------------------------------------------


def test_outbound_comes_before_inbound_and_the_reason_is_kept() -> None:
    dialed, came_in = outbound(f"{HOST}:8770", hello(CAROL, 8770)), inbound(50001, hello(CAROL, 8770))
    result = choose(f"{HOST}:8770", came_in, dialed)
    assert (result.chosen, result.rank) == (dialed, Rank.DIALED)
    assert result.passed_over == [(came_in, "reaches it too, but comes second")]


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_of_one_peers_inbound_connections_wins(order: int) -> None:
    old, new = inbound(50001, hello(CAROL, 8770)), inbound(50002, hello(CAROL, 8770))
    assert choose(f"{HOST}:8770", *[old, new][::order]).chosen is new


def test_the_newest_outbound_wins() -> None:
    old, new = outbound(f"{HOST}:8770"), outbound(f"{HOST}:8770")
    assert choose(f"{HOST}:8770", new, old).chosen is new


@pytest.mark.parametrize("quality", WORSE)
def test_a_worse_connection_is_not_chosen_while_a_better_one_exists(quality: Quality) -> None:
    worse = outbound(f"{HOST}:8770", hello(CAROL, 8770), quality=quality)
    better = inbound(50001, hello(CAROL, 8770))
    result = choose(f"{HOST}:8770", worse, better)
    assert result.chosen is better
    assert result.passed_over == [(worse, f"{quality.name.lower()}, and a better one exists")]
    assert choose(f"{HOST}:8770", worse).chosen is worse


@pytest.mark.parametrize(("worse", "better"), list(itertools.combinations(sorted(Quality), 2)))
def test_qualities_have_an_order(worse: Quality, better: Quality) -> None:
    one = inbound(50001, hello(CAROL, 8770), quality=better)
    other = inbound(50002, hello(CAROL, 8770), quality=worse)
    assert choose(f"{HOST}:8770", one, other).chosen is one
    assert best_of([other, one]) is one


def test_best_of() -> None:
    old, new = inbound(1), inbound(2)
    assert best_of([new, old]) is new
    assert best_of([]) is None


# The property -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Program:
    """Who is really there, and the connections it has with us."""

    name: str
    plain: bool
    ports: list[int]
    lines: list[Line] = dataclasses.field(default_factory=list)


links = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Quality)), max_size=2)


@st.composite
def machines(draw: st.DrawFn) -> list[Program]:
    """Programs behind one IP.

    The assumptions under which rule 3.1 is certain: a port of an IP belongs to one program; a
    hello is true and names every port its node listens on.
    """
    free, remotes = itertools.count(8770), itertools.count(50000)
    programs = []
    for number in range(draw(st.integers(2, 4))):
        ports = [next(free) for _ in range(draw(st.integers(0, 2)))]
        program = Program(f"program {number}", draw(st.booleans()), ports)
        said = None if program.plain else hello("abcd"[number] * 51 + "a", *ports)
        for choice, quality in draw(links):
            if choice < len(ports):
                line = outbound(f"{HOST}:{ports[choice]}", said, quality=quality, owner=program)
            else:
                line = inbound(next(remotes), said, quality=quality, owner=program)
            program.lines.append(line)
        programs.append(program)
    return programs


def addresses(programs: list[Program]) -> list[tuple[int, Program]]:
    """Every port at that IP that means somebody."""
    found = [(port, program) for program in programs for port in program.ports]
    found += [
        (line.endpoint.port, program)
        for program in programs
        for line in program.lines
        if line.endpoint.direction == "inbound"
    ]
    return found


@settings(max_examples=500)
@given(machines(), st.sampled_from(["unambiguous", "never"]))
def test_two_peers_behind_one_ip_never_get_each_others_messages(programs: list[Program], reuse: str) -> None:
    """The one assumption more that ``"unambiguous"`` makes: a peer that is not connected is not the
    one asked for where one plain peer is.
    """
    lines = [line for program in programs for line in program.lines]
    plain_and_connected = [program for program in programs if program.plain and program.lines]
    for port, wanted in addresses(programs):
        result = choose(f"{HOST}:{port}", *lines, reuse=reuse)
        event(result.rank.name if result.rank else "dial")
        if result.chosen is None or result.chosen.owner is wanted:
            continue
        assert not wanted.lines, f"port {port} is {wanted.name}'s, which is connected, but got {result}"
        assert result.rank is Rank.PLAIN_BY_IP
        assert reuse == "unambiguous"
        assert len(plain_and_connected) == 1


@given(machines(), st.sampled_from(["unambiguous", "newest", "never"]))
def test_an_address_that_asks_for_tls_is_dialed(programs: list[Program], reuse: str) -> None:
    lines = [line for program in programs for line in program.lines]
    for port, _ in addresses(programs):
        assert choose(f"wss://{HOST}:{port}", *lines, reuse=reuse).chosen is None


@given(machines(), st.sampled_from(["unambiguous", "newest", "never"]), st.sampled_from("abcd"))
def test_an_address_that_names_a_node_is_answered_by_that_node_or_nobody(
    programs: list[Program], reuse: str, letter: str
) -> None:
    node_id = letter * 51 + "a"
    lines = [line for program in programs for line in program.lines]
    known = {line.endpoint.node_id for line in lines}
    for address in (node_id, *(f"{node_id}@{HOST}:{port}" for port, _ in addresses(programs))):
        chosen = choose(address, *lines, reuse=reuse).chosen
        assert (chosen.endpoint.node_id if chosen else None) == (node_id if node_id in known else None)


@given(machines(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_connections(
    programs: list[Program], random: Any
) -> None:
    lines = [line for program in programs for line in program.lines]
    shuffled = random.sample(lines, len(lines))
    for port, _ in addresses(programs):
        assert choose(f"{HOST}:{port}", *lines).chosen is choose(f"{HOST}:{port}", *shuffled).chosen


@given(machines())
def test_every_connection_is_chosen_or_passed_over_for_a_reason(programs: list[Program]) -> None:
    lines = [line for program in programs for line in program.lines]
    for port, _ in addresses(programs):
        result = choose(f"{HOST}:{port}", *lines)
        seen = [line for line, _ in result.passed_over] + [result.chosen] * (result.chosen is not None)
        assert sorted(line.number for line in seen if line) == sorted(line.number for line in lines)


# Known peers ------------------------------------------------------------------------------------------


def test_only_the_known_node_answers_for_its_address() -> None:
    lines = [
        outbound("10.0.0.2:8770", hello(DAVE)),
        inbound(8770, hello(DAVE)),
        inbound(5000, hello(DAVE, 8770)),
        inbound(8770),
    ]
    for line in lines:
        assert choose("10.0.0.2:8770", line).chosen is line
        result = choose("10.0.0.2:8770", line, known=CAROL)
        assert (result.chosen, reasons(result)) == (None, [Reject.OTHER_THAN_KNOWN.value])


@pytest.mark.parametrize("worse", [Quality.GOOD, *WORSE])
def test_the_known_nodes_claim_is_certain(worse: Quality) -> None:
    """Whoever else claims that port, or was there lately: only the known node is meant."""
    friend = inbound(5000, hello(CAROL, 8770), quality=worse)
    others = [inbound(5001, hello(DAVE, 8770)), outbound("10.0.0.2:8770", hello(DAVE)), inbound(8770)]
    result = choose("10.0.0.2:8770", friend, *others, taken=frozenset({DAVE, ""}), known=CAROL)
    assert (result.chosen, result.rank) == (friend, Rank.SAME_NODE)
