"""Who has been reached encrypted: a bare address never falls back to plain text there (rule 3.8).

For as long as the process lives. Only what this program has dialed is noted, so strangers add nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TypeVar

from ..address import Address
from ..core.selection import Endpoint

log = logging.getLogger("openline")

# Addresses and nodes each; a program that dials more forgets the oldest, and says so.
MAX_SEALED = 65_536

Place = tuple[str, int]
K = TypeVar("K")


class Sealed:
    """Places (host or IP, and port) and node ids."""

    def __init__(self) -> None:
        self._places: OrderedDict[Place, None] = OrderedDict()
        self._nodes: OrderedDict[str, None] = OrderedDict()

    def note(self, end: Endpoint) -> None:
        """A connection has been dialed. Counts where it is encrypted, and its node has proven itself."""
        if not end.secure or end.hello is None or end.target is None:
            return
        for place in ((end.target.host, end.target.port), (end.ip, end.port)):
            _keep(self._places, place)
        _keep(self._nodes, end.hello.node_id)

    def at(self, *places: Place) -> bool:
        return any(place in self._places for place in places)

    def node(self, node_id: str) -> bool:
        return node_id in self._nodes

    def covers(self, address: Address, ips: tuple[str, ...]) -> bool:
        """Is what listens at that address, which asks for nothing, known to encrypt?"""
        if address.scheme is not None or not self._places:
            return False
        return self.at((address.host, address.port), *((ip, address.port) for ip in ips))


def _keep(notes: OrderedDict[K, None], key: K) -> None:
    notes[key] = None
    notes.move_to_end(key)
    if len(notes) > MAX_SEALED:
        oldest, _ = notes.popitem(last=False)
        log.warning("forgot that %s was reached encrypted: more than %d are", oldest, MAX_SEALED)
