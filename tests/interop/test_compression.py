"""permessage-deflate with agentic-flow, which always offers it: threshold 256 bytes, no context takeover."""

from __future__ import annotations

from typing import Any

import pytest

from openline import Message

from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, listening, serving, task
from .node_peer import NodePeer

pytestmark = pytest.mark.interop

REPETITIVE = "agents talk to each other directly " * 3000
# Around the threshold, where one side compresses a message and the other does not.
LENGTHS = (0, 1, 100, 200, 255, 256, 257, 300, 1000)


async def socket_of(node: NodePeer) -> dict[str, Any]:
    (socket,) = await node.call("sockets")
    return dict(socket)


async def test_both_directions_shrink_when_openline_dials(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    await transport.send(address, Message(payload=REPETITIVE))
    heard = await node.hear()
    assert heard.message["payload"] == REPETITIVE
    socket = await socket_of(node)
    assert "permessage-deflate" in socket["extensions"]
    assert socket["bytesRead"] < len(REPETITIVE) / 10

    if package.answers_inbound:
        await node.send(heard.address, task(REPETITIVE))
        assert (await mailbox.take()).message.payload == REPETITIVE
        assert (await socket_of(node))["bytesWritten"] < len(REPETITIVE) / 10


async def test_both_directions_shrink_when_node_dials(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task(REPETITIVE))
    peer, message = await mailbox.take()
    assert message.payload == REPETITIVE
    await peer.send(Message(payload=REPETITIVE))
    assert (await node.hear()).message["payload"] == REPETITIVE
    socket = await socket_of(node)
    assert "permessage-deflate" in socket["extensions"]
    assert socket["bytesRead"] < len(REPETITIVE) / 10
    assert socket["bytesWritten"] < len(REPETITIVE) / 10


@pytest.mark.parametrize("dialer", ["openline", "node"])
async def test_compression_is_off_by_default(
    package: Package, start_node: StartNode, open_transport: OpenTransport, dialer: str
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    if dialer == "openline":
        await transport.send(await listening(node), Message(payload=REPETITIVE))
    else:
        await node.send(await serving(transport), task())
        await (await mailbox.take()).peer.send(Message(payload=REPETITIVE))
    assert (await node.hear()).message["payload"] == REPETITIVE
    socket = await socket_of(node)
    assert socket["extensions"] == ""
    assert socket["bytesRead"] > len(REPETITIVE)


async def test_messages_around_the_threshold_mix(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """No context takeover: each message must be readable without the ones before it."""
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    node = await start_node(package)
    address = await serving(transport)
    bodies = ["z" * length for length in LENGTHS] * 3
    for body in bodies:
        await node.send(address, task(body))
    peer = (await mailbox.take()).peer
    assert [message.payload for message in await mailbox.messages(len(bodies) - 1)] == bodies[1:]

    for body in bodies:
        await peer.send(Message(payload=body))
    assert [heard["payload"] for heard in await node.hear_many(len(bodies))] == bodies


async def test_incompressible_and_large_messages_pass(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    noise = [n * 2654435761 % 4294967291 for n in range(100_000)]
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task(noise))
    peer, message = await mailbox.take()
    assert message.payload == noise
    await peer.send(Message(payload=noise[::-1]))
    assert (await node.hear()).message["payload"] == noise[::-1]


async def test_compressed_batch_keeps_its_order(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport(compression=True)
    bodies = [f"{n} " * 200 for n in range(500)]
    await transport.send_batch(address, [Message(payload=body) for body in bodies])
    assert [heard["payload"] for heard in await node.hear_many(500)] == bodies
