"""Links that are lost between the moment they open and the moment they are used."""

from __future__ import annotations

import pytest

import openline
from openline.address import Address
from openline.backends.base import NOBODY, Link

from .conftest import Make
from .helpers import Box, eventually, serve, task


class ShortLived:
    """Cuts the first link that a transport dials, before anybody takes it up."""

    def __init__(self, transport: openline.Transport, monkeypatch: pytest.MonkeyPatch) -> None:
        backends = transport._board.backends
        self._dial = backends.dial
        self.dialed = 0
        monkeypatch.setattr(backends, "dial", self.dial)

    async def dial(self, address: Address) -> Link:
        link = await self._dial(address)
        self.dialed += 1
        if self.dialed == 1:
            link.abort()
            await eventually(lambda: link.events is NOBODY)
        return link


@pytest.mark.parametrize("scheme", ["ws", "quic"])
async def test_what_died_as_soon_as_it_was_open_is_unreachable_and_the_next_send_dials_again(
    scheme: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make(), await make()
    box = Box(b)
    place = await serve(b)
    short = ShortLived(a, monkeypatch)
    with pytest.raises(openline.Unreachable, match="died as soon as it was open") as caught:
        await a.send(f"{scheme}://{place}", task("lost"))
    backend = {"ws": "websocket", "quic": "quic"}[scheme]
    assert [path for path, _ in caught.value.tried] == [f"{backend} {place}"]
    assert (a.stats().dials, a.stats().dial_failures, short.dialed) == (1, 1, 1)
    receipt = await a.send(f"{scheme}://{place}", task("through"))
    assert (receipt.acked, short.dialed) == (True, 2)
    await eventually(lambda: box.payloads == ["through"])
