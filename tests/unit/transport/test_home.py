"""Calls from another thread or another event loop are turned away at the door, before anything happens."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

import openline

from .conftest import Make
from .helpers import eventually, task

BACKENDS = pytest.mark.parametrize("backend", ["websocket", "quic"])


class Pair:
    """Connected, and each has the other as a peer."""

    def __init__(self, server: openline.Transport, client: openline.Transport) -> None:
        self.server, self.client = server, client
        self.got: list[Any] = []
        self.peer: openline.Peer

    async def meet(self, backend: str) -> Pair:
        self.listener = await self.server.listen(0, host="127.0.0.1")
        scheme = "quic" if backend == "quic" else "ws"
        self.to = f"{scheme}://127.0.0.1:{self.listener.port}"
        self.server.on_message(self._take)
        await self.client.send(self.to, task("first"))
        return self

    async def _take(self, peer: openline.Peer, message: openline.Message) -> None:
        self.peer = peer
        self.got.append(message.payload)
        if message.type == "ask":
            await peer.reply(message, message.payload)

    def coroutines(self) -> list[Callable[[], Any]]:
        t, peer, to = self.client, self.peer, self.to
        return [
            lambda: t.send(to, task("stray")),
            lambda: t.send_batch(to, [task("stray")] * 3),
            lambda: t.request(to, task("stray")),
            lambda: t.receive(to),
            lambda: t.connect(to),
            lambda: t.connect(to, keep=True),
            lambda: t.ping(to),
            lambda: t.listen(0),
            lambda: anext(t.messages()),
            lambda: t.close(),
            lambda: self.listener.close(),
            lambda: peer.send(task("stray")),
            lambda: peer.request(task("stray")),
            lambda: peer.reply(task("stray"), "stray"),
        ]

    def changing(self) -> list[Callable[[], Any]]:
        t = self.client
        return [
            lambda: t.on_message(print),
            lambda: t.off_message(print),
            lambda: t.on_undelivered(print),
            lambda: t.reload_tls(),
            lambda: self.listener.reload_tls(),
            lambda: t.explain(self.to),
        ]

    async def is_as_before(self) -> None:
        assert (await self.client.request(self.to, task("last", type="ask"))).payload == "last"
        assert self.got == ["first", "last"]
        stats = self.client.stats()
        assert (stats.created, stats.closed, stats.dials) == (1, 0, 1)
        assert self.server.stats().handler_errors == 0


def turned_away(call: Callable[[], Any], run: Callable[[Any], object]) -> None:
    def whole() -> None:
        result = call()
        if inspect.isawaitable(result):
            run(result)

    with pytest.raises(openline.WrongLoop, match=r"asyncio\.run_coroutine_threadsafe") as caught:
        whole()
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, openline.Error)


def alone(awaitable: Any) -> None:
    async def whole() -> None:
        await awaitable

    asyncio.run(whole())


@BACKENDS
async def test_from_another_thread(make: Make, backend: str) -> None:
    pair = await Pair(await make(), await make()).meet(backend)

    def elsewhere() -> None:
        for call in pair.coroutines():
            turned_away(call, alone)
        for call in pair.changing():
            turned_away(call, alone)
        assert pair.client.stats().active == 1
        assert [peer.node_id for peer in pair.client.peers()] == [pair.server.node_id]

    await asyncio.to_thread(elsewhere)
    await pair.is_as_before()


async def test_the_text_says_which_loop_it_is(make: Make) -> None:
    t = await make()
    with pytest.raises(openline.WrongLoop) as caught:
        await asyncio.to_thread(asyncio.run, t.send("127.0.0.1:1", task()))
    assert repr(asyncio.get_running_loop()) in str(caught.value)


@BACKENDS
async def test_many_from_many_threads_while_messages_flow(make: Make, backend: str) -> None:
    pair = await Pair(await make(), await make()).meet(backend)
    pair.server.on_message(lambda peer, message: None, stream_id="own")
    refused: list[bool] = []

    def elsewhere() -> None:
        for _ in range(50):
            turned_away(lambda: pair.client.send(pair.to, task("stray")), alone)
            pair.client.stats()
            pair.client.peers()
            refused.append(True)

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        await pair.client.send(pair.to, task("own", stream_id="own"))
    assert len(refused) == 200
    await eventually(lambda: "own" in pair.got)
    assert "stray" not in pair.got
    assert pair.client.stats().closed == 0


async def test_the_way_that_the_text_names(make: Make) -> None:
    pair = await Pair(await make(), await make()).meet("websocket")
    loop = asyncio.get_running_loop()

    def elsewhere() -> Any:
        asking = pair.client.request(pair.to, task("from a thread", type="ask"))
        return asyncio.run_coroutine_threadsafe(asking, loop).result(5.0).payload

    assert await asyncio.to_thread(elsewhere) == "from a thread"


@pytest.mark.parametrize("factory", ["asyncio", "uvloop"])
def test_another_loop_in_the_same_thread(factory: str) -> None:
    make_loop = asyncio.new_event_loop
    if factory == "uvloop":
        make_loop = pytest.importorskip("uvloop").new_event_loop
    loop = make_loop()
    pair = Pair(loop.run_until_complete(_loaded()), loop.run_until_complete(_loaded()))
    loop.run_until_complete(pair.meet("quic"))
    for call in pair.coroutines():
        turned_away(call, alone)
    # While no loop runs, nothing can come in between.
    pair.client.on_undelivered(lambda peer, message, why: None)
    assert str(pair.client.explain(pair.to)).startswith(pair.to)
    loop.run_until_complete(pair.is_as_before())

    # And the loop may go on in another thread; then that one is the right one.
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        turned_away(lambda: pair.client.send(pair.to, task("stray")), alone)
        turned_away(lambda: pair.client.on_message(print), alone)
        sending = pair.client.send(pair.to, task("moved"))
        assert asyncio.run_coroutine_threadsafe(sending, loop).result(5.0).acked
        turned_away(lambda: pair.client.send(pair.to, task("stray")), alone)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    assert pair.got == ["first", "last", "moved"]
    for t in (pair.client, pair.server):
        loop.run_until_complete(t.close())
        alone(t.close())  # closed is closed
    loop.close()


async def _loaded() -> openline.Transport:
    return await openline.load_transport(openline.Config(close_timeout=0.2))


async def test_nor_is_a_closed_one_taken_for_a_stray_call(make: Make) -> None:
    t = await make()
    await t.close()
    await asyncio.to_thread(asyncio.run, _awaited(t.close()))
    with pytest.raises(openline.Closed):
        await t.send("127.0.0.1:1", task())


async def _awaited(awaitable: Any) -> None:
    await awaitable
