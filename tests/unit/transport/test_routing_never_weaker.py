"""Never weaker than asked: wss, quic and node ids (rule 3.1)."""

from __future__ import annotations

import asyncio

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, closed_port, eventually, port_of, serve, task, tasks, within
from .rawsocket import NODE, RawServer


async def test_an_address_with_a_wrong_node_id_is_refused_with_nothing_sent(make: Make) -> None:
    """Also where a connection to that place is open."""
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    wrong = f"{NODE}@{home}"
    await b.connect(await serve(a))
    for send in (a.send, a.request):
        with pytest.raises(openline.Refused, match=b.node_id):
            await send(wrong, task())
    with pytest.raises(openline.Refused, match=b.node_id):
        await a.send_batch(wrong, tasks(3))
    with pytest.raises(openline.Refused, match=b.node_id):
        await a.connect(wrong)
    assert (a.stats().messages_sent, a.stats().created, a.stats().dial_failures) == (0, 0, 4)
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]


async def test_an_address_with_the_right_node_id_rides_any_connection_to_that_node(make: Make) -> None:
    a, b = await make(), await make()
    b.on_message(stream_id="rpc")(lambda peer, message: peer.reply(message, message.payload))
    box = Box(b)
    home = f"{b.node_id}@{await serve(b)}"
    await b.connect(await serve(a))
    for address in (home, b.node_id):
        assert (await a.send(address, task(1))).direction == "inbound"
        assert (await a.request(address, task(2, stream_id="rpc"))).payload == 2
        assert {receipt.acked for receipt in await a.send_batch(address, tasks(3))} == {True}
        assert await a.connect(address) is a.peers()[0]
    assert sorted(box.payloads) == sorted([1, 2, 0, 1, 2] * 2)
    assert [p for p in box.payloads if p != 2] == [1, 0, 1] * 2
    assert (a.stats().created, a.stats().dials) == (0, 0)


async def test_an_address_with_the_right_node_id_is_dialed(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipt = await a.send(f"{b.node_id}@{await serve(b)}", task())
    assert (receipt.direction, receipt.acked) == ("outbound", True)
    assert (box.payloads, a.stats().created) == ([None], 1)


async def test_a_plain_peer_answers_for_no_node_id(make: Make, raw: Open, raw_server: RawServer) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    sending = asyncio.ensure_future(a.send(f"{NODE}@{raw_server.address}", task("secret")))
    server = await raw_server.accept()
    with pytest.raises(openline.Refused, match="proves no node id"):
        await within(sending)
    with pytest.raises(openline.Unreachable):
        await a.send(NODE, task("secret"))
    await a.close()
    assert [b"secret" in await end.gone() for end in (client, server)] == [False, False]


async def test_a_wss_address_never_rides_a_plain_inbound_connection(make: Make, raw: Open) -> None:
    a, b = await make(dial_timeout=0.2), await make()
    home = await serve(b)
    address = await serve(a)
    await b.connect(address)
    box = Box(b)
    client = await raw(port_of(address))
    await eventually(lambda: a.stats().active == 2)
    for target in (f"wss://{home}", f"wss://127.0.0.1:{closed_port()}", f"wss://{client.address}"):
        with pytest.raises(openline.Error):
            await a.send(target, task("secret"))
    await a.send(home, task("last"))
    await eventually(lambda: "last" in box.payloads)
    assert box.payloads == ["last"]
    await a.close()
    assert b"secret" not in await client.gone()


async def test_a_wss_address_never_rides_a_plain_outbound_connection(make: Make) -> None:
    a, b = await make(dial_timeout=0.2), await make()
    home = await serve(b)
    box = Box(b)
    await a.send(home, task(1))
    with pytest.raises(openline.Error):
        await a.send(f"wss://{home}", task("secret"))
    await a.send(home, task(2))
    await eventually(lambda: len(box) >= 2)
    assert box.payloads == [1, 2]


async def test_a_quic_address_never_rides_a_websocket(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(f"ws://{await serve(a)}")
    assert (await a.send(home, task())).backend == "websocket"
    assert (await a.send(f"quic://{home}", task("secret"))).backend == "quic"


async def test_a_quic_address_is_no_use_where_quic_is_left_out(make: Make) -> None:
    a, b = await make(backends=("websocket",)), await make()
    home = await serve(b)
    box = Box(b)
    await b.connect(await serve(a))
    with pytest.raises(openline.Error, match="quic"):
        await a.send(f"quic://{home}", task("secret"))
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]
