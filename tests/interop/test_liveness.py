"""Each side's liveness probe finds the other alive, however slow its application is."""

from __future__ import annotations

import asyncio

import pytest

import openline
from openline import Message

from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, finished, listening, serving, stat, task, until
from .node_peer import NodePeer

pytestmark = pytest.mark.interop

# agentic-flow probes at a sixth of it, but never more than once a second.
FAST_PROBE_MS = 1000
PROBES = 3
BUSY = 40_000


async def probed(node: NodePeer) -> None:
    """Waits for several probes; before each, agentic-flow cuts a socket that left the last unanswered."""
    for _ in range(PROBES):
        await node.event("probe", deadline=5.0)
    assert len(await node.call("sockets")) == 1


@pytest.mark.parametrize("dialer", ["openline", "node"])
async def test_probe_of_node_is_answered_while_the_application_is_stuck(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport, dialer: str
) -> None:
    node = await start_node(reusing_package, maxIdleTimeoutMs=FAST_PROBE_MS)
    node_address = await listening(node)
    transport = await open_transport()
    entered, release = asyncio.Event(), asyncio.Event()
    heard: list[openline.Message] = []

    @transport.on_message
    async def stuck(peer: openline.Peer, message: Message) -> None:
        heard.append(message)
        entered.set()
        await release.wait()

    own_address = await serving(transport)
    if dialer == "openline":
        await transport.send(node_address, Message())
        await node.hear()
    for n in range(10):
        await node.send(own_address, task(n))
    await entered.wait()
    await probed(node)

    release.set()
    await until(lambda: len(heard) == 10)
    assert [message.payload for message in heard] == list(range(10))
    assert stat(transport, "closed") == 0


async def test_probe_of_node_is_answered_while_its_inbox_is_full(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(reusing_package, maxIdleTimeoutMs=FAST_PROBE_MS)
    transport = await open_transport(inbox_messages=16)
    release = asyncio.Event()
    heard: list[openline.Message] = []

    @transport.on_message
    async def stuck(peer: openline.Peer, message: Message) -> None:
        await release.wait()
        heard.append(message)

    await node.call("burst", address=await serving(transport), count=500, payload="x")
    await probed(node)
    release.set()
    await until(lambda: len(heard) == 500)
    assert [message.payload["n"] for message in heard] == list(range(500))
    assert stat(transport, "closed") == 0


@pytest.mark.parametrize("sender", ["openline", "node"])
async def test_busy_link_survives_the_probe_of_node(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport, sender: str
) -> None:
    """Its probe cuts a link of its own kind under such a load: pongs wait behind data."""
    node = await start_node(reusing_package, maxIdleTimeoutMs=FAST_PROBE_MS)
    transport = await open_transport()
    if sender == "openline":
        address = await listening(node)
        messages = [Message(payload={"n": n, "body": "x" * 1000}) for n in range(BUSY)]
        await finished(transport.send_batch(address, messages), 30.0)
        numbers = [heard["payload"]["n"] for heard in await node.hear_many(BUSY, 30.0)]
    else:
        mailbox = Mailbox(transport)
        await node.call(
            "burst", address=await serving(transport), count=BUSY, payload="x" * 1000, deadline=30
        )
        numbers = [message.payload["n"] for message in await mailbox.messages(BUSY, 30.0)]
    assert numbers == list(range(BUSY))
    assert (stat(transport, "closed"), len(await node.call("sockets"))) == (0, 1)


@pytest.mark.parametrize("dialer", ["openline", "node"])
async def test_node_answers_the_probe_of_openline(
    package: Package, start_node: StartNode, open_transport: OpenTransport, dialer: str
) -> None:
    node = await start_node(package)
    transport = await open_transport(max_idle_timeout=2.4)
    mailbox = Mailbox(transport)
    if dialer == "openline":
        await transport.send(await listening(node), Message())
        await node.hear()
    else:
        await node.send(await serving(transport), task())
        await mailbox.take()
    for _ in range(5):
        await node.event("ping", deadline=5.0)
    assert (stat(transport, "active"), len(await node.call("sockets"))) == (1, 1)


async def test_frozen_node_is_cut(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    transport = await open_transport(max_idle_timeout=1.2)
    await transport.send(await listening(node), Message())
    await node.hear()
    node.freeze()
    await until(lambda: stat(transport, "active") == 0, deadline=5.0)
    node.thaw()
    assert (await node.event("close"))["code"] == 1006


async def test_briefly_frozen_node_keeps_its_connection(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport(max_idle_timeout=6.0)
    await transport.send(address, Message(payload="before"))
    await node.hear()
    node.freeze()
    await asyncio.sleep(1.5)
    node.thaw()
    await transport.send(address, Message(payload="after"))
    assert (await node.hear()).message["payload"] == "after"
    assert stat(transport, "created") == 1


async def send_until_held(transport: openline.Transport, address: str, body: str) -> int:
    """Sends numbered messages until one has to wait too long; its number."""
    for n in range(1000):
        try:
            await transport.send(address, Message(payload={"n": n, "body": body}), timeout=0.3)
        except TimeoutError:
            return n
    pytest.fail("100 MB went to a peer that reads nothing, and the sender was not held back")


async def test_frozen_node_holds_the_sender_back_and_loses_nothing(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    body = "x" * 100_000
    await transport.send(address, Message(payload={"n": -1, "body": body}))
    await node.hear()
    node.freeze()
    sent = await send_until_held(transport, address, body)
    node.thaw()
    await transport.send(address, Message(payload={"n": sent}))
    numbers = [heard["payload"]["n"] for heard in await node.hear_many(sent + 1)]
    assert numbers == list(range(sent + 1))
    assert (stat(transport, "created"), stat(transport, "closed")) == (1, 0)


async def test_messages_to_a_frozen_node_that_dies_are_counted_in_doubt(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    await transport.send(address, Message(payload="heard"))
    await node.hear()
    node.freeze()
    for n in range(5):
        await transport.send(address, Message(payload=n))
    await node.kill()
    await until(lambda: stat(transport, "active") == 0)
    assert stat(transport, "in_doubt") >= 5
