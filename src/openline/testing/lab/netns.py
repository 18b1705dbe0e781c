"""Two Linux hosts on one machine, joined by a cable that can be broken in the ways real ones break.

Each host is a network namespace kept alive by one holder process that ends when its standard input
does. So nothing is left behind, whatever happens to the program that made them: no name is registered
anywhere, and there is nothing to sweep up later. Works as root, and without privileges where user
namespaces are allowed. Needs iproute2 (`ip`, `tc`, `ss`) and util-linux (`unshare`, `nsenter`); losing
packets, blocking UDP and rebinding a NAT need nftables (`nft`) as well.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Literal

from openline.testing.lab.firewall import COUNTERS, Dropped, Firewall, Loss, Refusal, read_counters

HostName = Literal["A", "B"]
Direction = Literal["both", "a-to-b", "b-to-a"]
Protocol = Literal["both", "tcp", "udp"]
Feature = Literal["hosts", "firewall"]

ADDRESS: dict[HostName, str] = {"A": "10.10.10.1", "B": "10.10.10.2"}
ADDRESS6: dict[HostName, str] = {"A": "fd00::1", "B": "fd00::2"}
LINK_LOCAL: dict[HostName, str] = {"A": "fe80::1", "B": "fe80::2"}
DEVICE = "line0"
OTHER: dict[HostName, HostName] = {"A": "B", "B": "A"}

_HOSTS: tuple[HostName, HostName] = ("A", "B")
_SENDERS: dict[Direction, tuple[HostName, ...]] = {"both": ("A", "B"), "a-to-b": ("A",), "b-to-a": ("B",)}
_PROTOCOLS: dict[Protocol, tuple[str, ...]] = {"both": ("tcp", "udp"), "tcp": ("tcp",), "udp": ("udp",)}
_MAC: dict[HostName, str] = {"A": "02:00:00:00:00:01", "B": "02:00:00:00:00:02"}
_STALE_TABLE = 113  # EHOSTUNREACH's number; any unused routing table would do
_STALE_PRIORITY = 50
_MAX_SEGMENTS = 65535  # the kernel's own limit, a veth's default
_TOOLS = ("ip", "tc", "ss", "unshare", "nsenter")
_HOLD = ("sh", "-c", "echo ready; exec cat")


class LabError(RuntimeError):
    """The lab could not be built, or one of its operations failed."""


@dataclass(frozen=True)
class Availability:
    """Whether two hosts can be had here; false in a condition when not."""

    usable: bool
    reason: str

    def __bool__(self) -> bool:
        return self.usable


@cache
def availability(feature: Feature = "hosts") -> Availability:
    """Try to build the lab once, and say what stands in the way if that fails.

    "firewall" is what `lose`, `block_udp` and `rebind_nat` need besides.
    """
    if not sys.platform.startswith("linux"):
        return Availability(False, f"network namespaces need Linux, this is {sys.platform}")
    if missing := [tool for tool in _TOOLS if not _installed(tool)]:
        return Availability(False, f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)")
    if feature == "firewall" and not _installed("nft"):
        return Availability(False, "not installed: nft (Debian: nftables)")
    try:
        with TwoHosts() as hosts:
            if feature == "firewall":
                hosts.lose(1)
                hosts.block_udp(how="reject")
                hosts.rebind_nat("A")
                return Availability(True, f"nftables works here ({hosts.privilege})")
            return Availability(True, f"network namespaces work here ({hosts.privilege})")
    except LabError as error:
        return Availability(False, str(error))


class TwoHosts:
    """Hosts A (10.10.10.1, fd00::1, fe80::1) and B (.2, ::2), joined by one cable, `line0` at each end.

    with TwoHosts() as hosts:
        server = hosts.popen("A", ["python", "server.py"])
        hosts.break_route("B", to="A", port=8770)
    """

    def __init__(self) -> None:
        self.privilege = ""
        self.ipv6 = False
        self.address = dict(ADDRESS)
        self.address6 = dict(ADDRESS6)
        self._holders: dict[HostName, subprocess.Popen[str]] = {}
        self._enter: list[str] = []
        self._started: list[subprocess.Popen[Any]] = []
        self._cut: set[HostName] = set()
        self._rate: str | None = None
        self._shrunk = False
        self._stale: dict[HostName, dict[str, str]] = {"A": {}, "B": {}}  # rules, and their protocols
        # Each is for what arrives at that host.
        self._firewalls: dict[HostName, Firewall] = {host: Firewall(DEVICE) for host in _HOSTS}
        self._filtered = False

    def __enter__(self) -> TwoHosts:
        try:
            self._hold_namespaces()
            self._join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process started here, then the namespaces. Safe to call again."""
        for process in (*self._started, *self._holders.values()):
            _end(process)
        self._started.clear()
        self._holders.clear()

    # Running things

    def command(self, host: HostName, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv on a host; it is exec'd, so the pid is argv's own."""
        return [_tool("nsenter"), "-t", str(self._holders[host].pid), *self._enter, "--net", "--", *argv]

    def popen(self, host: HostName, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a host. It is killed when the lab closes; pipes asked for are yours to close."""
        # Ctrl-C must reach the program that holds the lab and leave the order of ending to it.
        process = subprocess.Popen(self.command(host, argv), start_new_session=True, **options)
        self._started.append(process)
        return process

    def run(self, host: HostName, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, with its output captured as text."""
        # Not in our process group, or Ctrl-C would look like a tool that failed.
        return subprocess.run(
            self.command(host, argv), capture_output=True, text=True, start_new_session=True, **options
        )

    # Breaking things

    def break_route(self, host: HostName, to: HostName, port: int, protocol: Protocol = "both") -> None:
        """Make every fresh flow from host to that port fail with EHOSTUNREACH, in connect or in sendto.

        Flows the other side has opened go on, both ways: what host sends on them goes to the dialer's
        ephemeral port, which no rule matches. This is what a stale kernel route looks like. Flows that
        host itself has opened to that port break too: UDP with the same error, TCP without a word.
        """
        for family, destination in self._families(to):
            # A rule's own `unreachable` action gives ENETUNREACH; only a route gives EHOSTUNREACH.
            self._ip(host, f"{family} route replace unreachable default table {_STALE_TABLE}")
            for name in _PROTOCOLS[protocol]:
                match = f"to {destination} ipproto {name} dport {port}"
                self._mislead(host, family, f"pref {_STALE_PRIORITY} {match} lookup {_STALE_TABLE}", name)

    def heal_route(self, host: HostName, protocol: Protocol = "both") -> None:
        """Take back every `break_route` on this host, or those of one protocol."""
        for rule, name in list(self._stale[host].items()):
            if name in _PROTOCOLS[protocol]:
                self._ip(host, rule.replace(" add ", " del "))
                del self._stale[host][rule]

    def cut(self, direction: Direction = "both") -> None:
        """Let packets vanish: no reset, no ICMP, and the sender's kernel believes they left."""
        self._cut.update(_SENDERS[direction])
        self._shape()

    def heal(self) -> None:
        """Take back every `cut`, `lose` and `block_udp`: all that takes packets."""
        self._cut.clear()
        self._shape()
        for firewall in self._firewalls.values():
            firewall.loss = None
            firewall.blocked.clear()
        self._filter()

    def lose(self, percent: float, over: int = 600, direction: Direction = "both") -> None:
        """Lose so many of the IP packets longer than `over` bytes, at random, unseen by their sender.

        Open connections are cut into single packets meanwhile, so one loss never takes 64 KiB.
        """
        for host in self._receivers(direction):
            self._firewalls[host].loss = Loss(percent, over)
        self._filter()

    def lossless(self) -> None:
        """Take back every `lose`."""
        for firewall in self._firewalls.values():
            firewall.loss = None
        self._filter()

    def block_udp(
        self, direction: Direction = "both", port: int | None = None, how: Refusal = "drop"
    ) -> None:
        """Block UDP to that port, or to all ports, as the receiver's firewall does; TCP goes on.

        "drop" is silent; "reject" tells the sender with an ICMP port unreachable. Open flows are blocked too.
        """
        for host in self._receivers(direction):
            self._firewalls[host].blocked[port] = how
        self._filter()

    def unblock_udp(self) -> None:
        """Take back every `block_udp`."""
        for firewall in self._firewalls.values():
            firewall.blocked.clear()
        self._filter()

    def dropped(self, direction: Direction = "both") -> Dropped:
        """How many packets `lose` and `block_udp` have taken since the lab was made."""
        if not self._filtered:
            return Dropped()
        counts = (read_counters(self._check(host, COUNTERS)) for host in self._receivers(direction))
        return sum(counts, Dropped())

    def rebind_nat(self, host: HostName) -> None:
        """Let the NAT before a host forget its UDP mappings: from now on each socket is seen at a new port.

        That goes for client sockets, those at ports from 32768 on. What is sent to the old mapping is lost
        without a word, and so are ICMP errors. Each call changes the mappings again.
        """
        self._firewalls[host].rebinds += 1
        self._filter()

    def unbind_nat(self, host: HostName) -> None:
        """Take the NAT of `rebind_nat` away."""
        self._firewalls[host].rebinds = 0
        self._filter()

    def readdress(self, host: HostName, address: str) -> None:
        """Give a host another IPv4 or IPv6 address in place of its old one, under its live sockets.

        What a laptop does that moves. The other host knows the way to the new address, and what it sends
        to the old one is lost without a word. `address` and `address6` tell the present ones.
        """
        new = ipaddress.ip_address(address)
        family, known = ("-4", self.address) if new.version == 4 else ("-6", self.address6)
        old, peer = known[host], known[OTHER[host]]
        if old == str(new):
            return
        known[host] = str(new)
        self._ip(
            host, f"{family} addr add {_with_prefix(str(new))} dev {DEVICE}{' nodad' * (family == '-6')}"
        )
        # The old address takes the route to its subnet with it.
        self._ip(host, f"{family} route replace {peer} dev {DEVICE}")
        self._ip(OTHER[host], f"{family} route replace {new} dev {DEVICE}")
        self._ip(OTHER[host], f"neigh replace {new} lladdr {_MAC[host]} dev {DEVICE} nud permanent")
        self._ip(host, f"{family} addr del {_with_prefix(old)} dev {DEVICE}")

    def throttle(self, rate: str | None) -> None:
        """Limit the cable to a rate in `tc` notation ("20mbit"), each way; None takes it back."""
        self._rate = rate
        self._shape()

    def shrink(self, mtu: int = 1280) -> None:
        """Let packets from A to B that are longer than that vanish: a path whose MTU has shrunk unnoticed.

        Open connections go on sending longer ones, and lose them all; new ones learn the limit, which
        is B's own. 1280 is the least that IPv6 takes.
        """
        self._shrunk = True
        self._segment()
        self._ip("B", f"link set {DEVICE} mtu {mtu}")

    def reset_connections(self, host: HostName = "A") -> int:
        """Abort every established TCP connection of a host and reset its peer's end; says how many."""
        targets = self._check(host, ["ss", "-HtK", "state", "established"]).splitlines()
        left = set(self._check(host, ["ss", "-Ht", "state", "established"]).splitlines())
        if survivors := left.intersection(targets):
            raise LabError(f"this kernel cannot abort connections (INET_DIAG_DESTROY): {survivors}")
        return len(targets)

    # Building

    def _hold_namespaces(self) -> None:
        problems = []
        for privilege, isolate, enter in _WAYS:
            self.privilege, self._enter = privilege, enter
            try:
                self._holders["A"] = _hold([_tool("unshare"), *isolate, "--net", "--", *_HOLD])
                self._holders["B"] = _hold(self._beside_first())
                return
            except LabError as error:
                problems.append(f"{privilege}: {str(error).rpartition(': ')[2]}")
                self.close()
        raise LabError(f"network namespaces are refused ({'; '.join(problems)})")

    def _beside_first(self) -> list[str]:
        unshare = [_tool("unshare"), "--net", "--", *_HOLD]
        if not self._enter:
            return unshare
        # Both namespaces must belong to one user namespace, or no cable can join them.
        return [_tool("nsenter"), "-t", str(self._holders["A"].pid), *self._enter, "--", *unshare]

    def _join(self) -> None:
        self.ipv6 = self.run("A", ["cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6"]).stdout == "0\n"
        peer = f"peer name {DEVICE} address {_MAC['B']} netns {self._holders['B'].pid}"
        self._ip("A", f"link add {DEVICE} address {_MAC['A']} type veth {peer}")
        for host in _HOSTS:
            for line in self._addressing(host):
                self._ip(host, line)

    def _addressing(self, host: HostName) -> Iterator[str]:
        yield "link set lo up"
        yield f"addr add {ADDRESS[host]}/24 dev {DEVICE}"
        if self.ipv6:
            yield f"link set {DEVICE} addrgenmode none"
            for address in (ADDRESS6[host], LINK_LOCAL[host]):
                yield f"addr add {address}/64 dev {DEVICE} nodad"
        yield f"link set {DEVICE} up"
        # Fixed neighbours: otherwise ARP gives up during a cut, and the kernel reports
        # EHOSTUNREACH to sockets, which is not silent.
        for _, address in self._families(OTHER[host]):
            yield f"neigh replace {address} lladdr {_MAC[OTHER[host]]} dev {DEVICE} nud permanent"

    def _families(self, host: HostName) -> list[tuple[str, str]]:
        families = [("-4", self.address[host])]
        if self.ipv6:
            families.append(("-6", self.address6[host]))
        return families

    def _shape(self) -> None:
        for host in _HOSTS:
            self._check(host, ["tc", "qdisc", "replace", "dev", DEVICE, "root", *self._discipline(host)])

    def _discipline(self, host: HostName) -> list[str]:
        if host in self._cut:
            return ["blackhole"]
        if self._rate:
            return ["tbf", "rate", self._rate, "burst", "32kb", "latency", "50ms"]
        return ["noqueue"]

    def _mislead(self, host: HostName, family: str, rule: str, protocol: str) -> None:
        added = f"{family} rule add {rule}"
        if added not in self._stale[host]:
            self._ip(host, added)
            self._stale[host][added] = protocol

    def _receivers(self, direction: Direction) -> list[HostName]:
        return [OTHER[sender] for sender in _SENDERS[direction]]

    def _filter(self) -> None:
        quiet = all(firewall == Firewall(DEVICE) for firewall in self._firewalls.values())
        if quiet and not self._filtered:
            return  # so that nothing needs nftables which does not use it
        self._segment()
        for host, firewall in self._firewalls.items():
            self._check(host, ["nft", "-f", "-"], input=firewall.script())
        self._filtered = True

    def _segment(self) -> None:
        """Have packets cut into segments where they are lost or measured one by one.

        Else the kernel hands up to 64 KiB of a TCP stream over the cable as a single packet.
        """
        for host in _HOSTS:
            single = self._firewalls[OTHER[host]].loss or (self._shrunk and host == "A")
            self._ip(host, f"link set {DEVICE} gso_max_segs {1 if single else _MAX_SEGMENTS}")

    def _ip(self, host: HostName, line: str) -> str:
        return self._check(host, ["ip", *line.split()])

    def _check(self, host: HostName, argv: Sequence[str], **options: Any) -> str:
        done = self.run(host, [_tool(argv[0]), *argv[1:]], **options)
        if done.returncode == -signal.SIGINT:  # Ctrl-C came before it had left our process group
            raise KeyboardInterrupt
        if done.returncode != 0:
            raise LabError(f"`{' '.join(argv)}` on host {host}: {done.stderr.strip()}")
        return done.stdout


_WAYS: tuple[tuple[str, list[str], list[str]], ...] = (
    ("as root", [], []),
    ("in a user namespace", ["--user", "--map-root-user"], ["--user", "--preserve-credentials"]),
)


def _hold(argv: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    holder = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert holder.stdout is not None
    assert holder.stderr is not None
    with holder.stdout as told, holder.stderr as complaints:
        if told.readline().strip() == "ready":
            return holder
        problem = complaints.read().strip()
    _end(holder)
    raise LabError(problem)


def _with_prefix(address: str) -> str:
    if address in ADDRESS.values():
        return f"{address}/24"
    if address in ADDRESS6.values():
        return f"{address}/64"
    return address  # a host address, which no subnet's removal takes along


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _installed(tool: str) -> bool:
    return shutil.which(tool, path=_search_path()) is not None


@cache
def _tool(name: str) -> str:
    return shutil.which(name, path=_search_path()) or name


@cache
def _search_path() -> str:
    # Debian keeps `tc` and `ip` in sbin, which a user's PATH may lack.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
