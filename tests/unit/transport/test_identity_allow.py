"""``Config.allow``: who may connect (rule 3.6)."""

from __future__ import annotations

import asyncio

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    HELLO,
    PROOF,
    nothing,
    speak,
    turned_away,
)
from .rawsocket import Actor, RawServer, hello


async def test_who_is_on_the_list_connects_in_both_directions(make: Make) -> None:
    ours, theirs = openline.Identity(), openline.Identity()
    a = await make("a", identity=ours, allow=(theirs.node_id,))
    b = await make("b", identity=theirs, allow=(ours.node_id,))
    at_a, at_b = Box(a), Box(b)
    await b.send(await serve(a), task("in"))
    assert at_a.payloads == ["in"]
    assert (await a.send(theirs.node_id, task("back"))).direction == "inbound"
    assert at_b.payloads == ["back"]


async def test_a_node_that_is_not_on_the_list_is_turned_away_and_told_why(make: Make) -> None:
    a, b = await make("a", allow=(Actor().node_id,)), await make("b")
    box, address = Box(a), await serve(a)
    error = await nothing(b.send(address, task()))
    assert isinstance(error, openline.Refused)
    for part in (b.node_id, "Config.allow", address):
        assert part in str(error)
    assert (a.peers(), b.peers(), box, b.stats().created) == ([], [], [], 0)
    text = await turned_away(port_of(address), hello(node=b.node_id))
    assert " 403 " in text
    assert b.node_id in text


async def test_a_plain_peer_is_turned_away_where_there_is_a_list(make: Make) -> None:
    a = await make("a", allow=(Actor().node_id,))
    box, address = Box(a), await serve(a)
    text = await turned_away(port_of(address))
    assert " 403 " in text
    assert "known nodes" in text
    assert (a.peers(), box, a.stats().malformed) == ([], [], 1)


async def test_an_empty_list_lets_nobody_in_and_goes_nowhere(make: Make) -> None:
    a, b = await make("a", allow=()), await make("b")
    here, there = await serve(a), await serve(b)
    assert isinstance(await nothing(b.send(here, task())), openline.Refused)
    assert isinstance(await nothing(a.send(there, task())), openline.Refused)


async def test_the_list_is_of_those_who_prove_it(make: Make, tcp: Open, raw: Open) -> None:
    friend = Actor()
    a = await make("a", allow=(friend.node_id,))
    box, address = Box(a), await serve(a)
    forger = await tcp(port_of(address))
    said = await speak(forger, Actor(), hello(node=friend.node_id)[HELLO])
    await said.prove()
    await within(forger.gone())
    assert (a.peers(), box) == ([], [])
    await raw(port_of(address), friend)
    await eventually(lambda: a.peers())


async def test_a_listener_that_is_not_on_the_list_gets_nothing(make: Make, raw_server: RawServer) -> None:
    a, stranger = await make("a", allow=(Actor().node_id,)), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("secret")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await raw.answer(stranger)
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused)
    for part in (stranger.node_id, "Config.allow", raw_server.address):
        assert part in str(error)
    heard = await within(raw.gone())
    assert b"secret" not in heard
    assert bytes([PROOF]) not in heard[:3]
    assert (a.peers(), a.stats().created) == ([], 0)


async def test_a_plain_listener_gets_nothing_where_there_is_a_list(make: Make, raw_server: RawServer) -> None:
    a = await make("a", allow=(Actor().node_id,))
    sending = asyncio.ensure_future(a.send(raw_server.address, task("secret")))
    raw = await raw_server.accept()
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused)
    assert "Config.allow" in str(error)
    assert b"secret" not in await within(raw.gone())
    assert (a.peers(), a.stats().created) == ([], 0)


async def test_a_list_does_not_keep_a_node_from_itself(make: Make) -> None:
    a = await make("a", allow=())
    box, address = Box(a), await serve(a)
    await a.send(address, task("to myself"))
    assert box.payloads == ["to myself"]


@pytest.mark.parametrize("wrong", ["alice", "A" * 52, "a" * 53, "", ("abcd" * 12 + "ABCA").upper()])
def test_a_list_holds_node_ids(wrong: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        openline.Config(allow=(wrong,))
