"""Addresses with a node id: ``NODEID@host:port`` (rules 3.1 and 3.6)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import Box, Dials, closed_port, eventually, port_of, serve, task, tasks, within
from .proofs import Middle, between, nothing
from .rawsocket import Actor, RawServer
from .uses import ABSENT, USES
from .wire import switching


def untouched(t: openline.Transport) -> bool:
    """It has no connection, and has never had one."""
    stats = t.stats()
    return (t.peers(), stats.active, stats.created, stats.accepted, stats.messages_sent) == ([], 0, 0, 0, 0)


# NODEID@host:port ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}@{}", "ws://{}@{}", "ws://{}@{}/"])
async def test_the_right_node_gets_it(make: Make, form: str) -> None:
    a, b = await make("a"), await make("b")
    box = Box(b, stream_id="default")
    address = form.format(b.node_id, await serve(b))
    receipt = await a.send(address, task(1))
    assert (receipt.acked, receipt.attempts, receipt.direction) == (True, 1, "outbound")
    assert [r.acked for r in await a.send_batch(address, tasks(3))] == [True] * 3
    b.on_message(lambda peer, message: peer.reply(message, "yes"), stream_id="rpc")
    assert (await a.request(address, task(stream_id="rpc"), timeout=2.0)).payload == "yes"
    assert box.payloads == [1, 0, 1, 2]
    assert (a.stats().created, a.stats().dials) == (1, 1)
    assert await a.ping(address) > 0


async def test_by_host_name_as_well(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    assert (await a.send(f"{b.node_id}@localhost:{port_of(address)}", task("named"))).acked
    assert box.payloads == ["named"]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", ["{}@{}", "ws://{}@{}"])
async def test_another_node_gets_nothing(make: Make, form: str, use: str) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address)) as middle:
        to = form.format(ABSENT, middle.address)
        error = await nothing(within(USES[use](a, to)))
        assert isinstance(error, openline.Refused), error
        for part in (ABSENT, b.node_id, middle.address):
            assert part in str(error)
        await eventually(lambda: b.stats().pending_handshakes == 0)
        # A masked frame cannot be searched for words: nothing but a close frame has left.
        assert len(middle.said) <= 8
    assert untouched(a)
    assert untouched(b)
    assert box == []
    assert a.stats().dial_failures == 1


@pytest.mark.parametrize("proven", [False, True], ids=["plain", "openline"])
@pytest.mark.parametrize("use", USES)
async def test_another_nodes_listener_hears_no_frame(
    make: Make, raw_server: RawServer, use: str, proven: bool
) -> None:
    a = await make("a")
    using = asyncio.ensure_future(USES[use](a, f"{ABSENT}@{raw_server.address}"))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    if proven:
        await raw.answer(Actor())
    else:
        await raw.send(switching(raw.request))
    error = await nothing(within(using))
    assert isinstance(error, openline.Refused), error
    assert "node" in str(error)
    heard = await within(raw.gone())
    assert heard == b"" or heard[0] & 0x0F == 8, heard
    assert len(heard) <= 8
    assert untouched(a)


async def test_the_wrong_node_does_not_spoil_the_address_for_the_right_one(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    box, address = Box(c), await serve(b)
    to = f"{c.node_id}@{address}"
    assert isinstance(await nothing(a.send(to, task())), openline.Refused)
    await b.close()
    await c.listen(port_of(address), host="127.0.0.1")
    assert (await a.send(to, task("right"))).acked
    assert box.payloads == ["right"]


async def test_the_same_place_under_two_node_ids_at_once(make: Make) -> None:
    """A dial that one send shares is not shared by a send that asks for somebody else."""
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    right, wrong = f"{b.node_id}@{address}", f"{ABSENT}@{address}"
    found = await asyncio.gather(
        *(a.send(to, task(to)) for to in [right, wrong, address] * 5), return_exceptions=True
    )
    assert [isinstance(f, openline.Receipt) for f in found] == [True, False, True] * 5
    assert all(isinstance(f, openline.Refused) for f in found[1::3])
    assert set(box.payloads) == {right, address}
    assert len(box) == 10


async def test_keep_with_the_wrong_node_keeps_nothing_and_is_no_tight_loop(make: Make) -> None:
    dials = Dials()
    a, b = await make("a", opener=dials, backoff_min=0.05, backoff_max=0.2), await make("b")
    address = await serve(b)
    assert await within(a.connect(f"{ABSENT}@{address}", keep=True)) is None
    await eventually(lambda: len(dials.made) >= 3)
    assert len(dials.made) < 20
    assert untouched(a)
    assert untouched(b)


async def test_an_open_connection_to_another_node_at_that_address_is_not_used(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    await a.send(address, task("for b"))
    error = await nothing(a.send(f"{ABSENT}@{address}", task("secret")))
    assert isinstance(error, openline.Refused)
    assert box.payloads == ["for b"]
    assert (a.stats().active, len(a.peers())) == (1, 1)
    text = str(a.explain(f"{ABSENT}@{address}"))
    assert "not the node that the address names" in text
    assert a.explain(f"{ABSENT}@{address}").chosen is None


async def test_a_plain_connection_to_that_address_is_not_used(make: Make, plain_server: Any) -> None:
    a, server = await make("a"), await plain_server()
    await a.send(server.address, task("for anybody"))
    await eventually(lambda: server.got)
    to = f"{ABSENT}@{server.address}"
    assert isinstance(await nothing(a.send(to, task("secret"))), openline.Refused)
    assert "has not proven the identity" in str(a.explain(to))
    await a.send(server.address, task("again"))
    await eventually(lambda: len(server.got) == 2)
    assert server.payloads == ["for anybody", "again"]


async def test_an_inbound_connection_of_the_node_is_used_before_any_dial(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, here, there = Box(b), await serve(a), await serve(b)
    await b.connect(here)
    await eventually(lambda: a.peers())
    for to in (f"{b.node_id}@{there}", f"ws://{b.node_id}@{there}", f"{b.node_id}@127.0.0.1:{closed_port()}"):
        assert (await a.send(to, task(to))).direction == "inbound"
        explained = a.explain(to)
        assert explained.chosen is not None
        assert "inbound" in explained.chosen
        assert "proven the node id" in explained.why
    assert (len(box), a.stats().dials) == (3, 0)


# wss://NODEID@host:port ---------------------------------------------------------------------------


async def test_over_tls_the_right_node_gets_it_and_the_wrong_one_nothing(
    make: Make, certificate: Certificate
) -> None:
    b = await make("b", tls=certificate.serving())
    a = await make("a", tls=openline.Tls(ca=certificate.cert))
    box, address = Box(b), await serve(b)
    error = await nothing(a.send(f"wss://{ABSENT}@{address}", task("secret")))
    assert isinstance(error, openline.Refused)
    assert b.node_id in str(error)
    assert untouched(a)
    assert untouched(b)
    assert (await a.send(f"wss://{b.node_id}@{address}", task("right"))).acked
    assert box.payloads == ["right"]
    assert a.stats().created == 1


async def test_a_wss_address_with_a_node_id_is_not_answered_by_its_plain_connection(
    make: Make, certificate: Certificate
) -> None:
    """It names a certificate as well: the node id alone is weaker than that."""
    a, b = await make("a", tls=openline.Tls(ca=certificate.cert)), await make("b")
    await b.connect(await serve(a))
    await eventually(lambda: a.peers())
    to = f"wss://{b.node_id}@127.0.0.1:{closed_port()}"
    assert isinstance(await nothing(a.send(to, task("secret"))), openline.Unreachable)
    assert a.explain(to).chosen is None
    assert "has not proven" in str(a.explain(to))


async def test_a_certificate_is_judged_before_the_node_id(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    b = await make("b", tls=stranger.serving())
    a = await make("a", tls=openline.Tls(ca=certificate.cert))
    address = await serve(b)
    error = await nothing(a.send(f"wss://{b.node_id}@{address}", task("secret")))
    assert isinstance(error, openline.Refused)
    assert "certificate" in str(error)
    assert untouched(a)


# Sending again ------------------------------------------------------------------------------------


async def test_what_was_under_way_to_a_node_gets_there_when_it_dials_in_again(make: Make, raw: Open) -> None:
    """Nobody else gets it meanwhile, and it is not lost: the session waits for that very node."""
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(a)
    async with Middle(port_of(address)) as middle:
        await b.connect(middle.address)
        await eventually(lambda: a.peers())
        await a.send(b.node_id, task(1))
        middle.freeze()
        sending = asyncio.ensure_future(a.send(b.node_id, task(2)))
        await eventually(lambda: a.stats().messages_sent == 2)
        client = await raw(port_of(address))
        await client.say("hi")
        middle.cut()
        await eventually(lambda: not b.peers() and not between(a, b))
        assert not sending.done()
        middle.thaw()
        await b.connect(middle.address)
        assert (await within(sending)).attempts == 2
    assert box.payloads == [1, 2]
    assert client._buffer == b""
