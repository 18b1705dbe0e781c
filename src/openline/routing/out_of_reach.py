"""Peers that are out of reach while something is under way to them, and the sends that wait with it.

What is under way is dialed for until it is acknowledged or given up (``redial.py``). A later send to
the same place waits with it, within its own time-out: that one dial has failed says no more about it
than about those before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..address import Address
from ..peers.remote import Remote

# Where a remote is dialed, whatever the backend: host, port and path; or its node id.
Spot = tuple[str, int, str]


class Waiter(Protocol):
    """A send that waits, at the head of those to one place."""

    async def pause(self, seconds: float) -> None:
        """Until it is woken, for so long at most."""
        ...

    def wake(self) -> None: ...


class OutOfReach:
    """Which peers are, where they are dialed, and who waits for them."""

    def __init__(self) -> None:
        self._spots: dict[Remote, set[Spot]] = {}
        self._at: dict[Spot, dict[Remote, None]] = {}
        self._waiters: dict[Remote, dict[Waiter, None]] = {}

    def __contains__(self, remote: Remote) -> bool:
        return remote in self._spots

    def add(self, remote: Remote, addresses: Iterable[Address]) -> None:
        """It is out of reach, and dialed at these."""
        spots = {(remote.node_id or "", 0, "")}
        for address in addresses:
            if address.dialable:
                spots |= {(host, address.port, address.path) for host in (address.host, remote.endpoint.ip)}
        self._spots[remote] = spots
        for spot in spots:
            self._at.setdefault(spot, {})[remote] = None

    def look(self, remote: Remote) -> None:
        """Something about it has changed: is it within reach again, or given up?"""
        if remote in self._spots and not remote.outstanding.out_of_reach:
            self.remove(remote)

    def remove(self, remote: Remote) -> None:
        """Nothing is dialed for it any more; whoever waits looks for a connection again."""
        for spot in self._spots.pop(remote, ()):
            del self._at[spot][remote]
            if not self._at[spot]:
                del self._at[spot]
        for waiter in self._waiters.get(remote, ()):
            waiter.wake()

    def close(self) -> None:
        for remote in list(self._spots):
            self.remove(remote)

    def remote_at(self, to: Address | Remote, ips: Iterable[str]) -> Remote | None:
        """The peer that a send to ``to`` has to wait for; ``ips`` are those of its host."""
        if isinstance(to, Remote):
            return to if to in self._spots else None
        if not to.dialable:
            return next(iter(self._at.get((to.node_id or "", 0, ""), ())), None)
        for host in (to.host, *ips):
            for remote in self._at.get((host, to.port, to.path), ()):
                if to.node_id in (None, remote.node_id):
                    return remote
        return None

    async def back(self, remote: Remote, waiter: Waiter, patience: float) -> None:
        """At the head of a line: until it is within reach or given up, for ``patience`` at most."""
        waiters = self._waiters.setdefault(remote, {})
        waiters[waiter] = None
        try:
            await waiter.pause(patience)
        finally:
            del waiters[waiter]
            if not waiters:
                self._waiters.pop(remote, None)
