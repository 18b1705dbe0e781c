"""The QUIC backend: dialing and listening, on whatever parts it is given."""

from __future__ import annotations

import socket
from typing import Generic

from ...address import Address
from ...config import Config
from ...errors import Unreachable
from ..base import Doorkeeper, Link, OnBad
from ..binding import Where
from ..race import AllFailed, Race, merged
from ..sockets import describe, resolve
from .dial import Attempt, Dial
from .listener import QuicListener
from .parts import D, Parts


class QuicBackend(Generic[D]):
    """Opens and accepts QUIC links for one transport. ``native.quic_backend`` makes one for this machine."""

    name = "quic"
    schemes: tuple[str, ...] = ("quic",)
    secure = True

    def __init__(self, config: Config, doorkeeper: Doorkeeper, on_bad: OnBad, parts: Parts[D]) -> None:
        self._config = config
        self._doorkeeper = doorkeeper
        self._on_bad = on_bad
        self._parts = parts
        self.files = parts.files

    async def listen(self, host: Where, port: int) -> QuicListener[D]:
        """Raises ``OSError`` where the port cannot be had."""
        listener = QuicListener(self._config, self._doorkeeper, self._on_bad, self._parts)
        await listener.start(host, port)
        return listener

    def distrust(self, address: Address) -> None:
        """Every dial begins with the smallest datagrams anyway."""

    async def dial(self, address: Address) -> Link:
        """Open a link to any of the host's addresses, staggered; the caller bounds the time."""
        try:
            found = await resolve(address, socket.SOCK_DGRAM)
        except OSError as error:
            raise Unreachable(str(address), [(f"look-up of {address.host}", describe(error))]) from None
        race: Race[Dial[D]] = Race(Dial.hang_up)
        parts, config, doorkeeper = self._parts, self._config, self._doorkeeper
        attempts = [Attempt(parts, config, doorkeeper, address, *where) for where in found]
        try:
            _, dial = await race.run(attempts)
        except AllFailed as failed:
            raise merged(address, failed.errors) from None
        return dial.enter()
