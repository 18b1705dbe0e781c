"""Which backend a bare address takes: racing, falling back, remembering; and that nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import openline
from openline.backends import race
from openline.backends.quic.backend import QuicBackend
from openline.backends.websocket.backend import WebSocketBackend

from ..transport.helpers import DEADLINE, Box, eventually, open_files, port_of, task
from .conftest import Make, Serve

SLOW = 4 * DEADLINE


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, str]:
    t = await make("server", **config)
    box = Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    return t, box, f"127.0.0.1:{listener.port}"


@asynccontextmanager
async def silent(address: str) -> AsyncIterator[socket.socket]:
    """Somebody has that UDP port and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port_of(address)))
        sock.setblocking(False)
        yield sock


async def hang_up_all(t: openline.Transport) -> None:
    for connection in list(t._table.connections):
        connection.link.close(1000, "again")
    await eventually(lambda: t.stats().active == 0)


async def alone(*transports: openline.Transport) -> None:
    """One connection is left, on both sides."""
    await eventually(lambda: all(t.stats().active == 1 for t in transports), SLOW)


async def test_both(make: Make) -> None:
    server, box, address = await serving(make)
    client = await make()
    receipt = await client.send(address, task("hi"))
    assert (receipt.backend, receipt.attempts, box.payloads) == ("quic", 1, ["hi"])
    await alone(server, client)
    assert (client.stats().created, client.stats().dials) == (1, 1)
    assert "quic" in str(client.explain(address))
    assert server._listeners[0].backends == ("websocket", "quic")
    capabilities = openline.capabilities()
    assert (capabilities.backends, capabilities.selected) == (("quic", "websocket"), "quic")
    assert capabilities.unavailable == {}


async def test_only_tcp(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UDP port is closed: WebSocket follows at once, not after the head start."""
    monkeypatch.setattr(race, "STAGGER", 60.0)
    server, box, address = await serving(make, backends=("websocket",))
    assert server._listeners[0].backends == ("websocket",)
    client = await make()
    receipt = await client.send(address, task("hi"))
    assert (receipt.backend, receipt.attempts, box.payloads) == ("websocket", 1, ["hi"])
    await alone(server, client)
    assert client.stats().created == 1


async def test_a_silent_udp_port(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebSocket after the head start; and the next time it goes first, and QUIC not at all."""
    server, _, address = await serving(make, backends=("websocket",))
    client = await make()
    async with silent(address) as sock:
        assert (await client.send(address, task("one"))).backend == "websocket"
        assert sock.recv(2000)
        await alone(server, client)
        await hang_up_all(client)
        while True:
            try:
                sock.recv(2000)
            except BlockingIOError:
                break
        monkeypatch.setattr(race, "STAGGER", 60.0)
        assert (await client.send(address, task("two"))).backend == "websocket"
        with pytest.raises(BlockingIOError):
            sock.recv(2000)
    assert [backend.name for backend in client._node.backends.order(openline.Address.parse(address))] == [
        "websocket",
        "quic",
    ]


async def test_what_is_remembered_is_forgotten_in_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from openline.backends import select as choice

    monkeypatch.setattr(choice, "REMEMBER", 0.0)
    _, _, address = await serving(make, backends=("websocket",))
    client = await make()
    await client.connect(address)
    order = client._node.backends.order(openline.Address.parse(address))
    assert [backend.name for backend in order] == ["quic", "websocket"]


async def test_what_is_remembered_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from openline.backends import select as choice

    monkeypatch.setattr(choice, "MAX_REMEMBERED", 2)
    client = await make()
    for _ in range(4):
        _, _, address = await serving(make, backends=("websocket",))
        await client.connect(address)
    assert len(client._node.backends._worked) == 2


async def test_only_quic(make: Make) -> None:
    server, box, address = await serving(make, backends=("quic",))
    assert server._listeners[0].backends == ("quic",)
    assert server._listeners[0].address == f"quic://{address}"
    client = await make()
    assert (await client.send(address, task("hi"))).backend == "quic"
    assert box.payloads == ["hi"]
    client = await make(backends=("websocket", "quic"))
    assert (await client.send(address, task("hi"))).backend == "quic"


async def test_nobody(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        client = await make()
        with pytest.raises(openline.Unreachable) as failed:
            await client.send(address, task("hi"))
    text = str(failed.value)
    assert f"quic {address}" in text
    assert f"tcp {address}" in text
    assert len(failed.value.tried) == 2
    assert (client.stats().active, client.stats().dial_failures) == (0, 1)


async def test_refused_by_both(make: Make) -> None:
    """The node is another one than the address says, over either backend."""
    server, _, address = await serving(make)
    client = await make()
    with pytest.raises(openline.Refused, match=server.node_id):
        await client.send(f"{openline.Identity().node_id}@{address}", task("hi"))
    await eventually(lambda: client.stats().active == server.stats().active == 0)
    await eventually(lambda: server.stats().pending_handshakes == 0)


async def test_a_liar_on_udp_does_not_keep_from_the_node_on_tcp(make: Make, listen: Serve) -> None:
    server, box, address = await serving(make, backends=("websocket",))
    liar = listen(port=port_of(address))
    client = await make()
    sending = asyncio.ensure_future(client.send(f"{server.node_id}@{address}", task("hi"), timeout=SLOW))
    end = await liar.end()
    from ..transport.rawsocket import Actor

    await end.answer(Actor(), liar.certificate)
    assert (await sending).backend == "websocket"
    assert box.payloads == ["hi"]


@pytest.mark.parametrize("order", [("websocket", "quic"), ("websocket",), ("quic",), ("quic", "websocket")])
async def test_the_order_of_config(make: Make, order: tuple[str, ...]) -> None:
    _, _, address = await serving(make)
    client = await make(backends=order)
    assert (await client.send(address, task("hi"))).backend == order[0]


async def test_schemes_of_backends_that_are_left_out(make: Make) -> None:
    _, _, address = await serving(make)
    for left_out, scheme in (("quic", "quic"), ("websocket", "ws"), ("websocket", "wss")):
        client = await make(backends=tuple({"quic", "websocket"} - {left_out}))
        with pytest.raises(openline.Unreachable, match=r"Config\.backends leaves"):
            await client.send(f"{scheme}://{address}", task("hi"))
        assert client.stats().active == 0


# Ties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(8))
async def test_both_are_up_in_the_same_turn(make: Make, monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    gate, up = asyncio.Event(), []

    def held(original: Any) -> Any:
        async def dial(self: Any, *args: Any) -> Any:
            found = await original(self, *args)
            up.append(self.name)
            if len(up) == 2:
                gate.set()
            await gate.wait()
            return found

        return dial

    server, box, address = await serving(make)
    client = await make()
    with monkeypatch.context() as patch:
        patch.setattr(race, "STAGGER", 0.0)
        patch.setattr(QuicBackend, "dial", held(QuicBackend.dial))
        patch.setattr(WebSocketBackend, "dial_bare", held(WebSocketBackend.dial_bare))
        await client.send(address, task("hi"))
    assert sorted(up) == ["quic", "websocket"]
    await eventually(lambda: client.stats().active < 2 and server.stats().active < 2, SLOW)
    assert (client.stats().active, server.stats().active) == (1, 1)
    assert client.stats().dials == 1
    await client.send(address, task("again"))
    assert box.payloads == ["hi", "again"]
    assert client.stats().dials == 1


@pytest.mark.parametrize("stagger", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02])
async def test_close_races(make: Make, monkeypatch: pytest.MonkeyPatch, stagger: float) -> None:
    monkeypatch.setattr(race, "STAGGER", stagger)
    server, box, address = await serving(make)
    for number in range(4):
        client = await make(backends=("websocket", "quic") if number % 2 else ("quic", "websocket"))
        await client.send(address, task(number))
        await eventually(lambda c=client: c.stats().active == 1, SLOW)  # type: ignore[misc]
        await client.close()
    assert box.payloads == [0, 1, 2, 3]
    await eventually(lambda: server.stats().active == server.stats().pending_handshakes == 0, SLOW)


# Cancelling -----------------------------------------------------------------------------------------


async def test_a_dial_that_is_cancelled_at_any_moment_leaves_nothing(make: Make) -> None:
    """After each number of turns of the loop, through all of the way up."""
    server, _, address = await serving(make)
    client = await make()
    backends = client._node.backends
    target = openline.Address.parse(address)
    await backends.dial(target)
    await hang_up_all(client)
    await eventually(lambda: server.stats().active == 0)
    gc.collect()
    before, tasks = open_files(), len(asyncio.all_tasks())
    finished = 0
    for turns in range(60):
        dialing = asyncio.ensure_future(backends.dial(target))
        for _ in range(turns):
            await asyncio.sleep(0)
        dialing.cancel()
        try:
            await dialing
            finished += 1
        except asyncio.CancelledError:
            pass
    await hang_up_all(client)
    await eventually(lambda: server.stats().active == server.stats().pending_handshakes == 0, SLOW)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: open_files() <= before, SLOW)
    assert finished < 60


async def test_a_transport_that_closes_in_the_middle_of_a_dial(make: Make) -> None:
    server, _, address = await serving(make)
    gc.collect()
    before = open_files()
    for turns in range(0, 40, 3):
        client = await make()
        connecting = asyncio.ensure_future(client.connect(address))
        for _ in range(turns):
            await asyncio.sleep(0)
        await client.close()
        with suppress(openline.Error):
            await connecting  # it may have been up before
        assert client.stats().active == 0
    await eventually(lambda: server.stats().active == server.stats().pending_handshakes == 0, SLOW)
    await eventually(lambda: open_files() <= before, SLOW)


async def test_dials_that_fail_leave_nothing(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        client = await make(dial_timeout=0.1)
        before = open_files()
        for _ in range(20):
            with pytest.raises(openline.Unreachable):
                await client.connect(address)
        async with silent(address):
            for _ in range(3):
                with pytest.raises(openline.Unreachable):
                    await client.connect(f"quic://{address}")
        await eventually(lambda: open_files() <= before)


# Listening ------------------------------------------------------------------------------------------


async def test_the_udp_port_is_somebody_elses(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server, client = await make(), await make()
        with caplog.at_level(logging.WARNING, "openline"):
            listener = await server.listen(port, host="127.0.0.1")
        assert listener.backends == ("websocket",)
        assert any(str(port) in message and "QUIC" in message for message in caplog.messages)
        assert (await client.send(f"127.0.0.1:{port}", task("hi"))).backend == "websocket"
        await listener.close()


async def test_the_tcp_port_is_somebody_elses(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = await make()
        before = open_files()
        with pytest.raises(OSError, match="in use"):
            await server.listen(taken.getsockname()[1], host="127.0.0.1")
        assert open_files() == before


async def test_only_quic_and_its_port_is_somebody_elses(make: Make) -> None:
    first = await make(backends=("quic",))
    port = (await first.listen(0, host="127.0.0.1")).port
    second = await make(backends=("quic",))
    with pytest.raises(OSError, match="in use"):
        await second.listen(port, host="127.0.0.1")


async def test_the_same_port_again_after_close(make: Make) -> None:
    """A restart within one process gets both backends back."""
    client = await make()
    server, _, address = await serving(make)
    await client.send(address, task("one"))
    await server.close()
    again = await make()
    box = Box(again)
    listener = await again.listen(port_of(address), host="127.0.0.1")
    assert listener.backends == ("websocket", "quic")
    receipt = await client.send(f"{again.node_id}@{address}", task("two"), timeout=SLOW)
    assert (receipt.backend, box.payloads) == ("quic", ["two"])


async def test_a_listener_that_is_closed_leaves_its_connections_and_nothing_else(make: Make) -> None:
    server, box, address = await serving(make)
    client, late = await make(), await make(dial_timeout=1.0)
    await client.send(address, task("one"))
    before = open_files()
    await server._listeners[0].close()
    await client.send(address, task("two"))
    assert (box.payloads, client.stats().dials) == (["one", "two"], 1)
    with pytest.raises(openline.Unreachable):
        await late.connect(address)
    await hang_up_all(client)
    await eventually(lambda: server.stats().active == 0)
    await eventually(lambda: open_files() < before)


async def test_cancelling_listen_leaves_nothing(make: Make) -> None:
    server = await make()
    before = open_files()
    for turns in range(12):
        listening = asyncio.ensure_future(server.listen(0, host="127.0.0.1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await (await listening).close()
    gc.collect()
    await eventually(lambda: open_files() <= before)
