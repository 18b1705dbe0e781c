"""The lab breaks what it says, only that, and leaves nothing behind."""

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openline.testing.lab import netns
from openline.testing.lab.firewall import Dropped
from openline.testing.lab.netns import (
    ADDRESS,
    ADDRESS6,
    Direction,
    HostName,
    LabError,
    Protocol,
    TwoHosts,
    availability,
)

from .processes import PATIENCE, Child, plain, wait_until

pytestmark = pytest.mark.faults

PORT = 8770
UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
Line = tuple[Child, Child]
Open = Callable[..., socket.socket]

# A socket belongs to the host it was made on, whoever holds it: made there, handed over to the test.
HAND_OVER = """
import socket, sys
pipe, family, kind = map(int, sys.argv[1:])
made = socket.socket(family, kind)
socket.send_fds(socket.socket(fileno=pipe), [b"."], [made.fileno()])
"""


@pytest.fixture
def line(lab: TwoHosts) -> Line:
    """A connection that A opened to B."""
    return connect(lab, ADDRESS["B"])


@pytest.fixture
def opened(lab: TwoHosts) -> Iterator[Open]:
    """Makes sockets on a host, held by the test itself."""
    with contextlib.ExitStack() as stack:

        def make(host: HostName, kind: int = UDP, to: str = "", at: int | None = None) -> socket.socket:
            made = stack.enter_context(socket_on(lab, host, kind, is6(to)))
            made.settimeout(PATIENCE)
            if at is not None:
                made.bind((to, at))
                if kind == TCP:
                    made.listen()
            elif to:
                made.connect((to, PORT))
            return made

        yield make


@pytest.fixture(params=["ipv4", "ipv6"])
def addresses(lab: TwoHosts, request: pytest.FixtureRequest) -> dict[HostName, str]:
    if request.param == "ipv4":
        return lab.address
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    return lab.address6


@pytest.fixture
def firewall() -> None:
    here = availability("firewall")
    if not here and os.environ.get("OPENLINE_REQUIRE_FAULTS") == "1":
        pytest.fail(f"OPENLINE_REQUIRE_FAULTS=1, but: {here.reason}")
    if not here:
        pytest.skip(here.reason)


needs_firewall = pytest.mark.usefixtures("firewall")


def is6(address: str) -> bool:
    return ":" in address


def socket_on(lab: TwoHosts, host: HostName, kind: int, ipv6: bool) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        numbers = [str(int(number)) for number in (theirs.fileno(), family, kind)]
        argv = [sys.executable, "-I", "-S", "-c", HAND_OVER, *numbers]
        lab.run(host, argv, pass_fds=[theirs.fileno()], check=True)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptor)


def fate(call: Callable[..., object], *arguments: object) -> str:
    """What becomes of a call on a socket."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def hears_nothing(end: socket.socket) -> bool:
    return not select.select([end], [], [], 0.1)[0]


def converse(caller: socket.socket, server: socket.socket) -> tuple[str, int]:
    """A datagram from the one to the other and one back; where the first seemed to come from."""
    caller.send(b"question")
    data, source = server.recvfrom(99)
    assert data == b"question"
    server.sendto(b"answer", source)
    assert caller.recv(99) == b"answer"
    return source[:2]


def connect(lab: TwoHosts, address: str) -> Line:
    listener = plain(lab, "B", "listen", str(PORT))
    assert listener.hear() == "listening"
    dialer = plain(lab, "A", "dial", address, str(PORT), "5")
    assert (dialer.hear(), listener.hear()) == ("connected", "connected")
    return dialer, listener


def attempt(lab: TwoHosts, address: str, port: int = PORT, patience: float = 5) -> str:
    """What becomes of a fresh connect from B."""
    return plain(lab, "B", "dial", address, str(port), str(patience)).hear()


def assert_open(line: Line) -> None:
    for sender, receiver in (line, line[::-1]):
        sender.say("still here")
        assert receiver.hear() == "still here"


def families(lab: TwoHosts) -> list[str]:
    return [ADDRESS["A"], ADDRESS6["A"]] if lab.ipv6 else [ADDRESS["A"]]


def test_stale_route_fails_fresh_connects_only(lab: TwoHosts) -> None:
    lab.break_route("B", to="A", port=PORT)
    for address in families(lab):
        assert attempt(lab, address) == "lost EHOSTUNREACH"
        assert attempt(lab, address, PORT + 1) == "lost ECONNREFUSED"


@pytest.mark.parametrize("family", [ADDRESS, ADDRESS6], ids=["ipv4", "ipv6"])
def test_live_connection_survives_the_stale_route_both_ways(lab: TwoHosts, family: dict[str, str]) -> None:
    if family is ADDRESS6 and not lab.ipv6:
        pytest.skip("no IPv6 here")
    line = connect(lab, family["B"])
    assert_open(line)
    lab.break_route("B", to="A", port=PORT)
    assert attempt(lab, family["A"]) == "lost EHOSTUNREACH"
    assert_open(line)


def test_heal_route(lab: TwoHosts) -> None:
    lab.break_route("B", to="A", port=PORT)
    lab.break_route("B", to="A", port=PORT + 1)
    lab.heal_route("B")
    for address in families(lab):
        assert attempt(lab, address) == "lost ECONNREFUSED"


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


@pytest.mark.parametrize(
    ("protocol", "udp", "tcp"), [("udp", "EHOSTUNREACH", "ECONNREFUSED"), ("tcp", "ok", "EHOSTUNREACH")]
)
def test_stale_route_of_one_protocol(
    lab: TwoHosts, opened: Open, protocol: Protocol, udp: str, tcp: str
) -> None:
    def fates() -> tuple[str, str]:
        there = (ADDRESS["A"], PORT)
        return fate(opened("B").connect, there), fate(opened("B", TCP).connect, there)

    lab.break_route("B", to="A", port=PORT, protocol=protocol)
    assert fates() == (udp, tcp)
    lab.break_route("B", to="A", port=PORT)
    assert fates() == ("EHOSTUNREACH", "EHOSTUNREACH")
    lab.heal_route("B", "tcp" if protocol == "udp" else "udp")
    assert fates() == (udp, tcp)
    lab.heal_route("B")
    assert fates() == ("ok", "ECONNREFUSED")


def test_cut_is_silent(lab: TwoHosts, line: Line) -> None:
    lab.cut()
    for sender, receiver in (line, line[::-1]):
        sender.say("into the void")
        assert receiver.is_silent(0.5)
    assert attempt(lab, ADDRESS["A"], patience=0.5) == "lost TimeoutError"


def test_heal_delivers_what_the_kernel_kept(lab: TwoHosts, line: Line) -> None:
    lab.cut()
    line[0].say("late")
    assert line[1].is_silent(0.3)
    lab.heal()
    assert line[1].hear() == "late"
    assert_open(line)


@pytest.mark.parametrize(("direction", "deaf"), [("a-to-b", 1), ("b-to-a", 0)])
def test_one_way_cut(lab: TwoHosts, line: Line, direction: Direction, deaf: int) -> None:
    lab.cut(direction)
    hearing = 1 - deaf
    line[deaf].say("one way works")
    assert line[hearing].hear() == "one way works"
    line[hearing].say("the other does not")
    assert line[deaf].is_silent(0.5)


def test_reset_connections_breaks_both_ends(lab: TwoHosts, line: Line) -> None:
    assert lab.reset_connections("A") == 1
    assert line[0].hear() == "lost ECONNABORTED"
    assert line[1].hear() == "lost ECONNRESET"


def test_throttle_slows_the_cable(lab: TwoHosts, line: Line) -> None:
    lab.throttle("1mbit")
    started = time.monotonic()
    for _ in range(40):
        line[0].say("x" * 2000)
    for _ in range(40):
        line[1].hear()
    assert time.monotonic() - started > 0.25  # 80 kB at 1 Mbit/s take 0.64 s, less the burst of 32 kB


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


# Moving


@pytest.mark.parametrize("new", ["10.10.10.77", "192.168.7.7", "fd00::77", "fd77::7"])
def test_readdress(lab: TwoHosts, opened: Open, new: str) -> None:
    if is6(new) and not lab.ipv6:
        pytest.skip("no IPv6 here")
    addresses = lab.address6 if is6(new) else lab.address
    old = addresses["A"]
    server, client = opened("B", to=addresses["B"], at=PORT), opened("A", to=addresses["B"])
    source = converse(client, server)
    lab.readdress("A", new)
    assert addresses["A"] == new
    server.sendto(b"to where it was", source)
    assert hears_nothing(client)
    if not is6(new):  # IPv6 goes on sending from an address that is gone
        assert fate(client.send, b"from where it was") == "ENETUNREACH"
    assert converse(opened("A", to=addresses["B"]), server)[0] == new
    converse(opened("B", to=new), opened("A", to=new, at=PORT))
    lab.readdress("A", old)
    assert converse(client, server) == source


def test_readdress_leaves_open_tcp_connections_hanging(lab: TwoHosts, opened: Open) -> None:
    listener, dialer = opened("B", TCP, to=ADDRESS["B"], at=PORT), opened("A", TCP, to=ADDRESS["B"])
    line, _ = listener.accept()
    with line:
        lab.readdress("A", "10.10.10.77")
        line.send(b"x")
        assert hears_nothing(dialer)
        assert hears_nothing(line)
    opened("A", TCP, to=ADDRESS["B"])
    line, (source, _) = listener.accept()
    with line:
        assert source == "10.10.10.77"


def test_both_hosts_move_and_routes_break_there(lab: TwoHosts, opened: Open) -> None:
    lab.readdress("A", "10.10.10.77")
    lab.readdress("B", "192.168.7.7")
    converse(opened("A", to="192.168.7.7"), opened("B", to="192.168.7.7", at=PORT))
    lab.break_route("B", to="A", port=PORT)
    assert fate(opened("B").connect, ("10.10.10.77", PORT)) == "EHOSTUNREACH"


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


def test_an_operation_that_fails_says_what_and_where(lab: TwoHosts) -> None:
    with pytest.raises(LabError, match=r"tc qdisc .* on host A"):
        lab.throttle("fast")


# Leaving nothing behind


def test_close_ends_everything(lab: TwoHosts, line: Line) -> None:
    spaces = [namespace(child.process.pid) for child in line]
    lab.close()
    assert not inhabitants(spaces)
    lab.close()


def test_an_error_inside_ends_everything(lab: TwoHosts) -> None:
    with contextlib.suppress(KeyboardInterrupt), TwoHosts() as inner:
        spaces = [namespace(child.process.pid) for child in connect(inner, ADDRESS["B"])]
        raise KeyboardInterrupt
    assert not inhabitants(spaces)


def test_nothing_is_left_when_its_maker_is_killed(lab: TwoHosts) -> None:
    script = (
        "import time; from openline.testing.lab.netns import TwoHosts\n"
        "with TwoHosts() as hosts:\n"
        "    print(hosts.run('A', ['readlink', '/proc/self/ns/net']).stdout, end='')\n"
        "    print(hosts.run('B', ['readlink', '/proc/self/ns/net']).stdout, end='', flush=True)\n"
        "    hosts.popen('A', ['cat'], stdin=-1)\n"
        "    time.sleep(60)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    with maker.stdout as told:
        spaces = [told.readline().strip(), told.readline().strip()]
    wait_until(lambda: len(inhabitants(spaces)) == 3)
    maker.kill()
    maker.wait()
    wait_until(lambda: not inhabitants(spaces))


def test_the_machine_itself_is_untouched(lab: TwoHosts) -> None:
    before = Path("/proc/net/dev").read_text().count("\n")
    with TwoHosts():
        assert Path("/proc/net/dev").read_text().count("\n") == before


def test_availability_gives_its_reason(lab: TwoHosts) -> None:
    here = availability()
    assert here
    assert "network namespaces work" in here.reason


def test_availability_says_that_nft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "_installed", lambda tool: tool != "nft")
    without = availability.__wrapped__("firewall")
    assert not without
    assert "nft" in without.reason


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def inhabitants(spaces: list[str]) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/net") in spaces:
                found.append(process.name)
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found
