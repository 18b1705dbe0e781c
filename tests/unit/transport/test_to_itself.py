"""A node that dials itself, and another that says it is this one (rules 3.3 and 3.6)."""

from __future__ import annotations

import asyncio

import openline

from ..clock import hurry
from .certificates import Certificate
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    Middle,
    nothing,
)
from .rawsocket import Actor, Raw, RawServer

# Somebody who repeats what only we say ------------------------------------------------------------


async def impostor(t: openline.Transport, *ports: int) -> Actor:
    """A node with a key of its own that says the instance of ``t``, which every peer of ``t`` knows."""
    actor = Actor(*ports)
    probe = await Raw.connect(t._listeners[0].port, actor)
    assert probe.far_end is not None
    actor.instance = probe.far_end.instance
    probe.close()
    await eventually(lambda: not t.peers())
    return actor


async def test_another_node_with_our_instance_is_not_taken_for_ourselves(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    """It is one peer as all others are: one session, and one connection in the end."""
    t = await make()
    address = await serve(t)
    actor = await impostor(t, raw_server.port)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    theirs = await raw_server.accept(actor)
    peer = await within(connecting)
    ours = await raw(port_of(address), actor)
    await eventually(lambda: t.stats().accepted == 2)
    assert [p.node_id for p in t.peers()] == [actor.node_id]
    assert peer is t.peers()[0]
    theirs.close()
    ours.close()


async def test_what_is_for_another_node_with_our_instance_is_for_nobody_else(
    make: Make, raw_server: RawServer
) -> None:
    """A peer in hand is dialed by its node id, whatever it says of itself."""
    t, other = await make(), await make("other")
    await serve(t)
    actor = await impostor(t)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    end = await raw_server.accept(actor)
    peer = await within(connecting)
    assert peer is not None
    end.reset()
    raw_server.close()
    await eventually(lambda: not t.peers())
    box = Box(other)
    await other.listen(raw_server.port, host="127.0.0.1")
    error = await nothing(within(peer.send(task("for the actor"))))
    assert isinstance(error, openline.Refused | openline.Unreachable), error
    assert (box, other.peers()) == ([], [])


# A node and itself --------------------------------------------------------------------------------


async def test_a_transport_that_dials_itself_sends_asks_and_closes(make: Make) -> None:
    a = await make("a")
    box = Box(a)
    a.on_message(lambda peer, message: peer.reply(message, message.payload * 2), stream_id="rpc")
    address = await serve(a)
    for number in range(20):
        assert (await a.send(address, task(number))).acked
    assert box.payloads == list(range(20))
    for number in range(20):
        reply = await a.request(address, task(number, stream_id="rpc"), timeout=2.0)
        assert reply.payload == number * 2
    replies = await asyncio.gather(*(a.request(address, task(n, stream_id="rpc")) for n in range(20)))
    assert [reply.payload for reply in replies] == [n * 2 for n in range(20)]
    assert (a.stats().created, a.stats().accepted, a.stats().conflicts) == (1, 1, 0)
    assert all(peer.node_id == a.node_id for peer in a.peers())
    with hurry() as passed:
        await within(a.close())
    assert passed() < 1.0


async def test_a_node_is_reached_by_its_own_node_id(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    assert (await a.send(f"{a.node_id}@{address}", task(1))).acked
    assert (await a.send(a.node_id, task(2))).acked
    assert box.payloads == [1, 2]


async def test_a_connection_to_oneself_goes_on_after_it_was_lost(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    async with Middle(port_of(address)) as middle:
        for number in range(5):
            assert (await within(a.send(middle.address, task(number)))).acked
            middle.cut()
        await eventually(lambda: not a.peers())
    assert box.payloads == list(range(5))


async def test_a_transport_dials_itself_over_tls_too(make: Make, certificate: Certificate) -> None:
    a = await make("a", tls=certificate.serving(ca=certificate.cert))
    box, address = Box(a), f"wss://{await serve(a)}"
    for to in (address, f"wss://{a.node_id}@{address[6:]}", a.node_id):
        assert (await a.send(to, task(to))).acked
    assert len(box) == 3
    assert (a.stats().created, a.stats().active) == (1, 2)


async def test_a_connection_to_oneself_that_is_kept_comes_back(make: Make) -> None:
    a = await make("a", backoff_min=0.02, backoff_max=0.1)
    box, address = Box(a), await serve(a)
    peer = await a.connect(address, keep=True)
    assert peer is not None
    for turn in range(3):
        await eventually(lambda: a.stats().active == 2)
        await peer.send(task(turn))
        for each in a.peers():
            for connection in list(each._remote.connections):
                connection.link.abort()
        await eventually(lambda: a.stats().created == turn + 2)  # noqa: B023
    assert box.payloads == [0, 1, 2]
    assert a.stats().conflicts == 0


async def test_many_dials_to_oneself_at_once_end_as_one_and_nothing_is_lost(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    port = port_of(address)
    spellings = [address, f"ws://{address}", f"localhost:{port}", f"{a.node_id}@{address}"]
    sending = (a.send(spellings[n % 4], task(n)) for n in range(40))
    await within(asyncio.gather(*sending))
    await eventually(lambda: len(box) == 40)
    assert sorted(box.payloads) == list(range(40))
    await eventually(lambda: a.stats().active == 2)
    assert a.stats().conflicts == 0
