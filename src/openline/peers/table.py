"""Who is reachable over what: remote nodes and their live connections, indexed by what a send may ask for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..address import Address
from ..core.handshake import Hello
from ..core.selection import Endpoint, Plan, Rank, Want, crowd, match, plan
from .remote import Remote, RemoteConnection

# Addresses kept for a connection that has replaced others.
MAX_ALIASES = 16


class Table:
    """Live connections, indexed by what a send may ask for."""

    def __init__(
        self, make_remote: Callable[[object, Endpoint], Remote], is_own: Callable[[Hello], bool]
    ) -> None:
        self._make_remote = make_remote
        self._is_own = is_own
        self._remotes: dict[object, Remote] = {}
        # A program may keep a Peer; if its node comes back, so does that very object.
        self._kept: weakref.WeakValueDictionary[object, Remote] = weakref.WeakValueDictionary()
        self._by_ip: dict[str, dict[RemoteConnection, None]] = {}
        self._by_target: dict[tuple[str, int], dict[RemoteConnection, None]] = {}
        # Of connections that came in, by protocol.
        self._by_remote: dict[tuple[str, str, int], RemoteConnection] = {}
        self._aliased: dict[tuple[str, int], dict[RemoteConnection, None]] = {}
        self.connections: dict[RemoteConnection, None] = {}
        # Changes whenever a cached choice may have become wrong.
        self.generation = 0

    def __iter__(self) -> Iterator[Remote]:
        return iter(self._remotes.values())

    def add(self, connection: RemoteConnection) -> Remote:
        end = connection.endpoint
        self.connections[connection] = None
        self._by_ip.setdefault(end.ip, {})[connection] = None
        if end.target is not None:
            self._by_target.setdefault((end.target.host, end.target.port), {})[connection] = None
        else:
            self._by_remote[_remote(end)] = connection
        self.generation += 1
        key = self._key(end)
        remote = self._remotes.get(key)
        if remote is None:
            remote = self._remotes[key] = self._kept.get(key) or self._make_remote(key, end)
            if not end.plain or end.target is not None:
                self._kept[key] = remote  # a plain client's port may be another client's next time
        remote.attach(connection)
        return remote

    def changed(self) -> None:
        """What a cached choice depends on is not as it was."""
        self.generation += 1

    def _key(self, end: Endpoint) -> object:
        """What makes two connections one peer's: the proven node id, else where it is."""
        if end.hello is not None:
            # A connection to ourselves has two ends here, which are two peers.
            own = self.is_own(end)
            return ("node", end.node_id, end.direction if own else "")
        if end.target is not None:
            return str(end.target)
        return end.ip, end.port

    def is_own(self, end: Endpoint) -> bool:
        return end.hello is not None and self._is_own(end.hello)

    def remove(self, connection: RemoteConnection) -> None:
        end, remote = connection.endpoint, connection.remote
        self.connections.pop(connection, None)
        _discard(self._by_ip, end.ip, connection)
        if end.target is not None:
            _discard(self._by_target, (end.target.host, end.target.port), connection)
        elif self._by_remote.get(_remote(end)) is connection:
            del self._by_remote[_remote(end)]
        for alias in end.aliases:
            _discard(self._aliased, (alias.host, alias.port), connection)
        crowd(end, [other.endpoint for other in self._by_ip.get(end.ip, ())])
        self.generation += 1
        remote.detach(connection)
        self.forget(remote)

    def moved(self, connection: RemoteConnection, ip: str, port: int) -> None:
        """Its far end is at another address now."""
        end = connection.endpoint
        _discard(self._by_ip, end.ip, connection)
        if self._by_remote.get(_remote(end)) is connection:
            del self._by_remote[_remote(end)]
        end.ip, end.port = ip, port
        self._by_ip.setdefault(ip, {})[connection] = None
        if end.target is None:
            self._by_remote[_remote(end)] = connection

    def forget(self, remote: Remote) -> None:
        """Drop a peer that is gone, has nothing left to read, and whose session is over."""
        if remote.connections or remote.requests.out or remote.outstanding.session is not None:
            return
        if remote.mailboxes.idle:
            self._remotes.pop(remote.key, None)

    def candidates(self, want: Want) -> Sequence[RemoteConnection]:
        """Every live connection that could possibly answer for ``want``, or make it ambiguous."""
        found: dict[RemoteConnection, None] = {}
        address = want.address
        found.update(self._by_target.get((address.host, address.port), {}))
        for ip in want.ips:
            found.update(self._by_ip.get(ip, {}))
        if address.node_id is not None:
            found.update(dict.fromkeys(self._of_node(address.node_id)))
        for connection in self._aliased.get((address.host, address.port), ()):
            found[connection] = None
        return list(found)

    def _of_node(self, node_id: str) -> list[RemoteConnection]:
        """Live connections to that node; those to ourselves are two peers'."""
        keys = [("node", node_id, ""), ("node", node_id, "inbound"), ("node", node_id, "outbound")]
        return [c for key in keys if key in self._remotes for c in self._remotes[key].connections]

    def alias(self, connection: RemoteConnection, target: Address) -> None:
        """``target`` was dialed to the same node, by a connection that this one has replaced."""
        end = connection.endpoint
        if target in end.aliases:
            return
        end.aliases = (*end.aliases, target)
        if len(end.aliases) > MAX_ALIASES:
            oldest, *rest = end.aliases
            end.aliases = tuple(rest)
            if all((a.host, a.port) != (oldest.host, oldest.port) for a in rest):
                _discard(self._aliased, (oldest.host, oldest.port), connection)
        self._aliased.setdefault((target.host, target.port), {})[connection] = None
        self.generation += 1

    def node(self, node_id: str) -> Remote | None:
        """The peer with that node id, also while it is gone."""
        return self._remotes.get(("node", node_id, ""))

    def knows(self, node_id: str) -> bool:
        """Has this program a reason to know that node?"""
        remote = self.node(node_id)
        return remote is not None and remote.known

    def plan(self, want: Want) -> Plan[RemoteConnection]:
        return plan(want, self.candidates(want))

    def dialed_to(self, address: Address) -> Iterable[RemoteConnection]:
        """Live connections that were dialed to this host and port, by name: no look-up needed."""
        key = address.host, address.port
        return [*self._by_target.get(key, ()), *self._aliased.get(key, ())]

    def at_ip(self, ip: str) -> list[RemoteConnection]:
        return list(self._by_ip.get(ip, ()))

    def at_remote(self, ip: str, port: int, *, udp: bool = False) -> RemoteConnection | None:
        return self._by_remote.get(("udp" if udp else "tcp", ip, port))

    def matches(self, want: Want, remote: Remote) -> bool:
        """Is ``remote`` the one that ``want`` speaks of? Also for a peer that has gone since."""
        ends = [c.endpoint for c in remote.connections] or [remote.endpoint]
        all_ends = [c.endpoint for c in self.candidates(want)]
        all_ends += [end for end in ends if end not in all_ends]
        return any(isinstance(match(want, end, all_ends), Rank) for end in ends)


def _remote(end: Endpoint) -> tuple[str, str, int]:
    return end.protocol, end.ip, end.port


def _discard(
    index: dict[Any, dict[RemoteConnection, None]], key: object, connection: RemoteConnection
) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(connection, None)
        if not entries:
            del index[key]
