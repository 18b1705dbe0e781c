"""From an address or a peer to the connection that carries the next message (rule 3.1).

The rule itself is in ``core/selection.py``; this adds what it needs from outside: name look-ups,
dials, and a cache for the common case that nothing has changed since the last send.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from ..address import Address, join
from ..backends.select import Choice
from ..connection.context import Context
from ..core.endpoints import Endpoint, matched
from ..core.lifecycle import State
from ..core.port_memory import Kind, PortMemory
from ..core.selection import RANK_TEXT, Plan, Quality, Rank, Reject, Want, best_of, match
from ..errors import Refused, Unreachable
from ..known_peers.memory import KnownPeers
from ..message import BY_ADDRESS, BY_NODE_ID
from ..peers.remote import Remote, RemoteConnection
from ..peers.table import Table
from .dialer import Dialer
from .known_nodes import KnownNodes
from .lookup import Lookup

# Addresses whose last choice is kept; they are this program's own.
MAX_ROUTES = 4096
# Seconds after the first send by IP alone that a dial looks whether somebody else listens there: the
# answers to a peer that is there for a moment only cause no dial.
LOOK_AFTER = 0.5
# How an address may have reached a node so that what was sent there is that node's.
_BY_DIAL = (Rank.DIALED, Rank.ALIAS, Rank.SAME_NODE)
# Seconds that a probe of a silent QUIC connection takes at most until it is suspect, and how often to look.
VERDICT = 3.0
LOOK_AGAIN = 0.05
# Ports at which a plain peer is known not to listen.
MAX_NOT_AT = 16
_UNKNOWN_NODE = "no live connection to that node, and no address of it is known; write NODEID@host:port"


class Explanation(msgspec.Struct, frozen=True):
    """What ``Transport.explain`` returns: the connection a send would take now, and why not the others.

    ``chosen`` is None where a send would dial, or fail; ``why`` says which. ``others`` holds
    ``(connection, reason)`` pairs, ``matched`` how the peer was recognised, as in ``Receipt``. All
    are texts; ``str()`` of the whole is readable.
    """

    address: str
    chosen: str | None
    why: str
    others: tuple[tuple[str, str], ...] = ()
    matched: str | None = None

    def __str__(self) -> str:
        by = f", matched by {self.matched}" if self.matched else ""
        lines = [f"{self.address}: {self.chosen or 'no connection'} ({self.why}{by})"]
        return "\n".join(lines + [f"  not {other}: {reason}" for other, reason in self.others])


class Router:
    """Finds connections for one transport."""

    def __init__(
        self,
        context: Context,
        table: Table,
        dialer: Dialer,
        backends: Choice,
        known_peers: KnownPeers,
    ) -> None:
        config, loop = context.config, context.loop
        self._context = context
        self._log = context.log
        self._backends = backends
        self._table = table
        self._dialer = dialer
        self._plain_reuse = config.plain_reuse
        self._certified = config.certified
        self._loop = loop
        self._routes: dict[str | Address, tuple[int, RemoteConnection, Address, str]] = {}
        # Whose claim was believed where a dial had found no way.
        self._by_claim: dict[Address, str | None] = {}
        self._lookup = Lookup(loop)
        self.known_nodes = KnownNodes(loop)
        self._known_peers = known_peers
        self._ports = PortMemory()

    def quick(self, address: str | Address) -> tuple[int, RemoteConnection, Address, str] | None:
        """The last choice for this address, if it certainly still is the right one.

        Generation, connection, parsed address, how the peer was recognised.
        """
        route = self._routes.get(address)
        if route is None or route[0] != self._table.generation:
            return None
        connection = route[1]
        return route if connection.state is State.LIVE and not connection.link.congested else None

    async def find(self, address: Address) -> tuple[RemoteConnection, bool]:
        """A connection for ``address``, and whether it was there already.

        Raises ``Unreachable``, ``Refused`` or ``IdentityConflict``. The connection may be
        congested, and suspect where nothing better could be had.
        """
        self._backends.check(address)
        self._known_peers.refresh()
        plan = await self._plan(address)
        chosen = plan.chosen
        if chosen is not None and chosen.quality >= Quality.CONGESTED:
            self._remember(address, plan)
            return chosen, True
        if self._is_remote_end(address):
            return _last_resort(chosen, str(address), _CLIENT), True
        if not address.dialable:
            return await self._by_known_node(address, chosen)
        try:
            connection = await self._dialer.connect(address)
        except Unreachable as error:
            if chosen is None and error.no_route:
                chosen = await self._after_no_route(address) or await self._after_the_verdict(address)
            if chosen is None or chosen.link.closing:
                raise self._with_hint(address, error) from None
            return chosen, True  # a suspect connection beats none
        if connection.endpoint.direction == "inbound":  # it came while the dial was under way
            plan = self._table.plan(self.want_now(address))
            if plan.chosen is connection:
                self._remember(address, plan)
        return connection, False

    def _with_hint(self, address: Address, error: Unreachable) -> Unreachable:
        if not self._was_client(address):
            return error
        return Unreachable(
            error.address, [*error.tried, ("open connections", _WAS_CLIENT)], no_route=error.no_route
        )

    def _was_client(self, address: Address) -> bool:
        place = address.host, address.port, self._loop.time()
        return not address.tls and bool(self._ports.lately(Kind.REMOTE, "tcp", *place))

    async def _by_known_node(
        self, address: Address, last: RemoteConnection | None
    ) -> tuple[RemoteConnection, bool]:
        """A bare node id: dial where that node has been reached or said that it listens."""
        assert address.node_id is not None
        tried: list[tuple[str, str]] = []
        for known in self.known_nodes.of(address.node_id):
            try:
                return await self._dialer.connect(known), False
            except (Unreachable, Refused) as error:
                tried.append((str(known), str(error)))
        if last is None or last.link.closing:
            raise Unreachable(str(address), tried or [("known addresses", _UNKNOWN_NODE)])
        return last, True

    async def _after_no_route(self, address: Address) -> RemoteConnection | None:
        """There is no way there now: what only a dial comes before may be it after all.

        A refused dial is another matter: then who listened there is gone, and nobody else is it.
        """
        want = await self.want(address)
        return self._believe(address, self._table.plan(msgspec.structs.replace(want, no_route=True)))

    def _believe(self, address: Address, plan: Plan[RemoteConnection]) -> RemoteConnection | None:
        if plan.chosen is not None:
            self._remember(address, plan)
            if plan.rank is Rank.HELLO:
                self._by_claim[address] = plan.chosen.remote.node_id
        return plan.chosen

    async def _after_the_verdict(self, address: Address) -> RemoteConnection | None:
        """Two nodes claim that port, and one of them is being probed: wait until it is known which."""
        want = msgspec.structs.replace(await self.want(address), no_route=True)
        until = self._loop.time() + VERDICT
        while self._loop.time() < until:
            plan = self._table.plan(want)
            if plan.chosen is not None and plan.chosen.usable:
                return self._believe(address, plan)
            if all(reason != Reject.TWO_CLAIMS.value for _, reason in plan.passed_over):
                return None
            await asyncio.sleep(LOOK_AGAIN)
        return None

    async def find_for(self, remote: Remote) -> tuple[RemoteConnection, bool]:
        """The same for a peer: any of its connections, else a dial to where it listens."""
        best = best_of(remote.connections)
        if best is not None and best.quality >= Quality.CONGESTED:
            return best, True
        where = remote.dial_address
        if where is None or (remote.node_id is None and self._is_remote_end(where)):
            if remote.node_id is not None:
                return await self._by_known_node(Address("", 0, None, remote.node_id), best)
            return _last_resort(best, remote.address, _CLIENT), True
        if remote.node_id is not None and not remote.own:
            where = msgspec.structs.replace(where, node_id=remote.node_id)
        try:
            return await self._dialer.connect(where), False
        except Unreachable:
            if best is None or best.link.closing:
                raise
            return best, True

    async def want(self, address: Address) -> Want:
        """What a send to ``address`` asks for, looking its name up if need be."""
        return self._want(address, await self._lookup.of(address))

    def want_now(self, address: Address) -> Want:
        """The same from what is known already."""
        return self._want(address, self._lookup.known(address)[0])

    def _want(self, address: Address, ips: tuple[str, ...]) -> Want:
        """With what the memory of ports says of that place."""
        now, port, places = self._loop.time(), address.port, self._ports
        protocol = "udp" if address.scheme == "quic" else "tcp"
        answered = places.dialed(address, ips, now)
        lately = {note.who for note, _, recent in answered if recent}
        plain_at = {host for note, host, recent in answered if recent and not note.who}
        nodes_at = {host for note, host, recent in answered if recent and note.who}
        formerly = {note.who for note, _, recent in answered if not recent}
        taken, others, hints = set(lately), set(), {}
        for ip in ips:
            formerly |= places.claimed(ip, port, now)
            taken |= places.lately(Kind.REMOTE, protocol, ip, port, now)
            if any(
                (
                    places.lately(Kind.REMOTE, "tcp", ip, port, now),
                    places.lately(Kind.CLAIMED, "", ip, port, now),
                )
            ):
                others.add(ip)
            for hint in places.lately(Kind.HINT, "", ip, port, now):
                hints[ip] = hint
        return Want(
            address,
            ips,
            self._plain_reuse,
            self._certified,
            others=frozenset(ips if address.host in nodes_at else others | nodes_at),
            dialed=frozenset(ips if address.host in plain_at else plain_at),
            hints=hints,
            reached=frozenset(lately - {""}),
            taken=frozenset(taken),
            formerly=frozenset(formerly),
            sealed=self._backends.sealed(address, ips),
            known=self._known_peers.node_at(address),
        )

    def ips_now(self, address: Address) -> tuple[str, ...]:
        """IPs of its host that are known already. Raises ``Unreachable`` where no backend dials it."""
        self._backends.check(address)
        return self._lookup.known(address)[0]

    def evict(self, connection: RemoteConnection) -> None:
        """It failed when it was used: no send shall choose it again; its last bytes are still read."""
        self._context.counters.evictions += 1
        self._log.about(connection.remote, logging.INFO, "evicted: %r", connection)
        connection.set_state(State.DRAINING)
        self.went(connection)
        self._table.remove(connection)
        connection.remote.presence.lost(connection, "the connection was found dead when it was used")

    def explain(self, address: Address) -> Explanation:
        try:
            self._backends.check(address)
        except Unreachable as error:
            return Explanation(str(address), None, str(error))
        known = self._lookup.known(address)[1]
        plan = self._table.plan(self.want_now(address))
        others = tuple((repr(other), reason) for other, reason in plan.passed_over)
        if plan.chosen is not None and plan.rank is not None:
            why = RANK_TEXT[plan.rank]
            if plan.chosen.quality < Quality.CONGESTED:
                why += f"; {plan.chosen.status}, so a dial is tried first"
            by = matched(address, plan.rank)
            return Explanation(str(address), repr(plan.chosen), why, others, by)
        why = _CLIENT if self._is_remote_end(address) else self._would_dial(address)
        if not address.dialable:
            places = self.known_nodes.of(address.node_id or "")
            return Explanation(
                str(address), None, f"would dial {places[0]}" if places else _UNKNOWN_NODE, others
            )
        if not known:
            why += f"; {address.host} has not been looked up yet"
        return Explanation(str(address), None, why, others)

    def _would_dial(self, address: Address) -> str:
        order = self._backends.order(address)
        why = f"would dial, by {', then by '.join(backend.name for backend in order)}"
        return f"{why}; {_WAS_CLIENT}" if self._was_client(address) else why

    def came(self, connection: RemoteConnection) -> None:
        """A connection has opened."""
        end = connection.endpoint
        self._look_for_a_downgrade(connection)
        self.told(connection)
        if end.target is not None:
            self._ports.reached(end, self._loop.time())
            self._is_somebody_elses(end)

    def _look_for_a_downgrade(self, connection: RemoteConnection) -> None:
        """What is plain text to a node that was reached encrypted carries nothing for a bare address."""
        end, node_id = connection.endpoint, connection.remote.node_id
        if node_id is None or self._context.config.plaintext == "allow":
            return
        others = [other.endpoint for other in connection.remote.connections]
        if self._backends.sealed_node(node_id) or any(other.secure for other in others):
            for each in (*others, end):
                each.was_encrypted()

    def told(self, connection: RemoteConnection) -> None:
        """It has said where it listens."""
        self.known_nodes.note(connection.endpoint, connection.remote.known)

    def went(self, connection: RemoteConnection) -> None:
        """A connection has ended, or is not used any more."""
        self._routes.clear()
        known = connection.remote.known
        self._ports.gone(connection.endpoint, self._loop.time(), known)
        if known:
            self.known_nodes.note(connection.endpoint, known)

    def _is_somebody_elses(self, end: Endpoint) -> None:
        """Somebody answers at that port: the plain peer that stood for it by its IP alone does not."""
        for other in self._table.at_ip(end.ip):
            if other.endpoint.bound_port == end.port:
                other.endpoint.bound_port = None
                other.endpoint.not_at = (*other.endpoint.not_at, end.port)[-MAX_NOT_AT:]

    def matched(self, to: Address | Remote, connection: RemoteConnection) -> str:
        """How the peer was recognised that gets a message over this connection; for receipts."""
        if isinstance(to, Remote):
            return BY_ADDRESS if to.plain else BY_NODE_ID
        route = self._routes.get(to)
        if route is not None and route[1] is connection:
            return route[3]
        verdict = self._verdict(to, connection)
        return matched(to, verdict) if isinstance(verdict, Rank) else BY_ADDRESS

    def answers_by_dial(self, address: Address, connection: RemoteConnection) -> bool:
        """Has dialing ``address`` reached the node of this connection, and nobody else since?"""
        return self._verdict(address, connection) in _BY_DIAL

    def receives(self, want: Want, remote: Remote) -> bool:
        """Is ``remote`` the one whose messages ``receive()`` wants, by what is known now?"""
        address = want.address
        want = self._want(address, want.ips)
        if remote.node_id is not None and self._by_claim.get(address) == remote.node_id:
            want = msgspec.structs.replace(want, no_route=True)
        return self._table.matches(want, remote)

    def shared(self, address: Address) -> bool:
        """Do several processes answer in turn where it is dialed?"""
        return self._ports.shared(address, self._loop.time())

    def _verdict(self, address: Address, connection: RemoteConnection) -> Rank | Reject:
        want = self.want_now(address)
        return match(want, connection.endpoint, [c.endpoint for c in self._table.candidates(want)])

    # ---------------------------------------------------------------------------------------------

    async def _plan(self, address: Address) -> Plan[RemoteConnection]:
        """Plan without a look-up where a connection dialed to that very name is good."""
        if not address.dialable:
            return self._table.plan(self._want(address, ()))
        if not address.is_ip and any(c.usable for c in self._table.dialed_to(address)):
            plan = self._table.plan(self._want(address, ()))
            if plan.chosen is not None and plan.chosen.usable:
                return plan
        return self._table.plan(await self.want(address))

    def _remember(self, address: Address, plan: Plan[RemoteConnection]) -> None:
        chosen = plan.chosen
        assert chosen is not None
        assert plan.rank is not None
        if plan.rank is Rank.PLAIN_BY_IP and chosen.endpoint.bound_port is None:
            chosen.endpoint.bound_port = address.port
            self._table.changed()
            self._by_ip_alone(address, chosen)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        if len(self._by_claim) >= MAX_ROUTES:
            self._by_claim.clear()
        route = self._table.generation, chosen, address, matched(address, plan.rank)
        self._routes[str(address)] = self._routes[address] = route

    def _by_ip_alone(self, address: Address, connection: RemoteConnection) -> None:
        """Say so, and look in the background whether somebody else listens there."""
        end = connection.endpoint
        where = Address(end.ip, address.port, address.scheme)
        first = self._ports.is_first_by_ip(end.ip, address.port, self._loop.time())
        level = logging.WARNING if first else logging.DEBUG  # however often it connects anew
        place = join(end.ip, address.port)
        self._log.about(connection.remote, level, _BY_IP_ALONE, address, connection, place)

        def in_doubt() -> bool:
            return end.bound_port == address.port and connection.state is not State.CLOSED

        self._dialer.look(where, LOOK_AFTER, in_doubt)

    def _is_remote_end(self, address: Address) -> bool:
        """Is it the far end of a connection that has come in? Then it is never dialed."""
        if not address.is_ip or address.scheme == "wss" or (address.tls and self._certified):
            return False
        return self._table.at_remote(address.host, address.port, udp=address.tls) is not None


_CLIENT = (
    "this is the far end of a connection that came in, so it is never dialed; the peer has to connect again"
)
_WAS_CLIENT = (
    "this was the far end of a connection that came in and is gone; a client has to connect again by itself"
)
_BY_IP_ALONE = (
    "%s: goes to %r by its IP alone, as that is the one plain peer there, which says nothing of its "
    'ports. If another program may listen at %s, set plain_reuse="never", write NODEID@ in front of the '
    "address, or answer with peer.send and peer.reply"
)


def _last_resort(connection: RemoteConnection | None, address: str, reason: str) -> RemoteConnection:
    if connection is None or connection.link.closing:
        raise Unreachable(address, [("open connections", reason)])
    return connection
