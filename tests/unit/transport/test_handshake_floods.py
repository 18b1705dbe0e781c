"""Floods of clients that prove nothing are bounded and stop nobody (rules 3.6 and 3.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from .conftest import Make
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    speak,
)
from .rawsocket import Actor, Raw


async def test_thousands_who_say_hello_and_never_prove_it_are_bounded_and_stop_nobody(make: Make) -> None:
    limit = 64
    t, peer = await make(max_pending_handshakes=limit), await make("peer")
    box, address = Box(t), await serve(t)
    port = port_of(address)
    await peer.send(address, task("before"))
    flood: list[Raw] = []
    most = 0

    async def one() -> None:
        nonlocal most
        raw = await Raw.tcp(port)
        flood.append(raw)
        try:
            await speak(raw, Actor())
        except (EOFError, ConnectionError):
            return  # it has made room already
        most = max(most, t.stats().pending_handshakes)

    try:
        for _ in range(40):
            await within(asyncio.gather(*(one() for _ in range(50))), 10.0)
            assert t.stats().pending_handshakes <= limit
        assert 0 < most <= limit
        stats = t.stats()
        assert stats.handshakes_evicted >= 2000 - limit
        assert (stats.active, stats.accepted, len(t.peers())) == (1, 1, 1)
        await peer.send(address, task("while"))
        new = await make("new")
        await within(new.send(address, task("new")), 2.0)
        assert box.payloads == ["before", "while", "new"]
    finally:
        for raw in flood:
            raw.close()
    await eventually(lambda: t.stats().pending_handshakes == 0)


async def test_who_has_proven_himself_is_never_pushed_out(make: Make) -> None:
    t = await make(max_pending_handshakes=4)
    address = await serve(t)
    good = [await Raw.connect(port_of(address), Actor()) for _ in range(8)]
    flood = [await Raw.tcp(port_of(address)) for _ in range(32)]
    await eventually(lambda: t.stats().handshakes_evicted >= 28)
    assert t.stats().active == 8
    for raw in [*good, *flood]:
        raw.close()


async def test_a_flood_of_wrong_proofs_stops_nobody(make: Make) -> None:
    t, peer = await make(), await make("peer")
    box, address = Box(t), await serve(t)
    await peer.connect(address)

    async def liar() -> None:
        raw = await Raw.tcp(port_of(address))
        said = await speak(raw, Actor())
        await said.prove(bytes(64))
        await within(raw.gone())
        raw.close()

    work: list[Awaitable[Any]] = [liar() for _ in range(200)]
    await within(asyncio.gather(*work, *(peer.send(address, task(n)) for n in range(200))))
    assert sorted(box.payloads) == list(range(200))
    await eventually(lambda: t.stats().malformed == 200)
    assert (t.stats().active, t.stats().pending_handshakes) == (1, 0)
