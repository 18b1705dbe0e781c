"""What the journals of talkers say, and what must hold of it. Knows nothing of openline.

An id is `SENDER>RECEIVER/STREAM/NUMBER`; it tells where the message belongs, and after which one.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass
class Account:
    """One talker's journal, over all its processes."""

    name: str
    nodes: set[str] = field(default_factory=set)
    # When each message was sent first. They are in the order in which they left at last.
    sent: dict[str, float] = field(default_factory=dict)
    # How often it may have left: a request that has no answer in time is made again.
    tries: Counter[str] = field(default_factory=Counter)
    # Taken from us, but nobody tells us of their arrival.
    handed_over: set[str] = field(default_factory=set)
    # When it was known to have arrived.
    settled: dict[str, float] = field(default_factory=dict)
    # What came: id, proven node, stream, time.
    got: list[tuple[str, str, str | int, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, name: str, path: Path) -> Account:
        account = cls(name)
        for line in path.read_text().splitlines():
            account._enter(json.loads(line))
        return account

    def _enter(self, line: dict[str, Any]) -> None:
        did, id, at = line["did"], line.get("id", ""), line["at"]
        if did == "born":
            self.nodes.add(line["node"])
        elif did == "sent":
            self.sent[id] = self.sent.pop(id, at)
            self.tries[id] += 1
        elif did == "handed over":
            self.handed_over.add(id)
        elif did == "got":
            self.got.append((id, line["node"], line["stream"], at))
        elif did == "failed":
            self.failed.append(f"{self.name}: {id}: {line['error']}")
            self.tries[id] -= line["error"].startswith("Unreachable")
        elif did == "undelivered":
            self.undelivered.append(f"{self.name} was told that {id} is undelivered: {line['why']}")
        elif did in ("acked", "answered"):
            self._settle(line)

    def _settle(self, line: dict[str, Any]) -> None:
        if line.get("acked") is False:
            self.strange.append(f"{self.name} has a receipt without acknowledgement for {line['id']}")
        if line.get("answers", line["id"]) != line["id"]:
            self.strange.append(f"{self.name} asked {line['id']}, and the answer is to {line['answers']}")
        self.settled.setdefault(line["id"], line["at"])


@dataclass
class Flow:
    """What one talker sent another."""

    source: Account
    target: Account

    def __post_init__(self) -> None:
        prefix = f"{self.source.name}>{self.target.name}/"
        self.sent = [id for id in self.source.sent if id.startswith(prefix)]
        self.came = [(id, at) for id, *_, at in self.target.got if id.startswith(prefix)]

    def __str__(self) -> str:
        return f"{self.source.name}→{self.target.name}"

    def violations(self, breaks: list[float]) -> list[str]:
        """`breaks`: when it may have been forgotten what had arrived."""
        ids = [id for id, _ in self.came]
        found = [f"{id} never came" for id in sorted(set(self.sent) - set(ids))]
        found += [f"{id} came, and nobody sent it" for id in sorted(set(ids) - set(self.sent))]
        ended_well = self.source.settled.keys() | self.source.handed_over
        found += [f"{id} was sent, and no send of it ended well" for id in self.sent if id not in ended_well]
        return found + self._twice(Counter(ids), breaks) + self._out_of_order(dict.fromkeys(ids))

    def _twice(self, times: Counter[str], breaks: list[float]) -> list[str]:
        """Only a break excuses it, and only one before which nothing was confirmed."""
        found = []
        for id, count in times.items():
            settled = self.source.settled.get(id, math.inf)
            excuses = sum(self.source.sent[id] < at < settled for at in breaks)
            tries = self.source.tries[id]
            if count > tries + excuses:
                found.append(f"{id} came {count} times, after {tries} tries and {excuses} breaks")
        return found

    def _out_of_order(self, ids: Iterable[str]) -> list[str]:
        place = {id: place for place, id in enumerate(self.sent)}
        streams: defaultdict[str, list[str]] = defaultdict(list)
        for id in filter(place.__contains__, ids):
            streams[id.rpartition("/")[0]].append(id)
        pairs = [pair for stream in streams.values() for pair in pairwise(stream)]
        back = [(one, two) for one, two in pairs if place[one] > place[two]]
        return [f"{two} was sent before {one}, and came after it" for one, two in back]

    def silence_after(self, moment: float) -> float:
        """Seconds until something came again; 0 where nothing was left to come."""
        return min((at - moment for _, at in self.came if at > moment), default=0.0)

    @property
    def repeated(self) -> int:
        return len(self.came) - len({id for id, _ in self.came})


def flows(accounts: list[Account]) -> list[Flow]:
    return [Flow(one, other) for one in accounts for other in accounts if one is not other]


Times = dict[str, list[float]]


def violations(accounts: list[Account], deaths: Times, departures: Times, identities: bool) -> list[str]:
    """When processes were killed, or left in good order, by name; and do they keep their identities?

    After a departure only the sender may have forgotten something: whether a send that it did not
    wait for had arrived.
    """
    found = [text for account in accounts for text in account.strange]
    found += [text for one in accounts if one.name not in departures for text in one.undelivered]
    nodes = {}
    for account in accounts:
        if len(account.nodes) != 1 and identities:
            found.append(f"{account.name} has had the node ids {account.nodes}")
        nodes.update(dict.fromkeys(account.nodes, account.name))
    for account in accounts:
        found += [text for line in account.got if (text := _misplaced(account, line, nodes))]
    for flow in flows(accounts):
        source, target = flow.source.name, flow.target.name
        found += flow.violations(deaths.get(source, []) + departures.get(source, []) + deaths.get(target, []))
    return found


def _misplaced(account: Account, line: tuple[str, str, str | int, float], nodes: dict[str, str]) -> str:
    id, node, stream, _ = line
    path, stream_of_id, _ = id.rsplit("/", 2)
    if path != f"{nodes.get(node)}>{account.name}":
        return f"{account.name} got {id}, from {nodes.get(node, node)}"
    return f"{account.name} got {id} on stream {stream!r}" if repr(stream) != stream_of_id else ""
