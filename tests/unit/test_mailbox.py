"""Mailboxes by themselves: order, bounds, and what is left of them (peers/mailbox.py, peers/mailboxes.py)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from openline import Config, Message, Peer
from openline.core.selection import Endpoint
from openline.message import StreamId
from openline.peers.mailbox import GRAIN, MAX_FULL, MESSAGE_OVERHEAD, Handler, Mailbox
from openline.peers.mailboxes import Mailboxes
from openline.peers.remote import Remote
from openline.receiving.inbox import Inbox
from openline.runtime.eager import Runner
from openline.runtime.ratelog import RateLog
from openline.stats import Counters

CONFIG = Config(inbox_messages=8, inbox_bytes=64 * 1024, max_streams=4)


class Receiver:
    """An inbox with one peer, a plain one that this program does not know, and what the inbox has said."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.counters = Counters()
        self.runner = Runner(self.loop)
        # (stream, paused), or (None, not to be read); peers that nothing is left of.
        self.flows: list[tuple[StreamId | None, bool]] = []
        self.forgotten: list[Remote] = []
        self.inbox = Inbox(
            CONFIG,
            self.counters,
            self.runner,
            lambda want, peer: True,
            self._flow,
            self.forgotten.append,
            RateLog(logging.getLogger("openline"), self.loop.time),
            lambda peer: None,
        )
        self.peer = self.new_peer()
        self.handled: list[Any] = []
        self.gate = asyncio.Event()

    def new_peer(self) -> Remote:
        services = cast(Any, SimpleNamespace(context=SimpleNamespace(config=CONFIG)))
        peer = Remote(services, cast(Any, None), self.inbox, "key", Endpoint("inbound", "10.0.0.1", 1))
        peer.connections.append(cast(Any, SimpleNamespace(quality=0, status="live")))
        return peer

    def _flow(self, peer: Remote, mailbox: Mailbox | None) -> None:
        if mailbox is None:
            self.flows.append((None, peer.mailboxes.unreadable))
        else:
            self.flows.append((mailbox.stream_id, mailbox.paused))

    def handler(self, handler: Handler) -> None:
        self.inbox.add_handler(handler, None)

    async def waits(self, peer: Peer, message: Message) -> None:
        self.handled.append(message.payload)
        await self.gate.wait()
        self.handled.append(-message.payload)

    def in_callback(self, *messages: Message, size: int = 100) -> None:
        """As from a socket: in no task."""
        context = contextvars.Context()
        self.loop.call_soon(self.inbox.feed, self.peer, list(messages), size, context=context)

    async def feed(self, *numbers: int, stream: StreamId = "default", size: int = 100) -> None:
        self.in_callback(*(of(number, stream) for number in numbers), size=size)
        for _ in range(3):
            await asyncio.sleep(0)

    async def idle(self) -> None:
        async with asyncio.timeout(5):
            await self.runner.idle()


def of(number: int, stream: StreamId = "default") -> Message:
    return Message(type="task", payload=number, stream_id=stream)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    receiver.runner.run(asyncio.sleep(0), lambda steps: steps)  # there is a task then
    await receiver.idle()
    yield receiver
    receiver.inbox.close()
    await receiver.runner.close()


# Handlers ------------------------------------------------------------------------------------------


async def test_one_waits_while_another_is_handled(receiver: Receiver) -> None:
    receiver.handler(receiver.waits)
    await receiver.feed(1, 2)
    await receiver.feed(3)
    await receiver.feed(4, stream="other")
    assert receiver.handled == [1, 4]
    mailbox = receiver.peer.mailboxes.by_stream["default"]
    assert (mailbox.count, len(mailbox.queue), mailbox.idle) == (2, 2, False)
    receiver.gate.set()
    await receiver.idle()
    assert [number for number in receiver.handled if abs(number) < 4] == [1, -1, 2, -2, 3, -3]
    assert (mailbox.count, mailbox.bytes, mailbox.idle) == (0, 0, True)
    assert (receiver.peer.mailboxes.held, receiver.peer.mailboxes.load) == (0, 0)


async def test_several_handlers_have_a_message_before_the_next_one_comes(receiver: Receiver) -> None:
    def quick(peer: Peer, message: Message) -> None:
        receiver.handled.append(f"quick {message.payload}")

    receiver.handler(receiver.waits)
    receiver.handler(quick)
    receiver.gate.set()
    await receiver.feed(1, 2)
    await receiver.idle()
    assert receiver.handled == [1, -1, "quick 1", 2, -2, "quick 2"]


@pytest.mark.parametrize("error", [RuntimeError("of the handler"), asyncio.CancelledError()])
@pytest.mark.parametrize("waits", [False, True])
async def test_the_next_message_is_handled_whatever_a_handler_raises(
    receiver: Receiver, error: BaseException, waits: bool
) -> None:
    async def handler(peer: Peer, message: Message) -> None:
        receiver.handled.append(message.payload)
        if waits:
            await receiver.gate.wait()
        if message.payload == 1:
            raise error

    receiver.gate.set()
    receiver.handler(handler)
    for number in (1, 2, 3):
        await receiver.feed(number)
    await receiver.idle()
    assert receiver.handled == [1, 2, 3]
    assert receiver.counters.handler_errors == 1


async def test_a_handler_that_returns_what_is_no_coroutine_but_can_be_awaited(receiver: Receiver) -> None:
    def handler(peer: Peer, message: Message) -> asyncio.Future[None]:
        return asyncio.ensure_future(receiver.waits(peer, message), loop=receiver.loop)

    receiver.handler(handler)
    await receiver.feed(1, 2)
    await asyncio.sleep(0)
    assert receiver.handled == [1]
    receiver.gate.set()
    await receiver.idle()
    assert receiver.handled == [1, -1, 2, -2]


# Bounds --------------------------------------------------------------------------------------------


async def test_a_full_one_is_paused_and_goes_on_when_it_is_half_empty(receiver: Receiver) -> None:
    receiver.handler(receiver.waits)
    receiver.peer.know()
    most = CONFIG.inbox_messages
    await receiver.feed(*range(1, most + 1))
    assert receiver.flows == []  # one is being handled
    await receiver.feed(most + 1)
    mailboxes = receiver.peer.mailboxes
    assert receiver.flows == [("default", True)]
    assert list(mailboxes.full) == [mailboxes.by_stream["default"]]
    receiver.gate.set()
    await receiver.idle()
    assert receiver.flows == [("default", True), ("default", False)]
    assert not mailboxes.full


async def test_large_messages_count_while_they_are_handled(receiver: Receiver) -> None:
    receiver.handler(receiver.waits)
    await receiver.feed(1, size=2 * GRAIN)
    mailboxes = receiver.peer.mailboxes
    assert (mailboxes.held, mailboxes.load) == (0, 2 * GRAIN + MESSAGE_OVERHEAD)
    assert mailboxes.noted == mailboxes.load == receiver.inbox.waiting_of_strangers
    receiver.gate.set()
    await receiver.idle()
    assert (mailboxes.load, mailboxes.noted, receiver.inbox.waiting_of_strangers) == (0, 0, 0)


async def test_no_more_streams_than_are_allowed(receiver: Receiver) -> None:
    receiver.handler(receiver.waits)
    for number in range(CONFIG.max_streams):
        await receiver.feed(number, stream=number)
    assert receiver.flows == []
    await receiver.feed(99, stream=99)
    assert receiver.flows == [(None, True)]
    receiver.gate.set()
    await receiver.idle()
    assert receiver.flows == [(None, True), (None, False)]
    assert len(receiver.peer.mailboxes.by_stream) < CONFIG.max_streams


async def test_idle_ones_make_room(receiver: Receiver) -> None:
    receiver.handler(lambda peer, message: receiver.handled.append(message.payload))
    for number in range(10 * CONFIG.max_streams):
        await receiver.feed(number, stream=number)
        assert len(receiver.peer.mailboxes.by_stream) <= CONFIG.max_streams
    assert receiver.handled == list(range(10 * CONFIG.max_streams))
    assert receiver.flows == []


async def test_one_that_fills_many_streams_does_not_listen(receiver: Receiver) -> None:
    mailboxes = receiver.peer.mailboxes
    receiver.peer.plain = False
    receiver.handler(receiver.waits)
    await receiver.feed(*range(1, CONFIG.inbox_messages + 2))
    assert mailboxes.full
    assert not mailboxes.unreadable
    mailboxes.charge(MAX_FULL * CONFIG.inbox_bytes, known=True)
    assert mailboxes.unreadable


# What is left --------------------------------------------------------------------------------------


KINDS = (Peer, Mailboxes, Mailbox)


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive() -> Counter[str]:
    """Also what only the collector would find."""
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KINDS)


async def test_nothing_is_left_of_a_peer_that_is_forgotten(receiver: Receiver) -> None:
    receiver.handler(lambda peer, message: None)
    receiver.peer = cast(Any, None)
    with without_collector():
        before = alive()
        receiver.peer = receiver.new_peer()
        await receiver.feed(1)
        await receiver.feed(2, stream="other")
        assert alive() - before == {"Peer": 1, "Mailboxes": 1, "Mailbox": 2}
        receiver.peer.connections.clear()
        receiver.inbox.peer_gone(receiver.peer)
        assert not receiver.peer.mailboxes.by_stream
        receiver.peer = cast(Any, None)
        assert alive() == before


async def test_one_that_is_gone_is_forgotten_when_its_last_handler_has_ended(receiver: Receiver) -> None:
    receiver.handler(receiver.waits)
    await receiver.feed(1, 2)
    receiver.peer.connections.clear()
    receiver.inbox.peer_gone(receiver.peer)
    assert receiver.forgotten == []
    receiver.gate.set()
    await receiver.idle()
    assert receiver.handled == [1, -1, 2, -2]
    assert receiver.forgotten == [receiver.peer]
