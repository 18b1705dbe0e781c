"""Claims, and what is known only later: receive(), listening frames, who has answered before (rule 3.1)."""

from __future__ import annotations

import asyncio
import errno

import pytest

import openline
from openline.connection.connection import State
from openline.core.frames import HEADROOM, encode_listening

from .conftest import Make, Open
from .helpers import Dials, eventually, port_of, serve, task, within
from .rawsocket import Actor, RawServer
from .test_claims import dialed, honest
from .wire import BINARY


async def received(a: openline.Transport, address: str) -> object:
    return (await a.receive(address)).payload


async def test_a_receive_that_waits_is_not_answered_by_who_claims_the_port_of_the_one_that_was_dialed(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a, address = await make(), raw_server.address
    waiting = asyncio.ensure_future(received(a, address))
    await asyncio.sleep(0)
    server = await dialed(a, raw_server, node := Actor(raw_server.port))
    claimer = await raw(port_of(await serve(a)), Actor(raw_server.port))
    server.reset()
    await eventually(lambda: a.stats().active == 1)
    await claimer.post(task("of the claimer"))
    await eventually(lambda: a.stats().messages_received == 1)
    again = await dialed(a, raw_server, node)
    await again.post(task("of the honest"))
    assert await within(waiting) == "of the honest"


async def test_a_port_that_another_node_begins_to_claim_is_dialed(make: Make, raw: Open) -> None:
    dials = Dials()
    dials.error = OSError(errno.ECONNREFUSED, "as the kernel says")
    a = await make(opener=dials)
    port, home = port_of(await serve(a)), "127.0.0.1:9"
    first = await raw(port, Actor(9))
    await first.takes(a.send(home, honest()))
    second = await raw(port, Actor(7))
    await second.frame(BINARY, bytes(encode_listening((9,)))[HEADROOM:])
    await eventually(lambda: "two nodes" in str(a.explain(home)))
    with pytest.raises(openline.Unreachable):
        await first.takes(a.send(home, honest()))
    assert second.payloads == []


async def test_who_has_answered_by_its_claim_is_dialed_before_the_next_one_is_believed(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    """The first one listens there, too: nobody else than it has ever answered there."""
    a, address = await make(), raw_server.address
    port = port_of(await serve(a))
    first = await raw(port, node := Actor(raw_server.port))
    await first.takes(a.send(address, honest()))
    claimer = await raw(port, Actor(raw_server.port))
    first.reset()
    await eventually(lambda: a.stats().active == 1)
    sending = asyncio.ensure_future(a.send(address, honest()))
    taking = asyncio.ensure_future(claimer.takes(asyncio.shield(sending)))
    again = await raw_server.accept(node)
    receipt = await again.takes(sending)
    await within(taking)
    assert (receipt.direction, claimer.payloads) == ("outbound", [])


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.EHOSTUNREACH])
async def test_nor_is_the_next_one_believed_at_once_where_the_first_is_suspect(
    make: Make, raw: Open, error: int
) -> None:
    """Only where there is no way there now: so does a process come back that has a new key."""
    dials = Dials()
    a, home = await make(opener=dials), "127.0.0.1:9"
    port = port_of(await serve(a))
    first = await raw(port, Actor(9))
    await first.takes(a.send(home, honest()))
    [connection] = a._table.connections
    claimer = await raw(port, Actor(9))
    connection.set_state(State.SUSPECT)
    dials.error = OSError(error, "as the kernel says")
    sending = a.send(home, task("another"))
    if error == errno.ECONNREFUSED:
        with pytest.raises(openline.Unreachable):
            await claimer.takes(sending)
        assert claimer.payloads == []
    else:
        assert (await claimer.takes(sending)).matched == "claimed port"
        waiting = asyncio.ensure_future(received(a, home))
        await asyncio.sleep(0)
        await claimer.post(task("its answer"))
        assert await within(waiting) == "its answer"
