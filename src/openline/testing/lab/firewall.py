"""What nftables drops, refuses and rewrites for one host of the lab: state in, ruleset out.

Everything is dropped where it arrives, not where it leaves: a packet dropped on its way out is no secret,
its sender's `send` fails with EPERM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Refusal = Literal["drop", "reject"]

_TABLE = "inet openline_lab"
_PARTS = 10_000  # a loss is drawn from so many, so hundredths of a percent count
# Flipping bits under the highest keeps a port in this range, and flipping them again gives it back.
_CLIENT_PORTS = "32768-65535"
_FLIPPED = 0x2A00
_MAPPINGS = 0x200
_VERDICT = {"drop": "drop", "reject": "reject with icmpx type port-unreachable"}

_FRAME = f"""
add table {_TABLE}
add counter {_TABLE} lost
add counter {_TABLE} blocked
add chain {_TABLE} arriving {{ type filter hook prerouting priority -500; }}
add chain {_TABLE} delivered {{ type filter hook input priority 0; }}
add chain {_TABLE} leaving {{ type filter hook postrouting priority 500; }}
flush table {_TABLE}
"""

COUNTERS = ("nft", "-j", "list", "counters", "table", *_TABLE.split())


@dataclass(frozen=True)
class Dropped:
    """How many packets `lose` and `block_udp` have taken since the lab was made."""

    lost: int = 0
    blocked: int = 0

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(self.lost + other.lost, self.blocked + other.blocked)


@dataclass(frozen=True)
class Loss:
    percent: float
    over: int

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise ValueError(f"a loss of {self.percent} percent")


@dataclass
class Firewall:
    """What happens at one host's end of the cable."""

    device: str
    loss: Loss | None = None
    blocked: dict[int | None, Refusal] = field(default_factory=dict)
    rebinds: int = 0

    def script(self) -> str:
        """The whole ruleset for `nft -f`; it replaces the last one in one step, and keeps its counters."""
        rules = [*self._translating(), *self._losing(), *self._blocking()]
        return _FRAME + "".join(f"add rule {_TABLE} {rule}\n" for rule in rules)

    def _losing(self) -> Iterator[str]:
        # Before anything puts fragments together: each is lost by itself.
        if self.loss and (parts := round(self.loss.percent * _PARTS / 100)):
            chance = f"numgen random mod {_PARTS} <= {parts - 1}"
            yield f"arriving {self._here} meta length > {self.loss.over} {chance} counter name lost drop"

    def _blocking(self) -> Iterator[str]:
        for port, how in self.blocked.items():
            match = "meta l4proto udp" if port is None else f"udp dport {port}"
            yield f"delivered {self._here} {match} counter name blocked {_VERDICT[how]}"

    def _translating(self) -> Iterator[str]:
        """A NAT without memory: it rebinds at once, and needs neither conntrack nor its tools."""
        if not self.rebinds:
            return
        flip = f"xor {_FLIPPED + self.rebinds % _MAPPINGS}"
        yield f"arriving {self._here} udp dport {_CLIENT_PORTS} udp dport set udp dport {flip}"
        yield f"leaving {self._away} udp sport {_CLIENT_PORTS} udp sport set udp sport {flip}"
        # A NAT says nothing about a mapping it has forgotten; this host would, as nobody listens there.
        yield f"leaving {self._away} icmp type destination-unreachable icmp code port-unreachable drop"
        yield f"leaving {self._away} icmpv6 type destination-unreachable icmpv6 code port-unreachable drop"

    @property
    def _here(self) -> str:
        return f"iifname {self.device}"

    @property
    def _away(self) -> str:
        return f"oifname {self.device}"


def read_counters(listing: str) -> Dropped:
    """What `COUNTERS` printed."""
    entries = (entry.get("counter") for entry in json.loads(listing)["nftables"])
    return Dropped(**{entry["name"]: entry["packets"] for entry in entries if entry})
