"""Men in the middle: what they alter is refused, and a proof is of no use elsewhere (rule 3.6)."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

import openline

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    FIELDS,
    FIRST,
    HELLO,
    PROOF,
    SEPARATOR,
    WELCOME,
    Middle,
    alone,
    altered,
    answer,
    nothing,
    signed,
    speak,
    value,
    with_hello,
)
from .rawsocket import Actor, RawServer
from .wire import (
    BINARY,
    frame,
    header,
)


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certificate.cert).read_text())


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
