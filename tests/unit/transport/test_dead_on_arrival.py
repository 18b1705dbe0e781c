"""Links that are lost between the moment they open and the moment they are used."""

from __future__ import annotations

import pytest

import openline
from openline.address import Address
from openline.backends.base import NOBODY, Link

from .conftest import Make
from .helpers import Box, eventually, serve, task


class ShortLived:
    """Cuts what a transport dials, so many times, before anybody takes it up."""

    def __init__(self, transport: openline.Transport, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        backends = transport._board.backends
        self._dial = backends.dial
        self.left = times
        self.dialed = 0
        monkeypatch.setattr(backends, "dial", self.dial)

    async def dial(self, address: Address) -> Link:
        link = await self._dial(address)
        self.dialed += 1
        if self.left:
            self.left -= 1
            link.abort()
            await eventually(lambda: link.events is NOBODY)
        return link


@pytest.mark.parametrize("scheme", ["ws://", "quic://"])
async def test_what_died_as_soon_as_it_was_open_is_dialed_again(
    scheme: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make(max_attempts=3), await make()
    box = Box(b)
    short = ShortLived(a, 2, monkeypatch)
    receipt = await a.send(scheme + await serve(b), task("through"))
    assert (receipt.acked, short.dialed) == (True, 3)
    await eventually(lambda: box.payloads == ["through"])
    assert (a.stats().dials, a.stats().dial_failures) == (1, 0)


async def test_after_max_attempts_it_is_unreachable_and_the_error_says_why(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make(max_attempts=3), await make()
    box = Box(b)
    address = "ws://" + await serve(b)
    short = ShortLived(a, 3, monkeypatch)
    with pytest.raises(openline.Unreachable, match="died as soon as it was open") as caught:
        await a.connect(address)
    assert [path for path, _ in caught.value.tried] == [address.replace("ws://", "websocket ")]
    assert (short.dialed, box.payloads) == (3, [])
    assert (a.stats().dials, a.stats().dial_failures) == (1, 1)
