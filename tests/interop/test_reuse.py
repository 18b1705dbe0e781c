"""Answers on the line that is already open, with the real agentic-flow at the other end."""

from __future__ import annotations

import pytest

import openline
from openline import Message

from .certificates import Certificate
from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, free_port, has_ipv6, listening, serving, stat, task, until
from .node_peer import NodePeer

pytestmark = pytest.mark.interop


async def dialed_in(node: NodePeer, address: str, mailbox: Mailbox, name: str) -> openline.Peer:
    """Lets the node dial openline; how openline sees it."""
    await node.send(address, task(name))
    peer, message = await mailbox.take()
    assert message.payload == name
    return peer


async def test_openline_answers_on_the_socket_that_node_opened(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    node_address = await listening(node)
    await dialed_in(node, await serving(transport), mailbox, "node")

    receipt = await transport.send(node_address, Message(payload="on your line"))

    assert (await node.hear()).message["payload"] == "on your line"
    assert (receipt.attempts, receipt.direction) == (1, "inbound")
    assert stat(transport, "created") == 0
    assert len(await node.call("sockets")) == 1


async def test_batch_rides_the_socket_that_node_opened(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    node_address = await listening(node)
    await dialed_in(node, await serving(transport), mailbox, "node")
    receipts = await transport.send_batch(node_address, [Message(payload=n) for n in range(50)])
    assert [heard["payload"] for heard in await node.hear_many(50)] == list(range(50))
    assert {(receipt.attempts, receipt.direction) for receipt in receipts} == {(1, "inbound")}
    assert stat(transport, "created") == 0


async def test_node_answers_on_the_socket_that_openline_opened(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    await transport.send(await listening(node), Message(payload="hello"))
    await node.hear()

    await node.send(own_address, task("back"))

    assert (await mailbox.take()).message.payload == "back"
    # 2.0.12 knows only sockets of its own and dials; its message arrives all the same.
    assert (await node.stats())["created"] == (0 if package.answers_inbound else 1)
    assert len(await node.call("sockets")) == (1 if package.answers_inbound else 2)


async def test_crossed_dials_deliver_both_ways(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """2.0.12 dials although it was dialed: two connections, and each side keeps hearing the other."""
    node = await start_node(package)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node_address, own_address = await listening(node), await serving(transport)
    for round_ in range(3):
        await transport.send(node_address, Message(payload=f"to node {round_}"))
        assert (await node.hear()).message["payload"] == f"to node {round_}"
        await node.send(own_address, task(f"to openline {round_}"))
        assert (await mailbox.take()).message.payload == f"to openline {round_}"
    assert stat(transport, "created") == 1


async def test_without_an_inbound_socket_openline_dials(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node = await start_node(package)
    transport = await open_transport()
    await serving(transport)
    receipt = await transport.send(await listening(node), Message())
    assert (receipt.attempts, receipt.direction) == (1, "outbound")
    assert stat(transport, "created") == 1


async def test_plain_reuse_never_dials_the_listening_address(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport(plain_reuse="never")
    mailbox = Mailbox(transport)
    node = await start_node(package)
    node_address = await listening(node)
    await dialed_in(node, await serving(transport), mailbox, "node")
    receipt = await transport.send(node_address, Message(payload="dialed"))
    assert (await node.hear()).message["payload"] == "dialed"
    assert receipt.direction == "outbound"
    assert stat(transport, "created") == 1


async def test_remote_end_of_a_gone_socket_is_nobody_elses(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    peer = await dialed_in(node, await serving(transport), mailbox, "node")
    await node.kill()
    await until(lambda: stat(transport, "active") == 0)
    with pytest.raises(openline.Unreachable, match="never dialed"):
        await peer.send(Message())
    assert stat(transport, "dials") == 0
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED"):
        await transport.send(peer.address, Message())


async def test_restarted_node_is_answered_on_its_new_socket(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    first = await start_node(package)
    node_address = await listening(first)
    await dialed_in(first, own_address, mailbox, "first")
    assert (await transport.send(node_address, Message())).direction == "inbound"
    await first.kill()
    await until(lambda: stat(transport, "active") == 0)

    second = await start_node(package)
    await second.listen(first.port)
    await dialed_in(second, own_address, mailbox, "second")
    receipt = await transport.send(node_address, Message(payload="to the second"))
    assert (await second.hear()).message["payload"] == "to the second"
    assert (receipt.attempts, receipt.direction) == (1, "inbound")
    assert stat(transport, "created") == 0


async def test_two_nodes_behind_one_ip_each_get_their_own(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    nodes = {"b": await start_node(package), "c": await start_node(package)}
    addresses = {name: await listening(node) for name, node in nodes.items()}
    peers = {name: await dialed_in(node, own_address, mailbox, name) for name, node in nodes.items()}

    for round_ in range(5):
        for name in nodes:
            await transport.send(addresses[name], Message(payload=f"{name} {round_} by listening address"))
            await peers[name].send(Message(payload=f"{name} {round_} by socket"))
    for name, node in nodes.items():
        heard = {message["payload"] for message in await node.hear_many(10)}
        assert heard == {
            f"{name} {r} {way}" for r in range(5) for way in ("by listening address", "by socket")
        }
        assert node.unheard() == []


async def test_message_for_a_dead_node_does_not_reach_its_neighbour(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    dead, neighbour = await start_node(package), await start_node(package)
    dead_address = await listening(dead)
    await dialed_in(dead, own_address, mailbox, "dead")
    assert (await transport.send(dead_address, Message())).direction == "inbound"
    peer = await dialed_in(neighbour, own_address, mailbox, "neighbour")
    await dead.kill()
    await until(lambda: stat(transport, "active") == 1)

    with pytest.raises(openline.Unreachable):
        await transport.send(dead_address, Message(payload="private"))
    await peer.send(Message(payload="yours"))
    assert (await neighbour.hear()).message["payload"] == "yours"


async def test_secure_address_never_rides_a_plain_socket(
    package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    transport = await open_transport(tls=openline.Tls(pins=(certificate.pin,)))
    mailbox = Mailbox(transport)
    node = await start_node(package, tls=certificate.for_node())
    secure_address = await listening(node, "wss")
    await dialed_in(node, await serving(transport), mailbox, "over plain ws")

    receipt = await transport.send(secure_address, Message(payload="over tls"))

    assert (await node.hear()).message["payload"] == "over tls"
    assert receipt.direction == "outbound"
    assert stat(transport, "created") == 1


async def test_unreachable_secure_address_fails_rather_than_ride_a_plain_socket(
    package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    transport = await open_transport(tls=openline.Tls(pins=(certificate.pin,)))
    mailbox = Mailbox(transport)
    node = await start_node(package)
    plain_address = await listening(node)
    peer = await dialed_in(node, await serving(transport), mailbox, "over plain ws")
    with pytest.raises(openline.Error):
        await transport.send(f"wss://{plain_address}", Message(payload="secret"))
    await peer.send(Message(payload="public"))
    assert (await node.hear()).message["payload"] == "public"


async def test_host_name_matches_the_socket_that_node_opened(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    await listening(node)
    await dialed_in(node, await serving(transport), mailbox, "node")
    for address in (f"localhost:{node.port}", f"ws://localhost:{node.port}/", f"ws://127.0.0.1:{node.port}"):
        assert (await transport.send(address, Message(payload=address))).direction == "inbound"
        assert (await node.hear()).message["payload"] == address
    assert stat(transport, "created") == 0


async def test_reuse_works_over_ipv6(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 loopback here")
    transport = await open_transport()
    mailbox = Mailbox(transport)
    listener = await transport.listen(0, host="::1")
    node = await start_node(package)
    await node.listen(free_port(), host="::1")
    peer = await dialed_in(node, f"ws://[::1]:{listener.port}", mailbox, "node")
    assert peer.address.startswith("[::1]:")
    for address in (f"[::1]:{node.port}", peer.address):
        assert (await transport.send(address, Message(payload=address))).direction == "inbound"
        assert (await node.hear()).message["payload"] == address
    assert stat(transport, "created") == 0


async def test_receive_by_listening_address_takes_what_node_sends_over_its_own_socket(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    transport = await open_transport()
    node = await start_node(package)
    node_address = await listening(node)
    own_address = await serving(transport)
    for n in range(3):
        await node.send(own_address, task(n))
        assert (await transport.receive(node_address, timeout=5.0)).payload == n


async def test_cold_batch_of_node_leaves_it_reachable(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """Its first batch opens a socket per message, which look like several peers: each is still answered."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    node = await start_node(package)
    node_address = await listening(node)
    await node.call("sendBatch", address=await serving(transport), messages=[task(n) for n in range(5)])
    for _ in range(5):
        peer, message = await mailbox.take()
        assert (await peer.send(Message(payload=message.payload))).direction == "inbound"
    await transport.send(node_address, Message(payload="by address"))
    heard = {message["payload"] for message in await node.hear_many(6)}
    assert heard == {0, 1, 2, 3, 4, "by address"}


async def test_successor_under_another_name_does_not_inherit_the_address(
    package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    """sourceNodeId proves nothing, but two different ones contradict that it is the same peer."""
    transport = await open_transport()
    mailbox = Mailbox(transport)
    own_address = await serving(transport)
    first = await start_node(package)
    first_address = await listening(first)
    await first.send(own_address, task(metadata={"sourceNodeId": "first"}))
    await mailbox.take()
    assert (await transport.send(first_address, Message())).direction == "inbound"
    await first.kill()
    await until(lambda: stat(transport, "active") == 0)

    other = await start_node(package)
    await other.send(own_address, task(metadata={"sourceNodeId": "other"}))
    peer = (await mailbox.take()).peer
    with pytest.raises(openline.Unreachable):
        await transport.send(first_address, Message(payload="private"))
    await peer.send(Message(payload="yours"))
    assert (await other.hear()).message["payload"] == "yours"
