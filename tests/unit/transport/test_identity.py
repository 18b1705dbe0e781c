"""Who is at the other end: hellos signed both ways (rule 3.6), and everything that is no right proof."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import openline
from openline.backends.websocket import deflate
from openline.core.handshake import parse_hello

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Actor,
    Box,
    Raw,
    RawServer,
    batch,
    eventually,
    frame,
    header,
    hello,
    plain,
    port_of,
    serve,
    switching,
    task,
    upgrade,
    within,
)
from .proofs import (
    FIELDS,
    HELLO,
    PROOF,
    SEPARATOR,
    WELCOME,
    Middle,
    Spoken,
    altered,
    answer,
    nothing,
    proof_frame,
    signed,
    speak,
    strip,
    turned_away,
    with_hello,
)


@pytest.fixture
async def tcp(stack: AsyncExitStack) -> Open:
    """Opens sockets on which nothing has been said yet: ``await tcp(port)``."""

    async def opened(port: int) -> Raw:
        raw = await Raw.tcp(port)
        stack.callback(raw.close)
        return raw

    return opened


FIRST = batch([task("forged")], opens={"default": 1})


def in_base64(signature: bytes) -> str:
    return base64.urlsafe_b64encode(signature).decode().rstrip("=")


def out_of_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certificate.cert).read_text())


async def alone(server: openline.Transport, box: Box) -> None:
    """Nobody has got in at ``server``, nothing has been handed over, and it still takes who is right."""
    assert (server.peers(), server.stats().active, server.stats().accepted) == ([], 0, 0)
    assert not box
    port = server._listeners[0].port
    good = await Raw.connect(port, Actor())
    try:
        await good.post(task("good"))
        await eventually(lambda: box.payloads == ["good"])
    finally:
        good.close()


# What is said, and when -----------------------------------------------------------------------------


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
        await asyncio.sleep(0.1)
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


# Clients that are not who they say ----------------------------------------------------------------


Forge = Callable[[Spoken], bytes]

BAD_PROOFS: dict[str, Forge] = {
    "wrong key": lambda said: said.proof(identity=openline.Identity()),
    "in the server's role": lambda said: said.proof(role="server"),
    "in no role": lambda said: said.proof(role=""),
    "the server's own, sent back": lambda said: out_of_base64(said.text),
    "hellos swapped": lambda said: said.proof(client=said.server, server=said.client),
    "only the client's hello": lambda said: said.proof(server=""),
    "only the server's hello": lambda said: said.proof(client=""),
    "with the server's proof in its hello": lambda said: said.proof(
        server=said.server + SEPARATOR + said.text
    ),
    "for TLS that there is not": lambda said: said.proof(certificate=b"certificate"),
    "empty": lambda said: b"",
    "truncated": lambda said: said.proof()[:63],
    "half": lambda said: said.proof()[:32],
    "too long": lambda said: said.proof() + b"\0",
    "twice in one": lambda said: said.proof() * 2,
    "zeros": lambda said: bytes(64),
    "one bit in R": lambda said: bytes([said.proof()[0] ^ 1]) + said.proof()[1:],
    "one bit in S": lambda said: said.proof()[:-1] + bytes([said.proof()[-1] ^ 1]),
}
for _field in FIELDS:
    BAD_PROOFS[f"its own hello with another {_field}"] = lambda said, field=_field: said.proof(
        client=altered(said.client, field)
    )
    BAD_PROOFS[f"our hello with another {_field}"] = lambda said, field=_field: said.proof(
        server=altered(said.server, field)
    )


@pytest.mark.parametrize("forge", BAD_PROOFS.values(), ids=list(BAD_PROOFS))
async def test_a_wrong_proof_does_not_get_in(make: Make, forge: Forge, tcp: Open) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    raw = await tcp(port_of(address))
    said = await speak(raw, Actor(8770))
    await raw.send(frame(BINARY, proof_frame(forge(said))) + frame(BINARY, FIRST))
    assert bytes([WELCOME]) not in await within(raw.gone())
    assert t.stats().malformed == 1
    await alone(t, box)


FIRST_FRAMES = {
    "a message": frame(BINARY, FIRST),
    "a plain message": frame(TEXT, plain("forged")),
    "a plain message as binary": frame(BINARY, plain("forged")),
    "a text that holds a proof": frame(TEXT, bytes([PROOF])),
    "acknowledgements": frame(BINARY, batch([], acks={"default": 2})),
    "a welcome": frame(BINARY, b"\x05\x91\x90"),
    "flow": frame(BINARY, b"\x02\x92\xa1a\xc3"),
    "ports": frame(BINARY, b"\x03\x91\x91\xcd\x22\x42"),
    "a kind that nobody knows": frame(BINARY, b"\xff\x90"),
    "an empty frame": frame(BINARY),
    "an empty text": frame(TEXT),
    "a proof of nothing": frame(BINARY, bytes([PROOF])),
    "a proof that is a number": frame(BINARY, bytes([PROOF]) + msgspec.msgpack.encode([7])),
    "a proof that is text": frame(BINARY, bytes([PROOF]) + msgspec.msgpack.encode(["x" * 64])),
    "a proof that is nil": frame(BINARY, bytes([PROOF]) + msgspec.msgpack.encode([None])),
    "a proof with a map": frame(BINARY, bytes([PROOF]) + msgspec.msgpack.encode({"signature": bytes(64)})),
    "a fragment's end": frame(CONTINUATION, b"x"),
    "a reserved opcode": frame(3, b"x"),
}


@pytest.mark.parametrize("first", FIRST_FRAMES.values(), ids=list(FIRST_FRAMES))
async def test_what_is_no_proof_does_not_get_in(make: Make, first: bytes, tcp: Open) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    raw = await tcp(port_of(address))
    said = await speak(raw, Actor(8770))
    right = frame(BINARY, proof_frame(said.proof())) + frame(BINARY, FIRST)
    await raw.send(first + right)  # too late
    assert bytes([WELCOME]) not in await within(raw.gone())
    assert t.stats().malformed == 1
    await alone(t, box)


async def test_a_proof_is_good_for_one_connection(make: Make, tcp: Open) -> None:
    """Hello and proof of a connection that got in, played again word by word."""
    t = await make()
    box, address = Box(t), await serve(t)
    first = await tcp(port_of(address))
    said = await speak(first, Actor(8770))
    recorded = frame(BINARY, proof_frame(said.proof())) + frame(BINARY, FIRST)
    await first.send(recorded)
    await eventually(lambda: box.payloads == ["forged"])
    first.close()
    await eventually(lambda: t.stats().active == 0)
    again = await tcp(port_of(address))
    await speak(again, said.actor, said.client)
    await again.send(recorded)
    await within(again.gone())
    assert (t.stats().accepted, t.stats().malformed, box.payloads) == (1, 1, ["forged"])


async def test_a_proof_is_good_for_one_server(make: Make, tcp: Open) -> None:
    one, other = await make(), await make()
    box, here, there = Box(other), await serve(one), await serve(other)
    first, second = await tcp(port_of(here)), await tcp(port_of(there))
    said = await speak(first, Actor())
    await speak(second, said.actor, said.client)
    await second.send(frame(BINARY, proof_frame(said.proof())))
    await within(second.gone())
    await alone(other, box)


async def test_the_proof_of_two_connections_at_once_cannot_be_swapped(make: Make, tcp: Open) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    actor = Actor()
    ends = [await tcp(port_of(address)) for _ in range(2)]
    one, two = [await speak(raw, actor) for raw in ends]
    await one.prove(two.proof())
    await two.prove(one.proof())
    for raw in ends:
        await within(raw.gone())
    await alone(t, box)


async def test_our_own_hello_sent_back_is_not_let_in(make: Make, tcp: Open) -> None:
    """A client that says just what this node has said, with the proof that came with it."""
    t = await make()
    box, address = Box(t), await serve(t)
    first, second = await tcp(port_of(address)), await tcp(port_of(address))
    said = await speak(first, Actor())
    back = await speak(second, said.actor, said.server)
    await second.send(frame(BINARY, proof_frame(out_of_base64(said.text))))
    await within(second.gone())
    assert back.server != said.server
    first.close()
    await eventually(lambda: t.stats().pending_handshakes == 0)
    await alone(t, box)


async def test_somebody_with_our_node_id_and_no_key_causes_no_conflict(make: Make, raw: Open) -> None:
    """He is turned away; nothing is remembered of it, and those who are right go on."""
    t = await make()
    box, address = Box(t), await serve(t)
    good = await raw(port_of(address), Actor())
    for _ in range(3):
        assert " 409 " in await turned_away(port_of(address), hello(node=t.node_id))
    await good.post(task("goes on"))
    await eventually(lambda: box.payloads == ["goes on"])
    assert t.stats().conflicts == 0


async def test_somebody_with_a_peers_node_id_and_no_key_does_not_disturb_the_peer(
    make: Make, tcp: Open
) -> None:
    t, peer = await make(), await make("peer")
    box, address = Box(t), await serve(t)
    await peer.send(address, task(1))
    for _ in range(3):
        raw = await tcp(port_of(address))
        said = await speak(raw, Actor(), hello(node=peer.node_id)[HELLO])
        await said.prove()
        await within(raw.gone())
        raw.close()
    await peer.send(address, task(2))
    assert (await t.send(peer.node_id, task())).direction == "inbound"
    assert (peer.stats().created, t.stats().accepted, t.stats().conflicts) == (1, 1, 0)
    assert box.payloads == [1, 2]


async def test_a_second_proof_ends_the_connection(make: Make, tcp: Open) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    raw = await tcp(port_of(address))
    said = await speak(raw, Actor())
    proof = frame(BINARY, proof_frame(said.proof()))
    await raw.send(proof + frame(BINARY, FIRST) + proof)
    await within(raw.gone())
    await eventually(lambda: t.stats().active == 0)
    assert (box.payloads, t.stats().malformed) == (["forged"], 1)


async def test_who_never_proves_himself_is_cut_in_time_whatever_he_pings(make: Make, tcp: Open) -> None:
    t = await make(handshake_timeout=0.3)
    box, address = Box(t), await serve(t)
    silent, pinging = await tcp(port_of(address)), await tcp(port_of(address))
    await speak(silent, Actor())
    await speak(pinging, Actor())
    begin = asyncio.get_running_loop().time()
    ended = asyncio.ensure_future(pinging.gone())
    while not ended.done():
        await asyncio.wait([ended], timeout=0.05)
        try:
            await pinging.frame(PING, b"")
        except OSError:
            break
    await within(silent.gone())
    await within(ended)
    assert 0.2 < asyncio.get_running_loop().time() - begin < 1.5
    await eventually(lambda: t.stats().pending_handshakes == 0)
    assert t.stats().malformed == 2
    await alone(t, box)


async def test_a_goodbye_instead_of_a_proof_is_taken(make: Make, tcp: Open) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    raw = await tcp(port_of(address))
    await speak(raw, Actor())
    await raw.frame(CLOSE, b"\x03\xe8")
    await within(raw.gone())
    await eventually(lambda: t.stats().pending_handshakes == 0)
    await alone(t, box)


async def test_the_log_says_that_a_proof_was_wrong_and_whose(
    make: Make, caplog: pytest.LogCaptureFixture, tcp: Open
) -> None:
    """The one line that tells an operator of an attack."""
    t = await make()
    raw = await tcp(port_of(await serve(t)))
    said = await speak(raw, Actor())
    with caplog.at_level(logging.WARNING, "openline"):
        await said.prove(bytes(64))
        await within(raw.gone())
        await eventually(lambda: t.stats().malformed == 1)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1, lines
    assert "proof" in lines[0]
    assert said.actor.node_id in lines[0]
    assert raw.address in lines[0]


async def test_what_a_proven_peer_says_it_has_lost_ends_only_its_own_connections(
    make: Make, tcp: Open, raw: Open
) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    good = await raw(port_of(address), Actor())
    ends = [c.endpoint.connection_id for peer in t.peers() for c in peer._remote.connections]
    mallory, actor = await tcp(port_of(address)), Actor()
    await mallory.enter(actor, lost=[*ends, b"", b"x" * 1000])
    await mallory.frame(BINARY, bytes([WELCOME]) + msgspec.msgpack.encode([ends]))
    await mallory.post(task("mallory"))
    await good.post(task("good"))
    await eventually(lambda: sorted(box.payloads) == ["good", "mallory"])
    await asyncio.sleep(1.2)  # over the grace time of a connection that has been given up
    await good.post(task("still"))
    await eventually(lambda: "still" in box.payloads)


@pytest.mark.parametrize("forged", [f"1; node={'a' * 51}q; nonce={'n' * 32}", "1; node=; nonce="])
async def test_a_hello_of_an_earlier_version_without_an_instance_is_turned_away(
    make: Make, forged: str
) -> None:
    t = await make()
    assert " 400 " in await turned_away(port_of(await serve(t)), {HELLO: forged})
    assert t.stats().malformed == 1


async def test_a_hello_with_a_byte_that_is_no_ascii_is_bad_input_on_both_sides(
    make: Make, raw_server: RawServer, tcp: Open
) -> None:
    t = await make()
    said = Actor().hello(1) + "; x=\xff"
    raw = await tcp(port_of(await serve(t)))
    await raw.send(upgrade({HELLO: said}).decode().encode("latin-1"))
    assert b" 400 " in await within(raw.gone())
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    server.request = await server.head()
    value = f"{Actor().hello()}; x=\xff{SEPARATOR}{'A' * 86}"
    await server.send(switching(server.request, {HELLO: value}).decode().encode("latin-1"))
    assert isinstance(await nothing(within(sending)), openline.Refused | openline.Unreachable)
    assert t.peers() == []


async def in_fragments(raw: Raw) -> None:
    await raw.frame(BINARY, bytes([PROOF]) + bytes(1 << 16), fin=False)
    for _ in range(128):
        await raw.frame(CONTINUATION, bytes(1 << 16), fin=False)


async def compressed(raw: Raw) -> None:
    """A few kilobytes that become megabytes."""
    await raw.frame(BINARY, deflate.compress(bytes([PROOF]) + bytes(8 << 20), 15), rsv=4)


@pytest.mark.parametrize("pour", [in_fragments, compressed])
async def test_an_unproven_client_cannot_make_us_hold_megabytes(
    make: Make, tcp: Open, pour: Callable[[Raw], Awaitable[None]]
) -> None:
    """A proof takes 70 bytes. Everybody can say hello in the name of somebody who may connect."""
    actor = Actor()
    t = await make(allow=(actor.node_id,), compression=True)
    raw = await tcp(port_of(await serve(t)))
    await raw.send(upgrade({HELLO: actor.hello(1), "Sec-WebSocket-Extensions": deflate.OFFER}))
    assert "permessage-deflate" in await raw.head()
    pouring = asyncio.ensure_future(pour(raw))
    try:
        await within(raw.gone(), 6.0)
    finally:
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
    assert t.stats().malformed == 1
    assert t.peers() == []


async def test_one_large_frame_of_an_unproven_client_is_held_for_the_handshake_time_at_most(
    make: Make, tcp: Open
) -> None:
    """The engine puts a frame together before it is looked at; docs/security.md says so."""
    t = await make(handshake_timeout=0.5)
    whole, endless = await tcp(port_of(await serve(t))), await tcp(t._listeners[0].port)
    for raw in (whole, endless):
        await speak(raw, Actor())
    await whole.send(frame(BINARY, bytes([PROOF]) + bytes(1 << 20)))
    await within(whole.gone(), 6.0)
    await endless.send(frame(BINARY, bytes([PROOF]), size=8 << 20))
    await within(endless.gone(), 6.0)
    await eventually(lambda: t.stats().malformed == 2)
    assert t.stats().pending_handshakes == 0


async def test_a_proof_may_be_compressed_where_that_was_agreed(make: Make, tcp: Open) -> None:
    t = await make(compression=True)
    actor, raw = Actor(), await tcp(port_of(await serve(t)))
    mine = actor.hello(1)
    await raw.send(upgrade({HELLO: mine, "Sec-WebSocket-Extensions": deflate.OFFER}))
    server = header(await raw.head(), HELLO).rpartition(SEPARATOR)[0]
    proof = proof_frame(actor.identity.sign(signed("client", mine, server)))
    await raw.frame(BINARY, deflate.compress(proof, 15), rsv=4)
    assert (await raw.whole())[1][0] == WELCOME
    assert t.peers()[0].node_id == actor.node_id


async def test_closing_does_not_wait_for_those_who_have_not_proven_themselves(make: Make, tcp: Open) -> None:
    t = await make(close_timeout=3.0)
    port = port_of(await serve(t))
    waiting = [await tcp(port) for _ in range(5)]
    for raw in waiting:
        await speak(raw, Actor())
    await within(t.close(), 1.0)
    for raw in waiting:
        await within(raw.gone(), 1.0)


async def test_who_says_that_this_connection_is_lost_loses_it_and_nothing_else(make: Make, tcp: Open) -> None:
    """Its number is known to both before the proof is sent."""
    t = await make()
    box, address = Box(t), await serve(t)
    actor, raw = Actor(), await tcp(port_of(address))
    transcript = await raw.greet(actor)
    await raw.frame(BINARY, actor.prove(transcript, lost=[transcript.connection_id]))
    assert await within(raw.closed()) == 4001
    again = await tcp(port_of(address))
    await again.enter(actor)
    await again.post(task("again"))
    await eventually(lambda: box.payloads == ["again"])
    assert t.stats().active == 1


async def test_who_comes_and_goes_without_a_message_leaves_nothing_behind(make: Make) -> None:
    """Everybody can make as many identities as he likes."""
    t = await make()
    address = await serve(t)

    async def visit() -> None:
        raw = await Raw.connect(port_of(address), Actor())
        raw.close()

    for _ in range(10):
        await within(asyncio.gather(*(visit() for _ in range(20))))
    await eventually(lambda: t.stats().active == 0)
    assert list(t._table) == []
    assert len(t._router.book._nodes) == 0


# Somebody who repeats what only we say ----------------------------------------------------------------


async def impostor(t: openline.Transport, *ports: int) -> Actor:
    """A node with a key of its own that says the instance of ``t``, which every peer of ``t`` knows."""
    actor = Actor(*ports)
    probe = await Raw.connect(t._listeners[0].port, actor)
    assert probe.far_end is not None
    actor.instance = probe.far_end.instance
    probe.close()
    await eventually(lambda: not t.peers())
    return actor


async def test_another_node_with_our_instance_is_not_taken_for_ourselves(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    """It is one peer as all others are: one session, and one connection in the end."""
    t = await make()
    address = await serve(t)
    actor = await impostor(t, raw_server.port)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    theirs = await raw_server.accept(actor)
    peer = await within(connecting)
    ours = await raw(port_of(address), actor)
    await eventually(lambda: t.stats().accepted == 2)
    assert [p.node_id for p in t.peers()] == [actor.node_id]
    assert peer is t.peers()[0]
    theirs.close()
    ours.close()


async def test_what_is_for_another_node_with_our_instance_is_for_nobody_else(
    make: Make, raw_server: RawServer
) -> None:
    """A peer in hand is dialed by its node id, whatever it says of itself."""
    t, other = await make(), await make("other")
    await serve(t)
    actor = await impostor(t)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    end = await raw_server.accept(actor)
    peer = await within(connecting)
    assert peer is not None
    end.reset()
    raw_server.close()
    await eventually(lambda: not t.peers())
    box = Box(other)
    await other.listen(raw_server.port, host="127.0.0.1")
    error = await nothing(within(peer.send(task("for the actor"))))
    assert isinstance(error, openline.Refused | openline.Unreachable), error
    assert (box, other.peers()) == ([], [])


# Answers that are no upgrade --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ours", "kind"),
    [
        ("403 Forbidden", True, openline.Refused),
        ("409 Conflict", True, openline.IdentityConflict),
        ("400 Bad Request", False, openline.Unreachable),
        ("409 Conflict", False, openline.Unreachable),
        ("403 Forbidden", False, openline.Unreachable),
    ],
)
async def test_only_a_node_that_says_so_has_refused_us(
    make: Make, raw_server: RawServer, status: str, ours: bool, kind: type[openline.Error]
) -> None:
    """A proxy on the way also answers 403 and 409, and knows nothing of identities."""
    t = await make()
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    raw = await raw_server.tcp()
    await raw.head()
    more = "Openline-Refused: 1\r\n" if ours else ""
    body = "because"
    await raw.send(f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    raw.close()
    error = await nothing(within(sending))
    assert type(error) is kind, error
    assert "because" in str(error)
    assert raw_server.address in str(error)
    assert (t.peers(), t.stats().conflicts) == ([], 0)


# Servers that are not who they say ------------------------------------------------------------------


def right(actor: Actor, mine: str, **other: Any) -> tuple[str, bytes]:
    """A server's hello and its signature, right but for what is given."""
    said = actor.hello()
    return said, actor.identity.sign(signed(**{"role": "server", "client": mine, "server": said, **other}))


def value(said: str, signature: bytes) -> str:
    return said + SEPARATOR + in_base64(signature)


Answer = Callable[[Actor, str], str]

BAD_ANSWERS: dict[str, Answer] = {
    "no proof": lambda actor, mine: actor.hello(),
    "an empty proof": lambda actor, mine: actor.hello() + SEPARATOR,
    "wrong key": lambda actor, mine: value(
        said := actor.hello(), openline.Identity().sign(signed("server", mine, said))
    ),
    "in the client's role": lambda actor, mine: value(*right(actor, mine, role="client")),
    "in no role": lambda actor, mine: value(*right(actor, mine, role="")),
    "for TLS that there is not": lambda actor, mine: value(*right(actor, mine, certificate=b"certificate")),
    "for another client": lambda actor, mine: value(*right(actor, Actor().hello(1))),
    "for no client": lambda actor, mine: value(*right(actor, "")),
    "hellos swapped": lambda actor, mine: value(
        said := actor.hello(), actor.identity.sign(signed("server", said, mine))
    ),
    "the client's hello sent back": lambda actor, mine: value(mine, right(actor, mine)[1]),
    "the client's hello sent back, signed by another": lambda actor, mine: value(
        mine, actor.identity.sign(signed("server", mine, mine))
    ),
    "truncated": lambda actor, mine: value(*right(actor, mine))[:-1],
    "short": lambda actor, mine: value(actor.hello(), bytes(63)),
    "long": lambda actor, mine: value(actor.hello(), bytes(65)),
    "zeros": lambda actor, mine: value(actor.hello(), bytes(64)),
    "not base64": lambda actor, mine: actor.hello() + SEPARATOR + "!" * 86,
    "first proof of two": lambda actor, mine: value(*right(actor, mine)) + SEPARATOR + "A" * 86,
    "with something behind it": lambda actor, mine: value(*right(actor, mine)) + "; name=mallory",
    "empty": lambda actor, mine: "",
    "only a proof": lambda actor, mine: SEPARATOR + in_base64(right(actor, mine)[1]),
    "another version": lambda actor, mine: "2" + value(*right(actor, mine))[1:],
    "very long": lambda actor, mine: value(*right(actor, mine)) + "; x=" + "x" * 4000,
}
for _field in FIELDS:
    BAD_ANSWERS[f"its own hello with another {_field}"] = lambda actor, mine, field=_field: value(
        altered((said := right(actor, mine))[0], field), said[1]
    )
    BAD_ANSWERS[f"our hello with another {_field}"] = lambda actor, mine, field=_field: value(
        *right(actor, altered(mine, field))
    )

# A node that does not speak this protocol, as opposed to one that lies.
OTHER_PROTOCOL = ("another version", "very long", "empty", "only a proof")


@pytest.mark.parametrize("how", BAD_ANSWERS)
async def test_a_server_with_a_wrong_proof_gets_nothing(make: Make, raw_server: RawServer, how: str) -> None:
    t, actor = await make("alice"), Actor()
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await answer(raw, BAD_ANSWERS[how](actor, header(raw.request, HELLO)))
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused | openline.Unreachable), error
    if how not in OTHER_PROTOCOL:
        assert isinstance(error, openline.Refused), error
        assert "proof" in str(error)
        assert raw_server.address in str(error)
    heard = await within(raw.gone())
    assert b"secret" not in heard
    assert bytes([PROOF]) not in heard[:3]
    stats = t.stats()
    assert (t.peers(), stats.active, stats.created, stats.dial_failures) == ([], 0, 0, 1)
    assert stats.messages_sent == 0


async def test_an_answer_is_good_for_one_connection(make: Make, raw_server: RawServer) -> None:
    """Hello and proof of a server that were right, played again to the next connection."""
    t, actor = await make(), Actor()
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    first = await raw_server.tcp()
    first.request = await first.head()
    recorded = value(*right(actor, header(first.request, HELLO)))
    await answer(first, recorded)
    assert (await within(connecting)).node_id == actor.node_id
    first.reset()
    await eventually(lambda: not t.peers())
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    second = await raw_server.tcp()
    second.request = await second.head()
    await answer(second, recorded)
    assert isinstance(await nothing(within(sending)), openline.Refused)
    assert b"secret" not in await within(second.gone())


async def test_a_server_that_lies_does_not_stop_who_is_right_at_the_next_attempt(
    make: Make, raw_server: RawServer
) -> None:
    t, actor = await make(), Actor()
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await answer(raw, BAD_ANSWERS["wrong key"](actor, header(raw.request, HELLO)))
    assert isinstance(await nothing(within(sending)), openline.Refused)
    sending = asyncio.ensure_future(t.send(raw_server.address, task("now")))
    good = await raw_server.accept(actor)
    assert (await good.takes(sending)).acked
    assert good.payloads == ["now"]


# Men in the middle ----------------------------------------------------------------------------------


async def refused_through(middle: Middle, a: openline.Transport, b: openline.Transport, box: Box) -> str:
    """``a`` sends to ``b`` through ``middle``, and nothing of it gets there; the error's text."""
    error = await nothing(within(a.send(middle.address, task("secret"))))
    assert isinstance(error, openline.Refused), error
    await eventually(lambda: b.stats().pending_handshakes == 0)
    assert (a.peers(), b.peers(), box) == ([], [], [])
    assert (a.stats().created, b.stats().accepted) == (0, 0)
    assert b"secret" not in middle.said
    return str(error)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("side", ["request", "response"])
async def test_a_hello_that_is_altered_on_the_way_is_refused(make: Make, side: str, field: str) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(b), await serve(b)
    await serve(a)
    change = with_hello(lambda text: altered(text, field))
    async with Middle(port_of(address), **{side: change}) as middle:
        assert "proof" in await refused_through(middle, a, b, box)


@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("more", ["; x=1", ";", " ;"])
async def test_a_hello_with_something_more_in_it_is_refused(make: Make, side: str, more: str) -> None:
    """Also where it means the same: what was said is signed, not what was understood."""
    a, b = await make(), await make()
    box, address = Box(b), await serve(b)
    change = with_hello(lambda text: text.replace("; nonce", f"{more}; nonce", 1))
    async with Middle(port_of(address), **{side: change}) as middle:
        await refused_through(middle, a, b, box)


@pytest.mark.parametrize("side", ["request", "response"])
async def test_another_node_id_in_a_hello_is_refused(make: Make, side: str) -> None:
    a, b = await make(), await make()
    box, address = Box(b), await serve(b)
    change = with_hello(lambda text: altered(text, "node", Actor().node_id))
    async with Middle(port_of(address), **{side: change}) as middle:
        await refused_through(middle, a, b, box)


async def test_a_man_in_the_middle_who_changes_nothing_changes_nothing(make: Make) -> None:
    """So that the tests beside this one show what they are to show."""
    a, b = await make(), await make()
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address), request=with_hello(str), response=with_hello(str)) as middle:
        assert (await a.send(f"{b.node_id}@{middle.address}", task("through"))).acked
        assert box.payloads == ["through"]


@pytest.mark.parametrize("alike", [False, True], ids=["his own hello", "the other's hello with his node id"])
async def test_a_proof_is_of_no_use_toward_somebody_else(
    make: Make, raw_server: RawServer, alike: bool, tcp: Open
) -> None:
    """A dials M, and M dials B in A's name with all that A says."""
    a, b, m = await make("a"), await make("b"), Actor(name="m")
    box, address = Box(b), await serve(b)
    connecting = asyncio.ensure_future(a.connect(raw_server.address))
    toward_a = await raw_server.tcp()
    toward_a.request = await toward_a.head()
    said = header(toward_a.request, HELLO)
    toward_b = await tcp(port_of(address))
    b_said = await speak(toward_b, m, said)
    # Without the capability: he cannot sign for the other's instance.
    alike_said = altered(altered(b_said.server, "node", m.node_id), "caps", "none")
    mine = alike_said if alike else m.hello()
    await answer(toward_a, value(mine, m.identity.sign(signed("server", said, mine))))
    assert (await within(connecting)).node_id == m.node_id
    kind, proof = await toward_a.whole()
    assert (kind, proof[0]) == (BINARY, PROOF)
    await toward_b.send(frame(BINARY, proof) + frame(BINARY, FIRST))
    await within(toward_b.gone())
    await alone(b, box)


async def test_a_servers_proof_is_of_no_use_toward_somebody_else(
    make: Make, raw_server: RawServer, tcp: Open
) -> None:
    """A dials M; M has a connection with B going on and shows A what B answered to M's own hello."""
    a, b, m = await make("a"), await make("b"), Actor(name="m")
    address = await serve(b)
    sending = asyncio.ensure_future(a.send(raw_server.address, task("secret")))
    toward_a = await raw_server.tcp()
    toward_a.request = await toward_a.head()
    toward_b = await tcp(port_of(address))
    b_said = await speak(toward_b, m)
    await answer(toward_a, b_said.server + SEPARATOR + b_said.text)
    assert isinstance(await nothing(within(sending)), openline.Refused)
    assert b"secret" not in await within(toward_a.gone())


async def test_who_asks_for_m_by_node_id_is_not_passed_on_to_b(make: Make) -> None:
    """M may pass everything on between A and B, but then B is whom A speaks with, and A asked for M."""
    a, b, m = await make("a"), await make("b"), Actor()
    box, address = Box(b), await serve(b)
    async with Middle(port_of(address)) as middle:
        error = await nothing(a.send(f"{m.node_id}@{middle.address}", task("secret")))
        assert isinstance(error, openline.Refused)
        assert b.node_id in str(error)
        assert b"secret" not in middle.said
    assert (box, b.stats().accepted) == ([], 0)


async def test_being_passed_on_to_oneself_is_no_way_to_be_somebody_else(make: Make) -> None:
    """M connects A's dial with A's own listener: A is told that it speaks with itself, or refuses."""
    a, b = await make("a"), await make("b")
    box, address = Box(a), await serve(a)
    async with Middle(port_of(address)) as middle:
        error = await nothing(a.send(f"{b.node_id}@{middle.address}", task("secret")))
        assert isinstance(error, openline.Refused)
        assert box == []
        peer = await a.connect(middle.address)
        assert peer is not None
        assert peer.node_id == a.node_id


@pytest.fixture
def trusting(certificate: Certificate) -> dict[str, Any]:
    """TLS contexts of a man in the middle who accepts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return {"dials": context}


@pytest.mark.parametrize("trust", ["ca", "pin"])
@pytest.mark.parametrize("named", [False, True], ids=["bare", "with the node id"])
async def test_a_man_in_the_middle_with_a_certificate_that_the_client_trusts_gets_nothing(
    make: Make,
    certificate: Certificate,
    stranger: Certificate,
    trusting: dict[str, Any],
    trust: str,
    named: bool,
) -> None:
    """He passes hellos and proofs on unchanged; they are bound to B's certificate, not to his."""
    b = await make("b", tls=certificate.serving())
    box, address = Box(b), await serve(b)
    tls = openline.Tls(ca=stranger.cert) if trust == "ca" else openline.Tls(pins=(stranger.pin,))
    a = await make("a", tls=tls)
    async with Middle(port_of(address), asks=stranger.context(), **trusting) as middle:
        to = f"wss://{b.node_id}@{middle.address}" if named else f"wss://{middle.address}"
        error = await nothing(within(a.send(to, task("secret"))))
        assert isinstance(error, openline.Refused), error
        assert "proof" in str(error)
        assert b"secret" not in middle.said
    await eventually(lambda: b.stats().pending_handshakes == 0)
    assert (a.peers(), b.peers(), box, b.stats().accepted) == ([], [], [], 0)


async def test_with_the_servers_own_certificate_and_key_he_is_the_server(
    make: Make, certificate: Certificate, trusting: dict[str, Any]
) -> None:
    """So that the test above shows what it is to show."""
    b = await make("b", tls=certificate.serving())
    box, address = Box(b), await serve(b)
    a = await make("a", tls=openline.Tls(ca=certificate.cert))
    async with Middle(port_of(address), asks=certificate.context(), **trusting) as middle:
        assert (await a.send(f"wss://{b.node_id}@{middle.address}", task("through"))).acked
    assert box.payloads == ["through"]


@pytest.mark.parametrize("which", ["none", "stranger's", "right"])
async def test_a_client_that_does_not_see_the_servers_certificate_does_not_get_in(
    make: Make,
    certificate: Certificate,
    stranger: Certificate,
    trusting: dict[str, Any],
    which: str,
    tcp: Open,
) -> None:
    """The server checks it as well: a client fooled into ``ws`` or another certificate is not let in."""
    b = await make("b", tls=certificate.serving())
    box, address = Box(b), await serve(b)
    seen = {"none": None, "stranger's": der(stranger), "right": der(certificate)}[which]
    async with Middle(port_of(address), **trusting) as middle:  # plain TCP inside, TLS outside
        raw = await tcp(middle.port)
        said = await speak(raw, Actor())
        await said.prove(said.proof(certificate=seen))
        if which == "right":
            assert (await raw.whole())[1][0] == WELCOME
            assert b.peers()[0].node_id == said.actor.node_id
        else:
            await within(raw.gone())
            await eventually(lambda: b.stats().malformed == 1)
            assert (b.peers(), box, b.stats().accepted) == ([], [], 0)
        raw.close()


# Hellos taken out -----------------------------------------------------------------------------------


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


# What is proven and what is claimed -----------------------------------------------------------------


async def test_a_node_id_is_proven_and_a_name_is_a_claim(make: Make) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    there = await b.connect(address)
    await b.send(address, task())
    here = box.peers[0]
    assert there is not None
    assert (here.node_id, here.name, here.proven) == (b.node_id, "bob", True)
    assert (there.node_id, there.name, there.proven) == (a.node_id, "alice", True)
    for peer, name, other in ((here, "bob", b), (there, "alice", a)):
        assert f"calling itself {name!r}" in repr(peer)
        assert other.node_id[:8] in repr(peer)


async def test_what_a_plain_peer_calls_itself_is_no_node_id(make: Make, raw: Open) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    client = await raw(port_of(address))
    await client.say("hi", metadata={"sourceNodeId": b.node_id})
    await eventually(lambda: box)
    peer = box.peers[0]
    assert (peer.node_id, peer.proven, peer.name) == (None, False, b.node_id)
    assert repr(peer).startswith("<plain peer calling itself")
    assert isinstance(await nothing(a.send(b.node_id, task("secret"))), openline.Unreachable)


async def test_metadata_of_an_openline_peer_does_not_rename_it(make: Make) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    await b.send(address, task(metadata={"sourceNodeId": "mallory"}))
    assert (box.peers[0].name, box.peers[0].node_id) == ("bob", b.node_id)


async def test_a_name_cannot_pass_for_more_than_a_name(make: Make, raw: Open) -> None:
    a = await make("alice")
    address = await serve(a)
    await raw(port_of(address), Actor(name="x' at 10.0.0.1:1, live>\n\x1b[2J<peer 'root"))
    text = repr(a.peers()[0])
    assert "\n" not in text
    assert "\x1b" not in text
    assert a.peers()[0].name in text or repr(a.peers()[0].name) in text


async def test_two_nodes_with_one_name_are_two_peers(make: Make) -> None:
    a, first, second = await make("alice"), await make("bob"), await make("bob")
    box, address = Box(a), await serve(a)
    await first.send(address, task(1))
    await second.send(address, task(2))
    assert len(a.peers()) == 2
    assert {peer.node_id for peer in box.peers} == {first.node_id, second.node_id}


async def test_a_node_that_comes_back_with_another_name_is_called_that(make: Make) -> None:
    a = await make("alice")
    address, identity = await serve(a), openline.Identity()
    first = await make("bob", identity=identity)
    peer = (await first.connect(address)) and a.peers()[0]
    assert peer.name == "bob"
    await first.close()
    await eventually(lambda: not a.peers())
    second = await make("robert", identity=identity)
    await second.connect(address)
    await eventually(lambda: a.peers())
    assert a.peers()[0].node_id == identity.node_id
    assert a.peers()[0].name == "robert"


async def test_a_peer_has_no_node_id_but_the_proven_one_of_its_connections(make: Make) -> None:
    """Whoever answers at an address next is another peer, also for a program that kept the first one."""
    a, b, c = await make("a"), await make("b"), await make("c")
    address = await serve(b)
    kept = await a.connect(address)
    assert kept is not None
    await b.close()
    await eventually(lambda: not a.peers())
    await c.listen(port_of(address), host="127.0.0.1")
    now = await a.connect(address)
    assert now is not None
    assert (kept.node_id, now.node_id) == (b.node_id, c.node_id)
    assert kept is not now
    box = Box(c)
    error = await nothing(within(kept.send(task("for b"))))
    assert isinstance(error, openline.Refused | openline.Unreachable)
    assert box == []


# Config.allow ---------------------------------------------------------------------------------------


async def test_who_is_on_the_list_connects_in_both_directions(make: Make) -> None:
    ours, theirs = openline.Identity(), openline.Identity()
    a = await make("a", identity=ours, allow=(theirs.node_id,))
    b = await make("b", identity=theirs, allow=(ours.node_id,))
    at_a, at_b = Box(a), Box(b)
    await b.send(await serve(a), task("in"))
    assert at_a.payloads == ["in"]
    assert (await a.send(theirs.node_id, task("back"))).direction == "inbound"
    assert at_b.payloads == ["back"]


async def test_a_node_that_is_not_on_the_list_is_turned_away_and_told_why(make: Make) -> None:
    a, b = await make("a", allow=(Actor().node_id,)), await make("b")
    box, address = Box(a), await serve(a)
    error = await nothing(b.send(address, task()))
    assert isinstance(error, openline.Refused)
    for part in (b.node_id, "Config.allow", address):
        assert part in str(error)
    assert (a.peers(), b.peers(), box, b.stats().created) == ([], [], [], 0)
    text = await turned_away(port_of(address), hello(node=b.node_id))
    assert " 403 " in text
    assert b.node_id in text


async def test_a_plain_peer_is_turned_away_where_there_is_a_list(make: Make) -> None:
    a = await make("a", allow=(Actor().node_id,))
    box, address = Box(a), await serve(a)
    text = await turned_away(port_of(address))
    assert " 403 " in text
    assert "known nodes" in text
    assert (a.peers(), box, a.stats().malformed) == ([], [], 1)


async def test_an_empty_list_lets_nobody_in_and_goes_nowhere(make: Make) -> None:
    a, b = await make("a", allow=()), await make("b")
    here, there = await serve(a), await serve(b)
    assert isinstance(await nothing(b.send(here, task())), openline.Refused)
    assert isinstance(await nothing(a.send(there, task())), openline.Refused)


async def test_the_list_is_of_those_who_prove_it(make: Make, tcp: Open, raw: Open) -> None:
    friend = Actor()
    a = await make("a", allow=(friend.node_id,))
    box, address = Box(a), await serve(a)
    forger = await tcp(port_of(address))
    said = await speak(forger, Actor(), hello(node=friend.node_id)[HELLO])
    await said.prove()
    await within(forger.gone())
    assert (a.peers(), box) == ([], [])
    await raw(port_of(address), friend)
    await eventually(lambda: a.peers())


async def test_a_listener_that_is_not_on_the_list_gets_nothing(make: Make, raw_server: RawServer) -> None:
    a, stranger = await make("a", allow=(Actor().node_id,)), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("secret")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await raw.answer(stranger)
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused)
    for part in (stranger.node_id, "Config.allow", raw_server.address):
        assert part in str(error)
    heard = await within(raw.gone())
    assert b"secret" not in heard
    assert bytes([PROOF]) not in heard[:3]
    assert (a.peers(), a.stats().created) == ([], 0)


async def test_a_plain_listener_gets_nothing_where_there_is_a_list(make: Make, raw_server: RawServer) -> None:
    a = await make("a", allow=(Actor().node_id,))
    sending = asyncio.ensure_future(a.send(raw_server.address, task("secret")))
    raw = await raw_server.accept()
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused)
    assert "Config.allow" in str(error)
    assert b"secret" not in await within(raw.gone())
    assert (a.peers(), a.stats().created) == ([], 0)


async def test_a_list_does_not_keep_a_node_from_itself(make: Make) -> None:
    a = await make("a", allow=())
    box, address = Box(a), await serve(a)
    await a.send(address, task("to myself"))
    assert box.payloads == ["to myself"]


@pytest.mark.parametrize("wrong", ["alice", "A" * 52, "a" * 53, "", ("abcd" * 12 + "ABCA").upper()])
def test_a_list_holds_node_ids(wrong: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        openline.Config(allow=(wrong,))


# Config.identity ------------------------------------------------------------------------------------


async def test_an_identity_given_is_the_nodes(make: Make) -> None:
    identity = openline.Identity()
    a, b = await make("a", identity=identity), await make("b")
    assert a.node_id == identity.node_id
    peer = await b.connect(await serve(a))
    assert peer is not None
    assert peer.node_id == identity.node_id


async def test_without_one_every_transport_is_a_node_of_its_own(make: Make) -> None:
    assert len({(await make()).node_id for _ in range(5)}) == 5


@pytest.mark.parametrize("as_text", [True, False])
async def test_a_path_names_the_file_of_the_key(make: Make, tmp_path: Path, as_text: bool) -> None:
    identity, file = openline.Identity(), tmp_path / "key.pem"
    identity.save(file)
    before = file.read_bytes()
    a = await make(identity=str(file) if as_text else file)
    assert a.node_id == identity.node_id
    assert (os.listdir(tmp_path), file.read_bytes()) == (["key.pem"], before)


async def test_a_missing_file_is_a_helpful_error_and_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "key.pem"
    with pytest.raises(openline.InvalidIdentity) as caught:
        await openline.load_transport(openline.Config(identity=str(file)))
    assert str(file) in str(caught.value)
    assert "openline id" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a key", b"\x00" * 100])
async def test_a_file_that_holds_no_key_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(openline.InvalidIdentity, match=r"key\.pem"):
        await openline.load_transport(openline.Config(identity=file))
    assert file.read_bytes() == content


@pytest.mark.parametrize("wrong", [7, b"key", object(), ["a"]])
def test_an_identity_is_a_path_or_an_identity(wrong: object) -> None:
    with pytest.raises(ValueError, match="identity"):
        openline.Config(identity=wrong)


# A node and itself ----------------------------------------------------------------------------------


async def test_a_transport_that_dials_itself_sends_asks_and_closes(make: Make) -> None:
    a = await make("a")
    box = Box(a)
    a.on_message(lambda peer, message: peer.reply(message, message.payload * 2), stream_id="rpc")
    address = await serve(a)
    for number in range(20):
        assert (await a.send(address, task(number))).acked
    assert box.payloads == list(range(20))
    for number in range(20):
        reply = await a.request(address, task(number, stream_id="rpc"), timeout=2.0)
        assert reply.payload == number * 2
    replies = await asyncio.gather(*(a.request(address, task(n, stream_id="rpc")) for n in range(20)))
    assert [reply.payload for reply in replies] == [n * 2 for n in range(20)]
    assert (a.stats().created, a.stats().accepted, a.stats().conflicts) == (1, 1, 0)
    assert all(peer.node_id == a.node_id for peer in a.peers())
    begin = asyncio.get_running_loop().time()
    await within(a.close())
    assert asyncio.get_running_loop().time() - begin < 1.0


async def test_a_node_is_reached_by_its_own_node_id(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    assert (await a.send(f"{a.node_id}@{address}", task(1))).acked
    assert (await a.send(a.node_id, task(2))).acked
    assert box.payloads == [1, 2]


async def test_a_connection_to_oneself_goes_on_after_it_was_lost(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    async with Middle(port_of(address)) as middle:
        for number in range(5):
            assert (await within(a.send(middle.address, task(number)))).acked
            middle.cut()
        await eventually(lambda: not a.peers())
    assert box.payloads == list(range(5))


async def test_a_transport_dials_itself_over_tls_too(make: Make, certificate: Certificate) -> None:
    a = await make("a", tls=certificate.serving(ca=certificate.cert))
    box, address = Box(a), f"wss://{await serve(a)}"
    for to in (address, f"wss://{a.node_id}@{address[6:]}", a.node_id):
        assert (await a.send(to, task(to))).acked
    assert len(box) == 3
    assert (a.stats().created, a.stats().active) == (1, 2)


async def test_a_connection_to_oneself_that_is_kept_comes_back(make: Make) -> None:
    a = await make("a", backoff_min=0.02, backoff_max=0.1)
    box, address = Box(a), await serve(a)
    peer = await a.connect(address, keep=True)
    assert peer is not None
    for turn in range(3):
        await eventually(lambda: a.stats().active == 2)
        await peer.send(task(turn))
        for each in a.peers():
            for connection in list(each.connections):
                connection.link.abort()
        await eventually(lambda: a.stats().created == turn + 2)  # noqa: B023
    assert box.payloads == [0, 1, 2]
    assert a.stats().conflicts == 0


async def test_many_dials_to_oneself_at_once_end_as_one_and_nothing_is_lost(make: Make) -> None:
    a = await make("a")
    box, address = Box(a), await serve(a)
    port = port_of(address)
    spellings = [address, f"ws://{address}", f"localhost:{port}", f"{a.node_id}@{address}"]
    sending = (a.send(spellings[n % 4], task(n)) for n in range(40))
    await within(asyncio.gather(*sending))
    await eventually(lambda: len(box) == 40)
    assert sorted(box.payloads) == list(range(40))
    await eventually(lambda: a.stats().active == 2)
    assert a.stats().conflicts == 0


# Floods ---------------------------------------------------------------------------------------------


async def test_thousands_who_say_hello_and_never_prove_it_are_bounded_and_stop_nobody(make: Make) -> None:
    limit = 64
    t, peer = await make(max_pending_handshakes=limit), await make("peer")
    box, address = Box(t), await serve(t)
    port = port_of(address)
    await peer.send(address, task("before"))
    flood: list[Raw] = []
    most = 0

    async def one() -> None:
        nonlocal most
        raw = await Raw.tcp(port)
        flood.append(raw)
        try:
            await speak(raw, Actor())
        except (EOFError, ConnectionError):
            return  # it has made room already
        most = max(most, t.stats().pending_handshakes)

    try:
        for _ in range(40):
            await within(asyncio.gather(*(one() for _ in range(50))), 10.0)
            assert t.stats().pending_handshakes <= limit
        assert 0 < most <= limit
        stats = t.stats()
        assert stats.handshakes_evicted >= 2000 - limit
        assert (stats.active, stats.accepted, len(t.peers())) == (1, 1, 1)
        await peer.send(address, task("while"))
        new = await make("new")
        await within(new.send(address, task("new")), 2.0)
        assert box.payloads == ["before", "while", "new"]
    finally:
        for raw in flood:
            raw.close()
    await eventually(lambda: t.stats().pending_handshakes == 0)


async def test_who_has_proven_himself_is_never_pushed_out(make: Make) -> None:
    t = await make(max_pending_handshakes=4)
    address = await serve(t)
    good = [await Raw.connect(port_of(address), Actor()) for _ in range(8)]
    flood = [await Raw.tcp(port_of(address)) for _ in range(32)]
    await eventually(lambda: t.stats().handshakes_evicted >= 28)
    assert t.stats().active == 8
    for raw in [*good, *flood]:
        raw.close()


async def test_a_flood_of_wrong_proofs_stops_nobody(make: Make) -> None:
    t, peer = await make(), await make("peer")
    box, address = Box(t), await serve(t)
    await peer.connect(address)

    async def liar() -> None:
        raw = await Raw.tcp(port_of(address))
        said = await speak(raw, Actor())
        await said.prove(bytes(64))
        await within(raw.gone())
        raw.close()

    work: list[Awaitable[Any]] = [liar() for _ in range(200)]
    await within(asyncio.gather(*work, *(peer.send(address, task(n)) for n in range(200))))
    assert sorted(box.payloads) == list(range(200))
    await eventually(lambda: t.stats().malformed == 200)
    assert (t.stats().active, t.stats().pending_handshakes) == (1, 0)
