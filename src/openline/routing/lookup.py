"""What host names resolve to, for comparing addresses. A dial always looks up afresh."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ..address import Address
from ..backends.sockets import ip_of, numeric, resolve

LOOKUP_TTL = 10.0
# Names that this program sends to; the one looked up longest ago is forgotten.
MAX_NAMES = 4096


class Lookup:
    """Results of look-ups, for a while."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._found: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()

    def known(self, address: Address) -> tuple[tuple[str, ...], bool]:
        """IPs of the host as far as they are known, and whether they are."""
        if address.is_ip or not address.dialable:
            return (numeric(address) if address.dialable else ()), True
        cached = self._found.get(address.host)
        return (cached[1], True) if cached else ((), False)

    async def of(self, address: Address) -> tuple[str, ...]:
        """IPs of the host; none where the look-up fails, which only a dial has to report."""
        if not address.dialable:
            return ()
        if address.is_ip:
            return numeric(address)
        cached = self._found.get(address.host)
        if cached is not None and self._loop.time() < cached[0]:
            return cached[1]
        try:
            ips = tuple(dict.fromkeys(ip_of(sockaddr) for _, sockaddr in await resolve(address)))
        except OSError:
            ips = ()
        self._found[address.host] = self._loop.time() + LOOKUP_TTL, ips
        self._found.move_to_end(address.host)
        if len(self._found) > MAX_NAMES:
            self._found.popitem(last=False)
        return ips
