"""Messages between openline and the real agentic-flow, as each side sees them."""

from __future__ import annotations

import asyncio

import pytest

import openline
from openline import Message

from .certificates import Certificate
from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, finished, listening, serving, stat, stream_of, task, until

pytestmark = pytest.mark.interop

BURST = 10_000
MEGABYTE = 1 << 20
TEXT = 'ü 漢字 🜁 👩‍🚀 \u2028 \u0000 \\ "quoted" \x7f'


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_node_hears_openline(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    scheme: str,
) -> None:
    node = await start_node(package, tls=certificate.for_node() if scheme == "wss" else {})
    address = await listening(node, scheme)
    transport = await open_transport(tls=openline.Tls(ca=certificate.cert))
    sent = Message(type="coordination", payload={"n": [1, 2.5, None, True]}, metadata={"hop": 1})

    receipt = await transport.send(address, sent)

    heard = (await node.hear()).message
    assert stream_of(heard) == "default"
    heard.pop("streamId", None)
    assert heard == {
        "id": sent.id,
        "type": "coordination",
        "payload": {"n": [1, 2.5, None, True]},
        "metadata": {"hop": 1},
    }
    assert (receipt.attempts, receipt.acked, receipt.direction) == (1, False, "outbound")
    assert receipt.backend == "websocket"


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_openline_hears_node(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    scheme: str,
) -> None:
    tls = openline.Tls(cert=certificate.cert, key=certificate.key) if scheme == "wss" else None
    transport = await open_transport(tls=tls)
    mailbox = Mailbox(transport)
    address = await serving(transport, scheme)
    node = await start_node(package, tls={"caPath": certificate.cert})

    await node.send(
        address, task({"n": [1, 2.5, None, True]}, id="a-1", type="heartbeat", metadata={"hop": 1})
    )

    peer, message = await mailbox.take()
    assert message == Message(
        id="a-1",
        type="heartbeat",
        payload={"n": [1, 2.5, None, True]},
        metadata={"hop": 1},
        stream_id="default",
    )
    assert peer.node_id is None
    assert peer.address.endswith(f":{(await node.call('sockets'))[0]['localPort']}")


async def test_one_connection_serves_both_ways(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()

    @transport.on_message
    async def answer(peer: openline.Peer, message: Message) -> None:
        await peer.reply(message, {"doubled": message.payload * 2})

    node = await start_node(package)
    await node.send(await serving(transport), task(21, id="ask"))
    reply = (await node.hear()).message
    assert reply["payload"] == {"doubled": 42}
    assert reply["metadata"]["replyTo"] == "ask"
    assert len(await node.call("sockets")) == 1
    assert stat(transport, "created") == 0


async def test_batch_arrives_in_order_over_one_connection(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    receipts = await transport.send_batch(address, [Message(payload=n) for n in range(50)])
    assert [heard["payload"] for heard in await node.hear_many(50)] == list(range(50))
    assert [receipt.attempts for receipt in receipts] == [1] * 50
    assert stat(transport, "created") == 1
    assert len(await node.call("sockets")) == 1


async def test_node_batch_on_a_warm_connection_arrives_in_order(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    node = await start_node(package)
    await node.send(address, task("first"))
    await mailbox.take()
    await node.call("sendBatch", address=address, messages=[task(n) for n in range(50)])
    assert [message.payload for message in await mailbox.messages(50)] == list(range(50))


async def test_node_batch_on_a_cold_start_arrives_whole(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """agentic-flow dials once per message of a first batch; openline takes what comes over each."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    node = await start_node(package)
    await node.call("sendBatch", address=address, messages=[task(n) for n in range(20)])
    assert sorted(message.payload for message in await mailbox.messages(20)) == list(range(20))
    assert len(await node.call("sockets")) == 20


async def test_streams_of_node_stay_apart(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    number, text = Mailbox(transport, stream_id=42), Mailbox(transport, stream_id="42")
    default, everything = Mailbox(transport, stream_id="default"), Mailbox(transport)
    node = await start_node(package)
    address = await serving(transport)
    for stream in ({"streamId": 42}, {"streamId": "42"}, {}, {"streamId": "default"}):
        await node.send(address, task(stream, **stream))

    heard = await everything.messages(4)
    assert [message.stream_id for message in heard] == [42, "42", "default", "default"]
    assert [message.payload for message in await number.messages(1)] == [{"streamId": 42}]
    assert [message.payload for message in await text.messages(1)] == [{"streamId": "42"}]
    assert [message.payload for message in await default.messages(2)] == [{}, {"streamId": "default"}]
    assert number.empty()
    assert text.empty()


async def test_streams_of_openline_stay_apart(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    streams: list[str | int] = [42, "42", "default", "rpc"]
    for stream in streams:
        await node.call("onMessage", handler=repr(stream), stream=stream)
    transport = await open_transport()
    for stream in streams:
        await transport.send(address, Message(payload=repr(stream), stream_id=stream))

    assert [heard["payload"] for heard in await node.hear_many(4)] == [repr(stream) for stream in streams]
    for stream in streams:
        assert (await node.hear(repr(stream))).message["payload"] == repr(stream)
    # A later message on each: had one stream leaked into another, it would be heard first.
    await transport.send_batch(address, [Message(payload="last", stream_id=stream) for stream in streams])
    for stream in streams:
        assert (await node.hear(repr(stream))).message["payload"] == "last"


async def test_receive_takes_from_its_stream_only(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    address = await serving(transport)
    await node.send(address, task("hello"))
    node_address = (await mailbox.take()).peer.address

    streams: list[str | int] = ["42", 42, "default"]
    waiting = [
        asyncio.ensure_future(transport.receive(node_address, stream_id=s, timeout=10.0)) for s in streams
    ]
    await asyncio.sleep(0)
    for stream in reversed(streams):
        await node.send(address, task(repr(stream), streamId=stream))
    assert [message.payload for message in await asyncio.gather(*waiting)] == [repr(s) for s in streams]


async def test_node_receives_from_openline(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    address = await serving(transport)
    await node.send(address, task())
    peer, _ = await mailbox.take()
    await peer.send(Message(payload="on rpc", stream_id="rpc"))
    await peer.send(Message(payload="on default"))
    assert (await node.call("receive", address=address))["payload"] == "on default"
    assert (await node.call("receive", address=address, stream="rpc"))["payload"] == "on rpc"


async def test_numeric_ids_stay_numbers(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    for id_ in (7, "7", 0, 2**53 - 1):
        await node.send(await serving(transport), task(id=id_))
        peer, message = await mailbox.take()
        assert repr(message.id) == repr(id_)
        await peer.send(Message(id=id_))
        assert repr((await node.hear()).message["id"]) == repr(id_)


async def test_unknown_fields_are_kept(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    unknown = {"trace": {"span": [1, "two"]}, "priority": 3, "ttl": None, "": "empty name"}
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task("out", **unknown))
    peer, message = await mailbox.take()
    assert message.extra == unknown

    await peer.send(message)
    back = (await node.hear()).message
    assert {name: back[name] for name in unknown} == unknown
    assert back["payload"] == "out"


async def test_sparse_messages_of_node_are_taken(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """agentic-flow sends whatever object it is given; only an object can be a message."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    address = await serving(transport)
    for message in ({}, {"payload": 1}, {"id": "x"}, {"id": "y", "metadata": None}):
        await node.send(address, message)
    heard = await mailbox.messages(4)
    assert [message.payload for message in heard] == [None, 1, None, None]
    assert [message.id for message in heard[2:]] == ["x", "y"]
    assert {message.stream_id for message in heard} == {"default"}


async def test_text_of_every_script_survives(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task({TEXT: TEXT}, id=TEXT, type=TEXT, streamId=TEXT))
    peer, message = await mailbox.take()
    assert (message.id, message.type, message.stream_id, message.payload) == (TEXT, TEXT, TEXT, {TEXT: TEXT})

    await peer.send(message)
    back = (await node.hear()).message
    assert back == task({TEXT: TEXT}, id=TEXT, type=TEXT, streamId=TEXT)


async def test_a_megabyte_passes_both_ways(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    body = "é" * (MEGABYTE // 2)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task(body))
    peer, message = await mailbox.take()
    assert message.payload == body

    await peer.send(Message(payload=body[::-1] + "!"))
    assert (await node.hear()).message["payload"] == body + "!"


async def test_bursts_cross_in_order(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    node_address = await listening(node)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    await node.send(own_address, task("warm"))
    await mailbox.take()

    messages = [Message(payload=n) for n in range(BURST)]
    sending = transport.send_batch(node_address, messages)
    bursting = node.call("burst", address=own_address, count=BURST, payload="x" * 64, deadline=30)
    await asyncio.gather(finished(sending, 30), bursting)

    assert [heard["payload"] for heard in await node.hear_many(BURST, 30)] == list(range(BURST))
    heard_here = await mailbox.messages(BURST, 30)
    assert [message.payload["n"] for message in heard_here] == list(range(BURST))


async def test_many_single_sends_keep_their_order(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    await asyncio.gather(*(transport.send(address, Message(payload=n)) for n in range(500)))
    assert [heard["payload"] for heard in await node.hear_many(500)] == list(range(500))
    assert stat(transport, "created") == 1


async def test_bytes_toward_a_plain_peer_are_refused_clearly(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    with pytest.raises(openline.InvalidMessage, match="bytes"):
        await transport.send(address, Message(payload={"raw": b"\x00"}))
    await transport.send(address, Message(payload="still here"))
    assert (await node.hear()).message["payload"] == "still here"


async def test_killed_node_is_unreachable_and_its_successor_is_dialed(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    await transport.send(address, Message(payload="before"))
    assert (await node.hear()).message["payload"] == "before"

    await node.kill()
    await until(lambda: stat(transport, "active") == 0)
    with pytest.raises(openline.Unreachable) as caught:
        await transport.send(address, Message())
    assert address in str(caught.value)

    successor = await start_node(package)
    await successor.listen(node.port)
    receipt = await transport.send(address, Message(payload="after"))
    assert (await successor.hear()).message["payload"] == "after"
    assert (receipt.attempts, receipt.direction) == (1, "outbound")
    assert stat(transport, "created") == 2


async def test_node_notices_a_clean_close(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await node.send(await serving(transport), task())
    await mailbox.take()
    await transport.close()
    assert (await node.event("close"))["code"] in (1000, 1001)


async def test_openline_notices_node_closing(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport()
    await transport.send(address, Message())
    await node.hear()
    # agentic-flow terminates its sockets without a closing handshake.
    await node.call("close")
    await until(lambda: stat(transport, "active") == 0)
    with pytest.raises(openline.Unreachable):
        await transport.send(address, Message())
