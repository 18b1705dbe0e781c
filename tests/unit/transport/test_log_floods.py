"""What peers can make this program log: a few lines of each kind, and their number (rule 3.10)."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

import openline
from openline.core.ratelimit import LINES_PER_KIND, STRANGERS_LINES

from .conftest import Make, Open
from .helpers import eventually, port_of, serve, task
from .rawsocket import Actor, Raw, RawServer
from .wire import BINARY, TEXT, plain

MANY = 200
NASTY = "\x1b[31m\x9b0m\r\nERROR all is lost \u202egnol os\u2066"


def lines(caplog: pytest.LogCaptureFixture, text: str = "") -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.INFO and text in record.getMessage()
    ]


def number_left_out(found: list[str]) -> int:
    return sum(int(line.split()[1].replace(",", "")) for line in found if line.startswith("and "))


async def test_bad_frames_of_many_connections(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    t = await make("node")
    port = port_of(await serve(t))
    with caplog.at_level(logging.INFO):
        for number in range(MANY):
            peer = await Raw.connect(port, Actor() if number % 2 else None)
            await peer.frame(BINARY if number % 2 else 3, b"\x01\xff")
            peer.close()
        await eventually(lambda: t.stats().malformed == MANY)
        await t.close()
    assert len(lines(caplog)) <= STRANGERS_LINES + 4
    written = len([line for line in lines(caplog) if not line.startswith("and ")])
    assert written + number_left_out(lines(caplog)) == MANY


async def test_bad_messages_and_hellos(make: Make, raw: Open, caplog: pytest.LogCaptureFixture) -> None:
    t = await make("node")
    port = port_of(await serve(t))
    with caplog.at_level(logging.INFO):
        for _ in range(MANY):
            peer = await Raw.connect(port)
            await peer.frame(TEXT, b"{")
            peer.close()
            turned_away = await Raw.tcp(port)
            await turned_away.send(b"\x16\x03\x01 hello")
            turned_away.close()
        await eventually(lambda: t.stats().malformed == 2 * MANY)
        await t.close()
    assert len(lines(caplog, "dropped a message from 127")) == LINES_PER_KIND
    assert len(lines(caplog, "turned away 127")) == LINES_PER_KIND
    assert number_left_out(lines(caplog)) == 2 * (MANY - LINES_PER_KIND)


async def test_tracebacks_of_handlers(make: Make, raw: Open, caplog: pytest.LogCaptureFixture) -> None:
    t = await make("node")
    port = port_of(await serve(t))

    @t.on_message(stream_id="a")
    def plain_one(peer: openline.Peer, message: openline.Message) -> None:
        raise KeyError(message.payload)

    @t.on_message(stream_id="b")
    async def slow_one(peer: openline.Peer, message: openline.Message) -> None:
        await asyncio.sleep(0)
        raise KeyError(message.payload)

    peer = await raw(port)
    with caplog.at_level(logging.INFO):
        for stream_id in "ab":
            for number in range(MANY):
                await peer.say(number, streamId=stream_id)
        await eventually(lambda: t.stats().handler_errors == 2 * MANY)
        await t.close()
    for name in ("plain_one", "slow_one"):
        assert len([line for line in lines(caplog, name) if line.startswith("handler")]) == LINES_PER_KIND
        [told] = [line for line in lines(caplog, name) if line.startswith("and ")]
        assert f"and {MANY - LINES_PER_KIND} more of the kind" in told


async def test_a_peer_that_is_known_is_heard_in_a_flood_of_strangers(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    t, friend = await make("node"), await make("friend")
    there = await serve(friend)
    port = port_of(await serve(t))
    await t.connect(there)

    @t.on_message
    def bad(peer: openline.Peer, message: openline.Message) -> None:
        raise KeyError(message.payload)

    with caplog.at_level(logging.INFO):
        for _ in range(STRANGERS_LINES + 10):
            peer = await Raw.connect(port, Actor())
            await peer.frame(BINARY, b"\x01\xff")
            peer.close()
        await eventually(lambda: t.stats().malformed == STRANGERS_LINES + 10)
        await friend.send(t.node_id, task())
        assert len(lines(caplog, "test_a_peer")) == 1


async def test_names_and_reasons_hold_nothing_that_a_terminal_obeys(
    make: Make, raw_server: RawServer, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    t = await make("node")
    port = port_of(await serve(t))
    peers: list[openline.Peer] = []
    t.on_message(lambda peer, message: peers.append(peer))
    with caplog.at_level(logging.DEBUG):
        client = await raw(port)
        hint = {"metadata": {"sourceNodeId": NASTY}}
        await client.frame(TEXT, plain("x", **hint, streamId=NASTY))
        await eventually(lambda: peers)
        assert peers[0].name.isprintable()
        assert peers[0].name
        assert str(peers[0]._remote.endpoint.hint).isprintable()
        await client.frame(8, b"\x0f\xa1" + NASTY.encode())
        await eventually(lambda: not t.peers())
        ask = asyncio.ensure_future(t.send(f"ws://127.0.0.1:{raw_server.port}", task()))
        refusing = await raw_server.tcp()
        await refusing.head()
        body = NASTY.encode()
        await refusing.send(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        with pytest.raises(openline.Unreachable) as caught:
            await ask
        assert str(caught.value).isprintable()
        assert "all is lost" in str(caught.value)
    ours = [r.getMessage() for r in caplog.records if r.name == "openline"]
    assert any("all is lost" in line for line in ours)
    assert [line for line in ours if not line.isprintable()] == []


async def test_asyncio_has_nothing_to_say_about_a_server_that_breaks_the_rules(
    make: Make, raw_server: RawServer, caplog: pytest.LogCaptureFixture
) -> None:
    t = await make("node")
    with caplog.at_level(logging.INFO):
        dialed = asyncio.ensure_future(t.connect(raw_server.address))
        server = await raw_server.accept()
        await dialed
        await server.frame(3, b"no such frame")
        await eventually(lambda: t.stats().malformed)
        await eventually(lambda: not t.stats().active)
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
