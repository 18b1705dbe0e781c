"""Where nodes have been reached: what lets a program send to a bare node id."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from ..address import Address
from ..core.endpoints import Endpoint
from ..core.share import Share

# Long enough for a laptop's lunch break; a stale entry costs one failed dial, never a misdelivery,
# because whoever answers there has to prove the node id.
KEPT_FOR = 3600.0
MAX_NODES = 4096
MAX_PER_NODE = 4
# What nodes may take that this program has no reason to know, in bytes: some 1,000 of them.
STRANGERS_BYTES = 1024 * 1024
NODE_BYTES = 1024

Entries = OrderedDict[Address, float]


class KnownNodes:
    """Addresses at which node ids have been proven, the latest last. All carry the node id.

    Nodes that this program has no reason to know are kept apart, in one share for all of them
    (rule 3.10), by the IP that they came from.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._nodes: OrderedDict[str, Entries] = OrderedDict()
        self._strangers: dict[str, OrderedDict[str, Entries]] = {}
        self._share: Share[str] = Share(STRANGERS_BYTES)
        # Which of those holds a node.
        self._ip_of: dict[str, str] = {}

    def note(self, end: Endpoint, known: bool) -> None:
        """A connection has proven who is there: where it was dialed, or where it says it listens."""
        node_id = end.node_id
        if node_id is None:
            return
        addresses = [end.target] if end.target is not None else _listening(end)
        addresses = [address for address in addresses if address.dialable]
        if not addresses:
            return
        known = known or end.target is not None or node_id in self._nodes
        entries = self._taken_out(node_id)
        for address in addresses:
            address = msgspec.structs.replace(address, node_id=node_id)
            entries.pop(address, None)
            entries[address] = self._loop.time() + KEPT_FOR
        while len(entries) > MAX_PER_NODE:
            entries.popitem(last=False)
        if known:
            self._keep(node_id, entries)
        else:
            self._keep_for_stranger(node_id, end.ip, entries)

    def of(self, node_id: str) -> list[Address]:
        """Where that node may be reached, the latest first. Who is asked for is no stranger."""
        now = self._loop.time()
        if node_id not in self._nodes and node_id in self._ip_of:
            self._keep(node_id, self._taken_out(node_id))
        entries: Entries = self._nodes.get(node_id) or OrderedDict()
        return [address for address, until in reversed(entries.items()) if now < until]

    def _keep(self, node_id: str, entries: Entries) -> None:
        self._nodes[node_id] = entries
        if len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)

    def _keep_for_stranger(self, node_id: str, ip: str, entries: Entries) -> None:
        self._strangers.setdefault(ip, OrderedDict())[node_id] = entries
        self._ip_of[node_id] = ip
        self._weigh(ip)
        while (payer := self._share.excess()) is not None:
            oldest, _ = self._strangers[payer].popitem(last=False)
            del self._ip_of[oldest]
            self._weigh(payer)

    def _taken_out(self, node_id: str) -> Entries:
        if node_id in self._nodes:
            return self._nodes.pop(node_id)
        ip = self._ip_of.pop(node_id, None)
        if ip is None:
            return OrderedDict()
        entries = self._strangers[ip].pop(node_id)
        self._weigh(ip)
        return entries

    def _weigh(self, ip: str) -> None:
        theirs = self._strangers[ip]
        self._share.set(ip, NODE_BYTES * len(theirs))
        if not theirs:
            del self._strangers[ip]


def _listening(end: Endpoint) -> list[Address]:
    """What a hello says, at the IP it came from."""
    ports = end.hello.ports[:MAX_PER_NODE] if end.hello else ()
    return [Address(end.ip, port) for port in ports]
