"""Rules 3.3 to 3.5 over real sockets: acknowledgements, resumption, giving up, leaving, hostile peers."""

from __future__ import annotations

import asyncio
import gc
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

import openline
from openline.core.frames import Batched

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Actor,
    Box,
    Dials,
    Peak,
    PlainServer,
    Raw,
    RawServer,
    again,
    batch,
    can_measure_peak,
    eventually,
    frame,
    plain,
    port_of,
    serve,
    task,
    tasks,
    two_identities,
    within,
)

MiB = 1024 * 1024
GOING_AWAY, PROTOCOL_ERROR = 1001, 1002


class Line:
    """A TCP line to a port, that can be cut, held and throttled."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._open = {True: asyncio.Event(), False: asyncio.Event()}
        for event in self._open.values():
            event.set()
        self.port = 0
        self.connections = 0
        self.passed = 0
        # Reset by itself after so many bytes upward.
        self.cut_after: int | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        for running in list(self._tasks):
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all that is open."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    def hold(self, upward: bool = True, downward: bool = True) -> None:
        """Nothing gets through from now on, and nobody is told."""
        for direction, held in ((True, upward), (False, downward)):
            if held:
                self._open[direction].clear()

    def let_go(self) -> None:
        for event in self._open.values():
            event.set()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        running = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(OSError):
            onward = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(onward[1])
            await asyncio.gather(
                self._pump(reader, onward[1], True),
                self._pump(onward[0], writer, False),
                return_exceptions=True,
            )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upward: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self._open[upward].wait()
                if upward:
                    self.passed += len(data)
                    if self.cut_after is not None and self.passed > self.cut_after:
                        self.cut_after = None
                        self.cut()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def line(transports: Any) -> AsyncIterator[Callable[[str], Awaitable[Line]]]:
    """Lays lines: ``await line(address)``."""

    async def laid(address: str) -> Line:
        return await transports.enter_async_context(Line(port_of(address)))

    return laid


Lay = Callable[[str], Awaitable[Line]]


async def heard(end: Raw) -> list[openline.Message]:
    """The next messages, which are not acknowledged."""
    while True:
        found = await end.decoded()
        if isinstance(found, Batched) and found.messages:
            return found.messages


def answering(transport: openline.Transport, pause: float | None = None) -> list[Any]:
    """Answers every message with its payload; what it was asked."""
    asked: list[Any] = []

    @transport.on_message
    async def answer(peer: openline.Peer, message: openline.Message) -> None:
        asked.append(message.payload)
        if pause is not None:
            await asyncio.sleep(pause)
        await peer.reply(message, message.payload)

    return asked


# Acknowledgements ---------------------------------------------------------------------------------


async def test_send_waits_for_the_acknowledgement(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("x")))
    end = await raw_server.accept(actor)
    assert [message.payload for message in await heard(end)] == ["x"]
    await asyncio.sleep(0.1)
    assert not sending.done()
    await end.frame(BINARY, batch([], {"default": 2}))
    receipt = await within(sending)
    assert receipt == openline.Receipt(1, True, "websocket", "outbound", receipt.rtt)


async def test_a_message_and_its_acknowledgement_are_two_frames(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(5):
        await end.post(task(number))
        answer = await end.decoded()
        assert (answer.messages, dict(answer.acks)) == ([], {"default": number + 2})  # type: ignore[union-attr]
    assert box.payloads == list(range(5))


async def test_an_answer_carries_the_acknowledgement(make: Make, raw: Open) -> None:
    a = await make()
    answering(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(5):
        await end.post(task(number))
        assert [message.payload for message in await end.take()] == [number]
        assert end.acked == {"default": number + 2}


async def test_many_frames_of_one_read_are_acknowledged_together(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    frames = [end.numbered(task(number)) for number in range(200)]
    await end.send(b"".join(frame(BINARY, each) for each in frames))
    heard, acked = 0, 0
    while acked < 201:
        answer = await end.decoded()
        acked = dict(answer.acks)["default"]  # type: ignore[union-attr]
        heard += 1
    assert heard <= 20
    assert box.payloads == list(range(200))


async def test_one_dial_for_many_sends_batches_and_requests(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    asked = answering(b)
    address = await serve(b)
    sends = [a.send(address, task(number)) for number in range(50)]
    batches = [a.send_batch(address, tasks(100, stream_id=stream)) for stream in range(3)]
    requests = [a.request(address, task(number, stream_id="rpc")) for number in range(50)]
    await within(asyncio.gather(*sends, *batches, *requests))
    assert len(dials.made) == 1
    await eventually(lambda: len(asked) == 400)
    assert a.stats().resent == b.stats().duplicates_suppressed == 0


async def test_acknowledged_means_that_the_other_transport_has_it(make: Make) -> None:
    """Also while its handler is busy, and where nobody has asked for it yet."""
    a, b = await make(), await make()
    address = await serve(b)
    for number in range(10):
        assert (await within(a.send(address, task(number)))).acked
        assert b.stats().messages_received == number + 1
    assert [(await b.receive(next(iter(b.peers())).address)).payload for _ in range(10)] == list(range(10))


# Changes of connection ----------------------------------------------------------------------------


async def test_a_batch_through_many_resets(make: Make, line: Lay) -> None:
    a, b = await make(window_messages=256), await make()
    box = Box(b)
    way = await line(await serve(b))
    sending = asyncio.ensure_future(insisting_batch(a, way.address, tasks(10_000)))
    for count in range(500, 10_000, 500):
        await eventually(lambda count=count: len(box) >= count, 20.0)
        way.cut()
    await within(sending, 20.0)
    assert box.payloads == list(range(10_000))
    assert b.stats().accepted >= 5


async def insisting_batch(a: openline.Transport, address: str, messages: list[openline.Message]) -> None:
    while messages:
        try:
            await a.send_batch(address, messages)
            return
        except openline.Unreachable as error:
            messages = messages[error.sent :]


async def test_concurrent_sends_on_many_streams_through_resets(make: Make, line: Lay) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    sending: list[Any] = []
    for number in range(100):
        sending += [asyncio.ensure_future(a.send(way.address, task(number, stream_id=n))) for n in range(10)]
        if number % 30 == 20:
            await asyncio.sleep(0.002)
            way.cut()
    outcomes = await within(asyncio.gather(*sending, return_exceptions=True))
    for stream in range(10):
        got = [message.payload for message in box if message.stream_id == stream]
        # A dial may meet the cut, too; then nothing of those has left.
        assert got == [
            n for n in range(100) if not isinstance(outcomes[10 * n + stream], openline.Unreachable)
        ]
        assert len(got) > 50


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_a_large_message_through_a_reset(make: Make, line: Lay, share: float) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    way.cut_after = way.passed + int(10 * MiB * share)
    receipt = await within(a.send(way.address, task(bytes(10 * MiB))))
    assert (receipt.attempts, receipt.acked) == (2, True)
    assert [len(payload) for payload in box.payloads] == [10 * MiB]
    assert a.stats().resent == 1


@pytest.mark.parametrize("direction", ["upward", "downward"])
async def test_a_request_whose_line_is_cut(make: Make, line: Lay, direction: str) -> None:
    """Before the question arrived, or before the answer did: it is handled once, and answered."""
    a, b = await make(), await make()
    asked = answering(b)
    way = await line(await serve(b))
    await a.connect(way.address)
    way.hold(upward=direction == "upward", downward=direction == "downward")
    asking = asyncio.ensure_future(a.request(way.address, task("question")))
    await asyncio.sleep(0.1)
    assert asked == (["question"] if direction == "downward" else [])
    way.cut()
    way.let_go()
    assert (await within(asking)).payload == "question"
    await asyncio.sleep(0.1)
    assert asked == ["question"]
    assert b.stats().duplicates_suppressed == (direction == "downward")


async def test_a_silent_line_is_replaced_before_it_is_dead(make: Make, line: Lay) -> None:
    a, b = await make(max_idle_timeout=1.2), await make(max_idle_timeout=60.0)
    box = Box(b)
    address = await serve(b)
    way = await line(address)
    await a.send(way.address, task("before"))
    way.hold()
    sending = [asyncio.ensure_future(a.send(way.address, task(number))) for number in range(5)]
    await asyncio.sleep(0.05)
    second = asyncio.ensure_future(_again(way, 0.3))
    receipts = await within(asyncio.gather(*sending), 10.0)
    await second
    assert [receipt.attempts for receipt in receipts] == [2] * 5
    assert box.payloads == ["before", *range(5)]
    assert a.stats().suspects == 1


async def _again(way: Line, after: float) -> None:
    """New connections get through; what is under way on the old one is gone."""
    await asyncio.sleep(after)
    fresh = asyncio.Event()
    fresh.set()
    way._open = {True: fresh, False: fresh}


async def test_the_same_node_comes_in_from_another_address(make: Make, transports: Any) -> None:
    """Its messages and ours go on over that connection, each once."""

    async def from_elsewhere(family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind((next(sources), 0))
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
        return sock

    sources = (f"127.0.0.{number}" for number in itertools.count(2))
    a = await make(identity=two_identities()[1])
    b = await make(opener=from_elsewhere, identity=openline.Identity())
    ours, theirs = Box(a), Box(b)
    address = await serve(a, "0.0.0.0")
    address = f"127.0.0.1:{port_of(address)}"
    await b.send(address, task(0))
    peer = a.peers()[0]
    for number in range(1, 6):
        before = a.stats().accepted
        sending = [asyncio.ensure_future(peer.send(task((number, n)))) for n in range(20)]
        await asyncio.sleep(0)
        for connection in b.peers()[0]._remote.connections:
            connection.link.abort()
        await within(b.send(address, task(number)))
        await within(asyncio.gather(*sending))
        await eventually(lambda before=before: a.stats().accepted > before)
    assert ours.payloads == list(range(6))
    assert [tuple(payload) for payload in theirs.payloads] == [(m, n) for m in range(1, 6) for n in range(20)]
    assert a.peers() == [peer]
    assert a.stats().dials == 0


async def test_a_node_that_dials_twice_keeps_one(make: Make) -> None:
    a, b = await make(), await make()
    there, back = await serve(a), await serve(b)
    box = Box(a)
    await asyncio.gather(*(b.send(there, task(number)) for number in range(10)), a.send(back, task("back")))
    await eventually(lambda: a.stats().active == b.stats().active == 1)
    ids = [t.peers()[0]._remote.connections[0].endpoint.connection_id for t in (a, b)]
    assert ids[0] == ids[1]
    assert box.payloads == list(range(10))


async def test_what_was_sent_to_a_wss_address_is_not_resent_in_the_clear(
    make: Make, line: Lay, certificate: Certificate
) -> None:
    """The same node, proven, comes in over ``ws``; that is less than was asked for."""
    a = await make(tls=openline.Tls(ca=certificate.cert), send_timeout=10.0)
    identity = openline.Identity()
    b = await make(identity=identity, tls=openline.Tls(cert=certificate.cert, key=certificate.key))
    box = Box(b)
    secure = await line(await serve(b))
    plain_door = await serve(a)
    to = f"wss://localhost:{secure.port}"
    await within(a.send(to, task("before")))
    secure.hold()
    sending = asyncio.ensure_future(a.send(to, task("secret")))
    await asyncio.sleep(0.1)
    way = await line(plain_door)
    said: list[bytes] = []
    before = way._pump

    async def listening(reader: Any, writer: Any, upward: bool) -> None:
        original = reader.read

        async def read(size: int) -> bytes:
            data: bytes = await original(size)
            said.append(data)
            return data

        reader.read = read
        await before(reader, writer, upward)

    way._pump = listening  # type: ignore[method-assign]
    await within(b.connect(way.address))
    assert any(b"Openline-Hello" in data for data in said)
    await asyncio.sleep(0.5)
    assert not any(b"secret" in data for data in said)
    assert box.payloads == ["before"]
    assert not sending.done()
    secure.cut()
    secure.let_go()
    assert (await within(sending, 10.0)).acked
    assert box.payloads == ["before", "secret"]
    assert not any(b"secret" in data for data in said)


# Giving up ----------------------------------------------------------------------------------------


async def test_not_confirmed_in_time(make: Make, line: Lay) -> None:
    a, b = await make(send_timeout=0.3), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.send(way.address, task("before"))
    way.hold()
    with pytest.raises(openline.NotConfirmed, match=r"no acknowledgement within 0\.3 s") as caught:
        await within(a.send(way.address, task("late")))
    assert (caught.value.attempts, caught.value.acked) == (1, 0)
    way.let_go()
    await within(a.send(way.address, task("after")))
    assert box.payloads == ["before", "late", "after"]


async def test_a_send_timeout_of_its_own(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(), Actor()
    began = time.monotonic()
    sending = asyncio.ensure_future(a.send(raw_server.address, task(), timeout=0.2))
    await raw_server.accept(actor)
    with pytest.raises(openline.NotConfirmed):
        await within(sending)
    assert time.monotonic() - began < 1.0


async def test_a_batch_that_is_confirmed_in_part(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(send_timeout=0.5), Actor()
    sending = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(20)))
    end = await raw_server.accept(actor)
    assert len(await heard(end)) == 20
    await end.frame(BINARY, batch([], {"default": 8}))
    with pytest.raises(openline.NotConfirmed) as caught:
        await within(sending)
    assert caught.value.acked == 7


async def test_a_cancelled_send_leaves_the_stream_in_order(make: Make, line: Lay) -> None:
    a, b = await make(), await make()
    box = Box(b)
    way = await line(await serve(b))
    await a.send(way.address, task("before"))
    way.hold()
    sending = [asyncio.ensure_future(a.send(way.address, task(number))) for number in range(5)]
    await asyncio.sleep(0.05)
    sending[2].cancel()
    await asyncio.sleep(0.05)
    way.cut()
    way.let_go()
    outcomes = await within(asyncio.gather(*sending, return_exceptions=True))
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [n == 2 for n in range(5)]
    await within(a.send(way.address, task("after")))
    assert box.payloads == ["before", 0, 1, 2, 3, 4, "after"]


# In doubt toward plain peers ----------------------------------------------------------------------


class Undelivered(list[tuple[Any, str]]):
    """What ``on_undelivered`` tells: payloads, and why."""

    def __init__(self, transport: openline.Transport) -> None:
        super().__init__()
        self.peers: list[openline.Peer] = []
        transport.on_undelivered(self._add)

    def _add(self, peer: openline.Peer, message: openline.Message, why: str) -> None:
        self.peers.append(peer)
        self.append((message.payload, why))

    @property
    def payloads(self) -> list[Any]:
        return [payload for payload, _ in self]


async def test_what_left_since_a_plain_peers_last_sign_of_life(make: Make, raw: Open) -> None:
    a = await make()
    doubt, box = Undelivered(a), Box(a)
    client = await raw(port_of(await serve(a)))
    await a.send(client.address, task("heard of"))
    await client.say("a sign of life")
    await eventually(lambda: box)
    for number in range(3):
        receipt = await a.send(client.address, task(number))
        assert not receipt.acked
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 3)
    assert doubt.payloads == [0, 1, 2]
    assert all("connection was lost" in why for _, why in doubt)
    assert {peer.plain for peer in doubt.peers} == {True}


@pytest.mark.parametrize("sign", ["message", "pong", "ping"])
async def test_every_frame_is_a_sign_of_life(make: Make, raw: Open, sign: str) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await a.send(client.address, task("heard of"))
    connection = a.peers()[0]._remote.connections[0]
    if sign == "message":
        await client.say("x")
    else:
        await client.frame(PING if sign == "ping" else PONG, b"x")
    await eventually(lambda: connection.tx_heard == 1)
    client.reset()
    await eventually(lambda: a.stats().closed == 1)
    assert (doubt, a.stats().in_doubt) == ([], 0)


async def test_a_plain_peer_that_says_goodbye_leaves_nothing_in_doubt(
    make: Make, plain_client: Callable[..., Awaitable[Any]]
) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await plain_client(port_of(await serve(a)))
    await eventually(lambda: a.peers())
    await a.peers()[0].send(task())
    await client.close()
    await eventually(lambda: a.stats().closed == 1)
    assert (doubt, a.stats().in_doubt) == ([], 0)


async def test_a_batch_to_a_plain_peer_that_dies(
    make: Make, plain_server: Callable[..., Awaitable[PlainServer]], line: Lay
) -> None:
    a, server = await make(), await plain_server()
    doubt = Undelivered(a)
    way = await line(server.address)
    await a.connect(way.address)
    way.hold()
    await a.send_batch(way.address, tasks(50))
    way.cut()
    await eventually(lambda: a.stats().closed == 1)
    assert doubt.payloads == list(range(50))
    assert a.stats().in_doubt == 50


async def test_only_the_last_thousand_are_reported_and_all_are_counted(make: Make, raw: Open) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await within(a.send_batch(client.address, tasks(3000)))
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 3000)
    assert doubt.payloads == list(range(3000 - 1024, 3000))


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
async def test_large_messages_kept_to_be_reported_are_bounded_in_bytes(make: Make, raw: Open) -> None:
    a = await make()
    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    client.sock.setblocking(True)
    done = threading.Event()
    reading = asyncio.ensure_future(asyncio.to_thread(_drain, client.sock, done))
    gc.collect()
    with Peak() as peak:
        for number in range(50):
            await within(a.send(client.address, task(f"{number} " + "x" * 3 * MiB)))
    done.set()
    await reading
    client.sock.setblocking(False)
    client.reset()
    await eventually(lambda: a.stats().in_doubt == 50)
    assert peak.grown < 60 * MiB
    assert doubt.payloads[-1].startswith("49 ")


async def test_a_handler_of_undelivered_messages_that_fails_stops_no_other(make: Make, raw: Open) -> None:
    a = await make()

    @a.on_undelivered
    def fails(peer: openline.Peer, message: openline.Message, why: str) -> None:
        raise ValueError("handler")

    doubt = Undelivered(a)
    client = await raw(port_of(await serve(a)))
    await a.send_batch(client.address, tasks(3))
    client.reset()
    await eventually(lambda: len(doubt) == 3)
    assert a.stats().handler_errors == 3


async def test_what_was_given_up_toward_an_openline_peer(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(resume_timeout=0.4, max_idle_timeout=0.6, backoff_min=0.05), Actor()
    doubt = Undelivered(a)
    sending = asyncio.ensure_future(a.send(raw_server.address, task("x")))
    end = await raw_server.accept(actor)
    await heard(end)
    raw_server.close()
    end.reset()
    with pytest.raises(openline.NotConfirmed, match="resume_timeout"):
        await within(sending)
    assert doubt.payloads == ["x"]
    assert doubt.peers[0].node_id == actor.node_id
    assert a.stats().in_doubt == 1


# Flow ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
async def test_a_slow_handler_stalls_its_own_stream_and_memory_stays_flat(make: Make) -> None:
    a, b = await make(window_bytes=MiB, window_messages=1000), await make(inbox_bytes=MiB)
    gate = asyncio.Event()

    @b.on_message(stream_id="slow")
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    fast = Box(b, stream_id="fast")
    address = await serve(b)
    payload = bytes(10_000)
    await a.send(address, task(payload, stream_id="fast"))
    gc.collect()
    with Peak() as peak:
        messages = [task(payload, stream_id="slow") for _ in range(5000)]
        flood = asyncio.ensure_future(a.send_batch(address, messages))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        for number in range(200):
            await within(a.send(address, task(number, stream_id="fast")))
        assert time.monotonic() - began < 3.0
        assert not flood.done()
    assert fast.payloads[1:] == list(range(200))
    assert peak.grown < 20 * MiB
    gate.set()
    await within(flood, 20.0)


async def test_replies_on_both_sides_under_load_do_not_deadlock(make: Make) -> None:
    a, b = await make(inbox_messages=16), await make(inbox_messages=16)
    for transport in (a, b):
        answering(transport, pause=0.0)
    there, back = await serve(b), await serve(a)
    asked = [t.request(to, task(n)) for n in range(300) for t, to in ((a, there), (b, back))]
    answers = await within(asyncio.gather(*asked), 20.0)
    assert [answer.payload for answer in answers] == [n for n in range(300) for _ in range(2)]
    assert a.stats().handler_errors == b.stats().handler_errors == 0


async def test_echoes_of_echoes(make: Make) -> None:
    """Handlers that send on the stream they were called on, as many as an inbox holds."""
    a, b = await make(), await make()
    done = [0, 0]

    def handler(index: int) -> Any:
        async def handle(peer: openline.Peer, message: openline.Message) -> None:
            if message.payload:
                await peer.reply(message, message.payload - 1)
            else:
                done[index] += 1

        return handle

    a.on_message(handler(0))
    b.on_message(handler(1))
    there = await serve(b)
    await within(asyncio.gather(*(a.send(there, task(20)) for _ in range(500))), 20.0)
    await eventually(lambda: sum(done) == 500, 20.0)


@pytest.mark.parametrize("factory", ["asyncio", "uvloop", "debug"])
def test_on_any_loop(factory: str) -> None:
    """Waiters step tasks by themselves, which each loop has its own opinion of."""
    if factory == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        make_loop = uvloop.new_event_loop
    else:
        make_loop = asyncio.new_event_loop
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        config = openline.Config(close_timeout=0.5)
        async with openline.load_transport(config) as a, openline.load_transport(config) as b:
            answering(b)
            address = await serve(b)
            for number in range(20):
                assert (await a.request(address, task(number))).payload == number
                assert (await a.send(address, task(number, stream_id="s"))).acked
            asked = [a.request(address, task(number, stream_id=number % 5)) for number in range(100)]
            assert [answer.payload for answer in await asyncio.gather(*asked)] == list(range(100))
            assert len(await a.send_batch(address, tasks(1000))) == 1000
            doomed = asyncio.ensure_future(a.request(address, task(stream_id="s"), timeout=5.0))
            await asyncio.sleep(0)
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)

    with asyncio.Runner(loop_factory=make_loop, debug=factory == "debug") as runner:
        runner.run(main())
    assert complaints == []


# Leaving ------------------------------------------------------------------------------------------


async def test_what_was_taken_in_is_acknowledged_before_the_goodbye(make: Make, raw: Open) -> None:
    a = await make(close_timeout=2.0)
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(10):
        await end.post(task(number))
    await eventually(lambda: len(box) == 10)
    closing = asyncio.ensure_future(a.close())
    assert await within(end.closed()) == GOING_AWAY
    assert end.acked == {"default": 11}
    await within(closing)


async def test_what_comes_after_close_began_is_not_acknowledged(make: Make, raw: Open) -> None:
    """So its sender keeps it for the next process."""
    a = await make(close_timeout=2.0)
    started, gate = asyncio.Event(), asyncio.Event()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        started.set()
        await gate.wait()

    end = await raw(port_of(await serve(a)), Actor())
    await end.post(task("before"))
    await within(started.wait())
    closing = asyncio.ensure_future(a.close())
    await asyncio.sleep(0.1)
    await end.post(task("after"))
    await asyncio.sleep(0.1)
    gate.set()
    assert await within(end.closed()) == GOING_AWAY
    assert end.acked == {"default": 2}
    await within(closing)
    assert a.stats().messages_received == 1


async def test_its_own_messages_are_drained(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(close_timeout=3.0), Actor()
    sending = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(10)))
    end = await raw_server.accept(actor)
    assert len(await heard(end)) == 10
    closing = asyncio.ensure_future(a.close())
    await asyncio.sleep(0.3)
    assert not closing.done()
    await end.frame(BINARY, batch([], {"default": 11}))
    assert all(receipt.acked for receipt in await within(sending))
    assert await within(end.closed()) == GOING_AWAY
    await within(closing)


async def test_the_next_process_at_that_port_gets_the_rest(make: Make) -> None:
    a = await make(send_timeout=20.0)
    identity = openline.Identity()
    b = await make(identity=identity, close_timeout=1.0)
    started = asyncio.Event()
    boxes = [Box(b)]

    @b.on_message
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        started.set()
        await asyncio.sleep(0.3)

    address = await serve(b)
    await a.send(address, task(0))
    closing = asyncio.ensure_future(b.close())
    await asyncio.sleep(0.1)
    sending = [asyncio.ensure_future(a.send(address, task(number))) for number in range(1, 10)]
    await within(closing)
    again = await make(identity=identity)
    boxes.append(Box(again))
    await again.listen(port_of(address), host="127.0.0.1")
    await within(asyncio.gather(*sending), 10.0)
    assert [box.payloads for box in boxes] == [[0], list(range(1, 10))]


async def test_who_was_told_goodbye_does_not_dial_at_once(make: Make, raw_server: RawServer) -> None:
    dials = Dials()
    a, actor = await make(opener=dials, send_timeout=20.0), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("x")))
    end = await raw_server.accept(actor)
    await heard(end)
    await end.frame(CLOSE, struct.pack("!H", GOING_AWAY))
    said = time.monotonic()
    end = await raw_server.accept(actor)
    assert 0.9 < time.monotonic() - said < 3.0
    assert len(dials.made) == 2
    assert (await end.takes(sending)).attempts == 2


# Hostile peers ------------------------------------------------------------------------------------


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


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
@pytest.mark.parametrize("what", BOMBS)
async def test_one_frame_takes_little_time_and_memory(make: Make, scene: Scene, what: str) -> None:
    """16 MiB is as large as a frame may be; what it holds costs its own connection at most."""
    a, end, address = scene
    data = frame(BINARY, BOMBS[what]())
    # In a thread: a peer is another process.
    end.sock.setblocking(True)
    gc.collect()
    worst = Stalls()
    with Peak() as peak:
        began = time.process_time()
        async with worst:
            sending = threading.Thread(target=_send_all, args=(end.sock, data))
            sending.start()
            await asyncio.to_thread(sending.join)
            await asyncio.sleep(0.2)
        took = time.process_time() - began
    assert worst.longest < 10.0
    assert took < 4.0
    assert peak.grown < 100 * MiB
    assert (await within((await make()).send(address, task("others")))).acked
    assert a.stats().active >= 2


def _send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


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


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_leaves_memory_flat_and_others_alone(scene: Scene, what: str) -> None:
    a, end, _ = scene
    end.sock.setblocking(True)
    frames = [
        frame(PONG, b"still you?") if what.startswith("pongs") else frame(BINARY, FLOODS[what](n))
        for n in range(500)
    ]
    warm, rest = b"".join(frames[:100]), b"".join(frames[100:])
    await _pour(end.sock, warm)
    await asyncio.sleep(0.3)
    gc.collect()
    with Peak() as peak:
        worst = Stalls()
        async with worst:
            await _pour(end.sock, rest)
            await asyncio.sleep(0.3)
    # All that was poured in since would be 50 MiB at the least.
    assert peak.grown < 40 * MiB
    assert worst.longest < 10.0
    before = a.stats().messages_received
    await eventually(lambda: a.stats().messages_received > before + 3)


async def _pour(sock: socket.socket, data: bytes) -> None:
    """Send it, and take what comes in return."""
    reading = threading.Event()

    def pour() -> None:
        drain = threading.Thread(target=_drain, args=(sock, reading), daemon=True)
        drain.start()
        _send_all(sock, data)
        reading.set()
        drain.join(2.0)

    await asyncio.to_thread(pour)


def _drain(sock: socket.socket, done: threading.Event) -> None:
    while not done.is_set():
        with suppress(OSError, ValueError):
            if select.select([sock], [], [], 0.05)[0] and not sock.recv(65536):
                return


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
async def test_stream_names_of_a_megabyte_are_not_kept(make: Make, raw: Open) -> None:
    """Of plain peers, who need no key; what has such a name may be dropped or handed over."""
    a = await make()
    a.on_message(lambda peer, message: None)
    address = await serve(a)
    client = await raw(port_of(address))
    gc.collect()
    with Peak() as peak:
        for number in range(100):
            await client.say(number, streamId=f"{number}-" + "x" * MiB)
        await client.say("last")
        await eventually(lambda: a.stats().messages_received + a.stats().malformed == 101)
    assert peak.grown < 40 * MiB
    assert (await within((await make()).send(address, task("others")))).acked


@pytest.mark.skipif(not can_measure_peak(), reason="needs /proc/self/clear_refs")
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
    gc.collect()
    with Peak() as peak:
        for part in data:
            await asyncio.to_thread(_send_all, end.sock, part)
        await asyncio.sleep(0.3)
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
