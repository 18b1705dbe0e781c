"""Rule 3.1: which connection carries a message."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from openline.address import Address
from openline.core.handshake import Hello
from openline.core.selection import (
    RANK_TEXT,
    Endpoint,
    Plan,
    Quality,
    Rank,
    Reject,
    Want,
    best_of,
    crowd,
    plan,
)

HOST, NEIGHBOUR = "10.0.0.2", "10.0.0.3"
CAROL, DAVE = "c" * 51 + "a", "d" * 51 + "a"

numbers = itertools.count(1)


@dataclasses.dataclass(eq=False, repr=False)
class Line:
    """A live connection, as far as a plan looks at it. Made later means newer."""

    endpoint: Endpoint
    quality: Quality = Quality.GOOD
    owner: object = None
    number: int = dataclasses.field(default_factory=numbers.__next__)

    def __repr__(self) -> str:
        end = self.endpoint
        kind = "plain" if end.hello is None else f"openline {end.hello.ports}"
        return f"<{kind} {end.direction} {end.remote} {self.quality.name}>"


def hello(node: str, *ports: int) -> Hello:
    return Hello(node, "n" * 22, ports)


def inbound(port: int, said: Hello | None = None, *, ip: str = HOST, **more: Any) -> Line:
    return Line(Endpoint("inbound", ip, port, hello=said), **more)


def outbound(target: str, said: Hello | None = None, *, ip: str = HOST, **more: Any) -> Line:
    address = Address.parse(target)
    secure = address.scheme == "wss"
    end = Endpoint("outbound", ip, address.port, target=address, secure=secure, hello=said)
    return Line(end, **more)


def choose(
    address: str, *lines: Line, ips: tuple[str, ...] = (HOST,), reuse: str = "unambiguous", **known: Any
) -> Plan[Line]:
    return plan(Want(Address.parse(address), ips, reuse, **known), lines)


def reasons(result: Plan[Line]) -> list[str]:
    return [reason for _, reason in result.passed_over]


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


WORSE = [Quality.CONGESTED, Quality.SUSPECT, Quality.DRAINING]


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


# Two peers behind one IP --------------------------------------------------------------------------


def test_two_openline_nodes_behind_one_ip_get_their_own_messages() -> None:
    carol, dave = inbound(50001, hello(CAROL, 8770)), inbound(50002, hello(DAVE, 8771))
    assert choose(f"{HOST}:8770", carol, dave).chosen is carol
    assert choose(f"{HOST}:8771", carol, dave).chosen is dave
    assert choose(f"{HOST}:50002", carol, dave).chosen is dave
    assert choose(f"{HOST}:8772", carol, dave).chosen is None


def test_two_nodes_that_claim_one_port_are_both_passed_over() -> None:
    carol, dave = inbound(50001, hello(CAROL, 8770)), inbound(50002, hello(DAVE, 8770))
    result = choose(f"{HOST}:8770", carol, dave)
    assert (result.chosen, reasons(result)) == (None, [Reject.TWO_CLAIMS.value] * 2)
    assert choose(f"{HOST}:50001", carol, dave).chosen is carol


def test_dialing_settles_which_of_two_claims_is_true() -> None:
    carol, dave = outbound(f"{HOST}:8770", hello(CAROL, 8770)), inbound(50002, hello(DAVE, 8770))
    result = choose(f"{HOST}:8770", carol, dave)
    assert (result.chosen, reasons(result)) == (carol, [Reject.TWO_CLAIMS.value])


def test_two_claims_at_different_ips_are_two_addresses() -> None:
    carol, dave = inbound(50001, hello(CAROL, 8770)), inbound(50002, hello(DAVE, 8770), ip=NEIGHBOUR)
    assert choose(f"{HOST}:8770", carol, dave).chosen is carol


def test_an_openline_node_does_not_stand_for_a_plain_peer() -> None:
    carol, plain = inbound(50001, hello(CAROL, 8770)), inbound(50002)
    assert choose(f"{HOST}:9000", carol, plain).chosen is plain
    assert choose(f"{HOST}:9000", carol).chosen is None


def test_a_plain_peer_does_not_stand_for_an_openline_node() -> None:
    carol, plain = inbound(50001, hello(CAROL, 8770)), inbound(50002)
    assert choose(f"{HOST}:8770", carol, plain).chosen is carol
    for quality in WORSE:
        carol.quality = quality
        result = choose(f"{HOST}:8770", carol, plain)
        assert (result.chosen, reasons(result)) == (carol, [Reject.PLAIN_STANDS_FOR_OTHER.value])


@pytest.mark.parametrize("quality", list(Quality))
def test_a_plain_peer_does_not_stand_for_another_sockets_remote_end(quality: Quality) -> None:
    """Whatever the state of the socket that an answer belongs to, it is nobody else's."""
    for said in (None, hello(CAROL), hello(CAROL, 8770)):
        asked, plain = inbound(50001, said, quality=quality), inbound(50002)
        assert choose(f"{HOST}:50001", asked, plain).chosen is asked


def test_two_plain_peers_are_ambiguous() -> None:
    one, two = inbound(50001), inbound(50002)
    result = choose(f"{HOST}:9000", one, two)
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_AMBIGUOUS.value] * 2)
    assert choose(f"{HOST}:50001", one, two).chosen is one
    assert choose(f"{HOST}:50002", one, two).chosen is two


def test_a_plain_peer_elsewhere_is_no_ambiguity() -> None:
    one, elsewhere = inbound(50001), inbound(50001, ip=NEIGHBOUR)
    assert choose(f"{HOST}:9000", one, elsewhere).chosen is one


def test_a_plain_peer_we_dialed_at_another_port_makes_the_inbound_one_ambiguous() -> None:
    came_in, dialed = inbound(50001), outbound(f"{HOST}:9001")
    result = choose(f"{HOST}:9000", came_in, dialed)
    assert (result.chosen, reasons(result)[0]) == (None, Reject.PLAIN_STANDS_FOR_OTHER.value)


@pytest.mark.parametrize("quality", WORSE)
def test_an_inbound_plain_peer_does_not_stand_for_the_one_we_dialed(quality: Quality) -> None:
    """Who came in may be a second program on that machine: nothing says that it is the one dialed."""
    dialed, came_in = outbound(f"{HOST}:9000", quality=quality), inbound(50001)
    assert choose(f"{HOST}:9000", came_in, dialed).chosen is dialed


def test_one_socket_cannot_be_two_listeners() -> None:
    plain = inbound(50001)
    plain.endpoint.bound_port = 9000
    assert choose(f"{HOST}:9000", plain).chosen is plain
    result = choose(f"{HOST}:9001", plain)
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_STANDS_FOR_OTHER.value])


def test_who_was_not_alone_does_not_become_the_one_plain_peer_when_the_other_goes() -> None:
    """Either of the two may have been the one at the port asked for."""
    gone, left = inbound(50001), inbound(50002)
    crowd(gone.endpoint, [left.endpoint])
    result = choose(f"{HOST}:9000", left)
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_AMBIGUOUS.value])
    assert choose(f"{HOST}:50002", left).chosen is left
    assert choose(f"{HOST}:9000", left, reuse="newest").chosen is left


def test_what_it_was_bound_to_before_stays() -> None:
    gone, left = inbound(50001), inbound(50002)
    left.endpoint.bound_port = 9000
    crowd(gone.endpoint, [left.endpoint])
    assert choose(f"{HOST}:9000", left).chosen is left


def test_unless_both_gave_the_same_hint_for_then_one_peer_has_connected_anew() -> None:
    gone, same, another, silent = (inbound(50001 + n) for n in range(4))
    gone.endpoint.hint = same.endpoint.hint = "worker-1"
    another.endpoint.hint = "worker-2"
    crowd(gone.endpoint, [same.endpoint, another.endpoint, silent.endpoint])
    assert choose(f"{HOST}:9000", same).chosen is same
    assert choose(f"{HOST}:9000", another).chosen is None
    assert choose(f"{HOST}:9000", silent).chosen is None


def test_two_that_gave_no_hint_are_not_the_same() -> None:
    gone, left = inbound(50001), inbound(50002)
    gone.endpoint.hint = left.endpoint.hint = ""
    crowd(gone.endpoint, [left.endpoint])
    assert choose(f"{HOST}:9000", left).chosen is None


@pytest.mark.parametrize("gone", [inbound(50001, hello(CAROL, 8770)), outbound(f"{HOST}:9000")])
def test_only_plain_clients_crowd(gone: Line) -> None:
    left, carol = inbound(50002), inbound(50003, hello(CAROL, 8770))
    crowd(gone.endpoint, [left.endpoint, carol.endpoint])
    crowd(left.endpoint, [carol.endpoint])
    assert choose(f"{HOST}:9001", left).chosen is left
    assert choose(f"{HOST}:8770", carol).chosen is carol


# What is known of a port from before ----------------------------------------------------------------


@pytest.mark.parametrize("reuse", ["unambiguous", "newest"])
def test_a_port_known_to_be_somebody_elses_is_not_a_plain_clients(reuse: str) -> None:
    plain, known = inbound(50001), frozenset({HOST})
    result = choose(f"{HOST}:9000", plain, reuse=reuse, others=known)
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_STANDS_FOR_OTHER.value])
    assert choose(f"{HOST}:50001", plain, reuse=reuse, others=known).chosen is plain
    assert choose(f"{HOST}:9000", plain, reuse=reuse, others=frozenset({NEIGHBOUR})).chosen is plain


def test_where_the_port_could_be_dialed_before_that_comes_first() -> None:
    plain, before = inbound(50001), frozenset({HOST})
    result = choose(f"{HOST}:9000", plain, dialed=before)
    assert (result.chosen, reasons(result)) == (None, [Reject.DIAL_FIRST.value])
    assert choose(f"{HOST}:9000", plain, dialed=frozenset({NEIGHBOUR})).chosen is plain
    assert choose(f"{HOST}:50001", plain, dialed=before).chosen is plain
    plain.endpoint.bound_port = 9000
    assert choose(f"{HOST}:9000", plain, dialed=before).chosen is plain


def test_a_hint_can_contradict_and_never_prove() -> None:
    plain, stood_there = inbound(50001), {HOST: "worker-1"}
    assert choose(f"{HOST}:9000", plain, hints=stood_there).chosen is plain
    plain.endpoint.hint = "worker-1"
    assert choose(f"{HOST}:9000", plain, hints=stood_there).chosen is plain
    assert choose(f"{HOST}:9000", plain, hints={NEIGHBOUR: "worker-2"}).chosen is plain
    plain.endpoint.hint = "worker-2"
    result = choose(f"{HOST}:9000", plain, hints=stood_there)
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_STANDS_FOR_OTHER.value])
    other = inbound(50002)
    other.endpoint.hint = "worker-1"
    assert choose(f"{HOST}:9000", plain, other, hints=stood_there).chosen is None
    assert choose(f"{HOST}:50001", plain, hints=stood_there).chosen is plain


def test_neither_concerns_who_says_or_shows_that_it_is_there() -> None:
    carol, dialed = inbound(50001, hello(CAROL, 8770)), outbound(f"{HOST}:9000")
    everywhere = frozenset({HOST})
    assert choose(f"{HOST}:8770", carol, others=everywhere, dialed=everywhere).chosen is carol
    assert choose(f"{HOST}:9000", dialed, others=everywhere, dialed=everywhere).chosen is dialed


# plain_reuse --------------------------------------------------------------------------------------


def test_never_keeps_to_what_is_certain() -> None:
    plain = inbound(50001)
    result = choose(f"{HOST}:9000", plain, reuse="never")
    assert (result.chosen, reasons(result)) == (None, [Reject.PLAIN_NEVER.value])
    assert choose(f"{HOST}:50001", plain, reuse="never").rank is Rank.EXACT_REMOTE
    carol = inbound(50002, hello(CAROL, 8770))
    assert choose(f"{HOST}:8770", carol, plain, reuse="never").chosen is carol


def test_newest_takes_the_newest_of_several() -> None:
    old, new = inbound(50001), inbound(50002)
    assert choose(f"{HOST}:9000", new, old, reuse="newest").chosen is new
    assert choose(f"{HOST}:50001", old, new, reuse="newest").chosen is old


def test_newest_still_does_not_take_what_is_certainly_wrong() -> None:
    plain, carol = inbound(50001), inbound(50002, hello(CAROL, 8770), quality=Quality.SUSPECT)
    assert choose(f"{HOST}:8770", plain, carol, reuse="newest").chosen is carol
    assert choose(f"wss://{HOST}:8770", plain, reuse="newest").chosen is None


@pytest.mark.parametrize("reject", list(Reject), ids=lambda reject: reject.name)
def test_every_reason_is_a_readable_text(reject: Reject) -> None:
    assert len(reject.value) > 10
    assert reject.value.isprintable()


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
