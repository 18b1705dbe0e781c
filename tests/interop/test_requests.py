"""Requests and their answers: agentic-flow copies the id, names it in replyTo, or does neither."""

from __future__ import annotations

import asyncio

import pytest

import openline
from openline import Message

from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, listening, serving, stat, task

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("mode", ["same-id", "reply-to", "bare"])
async def test_node_answers_a_request(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport, mode: str
) -> None:
    node = await start_node(reusing_package)
    address = await listening(node)
    await node.call("echo", mode=mode)
    transport = await open_transport()
    for stream in ("default", "rpc", 42):
        reply = await transport.request(
            address, Message(payload=f"ping {stream}", stream_id=stream), timeout=5.0
        )
        assert (reply.type, reply.payload, reply.stream_id) == ("result", f"ping {stream}", stream)
    assert stat(transport, "created") == 1


@pytest.mark.parametrize("mode", ["same-id", "reply-to"])
async def test_concurrent_requests_get_their_own_answers(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport, mode: str
) -> None:
    node = await start_node(reusing_package)
    address = await listening(node)
    await node.call("echo", mode=mode)
    transport = await open_transport()
    asking = [transport.request(address, Message(payload=n), timeout=5.0) for n in range(100)]
    assert [reply.payload for reply in await asyncio.gather(*asking)] == list(range(100))


@pytest.mark.parametrize("mode", ["same-id", "reply-to"])
async def test_answer_over_another_connection(
    package: Package, start_node: StartNode, open_transport: OpenTransport, mode: str
) -> None:
    """2.0.12 cannot answer on the socket it was asked on: it dials the asker's listening address."""
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    await node.call("echo", mode=mode, to=await serving(transport))
    reply = await transport.request(address, Message(payload="ping"), timeout=5.0)
    assert reply.payload == "ping"


@pytest.mark.parametrize("mode", ["same-id", "reply-to", "bare"])
async def test_node_that_dialed_in_answers_a_request(
    package: Package, start_node: StartNode, open_transport: OpenTransport, mode: str
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    node_address = await listening(node)
    await node.call("echo", mode=mode)
    await node.send(await serving(transport), task(type="result"))
    peer, _ = await mailbox.take()
    by_socket = await peer.request(Message(payload="by socket"), timeout=5.0)
    by_address = await transport.request(node_address, Message(payload="by address"), timeout=5.0)
    assert (by_socket.payload, by_address.payload) == ("by socket", "by address")
    assert stat(transport, "created") == 0


async def test_node_asks_openline(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()

    @transport.on_message
    async def answer(peer: openline.Peer, message: Message) -> None:
        await peer.reply(message, {"square": message.payload**2})

    address = await serving(transport)
    node = await start_node(package)
    for n in range(3):
        answer_ = await node.call("request", address=address, message=task(n, id=f"ask-{n}"))
        assert answer_["payload"] == {"square": n**2}
        assert answer_["metadata"]["replyTo"] == f"ask-{n}"


async def test_silent_node_times_out_and_its_late_answer_is_nobody_elses(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    own_address = await serving(transport)
    await node.send(own_address, task())
    peer, _ = await mailbox.take()

    with pytest.raises(TimeoutError):
        await peer.request(Message(id="late", payload="?"), timeout=0.2)
    asking = asyncio.ensure_future(peer.request(Message(id="second", payload="?"), timeout=5.0))
    assert [heard["id"] for heard in await node.hear_many(2)] == ["late", "second"]
    await node.send(own_address, task("late answer", id="late", type="result"))
    await node.send(own_address, task("right answer", metadata={"replyTo": "second"}))
    assert (await asking).payload == "right answer"


async def test_unrelated_messages_are_not_taken_for_the_answer(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(reusing_package)
    node_address = await listening(node)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    asking = asyncio.ensure_future(transport.request(node_address, Message(id="q", payload="?"), timeout=5.0))
    await node.hear()
    await node.send(own_address, task("other stream", streamId="news"))
    assert (await mailbox.take()).message.payload == "other stream"
    assert not asking.done()
    await node.send(own_address, task("!", id="q", type="result"))
    assert (await asking).payload == "!"


async def test_killed_node_ends_the_request(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    transport = await open_transport()
    asking = asyncio.ensure_future(transport.request(await listening(node), Message(), timeout=2.0))
    await node.hear()
    await node.kill()
    with pytest.raises((openline.Error, TimeoutError)):
        await asking
