"""Messages that are small on the wire and large in memory (rule 3.10)."""

from __future__ import annotations

import pytest

import openline
from openline.core.bulk import CONTAINER_BYTES, MAX_CONTAINERS

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve
from .rawsocket import Actor
from .wire import TEXT, frame


@pytest.mark.parametrize("plain", [False, True])
async def test_one_with_too_many_arrays_ends_its_connection_undecoded(
    make: Make, raw: Open, plain: bool
) -> None:
    t = await make("server", backends=("websocket",))
    box, port = Box(t), port_of(await serve(t))
    if plain:
        peer = await raw(port)
        text = b'{"id":"1","type":"t","payload":[' + b",".join([b"[]"] * (MAX_CONTAINERS + 1)) + b"]}"
        await peer.send(frame(TEXT, text))
    else:
        peer = await raw(port, Actor())
        body = b"\x01\x91\x91\x93\xa1i\xa1t\xdd" + (MAX_CONTAINERS + 1).to_bytes(4, "big")
        await peer.send(frame(2, body + b"\x90" * (MAX_CONTAINERS + 1)))
    await eventually(lambda: t.stats().malformed == 1)
    await eventually(lambda: not t.peers())
    assert not box.payloads


@pytest.mark.parametrize("size", [10, 10_000])
async def test_what_waits_is_counted_as_what_it_takes(make: Make, size: int) -> None:
    t = await make("server", backends=("websocket",))
    address = await serve(t)
    other = await make("client", backends=("websocket",))
    for _ in range(5):
        await other.send(address, openline.Message(payload=[[]] * size))
    assert t._node.inbox.waiting_of_strangers >= 4.5 * size * CONTAINER_BYTES


async def test_a_sender_is_told_and_nothing_of_it_leaves(make: Make) -> None:
    t = await make("server", backends=("websocket",))
    box, address = Box(t), await serve(t)
    other = await make("client", backends=("websocket",))
    many = openline.Message(payload=[[]] * (MAX_CONTAINERS + 1))
    with pytest.raises(openline.MessageTooLarge, match="arrays and objects"):
        await other.send(address, many)
    await other.send(address, openline.Message(payload=1))
    await eventually(lambda: box.payloads == [1])
