"""The lab breaks what it says, only that, and leaves nothing behind: routes, cables, addresses."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openline.testing.lab import netns
from openline.testing.lab.netns import (
    ADDRESS,
    ADDRESS6,
    Direction,
    LabError,
    Protocol,
    TwoHosts,
    availability,
)

from .lab_hosts import PORT, TCP, Line, Open, connect, converse, fate, hears_nothing, is6
from .processes import plain, wait_until

pytestmark = pytest.mark.faults


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


def test_an_operation_that_fails_says_what_and_where(lab: TwoHosts) -> None:
    with pytest.raises(LabError, match=r"tc qdisc .* on host A"):
        lab.throttle("fast")


# Leaving nothing behind
def test_close_ends_everything(lab: TwoHosts, line: Line) -> None:
    there = inhabitants([namespace(child.process.pid) for child in line])
    assert len(there) >= 4
    lab.close()
    assert not alive(there)
    lab.close()


def test_an_error_inside_ends_everything(lab: TwoHosts) -> None:
    with contextlib.suppress(KeyboardInterrupt), TwoHosts() as inner:
        line = connect(inner, ADDRESS["B"])
        there = inhabitants([namespace(child.process.pid) for child in line])
        raise KeyboardInterrupt
    assert not alive(there)


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
    there = inhabitants(spaces)
    maker.kill()
    maker.wait()
    wait_until(lambda: not alive(there))


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


Inhabitants = set[tuple[str, str]]


def inhabitants(spaces: list[str]) -> Inhabitants:
    """Processes, each with its namespace. Their numbers alone say little: the kernel gives them out again."""
    return {(pid, space) for pid, space in everybody() if space in spaces}


def alive(there: Inhabitants) -> Inhabitants:
    return there & everybody()


def everybody() -> Inhabitants:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add((process.name, os.readlink(process / "ns/net")))
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found
