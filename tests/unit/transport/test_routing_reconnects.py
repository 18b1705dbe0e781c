"""Peers that come back are reached over their newest connection (rule 3.1)."""

from __future__ import annotations

import pytest

from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, within
from .rawsocket import Actor, two_identities


async def test_of_an_old_and_a_new_inbound_connection_the_newest_live_one_wins(make: Make, raw: Open) -> None:
    """Here the other node is the one to close what is one too many, and does not (yet)."""
    lesser, greater = two_identities()
    a, actor = await make(identity=lesser), Actor(9, identity=greater)
    port = port_of(await serve(a))
    old, new = await raw(port, actor), await raw(port, actor)
    receipts = [await new.takes(a.send("127.0.0.1:9", task("one")))]
    new.close()
    await eventually(lambda: a.stats().active == 1)
    receipts.append(await old.takes(a.send("127.0.0.1:9", task("two"))))
    newest = await raw(port, actor)
    receipts.append(await newest.takes(a.send("127.0.0.1:9", task("three"))))
    old.close()
    await eventually(lambda: a.stats().active == 1)
    receipts.append(await newest.takes(a.send("127.0.0.1:9", task("four"))))
    assert (new.payloads, old.payloads, newest.payloads) == (["one"], ["two"], ["three", "four"])
    assert {(r.attempts, r.direction) for r in receipts} == {(1, "inbound")}
    assert a.stats().created == 0


async def test_the_older_of_two_connections_is_read_for_a_while_and_then_told_not_to_redial(
    make: Make, raw: Open
) -> None:
    lesser, greater = two_identities()
    a, actor = await make(identity=greater), Actor(9, identity=lesser)
    box = Box(a)
    port = port_of(await serve(a))
    old = await raw(port, actor)
    await old.takes(a.send("127.0.0.1:9", task("one")))
    new = await raw(port, actor)
    await new.takes(a.send("127.0.0.1:9", task("two")))
    await old.post(task("was on its way"))
    await eventually(lambda: box.payloads == ["was on its way"])
    assert await within(old.closed()) == 4001
    await eventually(lambda: a.stats().active == 1)
    await new.takes(a.send("127.0.0.1:9", task("three")))
    assert (old.payloads, new.payloads) == (["one"], ["two", "three"])
    assert (a.stats().replaced, a.stats().resent) == (1, 0)


async def test_a_peer_that_reconnects_many_times_gets_every_message_once(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    address = await serve(a)
    for number in range(10):
        peer = await b.connect(address)
        assert peer is not None
        receipt = await a.send(home, task(number))
        assert receipt.direction == "inbound"
        await eventually(lambda: len(box) == number + 1)  # noqa: B023
        for connection in list(peer._remote.connections):
            connection.link.abort()
        await eventually(lambda: a.stats().active == 0)
    assert box.payloads == list(range(10))
    assert a.stats().created == 0


@pytest.mark.parametrize("listens", [True, False], ids=["that listens", "that does not listen"])
async def test_a_peer_in_hand_is_reached_over_its_new_connection_after_it_came_back(
    make: Make, listens: bool
) -> None:
    """A program may keep the peer that a handler once got, in a table of agents, say."""
    dials = Dials()
    a, b = await make(opener=dials), await make()
    at_a, at_b = Box(a), Box(b)
    address = await serve(a)
    if listens:
        await serve(b)
    await b.send(address, task("first"))
    await eventually(lambda: at_a)
    for connection in list(at_a.peers[0]._remote.connections):
        connection.link.abort()
    await eventually(lambda: a.stats().active == b.stats().active == 0)
    await b.send(address, task("again"))
    await eventually(lambda: len(at_a) == 2)
    assert (await at_a.peers[0].send(task("hello again"))).direction == "inbound"
    assert (await at_a.peers[0].reply(at_a[0], "late answer")).direction == "inbound"
    await eventually(lambda: at_b.payloads == ["hello again", "late answer"])
    assert dials.made == []
