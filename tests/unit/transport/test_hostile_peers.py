"""Peers that have proven who they are, and break the rules (rules 3.5, 3.6 and 3.10)."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

import openline

from ..clock import elapse
from ..memory import MiB, Peak, needs_peak
from .conftest import Make, Open
from .floods import pour_from_a_thread, send_all
from .helpers import (
    Box,
    again,
    eventually,
    port_of,
    serve,
    task,
    within,
)
from .lines import answering
from .rawsocket import Actor, Raw
from .wire import BINARY, PING, PONG, TEXT, batch, frame, plain


@pytest.fixture
async def scene(make: Make, raw: Open) -> AsyncIterator[tuple[openline.Transport, Raw, str]]:
    """A transport with an honest peer that keeps sending, and a proven one that is going to misbehave."""
    a, honest = await make(), await make("honest")
    address = await serve(a)
    a.on_message(lambda peer, message: None)
    await honest.send(address, task())
    sending = asyncio.ensure_future(again(10**6, lambda number: honest.send(address, task(number)), 0.01))
    yield a, await raw(port_of(address), Actor()), address
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


Scene = tuple[openline.Transport, Raw, str]


def array(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


def of_size(entry: bytes, size: int = 16 * MiB - 1024) -> bytes:
    count = size // len(entry)
    return array(count) + entry * count


EMPTY = b"\x90"
BOMBS = {
    "empty messages": lambda: b"\x01\x91" + of_size(b"\x90"),
    "messages with an id": lambda: b"\x01\x91" + of_size(b"\x91\x01"),
    "the same open": lambda: b"\x01\x93" + EMPTY + EMPTY + of_size(b"\x92\x00\x01"),
    "different opens": lambda: b"\x01\x93" + EMPTY + EMPTY + _different(2_000_000),
    "the same acknowledgement": lambda: b"\x01\x92" + EMPTY + of_size(b"\x92\x00\x01"),
    "different acknowledgements": lambda: b"\x01\x92" + EMPTY + _different(2_000_000),
    "lost connections": lambda: b"\x05\x91" + of_size(b"\xc4\x00"),
    "ports": lambda: b"\x03\x91" + of_size(b"\x01"),
    "nested payload": lambda: b"\x01\x91\x91\x93\x01\xa1t" + b"\x91" * (8 * MiB) + b"\x01",
}


def _different(count: int) -> bytes:
    return array(count) + b"".join(
        b"\x92\xce" + struct.pack(">I", number) + b"\x01" for number in range(count)
    )


@needs_peak
@pytest.mark.parametrize("what", BOMBS)
async def test_one_frame_takes_little_time_and_memory(make: Make, scene: Scene, what: str) -> None:
    """16 MiB is as large as a frame may be; what it holds costs its own connection at most."""
    a, end, address = scene
    data = frame(BINARY, BOMBS[what]())
    # In a thread: a peer is another process.
    end.sock.setblocking(True)
    worst = Stalls()
    with Peak() as peak:
        began = time.process_time()
        async with worst:
            sending = threading.Thread(target=send_all, args=(end.sock, data))
            sending.start()
            await asyncio.to_thread(sending.join)
            await elapse(0.2)
        took = time.process_time() - began
    assert worst.longest < 10.0
    assert took < 4.0
    assert peak.grown < 100 * MiB
    assert (await within((await make()).send(address, task("others")))).acked
    assert a.stats().active >= 2


class Stalls:
    """How long the loop stood still at the longest, in CPU seconds: others may be using the machine."""

    async def __aenter__(self) -> Stalls:
        self.longest = 0.0
        self._looking = asyncio.ensure_future(self._look())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._looking.cancel()

    async def _look(self) -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now


FLOODS: dict[str, Callable[[int], bytes]] = {
    "opens": lambda n: batch([], opens={n * 8000 + k: 1 for k in range(8000)}),
    "opens with long names": lambda n: batch([], opens={f"{n}-{k}-" + "x" * 1000: 1 for k in range(1000)}),
    "acknowledgements": lambda n: batch([], {n * 8000 + k: 1 for k in range(8000)}),
    "messages on new streams": lambda n: batch(
        [task(stream_id=n * 500 + k) for k in range(500)], opens={n * 500 + k: 1 for k in range(500)}
    ),
    "the same message": lambda n: batch([task("again")], opens={"default": 1}),
    "stops": lambda n: b"".join([b"\x02", msgspec.msgpack.encode([f"{n}-" + "x" * 1000, True])]),
    "pongs to no challenge": lambda n: b"",
    "unknown kinds": lambda n: bytes([200]) + bytes(1000),
}


@needs_peak
@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_leaves_memory_flat_and_others_alone(scene: Scene, what: str) -> None:
    a, end, _ = scene
    end.sock.setblocking(True)
    frames = [
        frame(PONG, b"still you?") if what.startswith("pongs") else frame(BINARY, FLOODS[what](n))
        for n in range(500)
    ]
    warm, rest = b"".join(frames[:100]), b"".join(frames[100:])
    await pour_from_a_thread(end.sock, warm)
    await elapse(0.3)
    with Peak() as peak:
        worst = Stalls()
        async with worst:
            await pour_from_a_thread(end.sock, rest)
            await elapse(0.3)
    # All that was poured in since would be 50 MiB at the least.
    assert peak.grown < 40 * MiB
    assert worst.longest < 10.0
    before = a.stats().messages_received
    await eventually(lambda: a.stats().messages_received > before + 3)


@needs_peak
async def test_stream_names_of_a_megabyte_are_not_kept(make: Make, raw: Open) -> None:
    """Of plain peers, who need no key; what has such a name may be dropped or handed over."""
    a = await make()
    a.on_message(lambda peer, message: None)
    address = await serve(a)
    client = await raw(port_of(address))
    with Peak() as peak:
        for number in range(100):
            await client.say(number, streamId=f"{number}-" + "x" * MiB)
        await client.say("last")
        await eventually(lambda: a.stats().messages_received + a.stats().malformed == 101)
    assert peak.grown < 40 * MiB
    assert (await within((await make()).send(address, task("others")))).acked


@needs_peak
@pytest.mark.parametrize("who", ["plain", "openline"])
@pytest.mark.parametrize("what", ["pings", "messages"])
async def test_a_peer_that_does_not_read(make: Make, raw: Open, who: str, what: str) -> None:
    """What we owe it, pongs and acknowledgements, does not pile up."""
    a = await make()
    a.on_message(lambda peer, message: None)
    address = await serve(a)
    end = await raw(port_of(address), Actor() if who == "openline" else None)
    if what == "pings":
        data = [frame(PING, b"x" * 125) * 4000] * 80
    elif who == "plain":
        data = [frame(TEXT, plain(number)) * 4000 for number in range(20)]
    else:
        messages = (task(stream_id=number % 500) for number in range(40_000))
        data = [b"".join(frame(BINARY, end.numbered(each)) for each in messages)]
    end.sock.setblocking(True)
    end.sock.settimeout(10.0)
    with Peak() as peak:
        for part in data:
            await asyncio.to_thread(send_all, end.sock, part)
        await elapse(0.3)
    assert peak.grown < 15 * MiB
    assert (await within((await make()).send(address, task("others")))).acked


class Hasty(Actor):
    """Comes back within a second or not at all."""

    def hello(self, dial: int = 0) -> str:
        return super().hello(dial) + "; resume=1"


async def test_identities_that_come_and_go_leave_next_to_nothing_behind(make: Make) -> None:
    a = await make(resume_timeout=0.2, max_idle_timeout=0.6)
    Box(a)
    port = port_of(await serve(a))
    for _ in range(100):
        end = await Raw.connect(port, Hasty())
        await end.post(task(stream_id=1), task(stream_id=2))
        await end.decoded()
        end.close()
    await eventually(lambda: a.stats().active == 0)
    assert list(a._table)
    await eventually(lambda: not list(a._table), 10.0)


async def test_a_peer_that_acknowledges_nothing_costs_its_own_sender_only(make: Make, raw: Open) -> None:
    a = await make(window_messages=10, send_timeout=1.0)
    answering(a)
    address = await serve(a)
    end = await raw(port_of(address), Actor())
    for number in range(50):
        await end.post(task(number))
    honest = await make()
    for number in range(50):
        assert (await within(honest.request(address, task(number)))).payload == number


async def test_two_puppets_with_one_instance_and_two_keys_are_two_peers(make: Make, raw: Open) -> None:
    """The instance is a claim; numbers belong to the node that is proven."""
    a = await make()
    box = Box(a)
    port = port_of(await serve(a))
    one, other = Actor(), Actor()
    other.instance = one.instance
    first, second = await raw(port, one), await raw(port, other)
    await first.post(task("one"))
    await first.decoded()
    await second.post(task("other"))
    await second.decoded()
    assert box.payloads == ["one", "other"]
    assert len(a.peers()) == 2
