"""Closing, cutting, and traffic that gets in each other's way, over QUIC."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import openline
from openline.backends.quic import link as quiclink
from openline.backends.quic.framing import ANSWER, BINARY
from openline.backends.quic.listener import QuicListener

from ..memory import Peak, needs_peak
from ..transport.helpers import DEADLINE, Box, eventually, task, tasks
from ..transport.rawsocket import Actor
from .conftest import Dial, Make, Serve
from .rawquic import unit

SLOW = 6 * DEADLINE


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, str]:
    t = await make("server", **config)
    box = Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    return t, box, f"quic://127.0.0.1:{listener.port}"


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def door_of(t: openline.Transport) -> QuicListener:
    found = next(door for backend, door in t._listeners[0]._acceptor._doors if backend.name == "quic")
    assert isinstance(found, QuicListener)
    return found


async def overtaken(server: openline.Transport) -> None:
    """The goodbye has come."""
    [connection] = server._table.connections
    await eventually(lambda: connection.link._farewell is not None)  # type: ignore[attr-defined]


# Goodbyes -------------------------------------------------------------------------------------------


async def test_a_goodbye_is_answered_once_everything_has_come(make: Make, dial: Dial) -> None:
    """The goodbye overtakes what was sent before it, on another stream; nothing is lost."""
    server, box, url = await serving(make)
    other = await dial(port_of(url), Actor())
    late = other.numbered(task("late"))
    other.count += 1
    other.goodbye(1000, "bye")
    await asyncio.wait_for(overtaken(server), SLOW)
    assert (server.stats().active, box.payloads) == (1, [])
    other.write(other.track(1), unit(BINARY, late))
    code, _, _ = await other.farewell()
    assert code == 1000 | ANSWER
    assert box.payloads == ["late"]
    other.hang_up(1000)
    await eventually(lambda: server.stats().active == 0, SLOW)


async def test_a_goodbye_that_counts_too_few(make: Make, dial: Dial) -> None:
    server, _, url = await serving(make)
    client = await dial(port_of(url), Actor())
    client.goodbye(1000, count=0)
    assert (await client.gone()).code == 1002
    await eventually(lambda: server.stats().malformed == 1)


async def test_a_goodbye_that_counts_too_many_does_not_hold_us(make: Make, dial: Dial) -> None:
    """Its sender waits for ever; our own close does not."""
    server, _, url = await serving(make, close_timeout=0.3)
    client = await dial(port_of(url), Actor())
    client.goodbye(1000, count=2**63)
    client.post(task("more"))
    await client.until(lambda: client.units or None)
    await asyncio.wait_for(server.close(), SLOW)
    await client.gone()


async def test_two_goodbyes(make: Make, dial: Dial) -> None:
    server, _, url = await serving(make)
    client = await dial(port_of(url), Actor())
    client.goodbye(1000)
    client.goodbye(1001)
    assert (await client.gone()).code == 1002
    await eventually(lambda: server.stats().active == 0, SLOW)


async def test_data_after_the_answer_to_a_goodbye(make: Make, dial: Dial) -> None:
    server, box, url = await serving(make)
    client = await dial(port_of(url), Actor())
    client.goodbye(1000)
    await client.farewell()
    client.post(task("after"))
    assert (await client.gone()).code == 1002
    await eventually(lambda: server.stats().active == 0, SLOW)
    assert not box


@pytest.mark.parametrize("closer", ["client", "server"])
async def test_a_graceful_close_loses_nothing(make: Make, closer: str) -> None:
    server, box, url = await serving(make, close_timeout=SLOW)
    client = await make("client", close_timeout=SLOW)
    back = Box(client)
    await client.connect(url)
    await eventually(lambda: server.stats().active == 1)
    one, other, address, got = (
        (client, server, url, box) if closer == "client" else (server, client, client.node_id, back)
    )
    batches = [
        asyncio.ensure_future(
            one.send_batch(address, [task("x" * 2000, stream_id=n) for _ in range(60)], timeout=SLOW)
        )
        for n in range(5)
    ]
    await asyncio.sleep(0)
    await one.close()
    results = await asyncio.wait_for(asyncio.gather(*batches), SLOW)
    assert sum(receipt.acked for receipts in results for receipt in receipts) == len(got) == 300
    await eventually(lambda: other.stats().active == 0, SLOW)
    assert other.stats().malformed == other.stats().evictions == 0


async def test_both_close_at_once(make: Make) -> None:
    """Whoever is told that something has arrived is told the truth."""
    server, box, url = await serving(make, close_timeout=1.0)
    client = await make("client", close_timeout=1.0)
    back = Box(client)
    await client.connect(url)
    await eventually(lambda: server.stats().active == 1)
    there = [asyncio.ensure_future(client.send(url, task(n), timeout=1.5)) for n in range(100)]
    here = [asyncio.ensure_future(server.send(client.node_id, task(n), timeout=1.5)) for n in range(100)]
    await asyncio.sleep(0)
    await asyncio.gather(client.close(), server.close())
    for sends, got in ((there, box), (here, back)):
        results = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), SLOW)
        assert sum(isinstance(found, openline.Receipt) for found in results) <= len(got)
        assert all(isinstance(found, openline.Receipt | openline.Error | TimeoutError) for found in results)
    assert client.stats().active == server.stats().active == 0


async def test_a_goodbye_that_is_no_answer_to_ours(make: Make, dial: Dial) -> None:
    """Both say it at once: what the other side has not got yet is sent again before the link is cut."""
    server, _, url = await serving(make)
    client = await dial(port_of(url), Actor())
    [connection] = server._table.connections
    hear = client.received
    client.received = lambda data, addr: None  # type: ignore[method-assign]  # all of it is lost
    sending = asyncio.ensure_future(server.send(client.actor.node_id, task("lost at first"), timeout=2.0))
    await eventually(lambda: server.stats().messages_sent == 1)
    connection.link.close(1000, "bye")
    client.goodbye(1000)
    await eventually(lambda: connection.link._farewell is not None)  # type: ignore[attr-defined]
    client.received = hear  # type: ignore[method-assign]
    messages = await asyncio.wait_for(client.take(), SLOW)
    assert [message.payload for message in messages] == ["lost at first"]
    sending.cancel()


async def test_a_client_whose_address_changes(make: Make, dial: Dial) -> None:
    """As behind a NAT that forgets: the same connection goes on, and the way back is the new one."""
    server, box, url = await serving(make)
    client = await dial(port_of(url), Actor())
    old = client.port
    client.take_a_fresh_socket()
    assert client.port != old
    client.post(task("from elsewhere"))
    await eventually(lambda: box.payloads == ["from elsewhere"])
    sending = asyncio.ensure_future(server.send(client.actor.node_id, task("back"), timeout=SLOW))
    await client.takes(sending)
    assert [message.payload for message in client.got] == ["back"]
    assert (server.stats().active, server.stats().accepted) == (1, 1)
    [connection] = server._table.connections
    await eventually(lambda: connection.endpoint.port == client.port)


# Cuts -----------------------------------------------------------------------------------------------


async def test_a_dead_process_is_found_by_what_the_system_says(make: Make, listen: Serve) -> None:
    """Its socket is closed without a word: the next packets are answered by ICMP."""
    t, server = await make(), listen()
    first = asyncio.ensure_future(t.send(server.url, task("hi"), timeout=SLOW))
    end = await server.accept()
    await end.takes(first)
    server.close()
    lost = asyncio.ensure_future(t.send(server.url, task("lost"), timeout=2.0))
    await eventually(lambda: t.stats().active == 0, 3.0)
    with pytest.raises((openline.Error, TimeoutError)):
        await lost


async def test_one_forged_icmp_error_does_not_cut_a_connection(make: Make) -> None:
    server, box, url = await serving(make)
    client = await make()
    await client.send(url, task("one"))
    connection = next(iter(client._table.connections))
    path = connection.link._engine.owner  # type: ignore[attr-defined]
    path.on_error(ConnectionRefusedError(111, "Connection refused"))
    path.on_error(ConnectionRefusedError(111, "Connection refused"))
    await client.send(url, task("two"))
    path.on_error(ConnectionRefusedError(111, "Connection refused"))
    await client.send(url, task("three"))
    assert box.payloads == ["one", "two", "three"]
    assert (client.stats().created, server.stats().active) == (1, 1)


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("end", ["abort", "close", "peer"])
async def test_nothing_is_left_of_a_link_that_has_ended(
    make: Make, dial: Dial, monkeypatch: pytest.MonkeyPatch, paused: bool, end: str
) -> None:
    monkeypatch.setattr(quiclink, "GOODBYE_WAIT", 0.2)
    server, box, url = await serving(make)
    client = await dial(port_of(url), Actor())
    client.post(task("hi"))
    await eventually(lambda: box.payloads == ["hi"])
    connection = next(iter(server._table.connections))
    if paused:
        connection.pause_reading()
    if end == "abort":
        connection.link.abort()
    elif end == "close":
        connection.link.close(1000, "bye")
        if not paused:
            await client.farewell()
            client.goodbye(1000)
    else:
        client.hang_up(1000)
        if paused:
            await eventually(connection.link.broken, SLOW)
            connection.link.abort()
    await eventually(lambda: server.stats().active == 0, SLOW)
    await eventually(lambda: not door_of(server).ports.connections, SLOW)


async def test_an_evicted_connection_is_replaced_and_nothing_is_lost(make: Make) -> None:
    server, box, url = await serving(make)
    client = await make()
    await client.send(url, task(0), timeout=SLOW)
    sends = []
    for number in range(1, 60):
        sends.append(asyncio.ensure_future(client.send(url, task(number), timeout=SLOW)))
        if number % 20 == 0:
            await asyncio.sleep(0)
            for connection in list(client._table.connections):
                connection.link.abort()
    await asyncio.gather(*sends)
    assert box.payloads == list(range(60))
    await eventually(lambda: server.stats().active == client.stats().active == 1, SLOW)


async def test_a_link_that_has_ended_tells_so_at_once(make: Make) -> None:
    _, _, url = await serving(make)
    client = await make()
    await client.connect(url)
    connection = next(iter(client._table.connections))
    connection.link.abort()
    assert connection.link.closing
    assert connection.link.broken()
    connection.link.close(1000, "again")
    connection.link.abort()
    connection.link.ping(b"x")
    connection.link.pong(b"x")
    connection.link.pause_reading()
    connection.link.resume_reading()
    connection.link.write_binary(bytearray(64), 3)
    await eventually(lambda: client.stats().active == 0)
    assert client.stats().closed == 1


# Traffic --------------------------------------------------------------------------------------------


async def test_small_ones_pass_a_big_one(make: Make) -> None:
    """12 MiB on one stream; what is sent on others meanwhile is acknowledged before it is over."""
    _, box, url = await serving(make)
    client = await make()
    await client.connect(url)
    big = asyncio.ensure_future(client.send(url, task(os.urandom(12 << 20), stream_id="big"), timeout=60.0))
    await asyncio.sleep(0)
    small = [await client.send(url, task(n, stream_id="small"), timeout=SLOW) for n in range(20)]
    before = not big.done()
    assert all(receipt.acked for receipt in small)
    assert (await big).acked
    assert before
    assert box.payloads[:-1] == list(range(20))


async def test_a_stopped_stream_stops_no_other(make: Make) -> None:
    server = await make("server", inbox_messages=4)
    listener = await server.listen(0, host="127.0.0.1")
    url = f"quic://127.0.0.1:{listener.port}"
    gate, got = asyncio.Event(), []

    @server.on_message(stream_id="slow")
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    @server.on_message(stream_id="fast")
    def fast(peer: openline.Peer, message: openline.Message) -> None:
        got.append(message.payload)

    client = await make()
    await client.connect(url)
    stuck = [
        asyncio.ensure_future(client.send(url, task("x" * 20_000, stream_id="slow"), timeout=60.0))
        for _ in range(100)
    ]
    await eventually(lambda: server.stats().messages_received > 4)
    for number in range(50):
        await client.send(url, task(number, stream_id="fast"), timeout=SLOW)
    assert got == list(range(50))
    gate.set()
    assert all(receipt.acked for receipt in await asyncio.wait_for(asyncio.gather(*stuck), SLOW))


async def test_a_congested_link_has_room_again(make: Make) -> None:
    _, box, url = await serving(make, inbox_messages=100_000, inbox_bytes=1 << 28)
    client = await make(write_high_water=64 * 1024)
    await client.connect(url)
    connection = next(iter(client._table.connections))
    many = [task(os.urandom(40_000)) for _ in range(100)]
    sending = asyncio.ensure_future(client.send_batch(url, many, timeout=60.0))
    seen = set()
    while not sending.done():  # every turn of the loop: it may not last long
        seen.add(connection.status)
        await asyncio.sleep(0)
    assert seen == {"live", "congested"}
    await asyncio.wait_for(connection.writer.room(), SLOW)
    assert all(receipt.acked for receipt in await sending)
    assert not connection.link.congested
    assert len(box) == 100


@needs_peak
async def test_memory_stays_flat_with_a_slow_consumer(make: Make) -> None:
    server = await make("server", inbox_messages=64, inbox_bytes=1 << 20)
    listener = await server.listen(0, host="127.0.0.1")
    url = f"quic://127.0.0.1:{listener.port}"
    client = await make(window_bytes=1 << 20)
    payload, count = "x" * 50_000, 0

    @server.on_message
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        nonlocal count
        await asyncio.sleep(0)
        count += 1

    await client.connect(url)
    with Peak() as peak:
        for _ in range(4):
            await client.send_batch(url, [task(payload) for _ in range(250)], timeout=60.0)
    await eventually(lambda: count == 1000, SLOW)
    assert peak.grown < 40 << 20


async def test_order_and_exactly_once_on_many_streams(make: Make) -> None:
    """More streams than tracks, all busy: each stays in order."""
    _, box, url = await serving(make)
    client = await make()
    await asyncio.gather(
        *(client.send_batch(url, tasks(20, stream_id=stream), timeout=60.0) for stream in range(150))
    )
    for stream in range(150):
        assert [m.payload for m in box if m.stream_id == stream] == list(range(20))


async def test_requests_both_ways_at_once(make: Make) -> None:
    server, _, url = await serving(make)
    client = await make()
    for t in (server, client):

        @t.on_message
        async def answer(peer: openline.Peer, message: openline.Message) -> None:
            await peer.reply(message, message.payload)

    await client.connect(url)
    await eventually(lambda: server.stats().active == 1)
    found = await asyncio.gather(
        *(client.request(url, task(n), timeout=SLOW) for n in range(50)),
        *(server.request(client.node_id, task(n), timeout=SLOW) for n in range(50)),
    )
    assert [message.payload for message in found] == [*range(50), *range(50)]
