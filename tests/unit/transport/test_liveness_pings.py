"""Pings of others are answered, whoever sends them and whatever is busy (rule 3.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import openline

from ..clock import elapse
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, RawServer, frozen_server
from .wire import BINARY, PING, batch, frame, plain

Plain = Callable[..., Any]


async def test_pings_of_a_plain_peer_are_answered_while_a_handler_is_slow(
    make: Make, plain_client: Plain
) -> None:
    t = await make()
    gate = asyncio.Event()

    @t.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    client = await plain_client(port_of(await serve(t)))
    for number in range(20):
        await client.send(plain(number).decode())
    for _ in range(3):
        await within(await client.ping(), 0.5)
    gate.set()


async def test_a_websockets_peer_with_tight_keepalive_stays(make: Make, plain_client: Plain) -> None:
    t = await make()
    box = Box(t)
    client = await plain_client(port_of(await serve(t)), ping_interval=0.05, ping_timeout=0.3)
    await elapse(0.8)
    await client.send(plain("still here").decode())
    await eventually(lambda: box.payloads == ["still here"])


async def test_a_pong_carries_what_the_ping_carried(make: Make, raw: Open) -> None:
    t = await make()
    client = await raw(port_of(await serve(t)))
    for payload in (b"", b"x", b"y" * 125):
        await client.frame(PING, payload)
        assert await client.read() == (0x8A, payload)


async def test_ping_measures_the_round_trip_and_receipts_tell_it(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    assert 0 < await b.ping(address) < 1.0
    receipt = await b.send(address, task())
    assert receipt.rtt is not None
    assert 0 < receipt.rtt < 1.0


async def test_ping_to_a_frozen_peer_times_out(make: Make, raw_server: RawServer) -> None:
    t = await make()
    await frozen_server(t, raw_server)
    with pytest.raises(TimeoutError):
        await within(t.ping(raw_server.address, timeout=0.1), 1.0)


async def test_an_openline_peer_whose_inbox_is_full_is_not_taken_for_dead(make: Make) -> None:
    """Its transport answers pings, whatever its handlers do."""
    a = await make(inbox_messages=16, max_idle_timeout=0.6)
    b = await make(max_idle_timeout=0.6)
    gate = asyncio.Event()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    sending = asyncio.ensure_future(b.send_batch(await serve(a), tasks(2000)))
    await elapse(0.8)
    assert [(t.stats().closed, t.stats().suspects) for t in (a, b)] == [(0, 0), (0, 0)]
    gate.set()
    await within(sending)


async def test_an_openline_peer_that_ignores_stop_is_held_back_by_tcp_and_not_killed(
    make: Make, raw: Open
) -> None:
    t = await make(inbox_messages=16, inbox_bytes=64 * 1024, max_idle_timeout=0.6)
    client = await raw(port_of(await serve(t)), Actor(9))
    await client.frame(BINARY, batch([], opens={"default": 1}))
    chunk = frame(BINARY, batch([task("x" * 10_000) for _ in range(4)]))

    async def ignore() -> None:
        for _ in range(5000):
            await client.send(chunk)

    ignoring = asyncio.ensure_future(ignore())
    await elapse(0.8)
    assert not ignoring.done()
    assert t.stats().bytes_received < 32 * 1024 * 1024
    assert t.stats().closed == 0
    ignoring.cancel()
    await asyncio.gather(ignoring, return_exceptions=True)
