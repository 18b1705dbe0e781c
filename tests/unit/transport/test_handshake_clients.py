"""Clients that are not who they say do not get in (rule 3.6)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
import pytest

import openline
from openline.backends.websocket import deflate

from ..clock import Passed, elapse
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    FIELDS,
    FIRST,
    HELLO,
    PROOF,
    SEPARATOR,
    WELCOME,
    Spoken,
    alone,
    altered,
    nothing,
    out_of_base64,
    proof_frame,
    signed,
    speak,
    turned_away,
)
from .rawsocket import Actor, Raw, RawServer, hello
from .wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    batch,
    frame,
    header,
    plain,
    switching,
    upgrade,
)

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


async def test_who_never_proves_himself_is_cut_in_time_whatever_he_pings(
    make: Make, tcp: Open, hurried: Passed
) -> None:
    t = await make(handshake_timeout=0.3)
    box, address = Box(t), await serve(t)
    silent, pinging = await tcp(port_of(address)), await tcp(port_of(address))
    await speak(silent, Actor())
    await speak(pinging, Actor())
    begin = hurried()
    ended = asyncio.ensure_future(pinging.gone())
    while not ended.done():
        await asyncio.wait([ended], timeout=0.05)
        try:
            await pinging.frame(PING, b"")
        except OSError:
            break
    await within(silent.gone())
    await within(ended)
    assert 0.2 < hurried() - begin < 1.5
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
    await elapse(1.2)  # over the grace time of a connection that has been given up
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
    assert len(t._router.known_nodes._nodes) == 0
