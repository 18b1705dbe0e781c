"""One dial of a bare ``host:port`` over TCP: by TLS, or else in plain text to a plain peer (rule 3.8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ...address import Address, join
from ...errors import IdentityConflict, Refused, Unreachable
from ..base import Link, hang_up
from ..race import STAGGER, AllFailed, Race, merged
from ..sockets import forget_frames

# Some servers say nothing to what is no line of HTTP: so long after TLS has begun there, plain text begins,
# too. Together with the head start of QUIC as long as a plain peer had to wait before there was TLS.
PLAIN_AFTER = STAGGER / 2

# Why plain text may not be used at a host or IP, and a port.
WhyNotPlain = Callable[[str, int], str | None]
# ``dial(address, secure, reached)`` calls ``reached`` when TCP is connected.
DialOne = Callable[[Address, bool, Callable[[], object]], Awaitable[Link]]


class BareDial:
    """``plain_first``: a plain peer has answered there lately."""

    def __init__(
        self, address: Address, dial: DialOne, why_not_plain: WhyNotPlain, plain_first: bool
    ) -> None:
        self._address = address
        self._dial = dial
        self._why_not_plain = why_not_plain
        self._plain_first = plain_first
        # TCP gets there. Plain text waits for it: where nobody listens, nobody is asked twice.
        self._reached = asyncio.Event()
        # Or it does not: what was tried, and was there no way? The error itself would lead back here.
        self._nowhere: tuple[Sequence[tuple[str, str]], bool] | None = None

    async def run(self) -> Link:
        """Raises ``Unreachable``, ``Refused`` or ``IdentityConflict``."""
        ways = [self._by_tls, self._in_plain_text]
        race: Race[Link] = Race(hang_up, PLAIN_AFTER, (Refused, IdentityConflict))
        try:
            _, link = await race.run(ways[::-1] if self._plain_first else ways)
        except AllFailed as failed:
            raise merged(self._address, failed.errors) from None
        except BaseException as error:
            forget_frames(error)  # those of the race hold what has failed, and by that this error
            raise
        return link

    async def _by_tls(self) -> Link:
        try:
            return await self._dial(self._address, True, self._reached.set)
        except Unreachable as error:
            if not self._reached.is_set():
                self._nowhere = error.tried, error.no_route
            raise
        finally:
            self._reached.set()

    async def _in_plain_text(self) -> Link:
        address = self._address
        self._check(address.host, address.port)
        if not self._plain_first:
            await self._reached.wait()
        if self._nowhere is not None:
            tried, no_route = self._nowhere
            raise Unreachable(str(address), tried, no_route=no_route)
        link = await self._dial(address, False, lambda: None)
        try:
            self._check(link.endpoint.ip, link.endpoint.port)
        except Unreachable:
            hang_up(link)
            raise
        return link

    def _check(self, host: str, port: int) -> None:
        why = self._why_not_plain(host, port)
        if why is not None:
            raise Unreachable(str(self._address), [(f"ws {join(host, port)}", why)])
