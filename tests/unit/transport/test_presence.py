"""Who is told which peers are there, and how: ``on_peer`` and ``peer_events`` over real sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline
from openline import Peer, PeerEvent, Transport

from ..clock import hurry
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within
from .lines import Line
from .rawsocket import Actor, Raw, RawServer, frozen_server

BACKENDS = [("websocket",), ("quic",)]
COME_AND_GONE = ["connected", "gone"]


class Seen(list[PeerEvent]):
    """What a handler has been told."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        transport.on_peer(self.append)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self]

    def of(self, name: str) -> list[str]:
        return [event.kind for event in self if event.peer.name == name]


# What is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backends", BACKENDS)
async def test_both_sides_are_told_who_comes_and_goes(make: Make, backends: tuple[str, ...]) -> None:
    a, b = await make("a", backends=backends), await make("b", backends=backends)
    ours, theirs = Seen(a), Seen(b)
    before = time.time()
    peer = await b.connect(await serve(a))
    await eventually(lambda: ours and theirs)
    assert theirs[0].peer is peer
    assert ours[0].peer is a.peers()[0]
    await b.close()
    await eventually(lambda: ours.kinds == COME_AND_GONE)
    assert theirs.kinds == COME_AND_GONE
    for events, came in ((ours, "it came in"), (theirs, "dialed")):
        assert before <= events[0].at <= events[1].at <= time.time()
        assert events[0].why.startswith(f"{came}: {backends[0]} 127.0.0.1:")
        assert events[0].missed == events[1].missed == 0
    assert "closing" in ours[1].why
    assert "closed by this side" in theirs[1].why


async def test_a_plain_client_comes_and_goes(make: Make, plain_client: Any) -> None:
    t = await make()
    seen = Seen(t)
    client = await plain_client(port_of(await serve(t)))
    await eventually(lambda: seen.kinds == ["connected"])
    assert seen[0].peer.plain
    await client.close()
    await eventually(lambda: seen.kinds == COME_AND_GONE)
    assert "1000" in seen[1].why


async def test_a_plain_server_that_is_silent_is_suspect_and_gone(make: Make, raw_server: RawServer) -> None:
    with hurry():
        t = await make(max_idle_timeout=1.2)
        seen = Seen(t)
        await frozen_server(t, raw_server)
        await eventually(lambda: seen.kinds == ["connected", "suspect", "gone"])
    assert seen[1].why.startswith("no answer by websocket 127.0.0.1:")
    assert "no life" in seen[2].why


@pytest.mark.parametrize("plain", [False, True], ids=["openline", "plain"])
async def test_a_line_that_holds_and_lets_go(
    make: Make, line: Callable[[str], Awaitable[Line]], plain_server: Any, plain: bool
) -> None:
    with hurry():
        t = await make(max_idle_timeout=1.2, backends=("websocket",))
        address = f"127.0.0.1:{(await plain_server()).port}" if plain else await serve(await make())
        between = await line(address)
        seen = Seen(t)
        await t.connect(between.address)
        between.hold()
        await eventually(lambda: seen.kinds == ["connected", "suspect"])
        between.let_go()
        await eventually(lambda: seen.kinds == ["connected", "suspect", "recovered"])
        between.cut()
        await eventually(lambda: seen.kinds == ["connected", "suspect", "recovered", "gone"])


async def test_another_process_with_the_same_key_is_gone_and_connected(make: Make, raw: Open) -> None:
    t = await make()
    seen = Seen(t)
    port = port_of(await serve(t))
    actor = Actor(name="agent")
    await raw(port, actor)
    await eventually(lambda: seen.kinds == ["connected"])
    await raw(port, Actor(identity=actor.identity, name="agent"))
    await eventually(lambda: seen.kinds == ["connected", "gone", "connected"])
    assert seen[1].why == "its process is another one than before"
    assert seen[1].peer is seen[2].peer


@pytest.mark.usefixtures("short_grace")
async def test_nodes_that_dial_each_other_at_once_are_told_of_each_other_once(make: Make) -> None:
    a, b = await make("a", backends=("websocket",)), await make("b", backends=("websocket",))
    ours, theirs = Seen(a), Seen(b)
    addresses = await serve(a), await serve(b)
    for _ in range(5):
        await asyncio.gather(a.send(addresses[1], task()), b.send(addresses[0], task()))
    await eventually(lambda: a.stats().active == b.stats().active == 1)
    for seen in (ours, theirs):
        assert seen.kinds[0] == "connected"
        assert set(seen.kinds[1:]) <= {"moved"}


async def test_a_transport_that_dials_itself_is_two_peers(make: Make) -> None:
    t = await make("self")
    seen = Seen(t)
    await t.send(await serve(t), task())
    await eventually(lambda: seen.kinds == ["connected", "connected"])
    assert {event.peer for event in seen} == set(t.peers())


# Handlers -------------------------------------------------------------------------------------------


async def test_an_async_handler_gets_one_event_at_a_time_in_order(make: Make) -> None:
    t = await make()
    begun: list[PeerEvent] = []
    ended: list[PeerEvent] = []

    @t.on_peer
    async def slow(event: PeerEvent) -> None:
        assert begun == ended
        begun.append(event)
        async with asyncio.timeout(5.0):  # needs a task of its own
            await asyncio.sleep(0.001)
        ended.append(event)

    seen = Seen(t)
    await come_and_go(make, await serve(t), 5)
    await eventually(lambda: len(ended) == 10)
    assert ended == seen
    assert seen.kinds == COME_AND_GONE * 5


async def come_and_go(make: Make, address: str, times: int, name: str = "guest") -> None:
    for _ in range(times):
        guest = await make(name)
        await guest.connect(address)
        await guest.close()


async def test_a_handler_that_hangs_delays_nobody(make: Make) -> None:
    t, friend = await make(), await make()
    gate = asyncio.Event()

    @t.on_peer
    async def hangs(event: PeerEvent) -> None:
        await gate.wait()

    seen, box = Seen(t), Box(t)
    events = t.peer_events()
    address = await serve(t)
    for message in tasks(3):
        assert (await friend.send(address, message)).acked
    await come_and_go(make, address, 2)
    await eventually(lambda: seen.kinds == ["connected", *COME_AND_GONE * 2])
    assert [await within(anext(events)) for _ in range(5)] == seen
    assert box.payloads == [0, 1, 2]
    gate.set()


async def fail_at_once(event: PeerEvent) -> None:
    raise RuntimeError("a handler's own mistake")


async def fail_later(event: PeerEvent) -> None:
    await asyncio.sleep(0)
    raise RuntimeError("a handler's own mistake")


async def cancel_itself(event: PeerEvent) -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def fail(event: PeerEvent) -> None:
    raise RuntimeError("a handler's own mistake")


@pytest.mark.parametrize("handler", [fail, fail_at_once, fail_later, cancel_itself])
async def test_a_handler_that_fails_stops_nothing_and_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, handler: Any
) -> None:
    t = await make()
    t.on_peer(handler)
    seen = Seen(t)
    await come_and_go(make, await serve(t), 2)
    await eventually(lambda: t.stats().handler_errors == 4)
    assert seen.kinds == COME_AND_GONE * 2
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(records) == 4
    assert handler.__name__ in records[0].getMessage()
    assert records[0].exc_info is not None


async def test_a_handler_that_comes_late_is_not_told_who_is_there(make: Make) -> None:
    t, early = await make(), await make("early")
    address = await serve(t)
    await early.connect(address)
    await eventually(t.peers)
    seen = Seen(t)
    await come_and_go(make, address, 1, "late")
    await eventually(lambda: seen.of("late") == COME_AND_GONE)
    await early.close()
    await eventually(lambda: seen.of("early") == ["gone"])


async def test_off_peer_also_from_within_the_handler(make: Make) -> None:
    t = await make()
    once: list[PeerEvent] = []

    def handler(event: PeerEvent) -> None:
        once.append(event)
        t.off_peer(handler)

    assert t.on_peer(handler) is handler
    seen = Seen(t)
    await come_and_go(make, await serve(t), 2)
    await eventually(lambda: len(seen) == 4)
    assert once == seen[:1]
    t.off_peer(handler)


async def test_a_bound_method_can_be_taken_off(make: Make) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[PeerEvent] = []

        def see(self, event: PeerEvent) -> None:
            self.seen.append(event)

    t, watcher = await make(), Watcher()
    t.on_peer(watcher.see)
    t.off_peer(watcher.see)
    seen = Seen(t)
    await come_and_go(make, await serve(t), 1)
    await eventually(lambda: len(seen) == 2)
    assert watcher.seen == []


async def test_what_is_no_function_is_refused(make: Make) -> None:
    wrong: Any = "handler"
    with pytest.raises(TypeError, match="function"):
        (await make()).on_peer(wrong)


async def test_a_handler_may_send_to_who_has_come(make: Make) -> None:
    t, guest = await make(), await make()
    t.on_peer(lambda event: event.peer.send(task("welcome")) if event.kind == "connected" else None)
    box = Box(guest)
    await guest.connect(await serve(t))
    await eventually(lambda: box.payloads == ["welcome"])


# peer_events() --------------------------------------------------------------------------------------


async def test_an_iterator_collects_from_the_call_on(make: Make) -> None:
    t, one, two = await make(), await make("one"), await make("two")
    address = await serve(t)
    await one.connect(address)
    await eventually(t.peers)
    events = t.peer_events()
    assert [peer.name for peer in t.peers()] == ["one"]
    await two.connect(address)
    await eventually(lambda: len(t.peers()) == 2)
    first = await within(anext(events))
    assert (first.kind, first.peer.name) == ("connected", "two")


async def test_an_iterator_ends_when_everything_is_told(make: Make) -> None:
    t, guest = await make(), await make()
    await guest.connect(await serve(t))
    events = t.peer_events()
    await eventually(t.peers)
    waiting = asyncio.ensure_future(_all(t.peer_events()))
    await asyncio.sleep(0)
    await t.close()
    assert [event.kind for event in await within(waiting)] == ["gone"]
    assert [event.kind for event in await within(_all(events))] == ["gone"]
    assert await within(_all(events)) == []
    with pytest.raises(openline.Closed):
        t.peer_events()


async def _all(events: Any) -> list[PeerEvent]:
    return [event async for event in events]


async def test_two_tasks_may_share_an_iterator_and_one_may_be_cancelled(make: Make) -> None:
    t = await make()
    events = t.peer_events()
    waiting = [asyncio.ensure_future(anext(events)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting.pop(1).cancel()
    await come_and_go(make, await serve(t), 1)
    got = await within(asyncio.gather(*waiting))
    assert sorted(event.kind for event in got) == COME_AND_GONE


async def test_aclose_ends_an_iterator_and_its_waiters(make: Make) -> None:
    t = await make()
    events = t.peer_events()
    waiting = asyncio.ensure_future(_all(events))
    await asyncio.sleep(0)
    await events.aclose()
    assert await within(waiting) == []
    await come_and_go(make, await serve(t), 1)
    assert await within(_all(events)) == []
    assert not t._node.watchers.watched


async def test_an_iterator_that_nobody_has_any_more_collects_nothing(make: Make) -> None:
    t = await make()
    events = t.peer_events()
    await come_and_go(make, await serve(t), 1)
    async for _ in events:
        break
    gone = weakref.ref(events)
    gc.disable()
    try:
        del events
        assert gone() is None
        assert not t._node.watchers.watched
    finally:
        gc.enable()


async def test_a_task_that_waits_for_an_event_is_not_collected(make: Make) -> None:
    t = await make()
    got: list[str] = []

    async def watch() -> None:
        async for event in t.peer_events():
            got.append(event.kind)

    asyncio.get_running_loop().create_task(watch())
    await asyncio.sleep(0)
    gc.collect()
    await come_and_go(make, await serve(t), 1)
    gc.collect()
    await eventually(lambda: got == COME_AND_GONE)


# What it may cost -----------------------------------------------------------------------------------


async def test_strangers_that_come_and_go_are_not_kept_for_who_does_not_take(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    t, friend = await make(peer_events=16), await make("friend")
    gate = asyncio.Event()
    got: list[PeerEvent] = []

    @t.on_peer
    async def slow(event: PeerEvent) -> None:
        await gate.wait()
        got.append(event)

    events = t.peer_events()
    address = await serve(t)
    await t.connect(await serve(friend))
    for _ in range(40):
        stranger = await Raw.connect(port_of(address), Actor())
        stranger.close()
    await eventually(lambda: len(t.peers()) == 1)
    await friend.close()
    await eventually(lambda: not t.peers())
    assert events.backlog.size <= 8
    gate.set()
    await eventually(lambda: got and got[-1].peer.name == "friend" and got[-1].kind == "gone")
    assert sum(event.missed for event in got) == t.stats().peer_events_missed // 2 >= 60
    there: set[Peer] = set()
    for event in got:
        (there.add if event.kind == "connected" else there.remove)(event.peer)
    assert not there
    lines = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
    assert len(lines) == 2


async def test_nothing_of_a_peer_stays_when_its_events_have_been_taken(make: Make) -> None:
    t = await make()
    remotes: list[weakref.ref[Any]] = []

    @t.on_peer
    async def note(event: PeerEvent) -> None:
        await asyncio.sleep(0)
        if event.kind == "connected":
            remotes.append(weakref.ref(event.peer._remote))

    events = t.peer_events()
    port = port_of(await serve(t))
    gc.disable()
    try:
        for number in range(10):
            client = await Raw.connect(port)
            await within(anext(events))
            client.close()
            await within(anext(events))
            await eventually(lambda number=number: len(remotes) == number + 1)
        await eventually(lambda: not any(remote() for remote in remotes))
    finally:
        gc.enable()


# Closing, and where it may be called ----------------------------------------------------------------


async def test_close_tells_of_everybody_and_then_nothing(make: Make) -> None:
    t = await make()
    seen = Seen(t)
    slow: list[str] = []

    @t.on_peer
    async def later(event: PeerEvent) -> None:
        await asyncio.sleep(0.001)
        slow.append(event.kind)

    address = await serve(t)
    guests = [await make(str(number)) for number in range(3)]
    for guest in guests:
        await guest.connect(address)
    await eventually(lambda: len(seen) == 3)
    await t.close()
    assert seen.kinds == slow == ["connected"] * 3 + ["gone"] * 3
    await asyncio.gather(*(guest.close() for guest in guests))
    assert len(seen) == 6


async def test_who_is_cut_at_the_end_is_told_to_handlers_that_have_time(make: Make, raw: Open) -> None:
    t = await make(close_timeout=0.05)
    seen = Seen(t)

    @t.on_peer
    async def hangs(event: PeerEvent) -> None:
        await asyncio.Event().wait()

    await raw(port_of(await serve(t)), Actor())
    await eventually(lambda: seen.kinds == ["connected"])
    await within(t.close())
    assert seen.kinds == COME_AND_GONE


async def test_calls_from_another_thread_are_refused(make: Make) -> None:
    t = await make()
    for call in (lambda: t.on_peer(print), lambda: t.off_peer(print), t.peer_events):
        with pytest.raises(openline.WrongLoop):
            await asyncio.to_thread(call)
    assert not t._node.watchers.watched
