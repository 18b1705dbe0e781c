"""Where nodes have been reached: what lets a program send to a bare node id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from .address import Address
from .core.selection import Endpoint

# Long enough for a laptop's lunch break; a stale entry costs one failed dial, never a misdelivery,
# because whoever answers there has to prove the node id.
KEPT_FOR = 3600.0
MAX_NODES = 4096
MAX_PER_NODE = 4


class Book:
    """Addresses at which node ids have been proven, the latest last. All carry the node id."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._nodes: OrderedDict[str, OrderedDict[Address, float]] = OrderedDict()

    def note(self, end: Endpoint) -> None:
        """A connection has proven who is there: where it was dialed, or where it says it listens."""
        if end.node_id is None:
            return
        addresses = [end.target] if end.target is not None else _listening(end)
        if not addresses:
            return
        entries = self._nodes.setdefault(end.node_id, OrderedDict())
        self._nodes.move_to_end(end.node_id)
        for address in addresses:
            if not address.dialable:
                continue
            address = msgspec.structs.replace(address, node_id=end.node_id)
            entries.pop(address, None)
            entries[address] = self._loop.time() + KEPT_FOR
        while len(entries) > MAX_PER_NODE:
            entries.popitem(last=False)
        if len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)

    def of(self, node_id: str) -> list[Address]:
        """Where that node may be reached, the latest first."""
        now = self._loop.time()
        entries: OrderedDict[Address, float]
        entries = self._nodes.get(node_id) or OrderedDict()
        return [address for address, until in reversed(entries.items()) if now < until]


def _listening(end: Endpoint) -> list[Address]:
    """What a hello says, at the IP it came from; over TLS where it came over TLS."""
    ports = end.hello.ports[:MAX_PER_NODE] if end.hello else ()
    # A certificate names a host, which an IP rarely is: such a peer is dialed by its name only.
    return [] if end.secure and end.backend != "quic" else [Address(end.ip, port) for port in ports]
