"""What strangers make this side hold is paid from their own share (rule 3.10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import openline
from openline.core.session import RECEIVER_STREAMS, STREAM_WEIGHT
from openline.peers import retention
from openline.receiving import left_behind as leftbehind

from ..clock import hurry
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw
from .wire import BINARY, batch, frame


class Wire:
    """Between two nodes: can be cut, and can swallow what goes one way."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.open = True
        # Towards the listener, or away from it.
        self.swallows: str | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        self.open, self.swallows = False, None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer, "in"), self._pump(far_reader, writer, "out"))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        try:
            while data := await reader.read(65536):
                if self.swallows != way:
                    writer.write(data)
        except ConnectionError:
            return
        finally:
            writer.close()


@pytest.fixture
async def wire(make: Make) -> AsyncIterator[Any]:
    wires: list[Wire] = []

    async def made(port: int) -> Wire:
        wires.append(Wire(port))
        await wires[-1].start()
        return wires[-1]

    yield made
    for wire in wires:
        wire.cut()
        wire.server.close()


async def crowd(port: int, keys: int, streams: int = 8192) -> None:
    """Throwaway keys that each open as many streams as are remembered, and go."""
    for _ in range(keys):
        stranger = await Raw.connect(port, Actor())
        await stranger.frame(BINARY, batch([], opens=dict.fromkeys(range(streams), 1)))
        await stranger.frame(9)
        while (await within(stranger.read()))[0] != 0x8A:
            pass
        stranger.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STRANGERS_BYTES", 8 * 1024 * 1024)


async def test_messages_under_way_to_a_known_peer_survive_them(small: None, make: Make, wire: Any) -> None:
    a, n = await make("a"), await make("n")
    box = Box(n)
    port = port_of(await serve(a))
    between = await wire(port)
    await n.connect(f"{a.node_id}@127.0.0.1:{between.port}", keep=True)
    await eventually(a.peers)
    [peer] = a.peers()
    await peer.send(task("first"))
    between.swallows = "in"
    sending = [asyncio.ensure_future(peer.send(message)) for message in tasks(5)]
    await eventually(lambda: len(box) == 6)
    between.cut()
    await eventually(lambda: not peer.connected)
    await crowd(port, 13)
    between.open = True
    receipts = await within(asyncio.gather(*sending), 20.0)
    assert all(receipt.acked for receipt in receipts)
    assert box.payloads == ["first", 0, 1, 2, 3, 4]
    assert a.stats().forgotten > 5


async def test_what_a_stranger_has_sent_is_known_again_after_them(small: None, make: Make, wire: Any) -> None:
    a, n = await make("a"), await make("n")
    box = Box(a)
    port = port_of(await serve(a))
    between = await wire(port)
    address = f"{a.node_id}@127.0.0.1:{between.port}"
    await n.send(address, task("first"))
    between.swallows = "out"
    sending = [asyncio.ensure_future(n.send(address, message)) for message in tasks(5)]
    await eventually(lambda: len(box) == 6)
    between.cut()
    await eventually(lambda: not a.peers())
    await crowd(port, 13)
    between.open = True
    receipts = await within(asyncio.gather(*sending), 20.0)
    assert all(receipt.acked for receipt in receipts)
    assert box.payloads == ["first", 0, 1, 2, 3, 4]


async def test_names_are_counted_in_bytes(make: Make, raw: Open) -> None:
    t = await make("node")
    peer = await raw(port_of(await serve(t)), Actor())
    for number in range(20):
        names = {("\U0001f600" * 1000 + f"{number}.{index}"): 1 for index in range(200)}
        await peer.frame(BINARY, batch([], opens=names))
    await peer.frame(9)
    while (await within(peer.read()))[0] != 0x8A:
        pass
    [known] = t.peers()
    assert known._remote.outstanding.session is not None
    most = RECEIVER_STREAMS * STREAM_WEIGHT
    held = sum(4 * len(str(name)) for name in known._remote.outstanding.session.expected)
    assert most // 2 < held <= most + most // 4
    [connection] = known._remote.connections
    assert connection.positions is not None
    assert connection.positions.keys() <= known._remote.outstanding.session.expected.keys()


async def test_what_strangers_leave_behind_pushes_out_nothing_of_a_known_peers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftbehind, "STRANGERS_LEFT_BEHIND", 1024 * 1024)
    monkeypatch.setattr(leftbehind, "LEFT_BEHIND_BYTES", 1024 * 1024)
    t, friend = await make("node"), await make("friend")
    address, there = await serve(t), await serve(friend)
    await t.send(there, task("hello"))
    for message in tasks(9):
        await friend.send(address, msgspec_pad(message))
    await friend.close()
    await eventually(lambda: not t.peers())
    for number in range(30):
        stranger = await Raw.connect(port_of(address), Actor())
        await stranger.post(msgspec_pad(task(number)))
        await eventually(lambda number=number: t.stats().messages_received == 10 + number)
        stranger.close()
    await eventually(lambda: not t.peers())
    got = [await t.receive(there, timeout=1.0) for _ in range(9)]
    assert [message.payload["number"] for message in got] == list(range(9))
    assert t.stats().undelivered > 15


def msgspec_pad(message: openline.Message) -> openline.Message:
    return openline.Message(payload={"number": message.payload, "pad": "x" * 100_000})


async def test_strangers_that_fill_the_inbox_are_held_back_and_the_known_are_not(make: Make) -> None:
    limit = 1024 * 1024
    t, friend = await make("node", strangers_inbox_bytes=limit), await make("friend")
    address = await serve(t)
    await t.send(await serve(friend), task("hello"))
    gate = asyncio.Event()
    done: list[Any] = []

    @t.on_message
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        if peer.name != "friend":
            await gate.wait()
        done.append(message.payload)

    crowd = [await Raw.connect(port_of(address), Actor(name=f"s{number}")) for number in range(8)]
    blob = frame(BINARY, batch([task("x" * 50_000) for _ in range(10)]))
    for number, stranger in enumerate(crowd):
        stranger.sock.setblocking(False)
        await stranger.post(task("x" * 50_000))
        with hurry() as passed:
            while passed() < 0.3:
                try:
                    stranger.sock.send(blob)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                except OSError:
                    break
        del number
    held = sum(peer._remote.mailboxes.load for peer in t.peers() if not peer._remote.known)
    assert held < 3 * limit + len(crowd) * 2 * len(blob)
    for number in range(50):
        await within(friend.send(address, task(number)))
    assert done == list(range(50))
    gate.set()
    await eventually(lambda: not any(peer._remote.mailboxes.unread for peer in t.peers()))
    for stranger in crowd:
        stranger.close()
