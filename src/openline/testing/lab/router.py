"""Two hosts with a router between them, which can carry less than its neighbours think."""

from __future__ import annotations

import sys
from typing import cast

from .netns import DEVICE, OTHER, HostName, TwoHosts, _hold

ADDRESS: dict[HostName, str] = {"A": "10.10.10.1", "B": "10.10.20.2"}
ADDRESS6: dict[HostName, str] = {"A": "fd00:a::1", "B": "fd00:b::2"}
ROUTER = cast(HostName, "R")
_GATEWAY: dict[HostName, str] = {"A": "10.10.10.254", "B": "10.10.20.254"}
_GATEWAY6: dict[HostName, str] = {"A": "fd00:a::fe", "B": "fd00:b::fe"}
_HOSTS: tuple[HostName, HostName] = ("A", "B")
_TABLE = "inet openline_router"
_NAT = "ip openline_nat"
# Nobody listens there, and whoever says so is there.
_REACHES = """
import socket, sys, time
until = time.monotonic() + 10
while time.monotonic() < until:
    try:
        socket.create_connection((sys.argv[1], 9), 0.1).close()
    except ConnectionRefusedError:
        sys.exit(0)
    except OSError:
        time.sleep(0.05)
sys.exit(1)
"""


class Routed(TwoHosts):
    """A and B on a cable each to R, which forwards between them.

    Of what breaks a cable between two hosts, only what concerns one host works here, and `limit`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.address, self.address6 = dict(ADDRESS), dict(ADDRESS6)

    def limit(self, mtu: int, *, told: bool = True) -> None:
        """Carry no IP packets over so many bytes from now on, in either direction.

        A sender that forbids fragments is told by ICMP, unless that is filtered (`told=False`): then its
        packets vanish, and nobody says why. IPv4 packets that allow it are sent on in fragments.
        """
        self._say(told)
        for host in _HOSTS:
            for family, subnet, _ in self._ways(host):
                self._ip(ROUTER, f"{family} route replace {subnet} dev {_port(host)} mtu lock {mtu}")

    def drop_long(self, protocol: str, over: int) -> None:
        """Let packets of a protocol (`udp`, `tcp`) over so many bytes vanish, in fragments or not."""
        self._nft(f"add rule {_TABLE} through meta l4proto {protocol} meta length > {over} drop")

    def drop_all(self, protocol: str) -> None:
        """Let all packets of a protocol vanish."""
        self._nft(f"add rule {_TABLE} through meta l4proto {protocol} drop")

    def reject(self, protocol: str, how: str) -> None:
        """Answer all packets of a protocol with that ICMP message, as nftables has it: `admin-prohibited`."""
        self._nft(f"add rule {_TABLE} through meta l4proto {protocol} reject with icmpx type {how}")

    def masquerade(self, host: HostName) -> None:
        """Put a host behind a NAT, for IPv4: it is seen at the router's address, and hears answers only.

        What others begin by themselves vanishes, and nobody says so.
        """
        outside = _port(OTHER[host])
        self._check(ROUTER, ["nft", "-f", "-"], input=_masquerading(outside))

    def mtu(self, host: HostName, mtu: int) -> None:
        """Of a host's own interface."""
        self._ip(host, f"link set {DEVICE} mtu {mtu}")

    def forbid(self, host: HostName, protocol: str, how: str = "drop") -> None:
        """Let a host's own firewall take what it sends: `send` fails with EPERM, or as `reject` has it."""
        frame = f"add table {_TABLE}\nadd chain {_TABLE} out {{ type filter hook output priority 0; }}\n"
        rule = f"add rule {_TABLE} out meta l4proto {protocol} {how}\n"
        self._check(host, ["nft", "-f", "-"], input=frame + rule)

    def allow(self, host: HostName) -> None:
        """Take back every `forbid`."""
        self._check(host, ["nft", "flush", "chain", *_TABLE.split(), "out"])

    def route(self, host: HostName, kind: str) -> None:
        """Let a host's route to the other one be of that type: `unreachable`, `prohibit`, `blackhole`."""
        self._ip(host, f"route add {kind} {self.address[OTHER[host]]}/32")

    def unroute(self, host: HostName, kind: str) -> None:
        """Take back `route`."""
        self._ip(host, f"route del {kind} {self.address[OTHER[host]]}/32")

    def down(self, host: HostName) -> None:
        """Take a host's interface down; its routes go with it."""
        self._ip(host, f"link set {DEVICE} down")

    def up(self, host: HostName) -> None:
        self._ip(host, f"link set {DEVICE} up")
        if self.ipv6:  # its addresses went as well
            self._ip(host, f"-6 addr replace {self.address6[host]}/64 dev {DEVICE} nodad")
        for family, _, gateway in self._ways(host):
            self._ip(host, f"{family} route replace default via {gateway} dev {DEVICE}")

    def restore(self) -> None:
        """Take back all of these but `limit`."""
        self._nft(f"flush chain {_TABLE} through")

    # Building

    def _say(self, told: bool) -> None:
        self._nft(f"flush chain {_TABLE} saying")
        if not told:
            self._nft(f"add rule {_TABLE} saying icmp type destination-unreachable drop")
            self._nft(f"add rule {_TABLE} saying icmpv6 type packet-too-big drop")

    def _nft(self, rules: str) -> None:
        frame = f"""
add table {_TABLE}
add chain {_TABLE} saying {{ type filter hook output priority 0; }}
add chain {_TABLE} through {{ type filter hook forward priority 0; }}
"""
        self._check(ROUTER, ["nft", "-f", "-"], input=frame + rules + "\n")

    def _hold_namespaces(self) -> None:
        super()._hold_namespaces()
        self._holders[ROUTER] = _hold(self._beside_first())

    def _join(self) -> None:
        self.ipv6 = self.run("A", ["cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6"]).stdout == "0\n"
        if self.ipv6:
            for host in (*_HOSTS, ROUTER):  # else addresses are of no use for a second
                for which in ("all", "default"):  # both, as the kernel takes the greater one
                    self._check(host, ["sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{which}/accept_dad"])
        for host in _HOSTS:
            peer = f"peer name {_port(host)} netns {self._holders[ROUTER].pid}"
            self._ip(host, f"link add {DEVICE} type veth {peer}")
            self._ip(host, "link set lo up")
            for family, _, gateway in self._ways(host):
                own = self.address[host] if family == "-4" else self.address6[host]
                length, nodad = (24, "") if family == "-4" else (64, " nodad")
                self._ip(host, f"{family} addr add {own}/{length} dev {DEVICE}{nodad}")
                self._ip(ROUTER, f"{family} addr add {gateway}/{length} dev {_port(host)}{nodad}")
            self._ip(host, f"link set {DEVICE} gso_max_segs 1 up")
            self._ip(ROUTER, f"link set {_port(host)} up")
            for family, _, gateway in self._ways(host):
                self._ip(host, f"{family} route replace default via {gateway} dev {DEVICE}")
        self._forward("ipv4/ip_forward")
        if self.ipv6:
            self._forward("ipv6/conf/all/forwarding")

    def wait_for_ipv6(self) -> None:
        """Until A's packets reach B: neighbours are looked for in the first second or two, and what is
        sent meanwhile may be lost. Raises ``RuntimeError`` where they do not."""
        for host in _HOSTS:
            where = self.address6[OTHER[host]]
            if self.run(host, [sys.executable, "-c", _REACHES, where]).returncode:
                raise RuntimeError(f"{host} does not reach {where}")

    def _forward(self, setting: str) -> None:
        self._check(ROUTER, ["sh", "-c", f"echo 1 > /proc/sys/net/{setting}"])

    def _ways(self, host: HostName) -> list[tuple[str, str, str]]:
        """Family, subnet and gateway of a host's cable."""
        ways = [("-4", f"{ADDRESS[host].rpartition('.')[0]}.0/24", _GATEWAY[host])]
        if self.ipv6:
            ways.append(("-6", f"{ADDRESS6[host].rpartition('::')[0]}::/64", _GATEWAY6[host]))
        return ways


def _masquerading(outside: str) -> str:
    return f"""
add table {_NAT}
add chain {_NAT} seen {{ type nat hook postrouting priority 100; }}
add chain {_NAT} through {{ type filter hook forward priority 0; }}
add rule {_NAT} seen oifname {outside} masquerade
add rule {_NAT} through iifname {outside} ct state new drop
"""


def _port(host: HostName) -> str:
    return f"line{host}"
