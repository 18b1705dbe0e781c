"""Paths that carry less than their ends think, and what the system says of a dial, on real kernels."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openline.testing.lab.router import Routed

from .agents import Agent, Pair
from .conftest import require_lab
from .processes import wait_until

pytestmark = pytest.mark.faults

LARGE = 100_000
# The default; with the short one of other tests liveness would be first.
SLOW_LIVENESS: dict[str, Any] = {"max_idle_timeout": 30.0}
# Far less than a dial that waits for its time-out (5 s), or than liveness takes (10 s).
SOON = 4.0
Change = Callable[[Routed], None]


@pytest.fixture
def lab() -> Iterator[Routed]:
    require_lab("firewall")
    with Routed() as routed:
        yield routed


def agents(lab: Routed, backends: tuple[str, ...], ipv6: bool = False) -> Pair:
    where = lab.address6 if ipv6 else lab.address
    a, b = (Agent(lab, host, where[host], backends=backends, **SLOW_LIVENESS) for host in ("A", "B"))
    return a.ready(), b.ready()


def sends(a: Agent, to: str, *numbers: int, size: int = LARGE) -> list[list[Any]]:
    return a.ask("send", to=to, numbers=list(numbers), size=size, patience=40)


PLACES: dict[str, Callable[[Routed, int], None]] = {
    "listening host": lambda lab, mtu: lab.mtu("B", mtu),
    "dialing host": lambda lab, mtu: lab.mtu("A", mtu),
    "router": lambda lab, mtu: lab.limit(mtu),
    "silent router": lambda lab, mtu: lab.limit(mtu, told=False),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("mtu", "ipv6"), [(1228, False), (1280, False), (1307, False), (1400, False), (1280, True), (1327, True)]
)
def test_quic_connects_wherever_1200_bytes_get_through(lab: Routed, place: str, mtu: int, ipv6: bool) -> None:
    if ipv6 and not lab.ipv6:
        pytest.skip("no IPv6 here")
    PLACES[place](lab, mtu)
    if ipv6:
        lab.wait_for_ipv6()
    a, b = agents(lab, ("quic", "websocket"), ipv6)
    began = time.monotonic()
    assert sends(a, b.address, 0, 1) == [[1, "outbound"]] * 2
    assert a.backends == b.backends == {"quic": 1}
    [[attempts, _]] = sends(b, a.address, 0)
    assert attempts == 1
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("dialing host", "EMSGSIZE: the MTU of this host's way there is too small; QUIC needs 1228"),
        ("router", "EMSGSIZE: the MTU of the path is 1200; QUIC needs 1228"),
    ],
)
def test_an_mtu_that_is_too_small_for_quic_is_told(lab: Routed, place: str, why: str) -> None:
    PLACES[place](lab, 1200)
    a, b = agents(lab, ("quic",))
    began = time.monotonic()
    [[kind, text]] = sends(a, b.address, 0)
    assert kind == "Unreachable"
    assert why in text
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("place", [*PLACES, "longer ones dropped"])
def test_a_quic_path_that_shrinks_is_noticed(lab: Routed, place: str) -> None:
    a, b = agents(lab, ("quic",))
    for number in range(10):  # by the end it has probed for larger datagrams
        sends(a, b.address, number, size=0)
        time.sleep(0.05)
    if place in PLACES:
        PLACES[place](lab, 1280)
    else:
        lab.drop_long("udp", 1250)
    began = time.monotonic()
    [[attempts, direction]] = sends(a, b.address, 10)
    assert direction == "outbound"
    assert time.monotonic() - began < SOON
    # The same connection, but where qh3 (2.1) cannot fit into smaller datagrams what it made for larger ones.
    assert attempts <= 2
    assert a.stat("created")[0] <= 2


SWALLOWED: dict[str, tuple[tuple[str, ...], str, Change, dict[str, int]]] = {
    "tcp, and quic goes on": (
        ("websocket", "quic"),
        "",
        lambda lab: lab.limit(1280, told=False),
        {"quic": 1},
    ),
    "large udp, and tcp goes on": (
        ("quic", "websocket"),
        "",
        lambda lab: lab.drop_long("udp", 1000),
        {"websocket": 1},
    ),
    "all udp, and tcp goes on": (
        ("quic", "websocket"),
        "",
        lambda lab: lab.drop_all("udp"),
        {"websocket": 1},
    ),
    "tcp that is all there is": (
        ("websocket",),
        "ws://",
        lambda lab: lab.limit(1280, told=False),
        {"websocket": 1},
    ),
    "tls over tcp that is all there is": (
        ("websocket",),
        "",
        lambda lab: lab.limit(1280, told=False),
        {"websocket": 1},
    ),
    "tcp that is never fragmented": (
        ("websocket",),
        "ws://",
        lambda lab: lab.drop_long("tcp", 1280),
        {"websocket": 1},
    ),
}


@pytest.mark.parametrize("chat", [False, True], ids=["alone", "beside small ones"])
@pytest.mark.parametrize("what", SWALLOWED)
def test_what_does_not_get_through_takes_another_way(lab: Routed, what: str, chat: bool) -> None:
    backends, scheme, change, after = SWALLOWED[what]
    a, b = agents(lab, backends)
    to = scheme + b.address
    assert sends(a, to, 0, size=0) == [[1, "outbound"]]
    change(lab)
    began = time.monotonic()
    large = a.post("send", to=to, numbers=[1], size=LARGE)
    count = 0
    while chat and time.monotonic() < began + 1:
        a.ask("send", to=to, numbers=[1000 + count], stream="small", patience=40)
        count += 1
    [[attempts, _]] = a.answer(large, 40)
    assert time.monotonic() - began < SOON
    assert attempts == 2
    assert sorted(b.received(2 + count)) == [0, 1, *range(1000, 1000 + count)]
    wait_until(lambda: a.backends == b.backends == after)
    began = time.monotonic()
    assert sends(a, to, 2) == [[1, "outbound"]]
    assert sends(b, a.address, 2)[0][0] == 1
    assert time.monotonic() - began < SOON


# What the system says


SIGNALS: dict[str, tuple[Change, str]] = {
    "port unreachable": (lambda lab: lab.reject("udp", "port-unreachable"), "ECONNREFUSED"),
    "admin prohibited": (lambda lab: lab.reject("udp", "admin-prohibited"), "EHOSTUNREACH"),
    "own firewall drops": (lambda lab: lab.forbid("A", "udp"), "EPERM"),
    "own firewall rejects": (
        lambda lab: lab.forbid("A", "udp", "reject with icmpx type admin-prohibited"),
        "EHOSTUNREACH",
    ),
    "unreachable route": (lambda lab: lab.route("A", "unreachable"), "EHOSTUNREACH"),
    "prohibit route": (lambda lab: lab.route("A", "prohibit"), "EACCES"),
    "blackhole route": (lambda lab: lab.route("A", "blackhole"), "EINVAL"),
    "interface down": (lambda lab: lab.down("A"), "ENETUNREACH"),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_what_is_definite_ends_a_quic_dial_at_once(lab: Routed, signal: str) -> None:
    change, name = SIGNALS[signal]
    a, b = agents(lab, ("quic",))
    change(lab)
    began = time.monotonic()
    [[kind, text]] = sends(a, b.address, 0)
    assert kind == "Unreachable"
    assert f"quic {b.address}: {name}" in text
    assert time.monotonic() - began < SOON


HEALED: dict[str, Change] = {
    "own firewall drops": lambda lab: lab.allow("A"),
    "own firewall rejects": lambda lab: lab.allow("A"),
    "unreachable route": lambda lab: lab.unroute("A", "unreachable"),
    "prohibit route": lambda lab: lab.unroute("A", "prohibit"),
    "blackhole route": lambda lab: lab.unroute("A", "blackhole"),
    "interface down": lambda lab: lab.up("A"),
    "the other's firewall drops": lambda lab: lab.allow("B"),
}
BROKEN: dict[str, Change] = {name: change for name, (change, _) in SIGNALS.items()} | {
    "host unreachable": lambda lab: lab.reject("udp", "host-unreachable"),
    "the other's firewall drops": lambda lab: lab.forbid("B", "udp"),
}


@pytest.mark.parametrize("signal", BROKEN)
def test_what_passes_loses_nothing(lab: Routed, signal: str) -> None:
    a, b = agents(lab, ("quic",))
    sends(a, b.address, 0, size=0)
    BROKEN[signal](lab)
    under_way = a.post("send", to=b.address, numbers=[1], size=0)
    time.sleep(1.0)
    HEALED.get(signal, Routed.restore)(lab)
    [outcome] = a.answer(under_way, 40)
    if outcome[0] == "Unreachable":  # it had not left yet
        assert isinstance(sends(a, b.address, 1, size=0)[0][0], int)
    assert isinstance(sends(a, b.address, 2, size=0)[0][0], int)
    assert b.received(3) == [0, 1, 2]


def test_a_queue_that_is_full_costs_packets_and_no_connection(lab: Routed) -> None:
    a, b = agents(lab, ("quic",))
    sends(a, b.address, 0, size=0)
    lab.throttle("2mbit")
    assert [outcome[0] for outcome in sends(a, b.address, 1, 2, size=200_000)] == [1, 1]
    assert a.stat("created", "suspects") == [1, 0]


def test_one_client_out_of_reach_is_nothing_to_a_listening_port(lab: Routed) -> None:
    """What B sends to A fails; a client at B itself is served as before."""
    a, b = agents(lab, ("quic",))
    other = Agent(lab, "B", lab.address["B"], listen="127.0.0.1", backends=("quic",)).ready()
    sends(a, b.address, 0, size=0)
    lab.route("B", "prohibit")
    lost = b.post("send", to=a.address, numbers=[1], size=0)
    assert sends(other, b.address, 2, size=0) == [[1, "outbound"]]
    lab.unroute("B", "prohibit")
    assert b.answer(lost, 40)[0][0] in (1, 2, "Unreachable")
    assert sends(a, b.address, 3, size=0)[0][0] == 1
