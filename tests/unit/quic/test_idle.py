"""What a connection costs on which nothing is said: no timer but its idle time-out, and no growing memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline
from openline.backends.quic.clock import LOOKS, STALL, Clock
from openline.backends.quic.core import ALONE, Qh3Core
from openline.backends.quic.engine import Engine

from ..transport.helpers import Box, eventually
from .conftest import Make

IDLE_TIMEOUT = 20.0


def engine_of(t: openline.Transport) -> Engine[Any]:
    [connection] = t._table.connections
    return connection.link._engine  # type: ignore[attr-defined, no-any-return]


async def pair(make: Make) -> tuple[Engine[Any], Engine[Any]]:
    """Both ends of one connection: of who dialed, and of who accepted."""
    server, client = await make("server"), await make("client")
    Box(server)
    listener = await server.listen(0, host="127.0.0.1")
    await client.connect(f"quic://127.0.0.1:{listener.port}")
    await eventually(lambda: server.stats().active == 1)
    return engine_of(client), engine_of(server)


async def ask(engine: Engine[Any], number: int) -> None:
    """One ping, and its answer."""
    link = engine.user
    before = engine._heard_at
    link.ping(b"%d" % number)  # type: ignore[attr-defined]
    await eventually(lambda: engine._heard_at > before)


def kept(engine: Engine[Any]) -> int:
    """Packets that the core remembers until they are acknowledged."""
    assert isinstance(engine.core, Qh3Core)
    assert engine.core._core is not None
    return len(engine.core._core.outstanding_application_packets)


async def test_a_ping_is_answered_without_a_timer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = await pair(make)
    await asyncio.sleep(0.2)  # for what is left of the handshake
    fired: list[Engine[Any]] = []
    on_timer = Engine._on_timer

    def count(self: Engine[Any]) -> None:
        fired.append(self)
        on_timer(self)

    monkeypatch.setattr(Engine, "_on_timer", count)
    server.stop()  # a timer that is set already would call what it has been given
    server._stopped = False
    server._clock.join()
    for number in range(ALONE // 2):
        await ask(client, number)
    assert server not in fired


async def test_who_only_listens_remembers_no_more_and_more_acknowledgements(make: Make) -> None:
    client, server = await pair(make)
    for number in range(10 * ALONE):
        await ask(client, number)
        assert kept(server) <= 3 * ALONE
    assert kept(client) <= 3 * ALONE


# The clock ------------------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_stall_of_our_loop_is_no_time() -> None:
    time = Time()
    clock = Clock(time, IDLE_TIMEOUT)
    clock.join()
    time.now += 60.0
    period = IDLE_TIMEOUT / LOOKS
    assert clock.now() == pytest.approx(100.0 + period)
    time.now += 0.5
    assert clock.now() == pytest.approx(100.0 + period)  # the timer is still to come
    clock._look()
    time.now += 0.5
    assert clock.now() == pytest.approx(100.5 + period)
    clock.leave()


async def test_a_timer_may_be_late_by_less_than_a_stall() -> None:
    time = Time()
    clock = Clock(time, IDLE_TIMEOUT)
    clock.join()
    time.now += IDLE_TIMEOUT / LOOKS + STALL / 2
    assert clock.now() == time.now
    clock.leave()


async def test_a_clock_that_nobody_uses_has_no_timer() -> None:
    time = Time()
    clock = Clock(time, IDLE_TIMEOUT)
    clock.join()
    clock.join()
    clock.leave()
    assert clock._timer is not None
    clock.leave()
    assert clock._timer is None
    time.now += 60.0
    assert clock.now() == 160.0


async def test_the_clock_of_a_transport_stops_with_its_last_connection(make: Make) -> None:
    client, server = await pair(make)
    clocks = client._clock, server._clock
    client.user.abort()  # type: ignore[attr-defined]
    await eventually(lambda: all(clock._timer is None for clock in clocks))
