"""From an address or a peer to the connection that carries the next message (rule 3.1).

The rule itself is in ``core/selection.py``; this adds what it needs from outside: name look-ups,
dials, and a cache for the common case that nothing has changed since the last send.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from .address import Address
from .backends.choice import Choice
from .backends.sockets import ip_of, numeric, resolve
from .book import Book
from .config import Config
from .connection import Connection
from .core.selection import RANK_TEXT, Plan, Quality, Rank, Reject, Want, best_of
from .dialing import Dialer
from .errors import Refused, Unreachable
from .peers import Peer, PeerTable

# A look-up serves comparing addresses for this long; a dial always looks up afresh.
LOOKUP_TTL = 10.0
MAX_CACHED = 4096
# What is remembered of the ports at an IP, for this long after it was last so; by then the number
# may have another use. The remote end of a connection that came in is a client's port, which
# nobody listens on, so it is not dialed.
PORT_TTL = 600.0
# Seconds that a probe of a silent QUIC connection takes at most until it is suspect, and how often to look.
VERDICT = 3.0
LOOK_AGAIN = 0.05
_UNKNOWN_NODE = "no live connection to that node, and no address of it is known; write NODEID@host:port"


class Explanation(msgspec.Struct, frozen=True):
    """What ``Transport.explain`` returns: the connection a send would take now, and why not the others.

    ``chosen`` is None where a send would dial, or fail; ``why`` says which. ``others`` holds
    ``(connection, reason)`` pairs. All are texts; ``str()`` of the whole is readable.
    """

    address: str
    chosen: str | None
    why: str
    others: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.address}: {self.chosen or 'no connection'} ({self.why})"]
        return "\n".join(lines + [f"  not {other}: {reason}" for other, reason in self.others])


class Router:
    """Finds connections for one transport."""

    def __init__(
        self,
        table: PeerTable,
        dialer: Dialer,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        backends: Choice,
    ) -> None:
        self._backends = backends
        self._table = table
        self._dialer = dialer
        self._plain_reuse = config.plain_reuse
        self._certified = config.certified
        self._loop = loop
        self._routes: dict[str | Address, tuple[int, Connection, Address]] = {}
        self._lookups: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        self.book = Book(loop)
        # Ports that were a client's far end, that an openline node listened on, and that a dial
        # to a plain peer reached.
        self._ephemeral = _Ports(loop)
        self._named = _Ports(loop)
        self._dialed = _Ports(loop)
        # Who last stood for a port by IP alone, by what it called itself.
        self._hints = _Ports(loop)

    def quick(self, address: str | Address) -> tuple[int, Connection, Address] | None:
        """The last choice for this address, if it certainly still is the right one.

        Generation, connection, parsed address.
        """
        route = self._routes.get(address)
        if route is None or route[0] != self._table.generation or not route[1].usable:
            return None
        return route

    async def find(self, address: Address) -> tuple[Connection, bool]:
        """A connection for ``address``, and whether it was there already.

        Raises ``Unreachable``, ``Refused`` or ``IdentityConflict``. The connection may be
        congested, and suspect where nothing better could be had.
        """
        self._backends.check(address)
        plan = await self._plan(address)
        chosen = plan.chosen
        if chosen is not None and chosen.quality >= Quality.CONGESTED:
            self._remember(address, plan)
            return chosen, True
        if self._is_ephemeral(address):
            return _last_resort(chosen, str(address), _GONE_CLIENT), True
        if not address.dialable:
            return await self._by_book(address, chosen)
        try:
            return await self._dialer.connect(address), False
        except Unreachable as error:
            if chosen is None and error.no_route:
                chosen = await self._by_ip_after_all(address) or await self._after_the_verdict(address)
            if chosen is None or chosen.link.closing:
                raise
            return chosen, True  # a suspect connection beats none

    async def _by_book(self, address: Address, last: Connection | None) -> tuple[Connection, bool]:
        """A bare node id: dial where that node has been reached or said that it listens."""
        assert address.node_id is not None
        tried: list[tuple[str, str]] = []
        for known in self.book.of(address.node_id):
            try:
                return await self._dialer.connect(known), False
            except (Unreachable, Refused) as error:
                tried.append((str(known), str(error)))
        if last is None or last.link.closing:
            raise Unreachable(str(address), tried or [("known addresses", _UNKNOWN_NODE)])
        return last, True

    async def _by_ip_after_all(self, address: Address) -> Connection | None:
        """Dialed before, and now there is no way there: may the one plain peer at that IP be it?

        A refused dial is another matter: then who listened there is gone, and nobody else is it.
        """
        want = await self.want(address)
        plan = self._table.plan(msgspec.structs.replace(want, dialed=frozenset()))
        if plan.chosen is not None:
            self._remember(address, plan)
        return plan.chosen

    async def _after_the_verdict(self, address: Address) -> Connection | None:
        """Two nodes claim that port, and one of them is being probed: wait until it is known which."""
        want = await self.want(address)
        until = self._loop.time() + VERDICT
        while self._loop.time() < until:
            plan = self._table.plan(want)
            if plan.chosen is not None and plan.chosen.usable:
                return plan.chosen
            if all(reason != Reject.TWO_CLAIMS.value for _, reason in plan.passed_over):
                return None
            await asyncio.sleep(LOOK_AGAIN)
        return None

    async def find_for(self, peer: Peer) -> tuple[Connection, bool]:
        """The same for a peer: any of its connections, else a dial to where it listens."""
        best = best_of(peer.connections)
        if best is not None and best.quality >= Quality.CONGESTED:
            return best, True
        where = peer.dial_address
        if where is None or self._is_ephemeral(where):
            if peer.node_id is not None:
                return await self._by_book(Address("", 0, None, peer.node_id), best)
            return _last_resort(best, peer.address, _GONE_CLIENT), True
        if peer.node_id is not None and not peer.own:
            where = msgspec.structs.replace(where, node_id=peer.node_id)
        try:
            return await self._dialer.connect(where), False
        except Unreachable:
            if best is None or best.link.closing:
                raise
            return best, True

    async def want(self, address: Address) -> Want:
        """What a send to ``address`` asks for, looking its name up if need be."""
        return self._want(address, await self._lookup(address))

    def want_now(self, address: Address) -> Want:
        """The same from what is known already."""
        return self._want(address, self._known_ips(address)[0])

    def _want(self, address: Address, ips: tuple[str, ...]) -> Want:
        port = address.port
        others = [ip for ip in ips if self._ephemeral.has(ip, port) or self._named.has(ip, port)]
        dialed = [ip for ip in ips if self._dialed.has(ip, port)]
        hints = {ip: hint for ip in ips if (hint := self._hints.note(ip, port))}
        return Want(
            address, ips, self._plain_reuse, self._certified, frozenset(others), frozenset(dialed), hints
        )

    def explain(self, address: Address) -> Explanation:
        try:
            self._backends.check(address)
        except Unreachable as error:
            return Explanation(str(address), None, str(error))
        known = self._known_ips(address)[1]
        plan = self._table.plan(self.want_now(address))
        others = tuple((repr(other), reason) for other, reason in plan.passed_over)
        if plan.chosen is not None and plan.rank is not None:
            why = RANK_TEXT[plan.rank]
            if plan.chosen.quality < Quality.CONGESTED:
                why += f"; {plan.chosen.status}, so a dial is tried first"
            return Explanation(str(address), repr(plan.chosen), why, others)
        why = _GONE_CLIENT if self._is_ephemeral(address) else self._would_dial(address)
        if not address.dialable:
            places = self.book.of(address.node_id or "")
            return Explanation(
                str(address), None, f"would dial {places[0]}" if places else _UNKNOWN_NODE, others
            )
        if not known:
            why += f"; {address.host} has not been looked up yet"
        return Explanation(str(address), None, why, others)

    def _would_dial(self, address: Address) -> str:
        order = self._backends.order(address)
        return f"would dial, by {', then by '.join(backend.name for backend in order)}"

    def came(self, connection: Connection) -> None:
        """A connection has opened."""
        end = connection.endpoint
        self.book.note(end)
        if end.plain and end.direction == "outbound":
            self._dialed.add(end.ip, end.port)
        for port in end.hello.ports if end.hello else ():
            self._ephemeral.discard(end.ip, port)  # a client's once, and a listener's now

    def went(self, connection: Connection) -> None:
        """A connection has ended; if it had come in, its far port is not one to dial."""
        self._routes.clear()
        end = connection.endpoint
        for port in end.hello.ports if end.hello else ():
            self._named.add(end.ip, port)
        if end.direction == "inbound":
            self._ephemeral.add(end.ip, end.port)
        if end.bound_port is not None and end.hint:
            self._hints.add(end.ip, end.bound_port, end.hint)

    # ---------------------------------------------------------------------------------------------

    async def _plan(self, address: Address) -> Plan[Connection]:
        """Plan without a look-up where a connection dialed to that very name is good."""
        if not address.dialable:
            return self._table.plan(self._want(address, ()))
        if not address.is_ip and any(c.usable for c in self._table.dialed_to(address)):
            plan = self._table.plan(self._want(address, ()))
            if plan.chosen is not None and plan.chosen.usable:
                return plan
        return self._table.plan(await self.want(address))

    def _remember(self, address: Address, plan: Plan[Connection]) -> None:
        chosen = plan.chosen
        assert chosen is not None
        if plan.rank is Rank.PLAIN_BY_IP and chosen.endpoint.bound_port is None:
            chosen.endpoint.bound_port = address.port
            self._table.generation += 1
        if len(self._routes) >= MAX_CACHED:
            self._routes.clear()
        self._routes[str(address)] = self._routes[address] = self._table.generation, chosen, address

    def _known_ips(self, address: Address) -> tuple[tuple[str, ...], bool]:
        if address.is_ip or not address.dialable:
            return (numeric(address) if address.dialable else ()), True
        cached = self._lookups.get(address.host)
        return (cached[1], True) if cached else ((), False)

    async def _lookup(self, address: Address) -> tuple[str, ...]:
        """IPs of the host; none where the look-up fails, which only a dial has to report."""
        if not address.dialable:
            return ()
        if address.is_ip:
            return numeric(address)
        cached = self._lookups.get(address.host)
        if cached is not None and self._loop.time() < cached[0]:
            return cached[1]
        try:
            ips = tuple(dict.fromkeys(ip_of(sockaddr) for _, sockaddr in await resolve(address)))
        except OSError:
            ips = ()
        self._lookups[address.host] = self._loop.time() + LOOKUP_TTL, ips
        if len(self._lookups) > MAX_CACHED:
            self._lookups.popitem(last=False)
        return ips

    def _is_ephemeral(self, address: Address) -> bool:
        if not address.is_ip or address.scheme not in (None, "ws"):
            return False
        gone = self._ephemeral.has(address.host, address.port)
        return gone or self._table.at_remote(address.host, address.port) is not None


_GONE_CLIENT = (
    "this is the far end of a connection that came in, so it is never dialed; the peer has to connect again"
)


class _Ports:
    """Ports of IPs of which something was so lately. Bounded; the oldest is forgotten."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until: OrderedDict[tuple[str, int], tuple[float, str]] = OrderedDict()

    def add(self, ip: str, port: int, note: str = "") -> None:
        self._until[ip, port] = self._loop.time() + PORT_TTL, note
        self._until.move_to_end((ip, port))
        if len(self._until) > MAX_CACHED:
            self._until.popitem(last=False)

    def discard(self, ip: str, port: int) -> None:
        self._until.pop((ip, port), None)

    def has(self, ip: str, port: int) -> bool:
        return self.note(ip, port) is not None

    def note(self, ip: str, port: int) -> str | None:
        until, note = self._until.get((ip, port), (0.0, ""))
        return note if self._loop.time() < until else None


def _last_resort(connection: Connection | None, address: str, reason: str) -> Connection:
    if connection is None or connection.link.closing:
        raise Unreachable(address, [("open connections", reason)])
    return connection
