"""close() leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import warnings
from typing import Any

import pytest

import openline

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import Box, Dials, eventually, open_files, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def busy_life(certificate: Certificate) -> None:
    """Everything a program does, in one; all transports are closed at the end."""
    dials = Dials()
    secure = openline.Tls(cert=certificate.cert, key=certificate.key, ca=certificate.cert)
    config = openline.Config(close_timeout=0.3, backoff_min=0.02, backoff_max=0.05)
    tls = openline.Config(close_timeout=0.3, tls=secure, compression=True)
    async with (
        openline.load_transport(config) as a,
        openline.load_transport(config, opener=dials) as b,
        openline.load_transport(tls) as c,
    ):

        @a.on_message
        async def handle(peer: openline.Peer, message: openline.Message) -> None:
            await asyncio.sleep(0)
            await peer.reply(message, message.payload)

        at_a, at_c = await serve(a), f"wss://{await serve(c)}"
        await c.send(at_c, task("to itself"))
        await b.connect(at_a, keep=True)
        await asyncio.gather(*(b.request(at_a, message, timeout=2.0) for message in tasks(50)))
        await b.send_batch(at_a, [task(n, stream_id=n) for n in range(50)])
        client = await Raw.connect(port_of(at_a))
        await client.say("left open")
        half_open = await Raw.tcp(port_of(at_a))
        iterator = c.messages()
        await within(anext(iterator))
        waiting = [asyncio.ensure_future(b.receive(at_a, "never")) for _ in range(3)]
        hanging = asyncio.ensure_future(a.request(client.address, task(), timeout=9.0))
        await asyncio.sleep(0.01)
        dials.error = OSError(errno.EHOSTUNREACH, "no route")
        await b.connect("127.0.0.1:9", keep=True)
        dials.gate.clear()
        stuck = asyncio.ensure_future(b.send("127.0.0.1:10", task()))
        await asyncio.sleep(0.01)
    await iterator.aclose()
    await asyncio.wait([*waiting, hanging, stuck], timeout=1.0)
    for one in (*waiting, hanging, stuck):
        one.cancel()
    await asyncio.gather(*waiting, hanging, stuck, return_exceptions=True)
    client.close()
    half_open.close()


async def test_close_leaves_no_task(certificate: Certificate) -> None:
    before = others()
    await busy_life(certificate)
    assert others() - before == set()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
async def test_close_leaves_no_socket(certificate: Certificate) -> None:
    await busy_life(certificate)
    gc.collect()
    before = open_files()
    for _ in range(3):
        await busy_life(certificate)
    await eventually(lambda: open_files() <= before, 1.0)


async def test_close_leaves_no_garbage_that_complains(certificate: Certificate) -> None:
    """No unclosed transport, no coroutine that was never awaited, no exception never retrieved."""
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await busy_life(certificate)
        gc.collect()
        await asyncio.sleep(0.01)
    assert complaints == []
    assert [str(warning.message) for warning in caught] == []


async def test_close_leaves_no_timer(make: Make) -> None:
    a, b = await make(), await make()
    a.on_message(lambda peer, message: peer.reply(message))
    await b.request(await serve(a), task(), timeout=60.0)
    await a.close()
    await b.close()
    loop = asyncio.get_running_loop()
    live = [timer for timer in getattr(loop, "_scheduled", []) if not timer.cancelled()]
    assert [timer for timer in live if "openline" in repr(timer)] == []


async def test_a_closed_transport_can_be_forgotten(make: Make) -> None:
    """Nothing keeps it alive: a program may open and close transports for ever."""

    async def one() -> None:
        async with openline.load_transport() as a, openline.load_transport() as b:
            a.on_message(lambda peer, message: peer.reply(message))
            await b.request(await serve(a), task(), timeout=2.0)

    counts = []
    for _ in range(3):
        for _ in range(10):
            await one()
        gc.collect()
        counts.append(sum(type(found) is openline.Transport for found in gc.get_objects()))
    assert counts[-1] <= counts[0] <= 1


@pytest.mark.parametrize("backend", ["quic", "websocket"])
async def test_100_transports_open_talk_and_close(make: Make, backend: str) -> None:
    """One backend at a time: on a busy machine a hundred races bring some that are lost."""
    hub = await make()
    box = Box(hub)
    address = await serve(hub)

    async def visit(number: int) -> None:
        config = openline.Config(name=str(number), backends=(backend,))  # type: ignore[arg-type]
        async with openline.load_transport(config) as t:
            await t.send(address, task(number))

    await within(asyncio.gather(*(visit(number) for number in range(100))))
    await eventually(lambda: sorted(box.payloads) == list(range(100)))
    await eventually(lambda: hub.stats().active == 0)
    assert (hub.stats().accepted, hub.stats().malformed) == (100, 0)


async def test_a_peer_that_closes_while_it_is_sent_to_costs_no_exception_in_the_loop(
    make: Make, raw: Open
) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    t = await make()
    port = port_of(await serve(t))
    for number in range(20):
        client = await raw(port, Actor(9) if number % 2 else None)
        await eventually(lambda: t.stats().active == 1)
        sending = asyncio.ensure_future(t.send_batch(client.address, [task("x" * 5000)] * 200))
        await asyncio.sleep(0)
        client.reset()
        await eventually(lambda: t.stats().active == 0)
        sending.cancel()  # to an openline peer it would wait for the acknowledgement
        await asyncio.gather(sending, return_exceptions=True)
    assert complaints == []
