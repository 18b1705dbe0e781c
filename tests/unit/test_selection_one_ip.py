"""Rule 3.1: peers behind one IP, claims of ports, and ``plain_reuse``."""

from __future__ import annotations

import pytest

from openline.core.selection import (
    Quality,
    Rank,
    Reject,
    crowd,
)

from .candidates import CAROL, DAVE, HOST, NEIGHBOUR, WORSE, Line, choose, hello, inbound, outbound, reasons

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


# What is known of a port from before --------------------------------------------------------------


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
