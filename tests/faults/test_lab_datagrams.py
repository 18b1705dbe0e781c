"""The lab breaks what it says, only that: datagrams, losses, short paths and NAT."""

import socket

import pytest

from openline.testing.lab.firewall import Dropped
from openline.testing.lab.netns import ADDRESS, HostName, TwoHosts

from .lab_hosts import PORT, TCP, UDP, Line, Open, connect, converse, fate, hears_nothing, is6, socket_on

pytestmark = pytest.mark.faults

needs_firewall = pytest.mark.usefixtures("firewall")


def test_stale_route_fails_fresh_udp_flows_only(
    lab: TwoHosts, opened: Open, addresses: dict[HostName, str]
) -> None:
    at_a = opened("A", to=addresses["A"], at=PORT)
    at_b = opened("B", to=addresses["B"], at=PORT)
    from_a, from_b = opened("A", to=addresses["B"]), opened("B", to=addresses["A"])
    converse(from_a, at_b)
    converse(from_b, at_a)
    lab.break_route("B", to="A", port=PORT)
    converse(from_a, at_b)
    at_a.sendto(b"an answer arrives", from_b.getsockname())
    assert from_b.recv(99) == b"an answer arrives"
    assert fate(from_b.send, b"on an old flow of its own") == "EHOSTUNREACH"
    fresh = socket_on(lab, "B", UDP, is6(addresses["A"]))
    with fresh:
        assert fate(fresh.sendto, b"", (addresses["A"], PORT)) == "EHOSTUNREACH"
        assert fate(fresh.sendto, b"", (addresses["A"], PORT + 1)) == "ok"
        assert fate(fresh.connect, (addresses["A"], PORT)) == "EHOSTUNREACH"
    lab.heal_route("B")
    converse(from_b, at_a)


def test_shrink_swallows_long_packets_of_open_connections(lab: TwoHosts, line: Line) -> None:
    lab.shrink()
    line[0].say("short")
    assert line[1].hear() == "short"
    line[1].say("x" * 2000)
    assert line[0].hear() == "x" * 2000
    line[0].say("y" * 2000)
    assert line[1].is_silent(0.5)


def test_shrink_is_known_to_new_connections(lab: TwoHosts) -> None:
    lab.shrink()
    dialer, listener = connect(lab, ADDRESS["B"])
    dialer.say("y" * 20_000)
    assert listener.hear() == "y" * 20_000


# UDP blocked by a firewall
@needs_firewall
@pytest.mark.parametrize("port", [None, PORT])
def test_blocked_udp_is_silent_and_tcp_goes_on(
    lab: TwoHosts, opened: Open, addresses: dict[HostName, str], port: int | None
) -> None:
    server, client = opened("B", to=addresses["B"], at=PORT), opened("A", to=addresses["B"])
    converse(client, server)
    lab.block_udp(port=port)
    client.send(b"lost")
    assert hears_nothing(server)
    assert hears_nothing(client)
    assert lab.dropped("a-to-b") == lab.dropped() == Dropped(blocked=1)
    opened("B", TCP, to=addresses["B"], at=PORT)
    opened("A", TCP, to=addresses["B"])
    lab.unblock_udp()
    converse(client, server)


@needs_firewall
def test_rejected_udp_is_told_to_connected_sockets(
    lab: TwoHosts, opened: Open, addresses: dict[HostName, str]
) -> None:
    server = opened("B", to=addresses["B"], at=PORT)
    connected, unconnected = opened("A", to=addresses["B"]), opened("A", to=addresses["A"], at=0)
    lab.block_udp(how="reject")
    connected.send(b"refused")
    assert fate(connected.recv, 99) == "ECONNREFUSED"
    unconnected.sendto(b"refused", (addresses["B"], PORT))
    assert hears_nothing(unconnected)
    assert lab.dropped() == Dropped(blocked=2)
    lab.heal()
    converse(connected, server)


@needs_firewall
def test_udp_blocked_one_way_to_one_port(lab: TwoHosts, opened: Open) -> None:
    at_a, at_b = opened("A", to=ADDRESS["A"], at=PORT), opened("B", to=ADDRESS["B"], at=PORT)
    elsewhere = opened("B", to=ADDRESS["B"], at=PORT + 1)
    lab.block_udp("a-to-b", port=PORT)
    converse(opened("B", to=ADDRESS["A"]), at_a)
    from_a = opened("A")
    from_a.sendto(b"x", (ADDRESS["B"], PORT))
    from_a.sendto(b"y", (ADDRESS["B"], PORT + 1))
    assert elsewhere.recv(99) == b"y"
    assert hears_nothing(at_b)


# Loss of long packets
@needs_firewall
def test_all_long_packets_lost_and_no_other(
    lab: TwoHosts, opened: Open, addresses: dict[HostName, str]
) -> None:
    headers = 48 if is6(addresses["B"]) else 28
    server, client = opened("B", to=addresses["B"], at=PORT), opened("A", to=addresses["B"])
    lab.lose(100, over=600, direction="a-to-b")
    client.send(bytes(601 - headers))
    client.send(bytes(600 - headers))
    assert len(server.recv(999)) == 600 - headers
    server.sendto(bytes(999), client.getsockname())
    assert len(client.recv(999)) == 999
    assert lab.dropped("a-to-b") == Dropped(lost=1)
    assert lab.dropped("b-to-a") == Dropped()
    lab.lossless()
    client.send(bytes(999))
    assert len(server.recv(999)) == 999


@needs_firewall
def test_datagrams_lost_by_chance(lab: TwoHosts, opened: Open) -> None:
    server, client = opened("B", to=ADDRESS["B"], at=PORT), opened("A", to=ADDRESS["B"])
    lab.lose(50)
    for _ in range(80):
        client.send(bytes(999))
    lost = lab.dropped().lost
    assert 10 < lost < 70
    lab.heal()
    client.send(b"end")
    arrived = list(iter(lambda: server.recv(999), b"end"))
    assert len(arrived) == 80 - lost


@needs_firewall
def test_lost_segments_are_single_packets_and_tcp_repairs_it(lab: TwoHosts, opened: Open) -> None:
    listener, dialer = opened("B", TCP, to=ADDRESS["B"], at=PORT), opened("A", TCP, to=ADDRESS["B"])
    line, _ = listener.accept()
    with line:
        count_giants(lab)
        pump(dialer, line)
        assert giants(lab) > 0
        lab.lose(5)  # the connection is open already
        pump(dialer, line)
        assert giants(lab) == 0
        assert lab.dropped("a-to-b").lost > 0
        lab.lossless()
        pump(dialer, line)
        assert giants(lab) > 0


def pump(dialer: socket.socket, line: socket.socket, size: int = 600_000) -> None:
    got = 0
    for _ in range(0, size, 60_000):
        dialer.sendall(bytes(60_000))
        got += len(line.recv(60_000, socket.MSG_WAITALL))
    assert got == size


def count_giants(lab: TwoHosts) -> None:
    """Count what arrives at B and is longer than the cable allows."""
    script = (
        "add table inet giants\n"
        "add counter inet giants seen\n"
        "add chain inet giants arriving { type filter hook prerouting priority -600; }\n"
        "add rule inet giants arriving meta length > 1500 counter name seen\n"
    )
    lab.run("B", ["nft", "-f", "-"], input=script, check=True)


def giants(lab: TwoHosts) -> int:
    """How many came since it was last asked."""
    words = lab.run("B", ["nft", "reset", "counters", "table", "inet", "giants"], check=True).stdout.split()
    return int(words[words.index("packets") + 1])


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_loss_is_a_percentage(lab: TwoHosts, percent: int) -> None:
    with pytest.raises(ValueError, match=str(percent)):
        lab.lose(percent)


@needs_firewall
def test_a_nat_rebinds(lab: TwoHosts, opened: Open, addresses: dict[HostName, str]) -> None:
    server, client = opened("B", to=addresses["B"], at=PORT), opened("A", to=addresses["B"])
    seen = [converse(client, server)]
    assert seen == [client.getsockname()[:2]]
    for _ in range(2):
        lab.rebind_nat("A")
        seen.append(converse(client, server))
    assert len(set(seen)) == 3
    assert {address for address, _ in seen} == {addresses["A"]}
    forgotten = opened("B", to=addresses["B"], at=0)
    forgotten.connect(seen[1])
    forgotten.send(b"to an old mapping")
    assert hears_nothing(client)
    assert hears_nothing(forgotten)
    converse(opened("B", to=addresses["A"]), opened("A", to=addresses["A"], at=PORT))
    lab.unbind_nat("A")
    assert converse(client, server) == seen[0]
