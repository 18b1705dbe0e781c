"""A link that loses some of the large packets that go one way, and none of the small ones.

A cable between two network namespaces where there are any: then TCP and UDP lose alike. Elsewhere a relay
in user space, for UDP only.
"""

import asyncio
import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from openline.testing.lab import netns

HOST = "127.0.0.1"
LARGE = 600
MTU = 1500
RELAY = "relay in user space"
# At the receiving end, where a packet is what the cable carried.
RULES = """
add table inet lossy
add counter inet lossy large
add counter inet lossy uncut
add counter inet lossy dropped
add chain inet lossy arriving {{ type filter hook input priority 0 ; policy accept ; }}
add rule inet lossy arriving iifname {device} meta length gt {large} counter name large
add rule inet lossy arriving iifname {device} meta length gt {mtu} counter name uncut
{drop}
"""
DROP = (
    "add rule inet lossy arriving iifname {device} meta length gt {large} "
    "numgen random mod 100 lt {percent} counter name dropped drop"
)


class Link(ABC):
    host = HOST

    @abstractmethod
    def near(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv at the sending end."""

    @abstractmethod
    def far(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv at the receiving end."""

    @abstractmethod
    async def way(self, port: int) -> int:
        """The port to send to, so that it arrives at `port`."""

    @abstractmethod
    def counted(self) -> dict[str, int]:
        """Large packets that came, and how many of them were dropped."""


@cache
def why_no_cable() -> str:
    if not (usable := netns.availability()):
        return usable.reason
    return "" if shutil.which("nft") else "nft is not installed (Debian: nftables)"


@contextmanager
def lossy(percent: int, seed: int) -> Iterator[Link]:
    if why_no_cable():
        yield Relay(percent, seed)
        return
    with netns.TwoHosts() as hosts:
        yield Cable(hosts, percent)


class Cable(Link):
    host = netns.ADDRESS["B"]

    def __init__(self, hosts: netns.TwoHosts, percent: int) -> None:
        self._hosts = hosts
        for host in ("A", "B"):
            # Else a packet is up to 64 KB until it has passed the rules, and is lost as a whole.
            self._run(host, ["ip", "link", "set", netns.DEVICE, "gso_max_segs", "1"])
        values = {"device": netns.DEVICE, "large": LARGE, "mtu": MTU, "percent": percent}
        drop = DROP.format(**values) if percent else ""
        self._run("B", ["nft", "-f", "-"], input=RULES.format(drop=drop, **values))

    def near(self, argv: Sequence[str]) -> list[str]:
        return self._hosts.command("A", argv)

    def far(self, argv: Sequence[str]) -> list[str]:
        return self._hosts.command("B", argv)

    async def way(self, port: int) -> int:
        return port

    def counted(self) -> dict[str, int]:
        entries = json.loads(self._run("B", ["nft", "-j", "list", "counters"]))["nftables"]
        counters = [entry["counter"] for entry in entries if "counter" in entry]
        packets = {counter["name"]: int(counter["packets"]) for counter in counters}
        if packets.pop("uncut"):
            raise RuntimeError(
                "packets came before they were cut into segments: the loss is not what it says"
            )
        return packets

    def _run(self, host: netns.HostName, argv: Sequence[str], **options: Any) -> str:
        done = self._hosts.run(host, argv, **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout


class Relay(Link, asyncio.DatagramProtocol):
    """Datagrams only. What comes from the receiving end goes to whoever sent last."""

    def __init__(self, percent: int, seed: int) -> None:
        self._share = percent / 100
        self._random = random.Random(seed).random
        self._large = self._dropped = 0
        self._sender: Any = None

    def near(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def far(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    async def way(self, port: int) -> int:
        loop = asyncio.get_running_loop()
        self._onward, _ = await loop.create_datagram_endpoint(lambda: Back(self), remote_addr=(HOST, port))
        here, _ = await loop.create_datagram_endpoint(lambda: self, (HOST, 0))
        return int(here.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._here = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._sender = addr
        if len(data) <= LARGE or not self._lost():
            self._onward.sendto(data)

    def back(self, data: bytes) -> None:
        self._here.sendto(data, self._sender)

    def counted(self) -> dict[str, int]:
        return {"large": self._large, "dropped": self._dropped}

    def _lost(self) -> bool:
        lost = self._random() < self._share
        self._large += 1
        self._dropped += lost
        return lost


class Back(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.back(data)
