"""All backends of one transport, and which of them a dial takes.

An address with a scheme says it. A bare ``host:port`` races them as RFC 8305 describes: the first
of ``Config.backends`` at once, the next when that has failed, or after a while. What is up first and
has proven itself wins; where it was not the first, it is tried first for a while. A backend that can do
without encryption has two ways, and the one in plain text is for plain peers only (rule 3.8): it begins
250 ms after the first, as it did before there was another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeGuard

from ..address import Address
from ..config import Plaintext
from ..errors import IdentityConflict, Refused, Unreachable
from .base import Backend, Door, Link, hang_up
from .binding import PICKS, why
from .certificates import TlsFiles
from .race import STAGGER, AllFailed, Race, merged
from .sealed import Sealed
from .sockets import forget_frames

log = logging.getLogger("openline")

# How long what has worked for an address goes first. A firewall that drops UDP stays for days, a
# network that a laptop has moved to for minutes; trying again costs 250 ms at most.
REMEMBER = 600.0
MAX_REMEMBERED = 4096
# A race that took longer says nothing about backends: then the path itself was gone for a while, and
# it was chance whose packet came first afterwards.
FAIR = 1.0
# Where what is sent over one backend has not got through, the other has this head start instead of
# 250 ms: whichever is up first is not what counts there.
DOUBTED_STAGGER = 1.0


_REACHED_SEALED = (
    "was reached encrypted before, so plain text is not tried: somebody in between may want that. "
    "Write ws:// if it is meant"
)
_REFUSED = "not used: by another way the node there was refused, or refuses this one"


class SealingBackend(Backend, Protocol):
    """One that encrypts where it can, and need not."""

    async def dial_bare(self, address: Address, why_not_plain: Callable[[str, int], str | None]) -> Link:
        """In plain text only where a plain peer is there, and nothing forbids it."""
        ...


class Doors:
    """What listens on one port, for one or more backends."""

    def __init__(self, doors: list[tuple[Backend, Door]], unavailable: dict[str, str]) -> None:
        self._doors = doors
        # Why the others do not listen.
        self.unavailable = unavailable

    def add(self, backend: Backend, door: Door) -> None:
        self._doors.append((backend, door))

    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(backend.name for backend, _ in self._doors)

    @property
    def secure(self) -> bool:
        return all(backend.secure for backend, _ in self._doors if backend.name != "quic")

    @property
    def port(self) -> int:
        return self._doors[0][1].port

    @property
    def pending(self) -> int:
        return sum(door.pending for _, door in self._doors)

    @property
    def evicted(self) -> int:
        return sum(door.evicted for _, door in self._doors)

    async def close(self) -> None:
        for _, door in self._doors:
            await door.close()


class Choice:
    """``backends`` in the order of preference; ``missing`` says why others cannot be had."""

    def __init__(
        self,
        backends: Sequence[Backend],
        missing: dict[str, str],
        dial_timeout: float,
        plaintext: Plaintext = "plain-peers",
    ) -> None:
        self._timeout = dial_timeout
        self._plaintext = plaintext
        self._sealed = Sealed()
        self.backends = tuple(backends)
        self._missing = missing
        self._loop = asyncio.get_running_loop()
        # Those of ``Config.tls``, where the backends have any.
        self.files: TlsFiles | None = next(filter(None, (getattr(b, "files", None) for b in backends)), None)
        self._worked: OrderedDict[tuple[str, int], tuple[float, str]] = OrderedDict()
        # Backends that came up there, and over which what was sent did not get through.
        self._distrusted: OrderedDict[tuple[str, int], tuple[float, str]] = OrderedDict()

    # Dialing -------------------------------------------------------------------------------------

    def check(self, address: Address) -> None:
        """Raises ``Unreachable`` where no backend can dial that."""
        scheme = address.scheme
        if scheme is not None and not any(scheme in backend.schemes for backend in self.backends):
            why = self._missing.get("quic" if scheme == "quic" else "websocket", "not usable here")
            raise Unreachable(str(address), [(scheme, why)])

    def order(self, address: Address) -> list[Backend]:
        """Who is tried for a bare address, the first one first."""
        if address.scheme is not None:
            return [backend for backend in self.backends if address.scheme in backend.schemes]
        worked, distrusted = self._noted(self._worked, address), self._noted(self._distrusted, address)
        return sorted(self.backends, key=lambda b: (b.name == distrusted, b.name != worked))

    def sealed(self, address: Address, ips: tuple[str, ...]) -> bool:
        """Must what is sent to that address be encrypted, as who listens there was reached like that?"""
        return self._plaintext != "allow" and self._sealed.covers(address, ips)

    def sealed_node(self, node_id: str) -> bool:
        """Was that node reached encrypted?"""
        return self._sealed.node(node_id)

    def _noted(self, notes: OrderedDict[tuple[str, int], tuple[float, str]], address: Address) -> str:
        until, name = notes.get((address.host, address.port), (0.0, ""))
        return name if self._loop.time() < until else ""

    def distrust(self, address: Address, name: str) -> None:
        """What was sent over that backend to there did not get through, though it was up: the others go
        first for a while, and what it can do better itself, it does."""
        key = address.host, address.port
        if self._noted(self._worked, address) == name:
            del self._worked[key]
        self._note(self._distrusted, key, name)
        for backend in self.backends:
            if backend.name == name:
                backend.distrust(address)

    def _note(
        self, notes: OrderedDict[tuple[str, int], tuple[float, str]], key: tuple[str, int], name: str
    ) -> None:
        notes[key] = self._loop.time() + REMEMBER, name
        notes.move_to_end(key)
        if len(notes) > MAX_REMEMBERED:
            notes.popitem(last=False)

    async def dial(self, address: Address) -> Link:
        """Open a link within ``Config.dial_timeout``, whichever and however many ways are tried.

        Raises ``Unreachable``, ``Refused`` or ``IdentityConflict``.
        """
        self.check(address)
        order = self.order(address)
        began = self._loop.time()
        dial = _Dial(self, address, began + self._timeout)
        if len(order) == 1:
            link = await dial.by(order[0])
        else:
            wary = self._noted(self._distrusted, address) != ""
            number, link = await self._race(order, dial, wary)
            if self._loop.time() < began + FAIR and not wary:
                self._remember(address, order[number])
        self._sealed.note(link.endpoint)
        return link

    async def _race(self, order: list[Backend], dial: _Dial, wary: bool) -> tuple[int, Link]:
        stagger = STAGGER / 2 if any(map(_has_plain_text, order)) else STAGGER
        race: Race[Link] = Race(hang_up, DOUBTED_STAGGER if wary else stagger)
        try:
            return await race.run([partial(dial.by, backend) for backend in order])
        except AllFailed as failed:
            self._worked.pop((dial.address.host, dial.address.port), None)
            raise merged(dial.address, failed.errors) from None

    def late(self, address: Address, backend: Backend) -> Unreachable:
        """``dial_timeout`` is over."""
        doubt = "; is UDP blocked?" if backend.name == "quic" else ""
        reason = f"no answer within dial_timeout={self._timeout:g} s{doubt}"
        return Unreachable(str(address), [(f"{backend.name} {address.netloc}", reason)], no_route=True)

    def _remember(self, address: Address, winner: Backend) -> None:
        key = address.host, address.port
        if winner is self.backends[0]:
            self._worked.pop(key, None)
            return
        until, worked = self._worked.get(key, (0.0, ""))
        if worked != winner.name or self._loop.time() >= until:
            log.debug("%s answers by %s; that goes first for %g s", address, winner.name, REMEMBER)
            self._note(self._worked, key, winner.name)

    # Listening -----------------------------------------------------------------------------------

    async def listen(self, host: str | None, port: int) -> Doors:
        """The same port for all backends, on the same addresses. Raises ``OSError`` where it cannot be had.

        The TCP port is what counts: where UDP's is somebody else's on any of them, QUIC is left out.
        """
        ordered = sorted(self.backends, key=lambda backend: backend.name == "quic")
        for pick in range(PICKS):
            first = await ordered[0].listen(host, port)
            doors = Doors([(ordered[0], first)], self._missing | getattr(first, "failed", {}))
            # The others on the same addresses, whatever else the name may stand for.
            bound = getattr(first, "hosts", ()) or host
            try:
                for backend in ordered[1:]:
                    doors.add(backend, await backend.listen(bound, doors.port))
            except OSError as error:
                if port == 0 and error.errno == errno.EADDRINUSE and pick + 1 < PICKS:
                    await doors.close()
                    continue
                doors.unavailable["quic"] = f"udp port {doors.port}: {why(error, bound)}"
                log.warning("listening without QUIC: %s", doors.unavailable["quic"])
            except BaseException:
                await doors.close()
                raise
            break
        return doors


class _Dial:
    """One dial of an address, by whatever backends there are."""

    def __init__(self, choice: Choice, address: Address, until: float) -> None:
        self._choice = choice
        self.address = address
        self._until = until
        # Has a node shown itself that is not the one, or does not want us?
        self._refused = False

    async def by(self, backend: Backend) -> Link:
        try:
            async with asyncio.timeout_at(self._until):
                if self.address.scheme is None and _has_plain_text(backend):
                    return await backend.dial_bare(self.address, self._why_not_plain)
                return await backend.dial(self.address)
        except TimeoutError as error:
            forget_frames(error)  # that of the time-out holds the task, which keeps the error
            raise self._choice.late(self.address, backend) from None
        except (Refused, IdentityConflict):
            self._refused = True
            raise

    def _why_not_plain(self, host: str, port: int) -> str | None:
        """Plain text would be a step down (rule 3.8)."""
        if self._choice.sealed(Address(host, port), ()):
            return _REACHED_SEALED
        return _REFUSED if self._refused else None


def _has_plain_text(backend: Backend) -> TypeGuard[SealingBackend]:
    return hasattr(backend, "dial_bare")
