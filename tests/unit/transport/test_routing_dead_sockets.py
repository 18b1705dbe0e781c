"""A socket that dies between choice and send costs one more attempt, no error (rule 3.1)."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw, RawServer, two_identities

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")


async def deliver_twice(a: openline.Transport, server: RawServer, first: Raw, how: str) -> None:
    """Kill ``first`` without a turn of the loop, send, and look for the message on the next one."""
    accepting = asyncio.ensure_future(server.accept())
    if how == "reset":
        first.reset()
    else:
        first.sock.shutdown(socket.SHUT_RDWR)
    try:
        receipt = await a.send(server.address, task("once"))
        assert (receipt.attempts, receipt.direction) == (2, "outbound")
        second = await accepting
    finally:
        accepting.cancel()
    assert (await second.message())["payload"] == "once"
    await a.send(server.address, task("next"))
    assert (await second.message())["payload"] == "next"
    assert a.stats().evictions == 1


@pytest.mark.parametrize("how", ["reset", "shutdown"])
async def test_a_socket_that_dies_between_choice_and_send_costs_one_more_attempt(
    make: Make, raw_server: RawServer, how: str
) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    assert (await first.message())["payload"] == "first"
    await deliver_twice(a, raw_server, first, how)


@pytest.mark.parametrize("how", ["reset", "shutdown"])
async def test_so_does_a_socket_that_has_just_brought_a_message(
    make: Make, raw_server: RawServer, how: str
) -> None:
    """What arrived a moment ago proves nothing about now."""
    a = await make()
    box = Box(a)
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    assert (await first.message())["payload"] == "first"
    await first.say("just now")
    await eventually(lambda: box)
    await deliver_twice(a, raw_server, first, how)


async def test_so_does_a_socket_that_dies_in_the_very_turn_of_the_loop_that_used_it(
    make: Make, raw_server: RawServer
) -> None:
    """A program that computes between two sends gives the loop no turn, and the socket time to die."""
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    await asyncio.sleep(0.01)
    await a.send(raw_server.address, task("second"))
    await deliver_twice(a, raw_server, first, "reset")


async def test_a_dead_inbound_socket_costs_one_more_attempt_and_a_dial(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a, actor = await make(), Actor(raw_server.port)
    client = await raw(port_of(await serve(a)), actor)
    assert (await client.takes(a.send(raw_server.address, task()))).direction == "inbound"
    client.reset()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("once")))
    server = await raw_server.accept(actor)
    receipt = await server.takes(sending)
    assert (receipt.attempts, receipt.direction) == (2, "outbound")
    assert server.payloads == ["once"]


async def test_a_dead_newest_socket_gives_way_to_the_older_one_without_a_dial(make: Make, raw: Open) -> None:
    dials = Dials()
    lesser, greater = two_identities()
    a, actor = await make(opener=dials, identity=lesser), Actor(9, identity=greater)
    port = port_of(await serve(a))
    old, new = await raw(port, actor), await raw(port, actor)
    await new.takes(a.send("127.0.0.1:9", task("warm")))
    new.reset()
    receipt = await old.takes(a.send("127.0.0.1:9", task("once")))
    assert (receipt.attempts, receipt.direction) == (2, "inbound")
    assert (new.payloads, old.payloads) == (["warm"], ["once"])
    assert dials.made == []


async def test_a_batch_over_a_dead_socket_goes_out_once_on_another(make: Make, raw_server: RawServer) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    first.reset()
    batching = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(20)))
    second = await raw_server.accept()
    receipts = await within(batching)
    assert receipts[0].attempts == 2
    assert len(receipts) == 20
    assert [(await second.message())["payload"] for _ in range(20)] == list(range(20))


async def test_a_request_over_a_dead_socket_is_answered_on_another(make: Make, raw_server: RawServer) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    first.reset()
    asking = asyncio.ensure_future(a.request(raw_server.address, task(id="q"), timeout=5.0))
    second = await raw_server.accept()
    assert (await second.message())["id"] == "q"
    await second.say("answer", id="q")
    assert (await within(asking)).payload == "answer"


async def test_a_reply_over_a_dead_socket_takes_the_peers_other_connection(make: Make, raw: Open) -> None:
    lesser, greater = two_identities()
    a, actor = await make(identity=lesser), Actor(9, identity=greater)
    box = Box(a)
    port = port_of(await serve(a))
    other, asker = await raw(port, actor), await raw(port, actor)
    await asker.post(task("question"))
    await eventually(lambda: box)
    asker.reset()
    receipt = await other.takes(box.peers[0].reply(box[0], "answer"))
    assert receipt.attempts == 2
    assert other.payloads == ["answer"]


async def test_a_dead_socket_with_nothing_else_is_unreachable_and_says_both_paths(
    make: Make, raw_server: RawServer
) -> None:
    a = await make()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("first")))
    first = await raw_server.accept()
    await within(sending)
    raw_server.close()
    first.reset()
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED"):
        await a.send(raw_server.address, task())


async def test_a_socket_closed_by_another_thread_of_ours_hurts_nobody(make: Make) -> None:
    """A descriptor number is soon another socket's: nothing may be written to it by mistake."""
    a, b, c = await make(), await make(), await make()
    at_c = Box(c)
    home_b, home_c = await serve(b), await serve(c)
    await a.send(home_b, task())
    await a.send(home_c, task("c"))
    await b.close()
    await eventually(lambda: a.stats().active == 1)
    others = [os.dup(0) for _ in range(20)]
    try:
        with pytest.raises(openline.Unreachable):
            await a.send(home_b, task("b"))
        await a.send(home_c, task("c"))
        await eventually(lambda: at_c.payloads == ["c", "c"])
    finally:
        for number in others:
            os.close(number)
