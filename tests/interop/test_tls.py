"""wss both ways with a self-signed certificate: pins, an authority, and neither."""

from __future__ import annotations

import pytest

import openline
from openline import Message, Tls

from .certificates import Certificate
from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, listening, serving, stat, task
from .node_peer import NodePeer, PeerError

pytestmark = pytest.mark.interop


async def secure_node(
    package: Package, start_node: StartNode, certificate: Certificate
) -> tuple[NodePeer, str]:
    node = await start_node(package, tls=certificate.for_node())
    return node, await listening(node, "wss")


async def assert_nothing_arrived(
    node: NodePeer, open_transport: OpenTransport, certificate: Certificate
) -> None:
    """A later message from somebody with the right pin is the first that the node hears."""
    trusted = await open_transport(tls=Tls(pins=(certificate.pin,)))
    await trusted.send(f"wss://127.0.0.1:{node.port}", Message(payload="first"))
    assert (await node.hear()).message["payload"] == "first"


async def test_right_pin_among_several_is_accepted(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
) -> None:
    node, address = await secure_node(package, start_node, certificate)
    transport = await open_transport(tls=Tls(pins=(stranger.pin, certificate.pin)))
    receipt = await transport.send(address, Message(payload="pinned"))
    assert (await node.hear()).message["payload"] == "pinned"
    assert receipt.attempts == 1


async def test_wrong_pin_is_refused_before_any_message(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
) -> None:
    node, address = await secure_node(package, start_node, certificate)
    transport = await open_transport(tls=Tls(pins=(stranger.pin,)))
    with pytest.raises(openline.Refused) as caught:
        await transport.send(address, Message(payload="secret"))
    assert str(node.port) in str(caught.value)
    assert certificate.pin in str(caught.value)
    assert stat(transport, "created") == 0
    await assert_nothing_arrived(node, open_transport, certificate)


async def test_wrong_pin_is_refused_even_with_the_right_authority(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
) -> None:
    node, address = await secure_node(package, start_node, certificate)
    transport = await open_transport(tls=Tls(ca=certificate.cert, pins=(stranger.pin,)))
    with pytest.raises(openline.Refused):
        await transport.send(address, Message(payload="secret"))
    await assert_nothing_arrived(node, open_transport, certificate)


async def test_known_authority_is_accepted(
    package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    node, address = await secure_node(package, start_node, certificate)
    transport = await open_transport(tls=Tls(ca=certificate.cert))
    await transport.send(address, Message(payload="trusted"))
    assert (await node.hear()).message["payload"] == "trusted"


@pytest.mark.parametrize("trust", ["other authority", "system", "no tls configuration"])
async def test_unknown_authority_is_refused(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
    trust: str,
) -> None:
    node, address = await secure_node(package, start_node, certificate)
    tls = {"other authority": Tls(ca=stranger.cert), "system": Tls(), "no tls configuration": None}[trust]
    transport = await open_transport(tls=tls)
    with pytest.raises(openline.Refused):
        await transport.send(address, Message(payload="secret"))
    await assert_nothing_arrived(node, open_transport, certificate)


async def test_plain_dial_of_a_secure_node_fails(
    package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    node, _ = await secure_node(package, start_node, certificate)
    transport = await open_transport()
    with pytest.raises(openline.Unreachable):
        await transport.send(f"ws://127.0.0.1:{node.port}", Message())


async def test_secure_dial_of_a_plain_node_fails(
    package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    node = await start_node(package)
    address = await listening(node)
    transport = await open_transport(tls=Tls(pins=(certificate.pin,)))
    with pytest.raises(openline.Error):
        await transport.send(f"wss://{address}", Message(payload="secret"))
    await transport.send(address, Message(payload="public"))
    assert (await node.hear()).message["payload"] == "public"


@pytest.mark.parametrize("trust", ["pin", "wrong pin", "authority"])
async def test_node_dials_secure_openline(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
    trust: str,
) -> None:
    """agentic-flow's pins fail open: "wrong pin" connects too. That is its side's business."""
    transport = await open_transport(tls=Tls(cert=certificate.cert, key=certificate.key))
    mailbox = Mailbox(transport)
    address = await serving(transport, "wss")
    tls = {
        "pin": {"pinnedFingerprints": [certificate.pin]},
        "wrong pin": {"pinnedFingerprints": [stranger.pin]},
        "authority": {"caPath": certificate.cert},
    }[trust]
    node = await start_node(package, tls=tls)
    await node.send(address, task("over tls"))
    peer, message = await mailbox.take()
    assert message.payload == "over tls"
    await peer.send(Message(payload="back"))
    assert (await node.hear()).message["payload"] == "back"


@pytest.mark.parametrize("trust", ["other authority", "none"])
async def test_node_refuses_openline_and_the_listener_goes_on(
    package: Package,
    start_node: StartNode,
    open_transport: OpenTransport,
    certificate: Certificate,
    stranger: Certificate,
    trust: str,
) -> None:
    transport = await open_transport(tls=Tls(cert=certificate.cert, key=certificate.key))
    mailbox = Mailbox(transport)
    address = await serving(transport, "wss")
    doubter = await start_node(package, tls={"caPath": stranger.cert} if trust == "other authority" else {})
    with pytest.raises(PeerError, match="certificate"):
        await doubter.send(address, task())
    with pytest.raises(PeerError):
        await doubter.send(address.replace("wss://", "ws://"), task())

    believer = await start_node(package, tls={"caPath": certificate.cert})
    await believer.send(address, task("still served"))
    assert (await mailbox.take()).message.payload == "still served"


async def test_node_answers_on_a_secure_socket_that_openline_opened(
    reusing_package: Package, start_node: StartNode, open_transport: OpenTransport, certificate: Certificate
) -> None:
    node, address = await secure_node(reusing_package, start_node, certificate)
    await node.call("echo")
    transport = await open_transport(tls=Tls(pins=(certificate.pin,)))
    reply = await transport.request(address, Message(payload="secret"), timeout=5.0)
    assert reply.payload == "secret"
    assert (await node.stats())["created"] == 0
