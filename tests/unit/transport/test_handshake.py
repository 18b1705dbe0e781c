"""The signed handshake (rule 3.6): what is said, and when."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import openline
from openline.core.handshake import parse_hello

from ..clock import elapse
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    FIRST,
    HELLO,
    PROOF,
    WELCOME,
    Middle,
    nothing,
    out_of_base64,
    proof_frame,
    signed,
    speak,
    strip,
)
from .rawsocket import Actor, RawServer
from .wire import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    frame,
    header,
    upgrade,
)

# What is said, and when ---------------------------------------------------------------------------


async def test_a_client_proves_itself_first_and_its_messages_follow_without_waiting(
    make: Make, raw_server: RawServer
) -> None:
    """One round trip, that of the upgrade: no welcome is sent here before the message has come."""
    t, actor = await make("alice"), Actor()
    sending = asyncio.ensure_future(t.send(raw_server.address, task("first")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    transcript = await raw.answer(actor)
    kind, data = await raw.whole()
    assert (kind, data[0]) == (BINARY, PROOF)
    signature, lost = msgspec.msgpack.decode(data[1:])
    mine, theirs = header(raw.request, HELLO), transcript
    assert lost == []
    assert theirs.signed_by("client").startswith(b"openline hello 1\n" + len(mine).to_bytes(4, "big"))
    assert (await raw.take())[0].payload == "first"
    assert (await within(sending)).acked
    assert len(signature) == 128  # the node's, and its instance's


async def test_the_servers_proof_is_in_the_upgrade_and_the_clients_first_message_right_behind_its_proof(
    make: Make, tcp: Open
) -> None:
    """Two writes of a client by hand: the request; the proof and a message. The proofs are checked by
    what the protocol says, not by our own code."""
    t = await make("bob")
    box, address = Box(t), await serve(t)
    actor, raw = Actor(), await tcp(port_of(address))
    said = await speak(raw, actor)
    public = openline.public_key_of(t.node_id)
    Ed25519PublicKey.from_public_bytes(public).verify(
        out_of_base64(said.text)[:64], signed("server", said.client, said.server)
    )
    instance = out_of_base64(parse_hello(said.server).instance)
    Ed25519PublicKey.from_public_bytes(instance).verify(
        out_of_base64(said.text)[64:], signed("server", said.client, said.server)
    )
    first = frame(BINARY, proof_frame(said.proof())) + frame(BINARY, FIRST)
    await raw.send(first)
    assert (await raw.whole())[1][0] == WELCOME
    await eventually(lambda: box.payloads == ["forged"])
    assert (box.peers[0].node_id, box.peers[0].proven) == (actor.node_id, True)


async def test_between_transports_there_are_two_proofs_and_one_welcome_and_no_other_frame(make: Make) -> None:
    a, b = await make("a"), await make("b")
    address = await serve(a)
    async with Middle(port_of(address)) as middle:
        await b.connect(middle.address)
        await eventually(lambda: a.peers())
        await elapse(0.1)
        # 8 bytes of header and mask, kind, array of two, bin8 header, signature, empty array.
        assert len(middle.said) == 8 + 1 + 1 + 2 + 128 + 1


async def test_every_connection_has_its_own_nonces_on_both_sides_and_one_instance(
    make: Make, tcp: Open
) -> None:
    t = await make()
    address = await serve(t)
    seen = []
    for _ in range(20):
        raw = await tcp(port_of(address))
        seen.append((await speak(raw, Actor())).server)
        raw.close()
    fields = [dict(part.split("=", 1) for part in value.split("; ")[1:]) for value in seen]
    assert len({f["nonce"] for f in fields}) == 20
    assert len({f["instance"] for f in fields}) == 1


async def test_a_dialer_has_its_own_nonces_one_instance_and_counts_its_dials(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    seen = []
    for _ in range(5):
        connecting = asyncio.ensure_future(t.connect(raw_server.address))
        raw = await raw_server.tcp()
        seen.append(header(await raw.head(), HELLO))
        raw.close()
        assert isinstance(await nothing(connecting), openline.Unreachable)
    fields = [dict(part.split("=", 1) for part in value.split("; ")[1:]) for value in seen]
    assert len({f["nonce"] for f in fields}) == 5
    assert len({f["instance"] for f in fields}) == 1
    dials = [int(f["dial"]) for f in fields]
    assert dials == sorted(set(dials))
    assert dials[0] > 0


async def test_a_client_without_a_hello_is_not_told_who_is_here(make: Make, tcp: Open) -> None:
    t = await make("bob")
    raw = await tcp(port_of(await serve(t)))
    await raw.send(upgrade())
    head = await raw.head()
    assert " 101 " in head
    assert HELLO.lower() not in head.lower()
    assert t.node_id not in head


async def test_before_a_clients_proof_has_come_it_is_nobody_and_hears_nothing(make: Make, tcp: Open) -> None:
    """Neither a welcome, nor messages for the node id that it claims; only its pings are answered."""
    t = await make("bob")
    address = await serve(t)
    actor, raw = Actor(8770), await tcp(port_of(address))
    said = await speak(raw, actor)
    assert (t.peers(), t.stats().active, t.stats().pending_handshakes) == ([], 0, 1)
    for to in (actor.node_id, f"{actor.node_id}@127.0.0.1:8770"):
        assert isinstance(await nothing(t.send(to, task("secret"))), openline.Unreachable)
    await raw.frame(PING, b"there?")
    first, data = await raw.read()
    assert (first & 0x0F, data) == (PONG, b"there?")
    await said.prove()
    assert (await raw.whole())[1][0] == WELCOME
    assert t.peers()[0].node_id == actor.node_id
    assert t.stats().pending_handshakes == 0


async def test_a_proof_in_fragments_is_a_proof(make: Make, tcp: Open) -> None:
    """RFC 6455: anybody on the way may cut a message into fragments."""
    t = await make()
    raw = await tcp(port_of(await serve(t)))
    said = await speak(raw, Actor())
    whole = proof_frame(said.proof())
    await raw.frame(BINARY, whole[:10], fin=False)
    await raw.frame(PING, b"")
    await raw.frame(CONTINUATION, whole[10:])
    assert (await raw.read())[0] & 0x0F == PONG
    assert (await raw.whole())[1][0] == WELCOME


# Hellos taken out ---------------------------------------------------------------------------------


async def test_where_the_hellos_are_taken_out_both_are_plain_peers(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), request=strip) as middle:
        assert not (await a.send(middle.address, task("plain"))).acked
        await eventually(lambda: box.payloads == ["plain"])
        assert (box.peers[0].node_id, box.peers[0].proven, box.peers[0].plain) == (None, False, True)
        assert (a.peers()[0].node_id, a.peers()[0].proven) == (None, False)


@pytest.mark.parametrize("side", ["request", "response"])
async def test_where_a_hello_is_taken_out_an_address_with_a_node_id_is_refused(make: Make, side: str) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), **{side: strip}) as middle:
        error = await nothing(a.send(f"{b.node_id}@{middle.address}", task("secret")))
        assert isinstance(error, openline.Refused)
        assert "node id" in str(error)
        assert middle.said == b"" or b"secret" not in middle.said
    assert (a.peers(), a.stats().active, a.stats().created, box) == ([], 0, 0, [])


@pytest.mark.parametrize("side", ["request", "response"])
async def test_where_a_hello_is_taken_out_allow_of_the_client_refuses(make: Make, side: str) -> None:
    b = await make("b")
    a = await make("a", allow=(b.node_id,))
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), **{side: strip}) as middle:
        error = await nothing(a.send(middle.address, task("secret")))
        assert isinstance(error, openline.Refused)
        assert "Config.allow" in str(error)
        assert b"secret" not in middle.said
    assert (a.peers(), a.stats().active, box) == ([], 0, [])


async def test_where_a_hello_is_taken_out_allow_of_the_server_refuses(make: Make) -> None:
    a = await make("a")
    b = await make("b", allow=(a.node_id,))
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), request=strip) as middle:
        assert isinstance(await nothing(a.send(middle.address, task())), openline.Refused)
    assert (b.peers(), box) == ([], [])


async def test_where_only_the_servers_hello_is_taken_out_the_server_does_not_hear_a_plain_peer(
    make: Make,
) -> None:
    """It has been told of a node id, and who has one has to prove it."""
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), response=strip) as middle:
        assert not (await a.send(middle.address, task("in doubt"))).acked
        await eventually(lambda: b.stats().malformed == 1)
        await eventually(lambda: not a.peers())
    assert (box, b.peers()) == ([], [])
