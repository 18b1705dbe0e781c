"""The lab breaks what it says, only that, and leaves nothing behind."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Child, plain, wait_until

from openline.testing.netns import ADDRESS, ADDRESS6, Direction, LabError, TwoHosts, availability

pytestmark = pytest.mark.faults

PORT = 8770
Line = tuple[Child, Child]


@pytest.fixture
def line(lab: TwoHosts) -> Line:
    """A connection that A opened to B."""
    return connect(lab, ADDRESS["B"])


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
        "import time; from openline.testing.netns import TwoHosts\n"
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
