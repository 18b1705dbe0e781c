"""Real agents, real kernels, real faults (rules 3.1, 3.2 and 3.4)."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from openline.testing.lab.netns import ADDRESS6, DEVICE, LINK_LOCAL, Direction, TwoHosts

from .agents import INTERVAL, Agent, Pair, connections, introduce, two
from .processes import plain, wait_until

pytestmark = pytest.mark.faults

OVER_TCP = pytest.mark.parametrize("backend", ["websocket"])


@pytest.fixture(params=["websocket", "quic"])
def backend(request: pytest.FixtureRequest) -> str:
    """What carries all connections."""
    name: str = request.param
    return name


@pytest.fixture
def strangers(lab: TwoHosts, backend: str) -> Iterator[Pair]:
    """A and B listen, and do not know each other."""
    agents = two(lab, backends=[backend])
    yield agents
    for agent in agents:
        print(f"--- log of {agent.host}\n{agent.complaints}")


@pytest.fixture
def pair(strangers: Pair) -> Pair:
    """A has dialed B, and stays connected."""
    introduce(*strangers, keep=True)
    return strangers


@pytest.fixture
def loose_pair(strangers: Pair) -> Pair:
    """A has dialed B, and dials again only to send."""
    introduce(*strangers, keep=False)
    return strangers


# The stale route


def assert_answers_on_the_open_line(lab: TwoHosts, a: Agent, b: Agent) -> None:
    before = connections(b)
    lab.break_route("B", to="A", port=8770)
    assert b.ask("dial", host=a.ip, port=8770) == "EHOSTUNREACH"
    assert b.send(a, 20) == [[1, "inbound"]] * 20
    assert a.received(20) == list(range(20))
    assert connections(b) == before
    assert b.stat("created", "dials") == [0, 0]


def test_stale_route(lab: TwoHosts, pair: Pair) -> None:
    assert_answers_on_the_open_line(lab, *pair)


def test_stale_route_over_ipv6(lab: TwoHosts, backend: str) -> None:
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    a, b = two(lab, ADDRESS6, backends=[backend])
    introduce(a, b, keep=True)
    assert_answers_on_the_open_line(lab, a, b)


def test_a_link_local_address_answers_on_the_open_line(lab: TwoHosts, backend: str) -> None:
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    addresses = {host: f"{address}%{DEVICE}" for host, address in LINK_LOCAL.items()}
    a, b = two(lab, addresses, backends=[backend])
    introduce(a, b, keep=True)
    assert b.send(a, 5) == [[1, "inbound"]] * 5
    assert b.stat("dials") == [0]
    assert "<inbound" in b.ask("explain", to=a.address)


def test_a_scope_may_be_written_as_in_uris_and_servers_are_not_told_it(lab: TwoHosts) -> None:
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    server = plain(lab, "A", "listen", "9000")
    assert server.hear() == "listening"
    b = Agent(lab, "B", f"{LINK_LOCAL['B']}%{DEVICE}", backends=["websocket"]).ready()
    order = b.post("send", to=f"ws://[{LINK_LOCAL['A']}%25{DEVICE}]:9000", numbers=[1])
    assert server.hear() == "connected"
    head = []
    while (line := server.hear().strip()) != "":
        head.append(line)
    assert f"Host: [{LINK_LOCAL['A']}]:9000" in head
    server.kill()
    [[error, text]] = b.answer(order)
    assert error == "Unreachable"
    assert f"[{LINK_LOCAL['A']}%{DEVICE}]:9000" in text


@OVER_TCP
def test_stale_route_batch(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    lab.break_route("B", to="A", port=8770)
    assert b.send(a, 500, batch=True) == [[1, "inbound"]] * 500
    assert a.received(500) == list(range(500))


def test_without_an_open_line_the_stale_route_is_a_clear_error(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.break_route("B", to="A", port=8770)
    [[kind, text]] = b.send(a, 1)
    assert kind == "Unreachable"
    assert "EHOSTUNREACH" in text
    assert a.address in text


# The silent cut


def test_silent_cut_is_suspected_then_dead_then_heals(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    lab.break_route("B", to="A", port=8770)
    started = time.monotonic()
    lab.cut()
    for agent in pair:
        agent.becomes_within(2, "suspect", started)
        agent.becomes_within(3, "gone", started)
    assert a.stat("suspects", "evictions", "active") == [1, 1, 0]
    lab.heal()
    a.becomes("live")
    b.becomes("live")
    assert b.send(a, 20) == [[1, "inbound"]] * 20
    assert a.received(20) == list(range(20))


def test_a_short_cut_costs_no_connection(lab: TwoHosts, backend: str) -> None:
    # A ping is sent again by TCP after 0.2, 0.6 and 1.4 s. The last must fall between suspect, when the
    # cable is healed, and dead: at this setting 1.26 s and 2 s.
    a, b = two(lab, max_idle_timeout=4.2, backends=[backend])
    introduce(a, b, keep=False)
    before = connections(a), connections(b)
    lab.cut()
    for agent in (a, b):
        agent.becomes("suspect")
    lab.heal()
    for agent in (a, b):
        agent.becomes("live")
    assert (connections(a), connections(b)) == before


def test_a_short_cut_costs_no_message(lab: TwoHosts, loose_pair: Pair) -> None:
    a, b = loose_pair
    lab.cut()
    sending = a.post("send", to=b.address, numbers=list(range(5)), batch=True)
    a.becomes("suspect")
    lab.heal()
    receipts = a.answer(sending)
    assert [direction for _, direction in receipts] == ["outbound"] * 5
    assert b.received(5) == list(range(5))
    # It had begun to dial anew while it waited; of the two connections one stays.
    wait_until(lambda: a.stat("active") == b.stat("active") == [1])
    assert b.received(0) == list(range(5))
    assert a.stat("in_doubt") == [0]


def test_a_peer_that_stays_away_leaves_in_doubt_what_it_did_not_confirm(lab: TwoHosts, backend: str) -> None:
    a, b = two(lab, resume_timeout=1.0, backends=[backend])
    introduce(a, b, keep=False)
    assert a.send(b, 5) == [[1, "outbound"]] * 5
    lab.cut()
    sending = a.post("send", to=b.address, numbers=list(range(5, 10)), batch=True)
    a.becomes("gone")
    error = a.error(sending)
    assert error.startswith("NotConfirmed")
    assert "resume_timeout=1" in error
    assert a.stat("in_doubt") == [5]
    assert a.ask("undelivered") == list(range(5, 10))
    assert b.received(0) == list(range(5))


def test_a_flood_into_a_cut_loses_nothing(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    lab.throttle("20mbit")
    flood = a.post("flood", to=b.address, count=4000, size=1000)
    b.received(1000)
    lab.cut()
    a.becomes("gone")
    lab.heal()
    taken = a.answer(flood, timeout=30)
    a.becomes("live")
    assert taken == 4000
    assert b.received(4000) == list(range(4000))
    [again] = a.stat("resent")
    assert again > 0
    assert b.stat("duplicates_suppressed")[0] <= again


@pytest.mark.parametrize("direction", ["a-to-b", "b-to-a"])
def test_one_way_cut(lab: TwoHosts, pair: Pair, direction: Direction) -> None:
    a, b = pair
    started = time.monotonic()
    lab.cut(direction)
    # The pinger's questions or the answers to them vanish; either way it has no sign of life.
    deaf, hearing = (b, a) if direction == "a-to-b" else (a, b)
    deaf.becomes_within(2, "suspect", started)
    deaf.becomes_within(3, "gone", started)
    hearing.becomes("gone")
    lab.heal()
    a.becomes("live")
    b.becomes("live")
    assert b.send(a, 5) == [[1, "inbound"]] * 5
    assert a.received(5) == list(range(5))


@OVER_TCP
def test_connections_reset_in_the_middle(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    assert lab.reset_connections("A") == 1
    # It dials again within a millisecond, too fast for a look at the state in between.
    wait_until(lambda: connections(a) == [2, 0, 1, 1] and connections(b) == [0, 2, 1, 1])
    assert b.send(a, 5) == [[1, "inbound"]] * 5
    assert a.received(5) == list(range(5))


# Peers that freeze and die


def test_a_frozen_peer_is_suspected_and_recovers(loose_pair: Pair) -> None:
    a, b = loose_pair
    before = connections(a)
    os.kill(b.process.pid, signal.SIGSTOP)
    a.becomes("suspect")
    os.kill(b.process.pid, signal.SIGCONT)
    a.becomes("live")
    assert connections(a) == before
    assert b.send(a, 20) == [[1, "inbound"]] * 20
    assert a.stat("suspects", "recoveries", "evictions") == [1, 1, 0]


def test_what_a_frozen_peer_was_sent_arrives_once(loose_pair: Pair) -> None:
    a, b = loose_pair
    os.kill(b.process.pid, signal.SIGSTOP)
    sending = a.post("send", to=b.address, numbers=list(range(20)), batch=True)
    a.becomes("suspect")
    os.kill(b.process.pid, signal.SIGCONT)
    assert [direction for _, direction in a.answer(sending)] == ["outbound"] * 20
    assert b.received(20) == list(range(20))
    wait_until(lambda: a.stat("active") == b.stat("active") == [1])
    assert b.received(0) == list(range(20))


def test_freezes_do_not_pile_up_connections(pair: Pair) -> None:
    a, b = pair
    for _ in range(2):
        os.kill(b.process.pid, signal.SIGSTOP)
        a.becomes("suspect")
        os.kill(b.process.pid, signal.SIGCONT)
        a.becomes("live")
    wait_until(lambda: a.stat("active") == b.stat("active") == [1])


def test_a_peer_frozen_for_too_long_is_evicted(pair: Pair) -> None:
    a, b = pair
    started = time.monotonic()
    os.kill(b.process.pid, signal.SIGSTOP)
    a.becomes_within(3, "gone", started)
    os.kill(b.process.pid, signal.SIGCONT)
    a.becomes("live")
    assert a.send(b, 5)[-1][1] == "outbound"
    assert b.received(5) == list(range(5))


def test_our_own_freeze_kills_nothing(pair: Pair) -> None:
    a, b = pair
    before = connections(b)
    os.kill(a.process.pid, signal.SIGSTOP)
    b.becomes("suspect")
    os.kill(a.process.pid, signal.SIGCONT)
    b.becomes("live")
    assert a.stat("suspects", "evictions", "closed") == [0, 0, 0]
    assert connections(b) == before


def test_a_killed_peer_is_noticed_and_found_again(lab: TwoHosts, pair: Pair, backend: str) -> None:
    a, b = pair
    b.kill()
    started = time.monotonic()
    if backend == "quic":
        # No packet tells of its end: the next ones have to be answered by nobody.
        a.becomes_within(3, "gone", started)
    else:
        a.becomes("gone")
        assert time.monotonic() - started < INTERVAL
    [[kind, text]] = a.send(b, 1)
    assert kind == "Unreachable"
    assert "ECONNREFUSED" in text
    reborn = Agent(lab, "B", backends=[backend]).ready()
    assert [attempts for attempts, _ in a.send(reborn, 5)] == [1] * 5
    assert reborn.received(5) == list(range(5))


# A link that is busy is not dead


def test_a_saturated_link_survives(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    lab.throttle("20mbit")
    count, size = 9000, 1000  # 9 MB each way take 3.6 s: over max_idle_timeout, and more than twice dead
    flood = [agent.post("flood", to=to.address, count=count, size=size) for agent, to in ((a, b), (b, a))]
    for agent in pair:
        assert agent.received(count, timeout=40) == list(range(count))
    for agent, number in zip(pair, flood, strict=True):
        agent.answer(number)
        assert agent.stat("closed", "evictions") == [0, 0]


def test_one_message_longer_than_the_dead_line_gets_through(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    lab.throttle("16mbit")
    assert a.send(b, 1, size=5_000_000) == [[1, "outbound"]]  # 2.5 s at that rate; dead would be 1.5 s
    assert b.received(1, timeout=20) == [0]
    for agent in pair:
        assert agent.stat("closed", "evictions") == [0, 0]
