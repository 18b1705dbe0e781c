"""Talkers on the hosts of the lab, and everything that is to be looked at once they have talked."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from openline import Identity
from openline.testing.lab.firewall import Refusal
from openline.testing.lab.netns import Direction, HostName, TwoHosts

from .agents import PORT, WAYS, Agent
from .audit import Account, Times, flows, violations
from .processes import PATIENCE, wait_until

# Dead after 0.75 s, so that a scenario takes seconds.
IDLE_TIMEOUT = 1.5
DEAD_AFTER = IDLE_TIMEOUT / 2
SETTLE_WITHIN = 40.0
# One that lost against another connection is read for a second before it is closed.
QUIET_WITHIN = 5.0
# How moments end: something breaks, and after which of them things can go on.
FAULTS = (
    " both",
    "-to-a",
    "-to-b",
    "frozen",
    "reset",
    "killed",
    "leaves",
    "shrunk",
    "loses its route",
    "drop",
    "reject",
    "rebound",
    "moved",
)
REPAIRS = ("healed", "thawed", "reset", "restarted", "shrunk")
HOSTS: tuple[HostName, HostName] = ("A", "B")
OPPOSITE = {"inbound": "outbound", "outbound": "inbound"}
# Counters that stay 0, and what is never in a log. `malformed` is counted as well where a dial breaks
# off halfway; the log tells that from bad input.
TROUBLE = ("in_doubt", "undelivered", "handler_errors", "conflicts")
COMPLAINT = re.compile(r"ERROR|Traceback|bad input|never retrieved|never awaited")


class Talker(Agent):
    script = "talker.py"

    def __init__(
        self, lab: TwoHosts, host: HostName, name: str, port: int, journal: Path, **config: Any
    ) -> None:
        self.name, self.port, self.journal = name, port, journal
        self.arguments = (name, str(journal))
        super().__init__(lab, host, **{"name": name, "max_idle_timeout": IDLE_TIMEOUT, **config})


class Scene:
    """Talkers in a lab: "A" and "B" on the hosts of that name; others, if any, beside B.

    Their journals and identities lie in `folder`. `deaths`, `departures` and `moments` are what the
    scenario has done to them, and when.
    """

    def __init__(
        self,
        lab: TwoHosts,
        folder: Path,
        way: str = "race",
        names: str = "AB",
        identities: bool = True,
        **config: Any,
    ) -> None:
        self.lab = lab
        self.way = way
        self._folder = folder
        self._config = {"backends": WAYS[way], **config}
        # Without, each process is a node of its own.
        self._identities = identities
        self.talkers: dict[str, Talker] = {}
        self._dead: list[Talker] = []
        self._kept: list[tuple[str, str]] = []
        self.deaths: Times = {}
        self.departures: Times = {}
        self.moments: list[tuple[str, float]] = []
        self._orders: dict[str, int] = {}
        self._talk: dict[str, Any] = {}
        self._by_node: dict[str, str] = {}
        for name in names:
            self.talkers[name] = self._start(name)
        for talker in self.talkers.values():
            talker.ready()

    def _start(self, name: str) -> Talker:
        host: HostName = "A" if name == "A" else "B"
        config = {"identity": str(self._identity(name)), **self._config} if self._identities else self._config
        port = PORT + max(0, ord(name) - ord("B"))
        return Talker(self.lab, host, name, port, self._folder / f"{name}.jsonl", **config)

    def _identity(self, name: str) -> Path:
        path = self._folder / f"{name}.key"
        Identity.load_or_create(path)
        return path

    @property
    def a(self) -> Talker:
        return self.talkers["A"]

    @property
    def b(self) -> Talker:
        return self.talkers["B"]

    # What happens

    def connect(self, dialer: str, to: str) -> None:
        self._kept.append((dialer, to))
        self._keep(dialer, to)
        for name in (dialer, to):
            wait_until(lambda talker=self.talkers[name]: talker.stat("active") != [0])

    def talk(
        self, count: int = 1000, seconds: float = 2.0, size: int = 0, by_node: Sequence[str] = ()
    ) -> None:
        """All begin to talk to all others; to those in `by_node` by their node id, wherever they are."""
        self._talk = {"count": count, "seconds": seconds, "size": size}
        self._by_node = {name: self.talkers[name].ask("node_id") for name in by_node}
        for name in self.talkers:
            self._begin(name)

    def _begin(self, name: str) -> None:
        addresses = {other: talker.address for other, talker in self.talkers.items() if other != name}
        others = {other: self._by_node.get(other, address) for other, address in addresses.items()}
        self._orders[name] = self.talkers[name].post("talk", to=others, **self._talk)

    def _keep(self, dialer: str, to: str) -> None:
        self.talkers[dialer].post("connect", to=self.talkers[to].address, keep=True)

    def until(self, state: str, patience: float = PATIENCE) -> None:
        """Until all of them see the other like this."""
        for talker in self.talkers.values():
            talker.event("state", patience, state=state)

    def until_received(self, count: int) -> None:
        """Until each of them has got so many messages."""
        wait_until(lambda: all(self._received(name) >= count for name in self.talkers), SETTLE_WITHIN)

    def _received(self, name: str) -> int:
        return (self._folder / f"{name}.jsonl").read_bytes().count(b'"did": "got"')

    def cut(self, direction: Direction = "both") -> None:
        for talker in self.talkers.values():
            if talker.process.poll() is None:
                talker.forget_events()
        self.note(f"cut {direction}")
        self.lab.cut(direction)

    def heal(self) -> None:
        self.lab.heal()
        self.note("healed")

    def shrink(self) -> None:
        self.note("shrunk")
        self.lab.shrink()

    def freeze(self, name: str) -> None:
        self.note(f"{name} frozen")
        self.talkers[name].freeze()

    def thaw(self, name: str) -> None:
        self.talkers[name].thaw()
        self.note(f"{name} thawed")

    def stale_route(self, host: HostName) -> None:
        """From there, fresh connects to any of the others fail at once."""
        self.note(f"{host} loses its route")
        for talker in self.talkers.values():
            if talker.host != host:
                self.lab.break_route(host, to=talker.host, port=talker.port)

    def heal_route(self, host: HostName) -> None:
        self.lab.heal_route(host)
        self.note(f"{host} has its route again")

    def readdress(self, host: HostName, address: str) -> None:
        self.note(f"{host} at {address}: moved")
        self.lab.readdress(host, address)

    def rebind_nat(self, host: HostName) -> None:
        self.note(f"{host} rebound")
        self.lab.rebind_nat(host)

    def block_udp(self, how: Refusal = "drop") -> None:
        self.note(f"udp blocked: {how}")
        self.lab.block_udp(how=how)

    def unblock_udp(self) -> None:
        self.lab.unblock_udp()
        self.note("udp healed")

    def reset(self) -> None:
        self.note("reset")
        self.lab.reset_connections("A")

    def kill(self, name: str) -> None:
        self.deaths.setdefault(name, []).append(time.monotonic())
        self.note(f"{name} killed")
        self.talkers[name].kill()
        self._dead.append(self.talkers[name])

    def leave(self, name: str) -> None:
        """It stops in the middle of its sends, and closes its transport as it should."""
        self.departures.setdefault(name, []).append(time.monotonic())
        self.note(f"{name} leaves")
        self.talkers[name].ask("fall_silent")
        assert self.talkers[name].end() == 0
        self._dead.append(self.talkers[name])

    def restart(self, name: str) -> None:
        """Another process with the same identity and journal goes on talking."""
        self.talkers[name] = self._start(name).ready()
        self.note(f"{name} restarted")
        for dialer, to in self._kept:
            if dialer == name:
                self._keep(dialer, to)
        self._begin(name)

    def note(self, what: str) -> None:
        self.moments.append((what, time.monotonic()))

    # What must hold in the end

    def finish(self, unreachable: str | None = None) -> Outcome:
        """Wait until all has been said, and check everything that holds whatever has happened.

        A send may have been told that no byte has left, for this reason (a regular expression): then
        the talker has tried again.
        """
        for name, order in self._orders.items():
            self.talkers[name].answer(order, SETTLE_WITHIN)
        self.note("all settled")
        # What has been taken in may still wait for its handler.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any("never came" in text for text in self._violations()))
        found = self._violations()
        assert not found, f"{len(found)} violations:\n" + "\n".join(found[:20])
        self._wait_for_one_connection_per_pair()
        stats = {name: talker.ask("stats") for name, talker in self.talkers.items()}
        outcome = Outcome(self._accounts(), stats, self.moments)
        outcome.check(all_lived=not self._dead)
        odd = [text for text in outcome.failed if not (unreachable and re.search(unreachable, text))]
        assert not odd, f"{len(odd)} sends failed, such as {odd[:3]}"
        for talker in (*self._dead, *self.talkers.values()):
            assert not (bad := complaint(talker.complaints)), f"log of {talker.name}: {bad}"
        return outcome

    def _accounts(self) -> list[Account]:
        return [Account.read(name, talker.journal) for name, talker in self.talkers.items()]

    def _violations(self) -> list[str]:
        return violations(self._accounts(), self.deaths, self.departures, self._identities)

    def _wait_for_one_connection_per_pair(self) -> None:
        """As both ends of each say, and as the kernels on both sides see it."""
        try:
            wait_until(self._is_paired, QUIET_WITHIN)
        except AssertionError:
            said = {name: (talker.lines, talker.stat("active")) for name, talker in self.talkers.items()}
            seen = {f"{host} {kind}": self._seen(host, kind) for host in HOSTS for kind in "tu"}
            raise AssertionError(f"not one connection per pair: {said}, {seen}") from None

    def _is_paired(self) -> bool:
        said = {name: talker.lines for name, talker in self.talkers.items()}
        ends = {(name, peer): end for name, lines in said.items() for peer, *end, _ in lines}
        others = len(said) - 1
        return (
            ends.keys() == set(permutations(said, 2))
            and all(len(lines) == others for lines in said.values())
            and all(ends[pair[::-1]] == [end[0], OPPOSITE[end[1]]] for pair, end in ends.items())
            and all(talker.stat("active") == [others] for talker in self.talkers.values())
            and self._is_seen(said["A"])
        )

    def _is_seen(self, lines: list[list[str]]) -> bool:
        """The kernels know just the connections of A: TCP at both ends, and the dialers' UDP sockets."""
        tcp = self._seen("A", "t")
        dialers = [*self._seen("A", "u"), *self._seen("B", "u")]
        backends = [backend for _, backend, *_ in lines]
        mirrored = tcp == {line[::-1] for line in self._seen("B", "t")}
        return mirrored and [len(tcp), len(dialers)] == [backends.count("websocket"), backends.count("quic")]

    def _seen(self, host: HostName, kind: str) -> set[tuple[str, ...]]:
        """Connected TCP or UDP sockets over the cable: this host's end, and the other."""
        said = self.lab.run(host, ["ss", f"-Hn{kind}", "state", "established"]).stdout
        ends = [tuple(line.split()[2:4]) for line in said.splitlines()]
        here = self.lab.address["A"] + ":"
        return {line for line in ends if any(end.startswith(here) for end in line)}

    @property
    def story(self) -> str:
        """What was done, and the logs: for a scenario that went wrong."""
        began = self.moments[0][1] if self.moments else 0.0
        told = [f"{at - began:8.3f} s  {what}" for what, at in self.moments]
        talkers = [*self._dead, *self.talkers.values()]
        told += [f"--- log of {talker.name}\n{talker.complaints}" for talker in talkers]
        return "\n".join(told)


def complaint(log: str) -> str | None:
    """A line that a log must never have."""
    return next((line for line in log.splitlines() if COMPLAINT.search(line)), None)


@dataclass
class Outcome:
    """What it came to."""

    accounts: list[Account]
    stats: dict[str, dict[str, int]]
    moments: list[tuple[str, float]]

    def check(self, all_lived: bool) -> None:
        """What the transports say of themselves must fit what the journals say."""
        for name, stats in self.stats.items():
            trouble = {what: stats[what] for what in TROUBLE if stats[what]}
            assert not trouble, f"{name}: {trouble}"
        if all_lived:
            self._check_repetitions()
        self._check_moments()

    def _check_repetitions(self) -> None:
        taken = self.total("messages_received") - self.total("duplicates_suppressed")
        assert self.total("messages_sent") == taken
        assert self.total("duplicates_suppressed") <= self.total("resent")
        for name, stats in self.stats.items():
            if stats["created"] + stats["accepted"] == len(self.stats) - 1:
                again = stats["resent"], stats["duplicates_suppressed"]
                assert again == (0, 0), f"{name} resent or was resent {again} on connections that lived"

    def _check_moments(self) -> None:
        repaired = next((at for what, at in self.moments if what.endswith(REPAIRS)), None)
        if repaired is not None:
            assert any(flow.silence_after(repaired) for flow in flows(self.accounts)), (
                "the fault came too late"
            )
        pairs = len(self.stats) * (len(self.stats) - 1) // 2
        faults = sum(what.endswith(FAULTS) for what, _ in self.moments)
        # Each side may dial for itself, and once more where the first dial fell into the next fault.
        assert self.total("created") <= pairs * (2 + 4 * faults), f"{self.total('created')} connections made"

    @property
    def failed(self) -> list[str]:
        return [text for account in self.accounts for text in account.failed]

    def total(self, what: str) -> int:
        return sum(stats[what] for stats in self.stats.values())

    @property
    def recovery(self) -> str:
        """How long after the last repair all flows went on that had something left to say."""
        repairs = [(what, at) for what, at in self.moments if what.endswith(REPAIRS)]
        if not repairs:
            return ""
        what, moment = repairs[-1]
        seconds = max(flow.silence_after(moment) for flow in flows(self.accounts))
        return f"; went on {seconds:.2f} s after '{what}'"

    def __str__(self) -> str:
        came = " ".join(f"{flow}:{len(flow.came)}" for flow in flows(self.accounts))
        counters = ("resent", "duplicates_suppressed", "created", "evictions", "replaced", "retries")
        counted = ", ".join(f"{self.total(what)} {what.replace('_', ' ')}" for what in counters)
        repeated = sum(flow.repeated for flow in flows(self.accounts))
        again = f"{repeated} delivered again; {len(self.failed)} sends tried again"
        return f"{came}; {counted}; {again}{self.recovery}"
