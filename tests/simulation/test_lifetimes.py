"""Nothing outlives its connection in the simulation, either: over memory and over simulated QUIC."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from openline.backends.base import Link
from openline.testing.conformance.lifetimes import lifetimes

from .stage import Stage, simulated

SOON = 60.0

ENDS: dict[str, Callable[[Link], None]] = {
    "goodbye": lambda link: link.close(1000, "bye"),
    "abort": lambda link: link.abort(),
    "cut": lambda link: link.cut(1009, "too much"),
}


@pytest.mark.parametrize("offer", ["memory", "quic"])
@pytest.mark.parametrize("end", ENDS)
@simulated
async def test_whoever_ends_it(stage: Stage, offer: str, end: str) -> None:
    stage.a.offers = stage.b.offers = (offer,)
    a, b = await stage.two()
    with lifetimes() as counted:
        for ender in (a, b):
            await a.send(b, 1)
            for connection in list(ender.transport._table.connections):
                ENDS[end](connection.link)
            del connection
            await counted.all_gone(SOON, 1.0)


@pytest.mark.parametrize("offer", ["memory", "quic"])
@pytest.mark.parametrize("fault", ["links break", "silence"])
@simulated
async def test_whatever_ends_it(stage: Stage, offer: str, fault: str) -> None:
    stage.a.offers = stage.b.offers = (offer,)
    a, b = await stage.two()
    with lifetimes() as counted:
        await a.send(b, 1)
        if fault == "links break":
            stage.network.break_links(stage.a, stage.b, spread=0.0)
        else:
            stage.network.cut(stage.a, stage.b)
        await counted.all_gone(SOON, 1.0)
