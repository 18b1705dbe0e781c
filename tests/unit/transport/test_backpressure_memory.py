"""Memory stays flat, however much is sent to a slow consumer (rule 3.5)."""

from __future__ import annotations

import gc

import pytest

import openline
from openline.core.frames import Batched

from ..clock import elapse
from ..memory import MiB, needs_resident, resident
from .conftest import Make
from .helpers import again, eventually, port_of, serve, task, tasks
from .rawsocket import Actor, Raw
from .wire import TEXT, frame, plain


@needs_resident
async def test_a_push_only_program_stays_flat_over_a_million_messages(make: Make) -> None:
    a, b = await make(), await make()
    count = 0

    @a.on_message
    def handle(peer: openline.Peer, message: openline.Message) -> None:
        nonlocal count
        count += 1

    address = await serve(a)
    chunk = tasks(20_000)
    await b.send_batch(address, chunk)
    await eventually(lambda: count == 20_000)
    before = resident()
    for _ in range(49):
        await b.send_batch(address, chunk)
    await eventually(lambda: count == 1_000_000, 20.0)
    assert resident() - before < 16 * MiB


@needs_resident
async def test_a_consumer_that_never_reads_stays_flat_in_memory(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    before = resident()
    with pytest.raises(TimeoutError):
        await again(100, lambda _: b.send_batch(address, [task("x" * 1000)] * 2000, timeout=0.3))
    assert a.stats().messages_received < 20_000
    assert resident() - before < 48 * MiB


@needs_resident
async def test_departed_plain_peers_leave_bounded_memory_behind(make: Make) -> None:
    """Each one fills its inbox, which nobody reads, and goes; there is no end to them."""
    a = await make()
    port = port_of(await serve(a))
    before = resident()
    for _ in range(150):
        client = await Raw.connect(port)
        await client.send(frame(TEXT, plain("x" * 10_000)) * 100)
        client.close()
    await eventually(lambda: a.stats().active == 0, 20.0)
    assert resident() - before < 100 * MiB


async def test_clients_that_come_and_go_leave_next_to_nothing_behind(make: Make) -> None:
    a = await make(max_idle_timeout=0.6)
    a.on_message(lambda peer, message: None)
    port = port_of(await serve(a))

    async def come_and_go() -> int:
        for _ in range(300):
            client = await Raw.connect(port)
            await client.say("x")
            client.close()
        await eventually(lambda: a.stats().active == 0)
        await elapse(0.2)  # two liveness intervals: nothing is looked at any more
        gc.collect()
        return len(gc.get_objects())

    before = await come_and_go()
    # A port that is not to be dialed may be remembered for each: a key and an entry.
    assert await come_and_go() - before < 3 * 300


async def test_openline_clients_that_come_and_go_are_forgotten_when_they_cannot_come_back(make: Make) -> None:
    """They say for how long they may come back; then only where they listened is known."""
    a = await make(max_idle_timeout=0.6, resume_timeout=0.1)
    a.on_message(lambda peer, message: None)
    port = port_of(await serve(a))

    async def come_and_go() -> int:
        for number in range(200):
            client = await Raw.connect(port, Actor(1000 + number, resume=0))
            await client.post(task("x"))
            assert await client.decoded() == Batched([], acks=(("default", 2),))
            client.close()
        await eventually(lambda: not list(a._table))
        gc.collect()
        return len(gc.get_objects())

    before = await come_and_go()
    assert await come_and_go() - before < 10 * 200  # a peer is some 40 objects
