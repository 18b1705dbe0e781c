"""close(): idempotent, and finishes what is under way in time."""

from __future__ import annotations

import asyncio

import pytest

import openline

from ..clock import elapse, hurry
from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .rawsocket import RawServer
from .wire import CLOSE

# Again and again ----------------------------------------------------------------------------------


async def test_close_is_idempotent(make: Make) -> None:
    t = await make()
    await serve(t)
    for _ in range(3):
        await within(t.close(), 1.0)


async def test_concurrent_closes_end_together(make: Make) -> None:
    a, b = await make(), await make()
    await b.connect(await serve(a))
    await within(asyncio.gather(*(b.close() for _ in range(10))), 2.0)
    assert b.stats().active == 0


async def test_a_cancelled_close_still_closes(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    await b.connect(address)
    closing = asyncio.ensure_future(b.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await within(b.close(), 2.0)
    assert b.stats().active == 0
    with pytest.raises(openline.Closed):
        await b.send(address, task())


async def test_both_sides_may_close_at_once(make: Make) -> None:
    a, b = await make(), await make()
    await b.connect(await serve(a))
    await within(asyncio.gather(a.close(), b.close()), 2.0)
    assert (a.stats().active, b.stats().active) == (0, 0)


async def test_close_of_an_idle_transport_is_quick(make: Make) -> None:
    a, b = await make(close_timeout=3.0), await make(close_timeout=3.0)
    await b.connect(await serve(a))
    with hurry() as passed:
        await b.close()
        await a.close()
    assert passed() < 0.5


async def test_close_inside_a_handler_ends(make: Make) -> None:
    a, b = await make(close_timeout=0.3), await make()
    closed = asyncio.Event()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        try:
            await a.close()
        finally:
            closed.set()

    await b.send(await serve(a), task())
    await within(closed.wait(), 2.0)
    await within(a.close(), 2.0)
    assert a.stats().active == 0


# After it -----------------------------------------------------------------------------------------


async def test_everything_after_close_is_closed(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    await b.send(address, task())
    await b.close()
    for method, arguments in {
        "send": (address, task()),
        "send_batch": (address, tasks(2)),
        "request": (address, task()),
        "receive": (address,),
        "connect": (address,),
        "ping": (address,),
        "listen": (0,),
    }.items():
        with pytest.raises(openline.Closed):
            await getattr(b, method)(*arguments)
    with pytest.raises(openline.Closed):
        await anext(b.messages())


async def test_a_peer_of_a_closed_transport_is_closed(make: Make) -> None:
    a, b = await make(), await make()
    peer = await b.connect(await serve(a))
    assert peer is not None
    await b.close()
    for call in ("send", "request"):
        with pytest.raises(openline.Closed):
            await getattr(peer, call)(task())
    with pytest.raises(openline.Closed):
        await peer.reply(task(), "x")


async def test_looking_at_a_closed_transport_still_works(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    await b.send(address, task())
    await b.close()
    assert (b.stats().active, b.stats().messages_sent) == (0, 1)
    assert b.peers() == []
    assert "closed" in repr(b)
    assert b.explain(address).chosen is None


async def test_the_port_is_free_after_close(make: Make) -> None:
    t = await make()
    port = port_of(await serve(t))
    await t.close()
    again = await make()
    assert (await again.listen(port, host="127.0.0.1")).port == port


async def test_the_peer_learns_of_the_close_at_once(make: Make) -> None:
    a, b = await make(), await make()
    await b.connect(await serve(a))
    await b.close()
    await eventually(lambda: a.stats().active == 0, 0.5)
    assert (a.stats().malformed, a.stats().evictions) == (0, 0)


async def test_a_plain_peer_is_told_goodbye(make: Make, raw: Open) -> None:
    t = await make(close_timeout=0.2)
    client = await raw(port_of(await serve(t)))
    closing = asyncio.ensure_future(t.close())
    first, data = await client.read()
    assert (first & 0x0F, data[:2]) == (CLOSE, (1001).to_bytes(2, "big"))
    await within(closing)


# Under way ----------------------------------------------------------------------------------------


async def test_a_receive_that_waits_is_closed(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    waiting = [asyncio.ensure_future(a.receive(home, number)) for number in range(5)]
    await asyncio.sleep(0.01)
    await a.close()
    results = await within(asyncio.gather(*waiting, return_exceptions=True), 1.0)
    assert {type(result) for result in results} == {openline.Closed}


async def test_very_many_receives_that_wait_are_closed(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    waiting = [asyncio.ensure_future(a.receive(home, number)) for number in range(1500)]
    await asyncio.sleep(0.05)
    await a.close()
    done, hanging = await asyncio.wait(waiting, timeout=1.0)
    for one in hanging:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert hanging == set()
    assert {type(one.exception()) for one in done} == {openline.Closed}


async def test_a_request_that_waits_is_closed(make: Make) -> None:
    a, b = await make(), await make()
    got = Box(a)
    asking = asyncio.ensure_future(b.request(await serve(a), task(), timeout=30.0))
    await eventually(lambda: got)
    await b.close()
    with pytest.raises(openline.Closed):
        await within(asking, 1.0)


async def test_a_request_to_a_plain_peer_that_waits_ends_with_the_close(make: Make, raw: Open) -> None:
    t = await make(close_timeout=0.2)
    client = await raw(port_of(await serve(t)))
    await eventually(lambda: t.stats().active == 1)
    asking = asyncio.ensure_future(t.request(client.address, task(), timeout=30.0))
    await client.message()
    await t.close()
    with pytest.raises((openline.Closed, openline.NotConfirmed)):
        await within(asking, 1.0)


@pytest.mark.parametrize("method", ["send", "request", "connect"])
async def test_what_waits_for_a_dial_is_closed_and_not_cancelled(make: Make, method: str) -> None:
    dials = Dials()
    dials.gate.clear()
    t = await make(opener=dials)
    arguments = () if method == "connect" else (task(),)
    waiting = asyncio.ensure_future(getattr(t, method)("127.0.0.1:9", *arguments))
    await eventually(lambda: dials.made)
    await t.close()
    [result] = await within(asyncio.gather(waiting, return_exceptions=True), 1.0)
    assert isinstance(result, openline.Closed), repr(result)


async def test_a_send_that_waits_for_room_is_closed(make: Make, raw_server: RawServer) -> None:
    t = await make(close_timeout=0.2, write_high_water=64 * 1024)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    await raw_server.accept()
    await within(connecting)
    sending = asyncio.ensure_future(t.send_batch(raw_server.address, [task("x" * 10_000)] * 3000))
    await eventually(lambda: t.peers()[0].state == "congested")
    await within(t.close(), 2.0)
    with pytest.raises(openline.Closed):
        await within(sending, 1.0)


async def test_a_send_that_a_full_inbox_holds_back_is_closed(make: Make) -> None:
    a, b = await make(inbox_messages=16), await make(close_timeout=0.2)
    sending = asyncio.ensure_future(b.send_batch(await serve(a), tasks(20_000)))
    await eventually(lambda: a.stats().messages_received >= 16)
    await asyncio.sleep(0.05)
    await within(b.close(), 2.0)
    with pytest.raises(openline.Closed):
        await within(sending, 1.0)


async def test_a_ping_that_waits_ends_with_the_close(make: Make, raw_server: RawServer) -> None:
    t = await make(close_timeout=0.1)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    await raw_server.accept()
    await within(connecting)
    pinging = asyncio.ensure_future(t.ping(raw_server.address, timeout=30.0))
    await asyncio.sleep(0.01)
    await t.close()
    with pytest.raises(openline.Error):
        await within(pinging, 1.0)


async def test_what_was_sent_before_close_arrives(make: Make) -> None:
    a, b = await make(), await make(close_timeout=3.0)
    got = []
    a.on_message(lambda peer, message: got.append(message.payload))
    address = await serve(a)
    await b.connect(address)
    await asyncio.gather(*(b.send(address, message) for message in tasks(5000)))
    await b.close()
    await eventually(lambda: len(got) == 5000)
    assert got == list(range(5000))


async def test_a_large_message_sent_before_close_arrives(make: Make) -> None:
    a, b = await make(), await make(close_timeout=3.0)
    box = Box(a)
    await b.send(await serve(a), task("x" * 12_000_000))
    await b.close()
    await eventually(lambda: box.payloads == ["x" * 12_000_000])


async def test_handlers_finish_within_the_grace_time_and_can_still_answer(make: Make) -> None:
    a, b = await make(close_timeout=2.0), await make()
    got = Box(b)
    begun = asyncio.Event()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        begun.set()
        await elapse(0.1)
        await peer.reply(message, "done")

    await b.send(await serve(a), task())
    await within(begun.wait())
    await a.close()
    await eventually(lambda: got.payloads == ["done"], 1.0)
    assert a.stats().handler_errors == 0


async def test_messages_in_the_inbox_are_handled_within_the_grace_time(make: Make) -> None:
    a, b = await make(close_timeout=2.0), await make()
    done = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await asyncio.sleep(0.01)
        done.append(message.payload)

    await b.send_batch(await serve(a), tasks(20))
    await eventually(lambda: a.stats().messages_received == 20)
    await a.close()
    assert done == list(range(20))


async def test_a_handler_that_does_not_finish_is_cancelled_after_the_grace_time(make: Make) -> None:
    a, b = await make(close_timeout=0.2), await make()
    state = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        state.append("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            state.append("cancelled")
            raise

    await b.send(await serve(a), task())
    await eventually(lambda: state == ["begun"])
    with hurry() as passed:
        await a.close()
    assert 0.15 < passed() < 1.0
    assert state == ["begun", "cancelled"]


async def test_a_peer_that_keeps_sending_does_not_hold_up_the_close(make: Make) -> None:
    a, b = await make(close_timeout=0.3), await make()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await asyncio.sleep(0.001)

    address = await serve(a)
    flooding = asyncio.ensure_future(b.send_batch(address, tasks(100_000)))
    await eventually(lambda: a.stats().messages_received > 100)
    await within(a.close(), 1.5)
    await asyncio.gather(flooding, return_exceptions=True)


async def test_a_frozen_peer_does_not_hold_up_the_close(make: Make, raw: Open) -> None:
    t = await make(close_timeout=0.2)
    await raw(port_of(await serve(t)))
    await eventually(lambda: t.stats().active == 1)
    with hurry() as passed:
        await t.close()
    assert passed() < 1.0
    assert t.stats().active == 0


async def test_unread_messages_are_counted_as_undelivered(make: Make) -> None:
    a, b = await make(), await make()
    await b.send_batch(await serve(a), tasks(7))
    await eventually(lambda: a.stats().messages_received == 7)
    await a.close()
    assert a.stats().undelivered == 7
