"""Sends to peers that are out of reach while something is under way to them.

What is under way is dialed for until it is acknowledged or given up (``recovery.py``). A later send to
the same place waits with it, within its own time-out: that one dial has failed says no more about it
than about those before it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..address import Address
from ..connection.connection import State
from ..peers.delivery import stranded
from ..peers.table import Peer
from ..sending.turns import Place

# Where a peer is dialed, whatever the backend: host, port and path; or its node id.
Spot = tuple[str, int, str]


def out_of_reach(peer: Peer) -> bool:
    """Is something under way to it, and no good connection there? One that is not as an address asks
    (``wss``, a pin) is one all the same: then nobody has to wait for the peer."""
    return stranded(peer) and (peer.carrier is None or peer.carrier.state is not State.LIVE)


class Waiting:
    """Peers that are out of reach, where they are dialed, and who waits for them."""

    def __init__(self) -> None:
        self._spots: dict[Peer, set[Spot]] = {}
        self._at: dict[Spot, dict[Peer, None]] = {}
        self._places: dict[Peer, dict[Place, None]] = {}

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._spots

    def add(self, peer: Peer, addresses: Iterable[Address]) -> None:
        """It is out of reach, and dialed at these."""
        spots = {(peer.node_id or "", 0, "")}
        for address in addresses:
            if address.dialable:
                spots |= {(host, address.port, address.path) for host in (address.host, peer.endpoint.ip)}
        self._spots[peer] = spots
        for spot in spots:
            self._at.setdefault(spot, {})[peer] = None

    def look(self, peer: Peer) -> None:
        """Something about it has changed: is it within reach again, or given up?"""
        if peer in self._spots and not out_of_reach(peer):
            self.remove(peer)

    def remove(self, peer: Peer) -> None:
        """Nothing is dialed for it any more; whoever waits looks for a connection again."""
        for spot in self._spots.pop(peer, ()):
            del self._at[spot][peer]
            if not self._at[spot]:
                del self._at[spot]
        for place in self._places.get(peer, ()):
            place.call()

    def close(self) -> None:
        for peer in list(self._spots):
            self.remove(peer)

    def peer_at(self, to: Address | Peer, ips: Iterable[str]) -> Peer | None:
        """The peer that a send to ``to`` has to wait for; ``ips`` are those of its host."""
        if isinstance(to, Peer):
            return to if to in self._spots else None
        if not to.dialable:
            return next(iter(self._at.get((to.node_id or "", 0, ""), ())), None)
        for host in (to.host, *ips):
            for peer in self._at.get((host, to.port, to.path), ()):
                if to.node_id in (None, peer.node_id):
                    return peer
        return None

    async def back(self, peer: Peer, place: Place, patience: float) -> None:
        """At the head of a line: until it is within reach or given up, for ``patience`` at most."""
        places = self._places.setdefault(peer, {})
        places[place] = None
        try:
            await place.pause(patience)
        finally:
            del places[place]
            if not places:
                self._places.pop(peer, None)
