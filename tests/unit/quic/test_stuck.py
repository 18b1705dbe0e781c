"""A core that can build no packet any more: its connection is over, and nothing is lost."""

from __future__ import annotations

from typing import Any

from ..transport.helpers import Box, task, within
from .conftest import Make


class Stuck:
    """As qh3 (2.1) is where a path has shrunk at a bad moment."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def poll_transmit(self, now: float) -> None:
        raise RuntimeError("packet builder capacity exhausted")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


async def test_another_connection_takes_over(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    address = f"quic://127.0.0.1:{(await b.listen(0, host='127.0.0.1')).port}"
    await within(a.send(address, task("before")))
    [connection] = a._node.table.connections
    core: Any = connection.link._engine.core  # type: ignore[attr-defined]
    core._core = Stuck(core._core)
    receipt = await within(a.send(address, task("after")))
    assert receipt.acked
    assert box.payloads == ["before", "after"]
    assert connection not in a._node.table.connections
    assert a.stats().created == 2
