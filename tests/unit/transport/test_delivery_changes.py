"""Each message once and in order, whichever connections die in between (rule 3.4)."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import pytest

import openline

from ..clock import elapse
from .certificates import Certificate
from .conftest import Make
from .helpers import (
    Box,
    eventually,
    port_of,
    serve,
    task,
    tasks,
    within,
)
from .lines import Lay, Line, answering
from .rawsocket import two_identities

MiB = 1024 * 1024


async def test_a_batch_through_many_resets(make: Make, line: Lay) -> None:
    a, b = await make(window_messages=256), await make()
    box = Box(b)
    way = await line(await serve(b))
    sending = asyncio.ensure_future(insisting_batch(a, way.address, tasks(10_000)))
    for count in range(500, 10_000, 500):
        await eventually(lambda count=count: len(box) >= count, 20.0)
        way.cut()
    await within(sending, 20.0)
    assert box.payloads == list(range(10_000))
    assert b.stats().accepted >= 5


async def insisting_batch(a: openline.Transport, address: str, messages: list[openline.Message]) -> None:
    while messages:
        try:
            await a.send_batch(address, messages)
            return
        except openline.Unreachable as error:
            messages = messages[error.sent :]


async def test_concurrent_sends_on_many_streams_through_resets(make: Make, line: Lay) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    sending: list[Any] = []
    for number in range(100):
        sending += [asyncio.ensure_future(a.send(way.address, task(number, stream_id=n))) for n in range(10)]
        if number % 30 == 20:
            await asyncio.sleep(0.002)
            way.cut()
    outcomes = await within(asyncio.gather(*sending, return_exceptions=True))
    for stream in range(10):
        got = [message.payload for message in box if message.stream_id == stream]
        # A dial may meet the cut, too; then nothing of those has left.
        assert got == [
            n for n in range(100) if not isinstance(outcomes[10 * n + stream], openline.Unreachable)
        ]
        assert len(got) > 50


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_a_large_message_through_a_reset(make: Make, line: Lay, share: float) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    way.cut_after = way.passed + int(10 * MiB * share)
    receipt = await within(a.send(way.address, task(bytes(10 * MiB))))
    assert (receipt.attempts, receipt.acked) == (2, True)
    assert [len(payload) for payload in box.payloads] == [10 * MiB]
    assert a.stats().resent == 1


@pytest.mark.parametrize("direction", ["upward", "downward"])
async def test_a_request_whose_line_is_cut(make: Make, line: Lay, direction: str) -> None:
    """Before the question arrived, or before the answer did: it is handled once, and answered."""
    a, b = await make(), await make()
    asked = answering(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    way.hold(upward=direction == "upward", downward=direction == "downward")
    asking = asyncio.ensure_future(a.request(way.address, task("question")))
    await elapse(0.1)
    assert asked == (["question"] if direction == "downward" else [])
    way.cut()
    way.let_go()
    assert (await within(asking)).payload == "question"
    await elapse(0.1)
    assert asked == ["question"]
    assert b.stats().duplicates_suppressed == (direction == "downward")


@pytest.mark.usefixtures("hurried")
async def test_a_silent_line_is_replaced_before_it_is_dead(make: Make, line: Lay) -> None:
    a, b = await make(max_idle_timeout=1.2), await make(max_idle_timeout=60.0)
    box = Box(b)
    address = await serve(b)
    way = await line(address)
    await a.send(way.address, task("before"))
    way.hold()
    sending = [asyncio.ensure_future(a.send(way.address, task(number))) for number in range(5)]
    await asyncio.sleep(0.05)
    second = asyncio.ensure_future(_again(way, 0.3))
    receipts = await within(asyncio.gather(*sending), 10.0)
    await second
    assert [receipt.attempts for receipt in receipts] == [2] * 5
    assert box.payloads == ["before", *range(5)]
    assert a.stats().suspects == 1


async def _again(way: Line, after: float) -> None:
    """New connections get through; what is under way on the old one is gone."""
    await elapse(after)
    fresh = asyncio.Event()
    fresh.set()
    way._open = {True: fresh, False: fresh}


async def test_the_same_node_comes_in_from_another_address(make: Make, transports: Any) -> None:
    """Its messages and ours go on over that connection, each once."""

    async def from_elsewhere(family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind((next(sources), 0))
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
        return sock

    sources = (f"127.0.0.{number}" for number in itertools.count(2))
    a = await make(identity=two_identities()[1])
    b = await make(opener=from_elsewhere, identity=openline.Identity())
    ours, theirs = Box(a), Box(b)
    address = await serve(a, "0.0.0.0")
    address = f"127.0.0.1:{port_of(address)}"
    await b.send(address, task(0))
    peer = a.peers()[0]
    for number in range(1, 6):
        before = a.stats().accepted
        sending = [asyncio.ensure_future(peer.send(task((number, n)))) for n in range(20)]
        await asyncio.sleep(0)
        for connection in b.peers()[0]._remote.connections:
            connection.link.abort()
        await within(b.send(address, task(number)))
        await within(asyncio.gather(*sending))
        await eventually(lambda before=before: a.stats().accepted > before)
    assert ours.payloads == list(range(6))
    assert [tuple(payload) for payload in theirs.payloads] == [(m, n) for m in range(1, 6) for n in range(20)]
    assert a.peers() == [peer]
    assert a.stats().dials == 0


async def test_a_node_that_dials_twice_keeps_one(make: Make) -> None:
    a, b = await make(), await make()
    there, back = await serve(a), await serve(b)
    box = Box(a)
    await asyncio.gather(*(b.send(there, task(number)) for number in range(10)), a.send(back, task("back")))
    await eventually(lambda: a.stats().active == b.stats().active == 1)
    ids = [t.peers()[0]._remote.connections[0].endpoint.connection_id for t in (a, b)]
    assert ids[0] == ids[1]
    assert box.payloads == list(range(10))


async def test_what_was_sent_to_a_wss_address_is_not_resent_in_the_clear(
    make: Make, line: Lay, certificate: Certificate
) -> None:
    """The same node, proven, comes in over ``ws``; that is less than was asked for."""
    a = await make(tls=openline.Tls(ca=certificate.cert), send_timeout=10.0)
    identity = openline.Identity()
    b = await make(identity=identity, tls=openline.Tls(cert=certificate.cert, key=certificate.key))
    box = Box(b)
    secure = await line(await serve(b))
    plain_door = await serve(a)
    to = f"wss://localhost:{secure.port}"
    await within(a.send(to, task("before")))
    secure.hold()
    sending = asyncio.ensure_future(a.send(to, task("secret")))
    await elapse(0.1)
    way = await line(plain_door)
    said: list[bytes] = []
    before = way._pump

    async def listening(reader: Any, writer: Any, upward: bool) -> None:
        original = reader.read

        async def read(size: int) -> bytes:
            data: bytes = await original(size)
            said.append(data)
            return data

        reader.read = read
        await before(reader, writer, upward)

    way._pump = listening  # type: ignore[method-assign]
    await within(b.connect(f"ws://{way.address}"))
    assert any(b"Openline-Hello" in data for data in said)
    await elapse(0.5)
    assert not any(b"secret" in data for data in said)
    assert box.payloads == ["before"]
    assert not sending.done()
    secure.cut()
    secure.let_go()
    assert (await within(sending, 10.0)).acked
    assert box.payloads == ["before", "secret"]
    assert not any(b"secret" in data for data in said)
