"""Presence in a simulation: what is told, beside what there is and what the simulation knows."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from openline import Peer, PeerEvent, Transport
from openline.connection.connection import State
from openline.testing import Host

# What may be told of a peer after what, in words of these tests' own.
THERE = {"moved", "suspect", "gone"}
FOLLOWS: dict[str | None, set[str]] = {
    None: {"connected"},
    "gone": {"connected"},
    "connected": THERE,
    "moved": THERE,
    "recovered": THERE,
    "suspect": {"recovered", "gone"},
}
# After these a peer is there.
PRESENT = FOLLOWS.keys() - {None, "gone"}


class Auditor:
    """Of one program: sees every event as it is told, and what handlers and iterators get later.

    ``processes`` are all that there have been: the simulation knows which process of a node is at the far
    end, by its instance. ``strange`` is what must not be.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        transport: Transport,
        processes: dict[str, str],
        strange: list[str],
        slow: Random | None = None,
    ) -> None:
        self._name = name
        self._host = host
        self._transport = transport
        self._processes = processes
        self._strange = strange
        self._slow = slow
        # By the remote node: what was told last, and of which process.
        self._last: dict[object, str] = {}
        self._process: dict[object, str] = {}
        # And what it may be reached by, as told: backends and addresses.
        self._ways: dict[object, set[tuple[str, str]]] = {}
        # What was told, when, and of whom.
        self._told: list[tuple[str, Peer, float]] = []
        self._told_by_then = 0
        self._got: dict[str, list[PeerEvent]] = {"handler": [], "slow handler": [], "iterator": []}
        processes[transport._node.door.instance] = name
        watchers = transport._node.watchers
        self._tell = watchers.tell
        setattr(watchers, "tell", self._note)  # noqa: B010 - in its place
        transport.on_peer(self._got["handler"].append)
        if slow is not None:
            transport.on_peer(self._dawdle)
        events = transport.peer_events()
        self._iterating = asyncio.ensure_future(self._iterate(events))

    async def _dawdle(self, event: PeerEvent) -> None:
        assert self._slow is not None
        self._got["slow handler"].append(event)
        await asyncio.sleep(self._slow.choice([0.0, 0.001, 0.2]))

    async def _iterate(self, events: Any) -> None:
        async for event in events:
            self._got["iterator"].append(event)

    def _claim(self, holds: bool, text: str) -> None:
        if not holds:
            self._strange.append(f"{self._host.network.now:.3f} {self._name}: {text}")

    # As it is told -------------------------------------------------------------------------------

    def _note(self, remote: Any, kind: Any, why: str, before: Any) -> None:
        key, last = remote.key, self._last.get(remote.key)
        self._claim(kind in FOLLOWS[last], f"{kind} after {last} of {remote!r}")
        self._claim(bool(why), f"{kind} of {remote!r} and no reason")
        good, doubted, process = facts(remote)
        if kind == "moved":
            stayed = len(self._ways[key]) == 1 and self._ways[key] <= good
            self._claim(not stayed, f"moved, and {good} reach {remote!r} as {self._ways[key]} did")
        if kind in ("connected", "moved"):
            self._ways[key] = good
        if kind in ("connected", "recovered", "moved"):
            self._claim(bool(good), f"{kind} and nothing good reaches {remote!r}")
        elif kind == "suspect":
            self._claim(doubted and not good, f"suspect, and {remote.connections} reach {remote!r}")
        else:
            other = process != self._process[key]
            self._claim(other or not remote.connections, f"gone, and {remote.connections} reach {remote!r}")
        if kind == "connected":
            self._process[key] = process
        elif kind != "gone":
            self._claim(process == self._process[key], f"{kind} in another process of {remote!r}")
        if kind != "gone" and not remote.plain:
            known = self._processes.get(process.lstrip("="))  # a puppet's is none of these
            self._claim(known in (None, remote.name), f"{kind} of {remote!r}, and the process is {known}'s")
        self._last[key] = kind
        self._told.append((kind, remote.peer, self._host.unix_time()))
        self._tell(remote, kind, why, before)

    # Now and then --------------------------------------------------------------------------------

    def look(self) -> None:
        """Is what was told what there is? Nothing is missing."""
        there = {remote.key: remote for remote in self._transport._table if remote.connections}
        present = {key for key, kind in self._last.items() if kind in PRESENT}
        if present != there.keys():
            self._claim(False, f"told of {present}, and there are {set(there)}")
        for key in present & there.keys():
            wrong = self._wrong(key, there[key])
            if wrong:
                self._claim(False, f"{wrong} of {there[key]!r}, which has {there[key].connections}")

    def _wrong(self, key: object, remote: Any) -> str:
        """What is wrong with what was told last of a peer that is there."""
        good, doubted, process = facts(remote)
        last = self._last[key]
        if process != self._process[key]:
            return "told of another process"
        if (good and last == "suspect") or (doubted and not good and last != "suspect"):
            return f"{last} was told last"
        if good:
            self._ways[key] &= good
            if not self._ways[key]:
                return "moved was not told"
        return ""

    def look_at_peers(self) -> None:
        """The names that programs have say the same."""
        latest = {peer: kind for kind, peer, _ in self._told}
        told = {peer for peer, kind in latest.items() if kind in PRESENT}
        there = set(self._transport.peers())
        self._claim(told == there, f"told of {told}, and peers() has {there}")
        suspect = {peer for peer, kind in latest.items() if kind == "suspect"}
        states = {peer for peer in there if peer.state == "suspect"}
        self._claim(suspect == states, f"suspect are {states}, and {suspect} were told of")

    # The end -------------------------------------------------------------------------------------

    def closed(self) -> None:
        """The transport has just been closed."""
        present = [key for key, kind in self._last.items() if kind in PRESENT]
        self._claim(not present, f"closed, and {present} are not gone")
        self._complete()
        self._told_by_then = len(self._told)

    def over(self) -> None:
        """That was a while ago."""
        self._claim(len(self._told) == self._told_by_then, "told something when it was closed")
        self._claim(self._iterating.done(), "the iterator has not ended")
        self._complete("iterator")

    def _complete(self, *more: str) -> None:
        """Has everybody had everything, in one order?"""
        for name in ("handler", *more):
            got = _briefly(self._got[name])
            self._claim(got == self._told, f"the {name} got {got}, and told was {self._told}")
        missed = self._transport.stats().peer_events_missed
        left = 0
        if self._slow is not None:
            # What is at work when close_timeout is over is cut, and hears no more.
            got = _briefly(self._got["slow handler"])
            left = len(self._told) - len(got)
            self._claim(
                got == self._told[: len(got)], f"the slow handler got {got}, and told was {self._told}"
            )
        self._claim(missed == left, f"{missed} events were left out, and {left} not told")


def _briefly(events: list[PeerEvent]) -> list[tuple[str, Peer, float]]:
    return [(event.kind, event.peer, event.at) for event in events]


def facts(remote: Any) -> tuple[set[tuple[str, str]], bool, str]:
    """What good connections there are to the process that the session is with; is there one in doubt; and
    which process that is."""
    session = remote.outstanding.session
    mine = [c for c in remote.connections if c.session is session]
    good = {(c.link.backend, c.endpoint.remote) for c in mine if c.state is State.LIVE}
    process = session.process if session is not None else ""
    return good, any(c.state is State.SUSPECT for c in mine), process
