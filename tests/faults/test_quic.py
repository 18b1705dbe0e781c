"""QUIC and the race with WebSocket, on real kernels: UDP that is refused, dropped, moved and lost."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openline import Identity
from openline.testing.lab.firewall import Refusal
from openline.testing.lab.netns import ADDRESS, ADDRESS6, TwoHosts

from .agents import INTERVAL, PORT, WAYS, Agent, Pair, connections, introduce, two
from .conftest import require_lab
from .processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("firewall")]

# Far more than the head start of 250 ms, and far less than a dial that waits for its time-out (5 s).
SOON = 2.0
RACE: dict[str, Any] = {"backends": WAYS["race"]}
QUIC: dict[str, Any] = {"backends": WAYS["quic"]}


@pytest.fixture
def firewall() -> None:
    require_lab("firewall")


@pytest.fixture
def strangers(lab: TwoHosts) -> Iterator[Pair]:
    """Both may use either backend, as by default."""
    yield from told(two(lab, **RACE))


@pytest.fixture
def pair(lab: TwoHosts) -> Iterator[Pair]:
    """A has dialed B over QUIC, and stays connected."""
    yield from told(introduced(lab, keep=True, **QUIC))


@pytest.fixture
def raced(strangers: Pair) -> Pair:
    """A has dialed B over QUIC; from now on both have the choice."""
    a, b = strangers
    a.ask("connect", to=f"quic://{b.address}", keep=False)
    wait_until(lambda: carriers(a, b) == ["quic", "quic"])
    return strangers


def introduced(lab: TwoHosts, keep: bool, **config: Any) -> Pair:
    agents = two(lab, **config)
    introduce(*agents, keep=keep)
    return agents


def told(agents: Pair) -> Iterator[Pair]:
    yield agents
    for agent in agents:
        print(f"--- log of {agent.host}\n{agent.complaints}")


def carriers(*agents: Agent) -> list[str]:
    """What each one's only connection is carried by."""
    return ["+".join(agent.backends) if sum(agent.backends.values()) == 1 else "?" for agent in agents]


def numbers(count: int) -> list[int]:
    return list(range(count))


# The stale route


def test_replies_ride_the_quic_connection_that_the_other_side_opened(lab: TwoHosts, raced: Pair) -> None:
    a, b = raced
    lab.break_route("B", to="A", port=PORT)
    dials = [b.ask("dial", host=a.ip, port=PORT, udp=udp) for udp in (False, True) for _ in range(10)]
    assert dials == ["EHOSTUNREACH"] * 20
    assert b.send(a, 20) == [[1, "inbound"]] * 20
    assert a.received(20) == numbers(20)
    assert b.stat("created", "dials") == [0, 0]
    assert carriers(a, b) == ["quic", "quic"]


def test_the_stale_route_of_both_protocols_is_told(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.break_route("B", to="A", port=PORT)
    [[kind, text]] = b.send(a, 1)
    assert kind == "Unreachable"
    assert f"quic {a.address}: EHOSTUNREACH" in text
    assert f"tcp {a.address}: EHOSTUNREACH" in text


def test_a_stale_route_for_udp_alone_leaves_websocket(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.break_route("B", to="A", port=PORT, protocol="udp")
    assert b.send(a, 5) == [[1, "outbound"]] * 5
    assert carriers(a, b) == ["websocket", "websocket"]


def test_a_stale_route_for_tcp_alone_leaves_quic(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.break_route("B", to="A", port=PORT, protocol="tcp")
    assert b.send(a, 5) == [[1, "outbound"]] * 5
    assert carriers(a, b) == ["quic", "quic"]


# UDP blocked


@pytest.mark.parametrize("how", ["drop", "reject"])
def test_where_udp_is_blocked_websocket_goes_on(lab: TwoHosts, strangers: Pair, how: Refusal) -> None:
    a, b = strangers
    lab.block_udp(how=how)
    started = time.monotonic()
    assert a.send(b, 1) == [[1, "outbound"]]
    print(f"UDP {how}: connected and sent in {time.monotonic() - started:.3f} s")
    assert time.monotonic() - started < SOON
    assert carriers(a, b) == ["websocket", "websocket"]
    assert a.stat("created", "dials", "dial_failures") == [1, 1, 0]


def test_what_has_worked_goes_first(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.block_udp()
    assert a.send(b, 1) == [[1, "outbound"]]
    blocked = lab.dropped().blocked
    assert blocked > 0
    lab.reset_connections()
    wait_until(lambda: a.stat("active") == b.stat("active") == [0])
    assert "by websocket, then by quic" in a.ask("explain", to=b.address)
    started = time.monotonic()
    assert [direction for _, direction in a.send(b, 1, first=1)] == ["outbound"]
    print(f"the second time in {time.monotonic() - started:.3f} s")
    assert b.received(2) == [0, 1]
    assert lab.dropped().blocked == blocked


@pytest.mark.parametrize("how", ["drop", "reject"])
def test_udp_blocked_in_the_middle(lab: TwoHosts, raced: Pair, how: Refusal) -> None:
    a, b = raced
    floods = [agent.post("flood", to=to.address, count=1000, size=200) for agent, to in ((a, b), (b, a))]
    for agent in raced:
        agent.received(100)
    lab.block_udp(how=how)
    started = time.monotonic()
    for agent, flood in zip(raced, floods, strict=True):
        assert agent.answer(flood, timeout=30) == 1000
        assert agent.received(1000) == numbers(1000)
    print(f"UDP {how}: all there {time.monotonic() - started:.3f} s after it was blocked")
    wait_until(lambda: carriers(a, b) == ["websocket", "websocket"])
    assert a.stat("in_doubt") == b.stat("in_doubt") == [0]


# Addresses that change


def moved(agents: Pair, migrations: int) -> None:
    """It is still the connection that A has opened, the only one ever."""
    a, b = agents
    assert connections(a) == [1, 0, 0, 1]
    assert connections(b) == [0, 1, 0, 1]
    assert a.stat("resent", "suspects") == b.stat("resent", "suspects") == [0, 0]
    assert b.stat("migrations") == [migrations]


@pytest.mark.parametrize("what", ["readdress", "rebind_nat"])
def test_an_idle_connection_follows_the_client(lab: TwoHosts, pair: Pair, what: str) -> None:
    a, b = pair
    [[*_, before]] = b.lines
    if what == "readdress":
        lab.readdress("A", "10.10.10.11")
    else:
        lab.rebind_nat("A")
    started = time.monotonic()
    wait_until(lambda: b.lines[0][3] != before)
    print(f"{what}: noticed after {time.monotonic() - started:.3f} s, ping after {INTERVAL} s")
    assert b.ask("send", to=a.ask("node_id"), numbers=numbers(20)) == [[1, "inbound"]] * 20
    assert a.received(20) == numbers(20)
    moved(pair, migrations=1)


def test_an_ipv6_address_that_goes_is_left_behind(lab: TwoHosts) -> None:
    """The system goes on sending from it without a word; only the silence tells."""
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    # Time enough for a lost packet to be missed before the connection is dead.
    a, b = agents = two(lab, ADDRESS6, max_idle_timeout=12.0, **QUIC)
    introduce(a, b, keep=False)
    lab.readdress("A", "fd00::11")
    started = time.monotonic()
    assert a.send(b, 20) == [[1, "outbound"]] * 20
    print(f"ipv6: sent {time.monotonic() - started:.3f} s after the move")
    assert b.ask("send", to=a.ask("node_id"), numbers=numbers(20)) == [[1, "inbound"]] * 20
    assert a.received(20) == b.received(20) == numbers(20)
    wait_until(lambda: b.lines[0][3].startswith("[fd00::11]"))
    assert connections(a) == [1, 0, 0, 1]
    for agent in agents:
        print(f"--- log of {agent.host}\n{agent.complaints}")


# Processes that die


def test_a_killed_server_is_told_by_its_host(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    b.kill()
    started = time.monotonic()
    sending = a.post("send", to=b.address, numbers=[0])
    a.becomes("gone")
    print(f"server killed: noticed {time.monotonic() - started:.3f} s after a send")
    assert "ECONNREFUSED" in a.complaints
    reborn = Agent(lab, "B", **QUIC).ready()
    assert a.answer(sending)[0][1] == "outbound"
    assert reborn.received(1) == [0]
    assert a.stat("in_doubt") == [0]


def test_a_server_that_is_back_does_not_know_the_connection(lab: TwoHosts, pair: Pair) -> None:
    """Nobody was away for long enough to be refused: the new process hears of an unknown connection."""
    a, b = pair
    lab.cut()
    b.kill()
    reborn = Agent(lab, "B", **QUIC).ready()
    lab.heal()
    started = time.monotonic()
    assert [direction for _, direction in a.send(reborn, 5)] == ["outbound"] * 5
    print(f"server restarted: sent after {time.monotonic() - started:.3f} s")
    assert reborn.received(5) == numbers(5)


def test_a_killed_client_is_missed_in_time(lab: TwoHosts, pair: Pair) -> None:
    a, b = pair
    a.kill()
    started = time.monotonic()
    b.becomes_within(2, "suspect", started)
    b.becomes_within(3, "gone", started)
    reborn = Agent(lab, "A", **QUIC).ready()
    assert reborn.send(b, 5) == [[1, "outbound"]] * 5
    assert b.received(5) == numbers(5)


def test_a_client_that_is_back_replaces_itself(lab: TwoHosts, tmp_path: Path) -> None:
    """The new process has the identity of the one that was killed: what it opens is A's line at once."""
    Identity.load_or_create(tmp_path / "key")
    config = {**QUIC, "identity": str(tmp_path / "key")}
    a, b = Agent(lab, "A", **config).ready(), Agent(lab, "B", **QUIC).ready()
    introduce(a, b, keep=True)
    lab.break_route("B", to="A", port=PORT)
    a.kill()
    reborn = Agent(lab, "A", **config).ready()
    assert reborn.send(b, 5) == [[1, "outbound"]] * 5
    assert b.send(reborn, 5) == [[1, "inbound"]] * 5
    assert reborn.received(5) == numbers(5)
    wait_until(lambda: b.stat("active") == [1])


def test_another_client_in_its_place_is_answered_in_time(lab: TwoHosts, pair: Pair) -> None:
    """Until the dead one is missed, two nodes claim its address, and no other way leads there."""
    a, b = pair
    lab.break_route("B", to="A", port=PORT)
    a.kill()
    reborn = Agent(lab, "A", **QUIC).ready()
    reborn.ask("connect", to=b.address, keep=True)
    started = time.monotonic()
    wait_until(lambda: b.send(reborn, 1) == [[1, "inbound"]], patience=10 * INTERVAL)
    print(f"client killed, another in its place: answered after {time.monotonic() - started:.3f} s")
    assert reborn.received(1) == [0]


# The end


@pytest.mark.parametrize("closer", [0, 1])
def test_close_delivers_first_and_is_told(pair: Pair, closer: int) -> None:
    one, other = pair[closer], pair[1 - closer]
    assert len(one.send(other, 500, batch=True)) == 500
    started = time.monotonic()
    assert one.end() == 0
    other.becomes("gone")
    print(f"closed within {time.monotonic() - started:.3f} s")
    assert other.received(500) == numbers(500)
    assert "closing" in other.complaints


def test_no_socket_is_left_of_what_has_ended(lab: TwoHosts, strangers: Pair) -> None:
    a, b = strangers
    lab.block_udp(how="reject")
    a.send(b, 1)
    lab.unblock_udp()
    assert carriers(a, b) == ["websocket", "websocket"]
    assert lab.run("A", ["ss", "-Hnu", "state", "established"]).stdout == ""
    assert ADDRESS["B"] in lab.run("A", ["ss", "-Hnt", "state", "established"]).stdout
