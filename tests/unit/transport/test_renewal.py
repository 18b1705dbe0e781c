"""Certificates that are renewed while a transport listens, or dials (``Config.tls``)."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest

import openline
from openline.backends import certificates
from openline.backends.tls import certificate as shown_by
from openline.core.handshake import Transcript, digest_of, parse_hello, split_proof
from openline.identity import verify

from .certificates import Certificate, self_signed
from .conftest import Make
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import HELLO, nothing
from .rawsocket import Actor
from .wire import header, upgrade

SCHEMES = ["wss://", "quic://"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("one"), days=30)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("two"), days=60)


class Live:
    """Where a server reads its certificate."""

    def __init__(self, folder: Path, first: Certificate) -> None:
        self.tls = openline.Tls(cert=str(folder / "live.pem"), key=str(folder / "live.key"))
        self.put(first)

    def put(self, certificate: Certificate) -> None:
        assert self.tls.cert is not None
        assert self.tls.key is not None
        shutil.copy(certificate.cert, self.tls.cert)
        shutil.copy(certificate.key, self.tls.key)


@pytest.fixture
def live(tmp_path: Path, one: Certificate) -> Live:
    return Live(tmp_path, one)


async def reaches(make: Make, address: str, pin: Certificate, *schemes: str) -> list[bool]:
    """Does one that trusts only that certificate get a message through?"""
    found = []
    for scheme in schemes or SCHEMES:
        client = await make("client", tls=openline.Tls(pins=(pin.pin,)))
        try:
            found.append((await within(client.send(scheme + address, task("hi")))).acked)
        except openline.Refused:
            found.append(False)
        await client.close()
    return found


@pytest.mark.parametrize("asked", [False, True], ids=["noticed", "reload_tls"])
async def test_new_connections_are_shown_the_new_certificate_and_old_ones_go_on(
    make: Make, live: Live, one: Certificate, two: Certificate, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked:
        monkeypatch.setattr(certificates.Files, "look", lambda files: None)
    server = await make("server", tls=live.tls)
    box = Box(server)
    listener = await server.listen(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.port}"
    clients = [await make(scheme, tls=openline.Tls(pins=(one.pin,))) for scheme in SCHEMES]
    for client, scheme in zip(clients, SCHEMES, strict=True):
        await client.send(scheme + address, task("before"))
    live.put(two)
    if asked:
        listener.reload_tls()
    assert await reaches(make, address, two) == [True, True]
    assert await reaches(make, address, one) == [False, False]
    for client, scheme in zip(clients, SCHEMES, strict=True):
        receipt = await client.send(scheme + address, task("after"))
        assert (receipt.attempts, receipt.acked, client.stats().created) == (1, True, 1)
    assert box.payloads.count("after") == 2


async def test_a_listener_that_is_opened_again_shows_the_new_one(
    make: Make, live: Live, one: Certificate, two: Certificate
) -> None:
    server = await make("server", tls=live.tls)
    listener = await server.listen(0, host="127.0.0.1")
    live.put(two)
    await listener.close()
    again = await server.listen(listener.port, host="127.0.0.1")
    assert again.backends == listener.backends
    assert await reaches(make, f"127.0.0.1:{again.port}", two) == [True, True]
    assert await reaches(make, f"127.0.0.1:{again.port}", one) == [False, False]


async def test_a_tls_handshake_that_began_before_is_bound_to_what_it_was_shown(
    make: Make, live: Live, one: Certificate, two: Certificate
) -> None:
    """The upgrade comes after the change; the next connection has the new one for both."""
    server = await make("server", tls=live.tls)
    address, actor = await serve(server), Actor()
    ends = []
    for certificate in (one, two):
        context = ssl.create_default_context(cafile=certificate.cert)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address), ssl=context)
        ends.append((certificate, reader, writer))
        live.put(two)
        server.reload_tls()
    for certificate, reader, writer in ends:
        mine = actor.hello(next(actor.dials))
        writer.write(upgrade({HELLO: mine}))
        head = (await within(reader.readuntil(b"\r\n\r\n"))).decode()
        theirs, proof = split_proof(header(head, HELLO))
        seen = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert seen == shown_by(certificate.serving())
        signed = Transcript(mine, theirs, seen).signed_by("server")
        assert verify(server.node_id, proof[:64], signed)
        assert parse_hello(theirs).certificate == digest_of(seen)
        writer.transport.abort()


@pytest.mark.parametrize("zero_rtt", [False, True])
async def test_a_ticket_of_the_certificate_before_resumes_nothing(
    make: Make, live: Live, one: Certificate, two: Certificate, zero_rtt: bool
) -> None:
    server = await make("server", tls=live.tls)
    address = "quic://" + await serve(server)
    client = await make("client", tls=openline.Tls(pins=(one.pin, two.pin)), zero_rtt=zero_rtt)
    strict = await make("strict", tls=openline.Tls(pins=(one.pin,)), zero_rtt=zero_rtt)
    for who in (client, strict):
        await within(who.send(address, task("ticket")))
    for connection in list(server._table.connections):
        connection.link.close(1000, "again")
    await eventually(lambda: server.stats().active == client.stats().active == strict.stats().active == 0)
    live.put(two)
    assert (await within(client.send(address, task("anew")))).acked
    assert isinstance(await nothing(within(strict.send(address, task("no")))), openline.Refused)


async def test_a_broken_file_changes_nothing_and_reload_says_why(
    make: Make, live: Live, one: Certificate, two: Certificate
) -> None:
    server = await make("server", tls=live.tls)
    listener = await server.listen(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.port}"
    assert live.tls.cert is not None
    shutil.copy(two.cert, live.tls.cert)  # without its key
    for reload in (listener.reload_tls, server.reload_tls):
        with pytest.raises(OSError, match=r"the key is not that of the certificate.*stays in use"):
            reload()
    assert await reaches(make, address, one) == [True, True]
    live.put(two)
    server.reload_tls()
    assert await reaches(make, address, two) == [True, True]


async def test_a_new_ca_file_is_trusted_for_new_connections(
    make: Make, tmp_path: Path, one: Certificate, two: Certificate
) -> None:
    server = await make("server", tls=two.serving())
    address = await serve(server)
    authority = tmp_path / "ca.pem"
    shutil.copy(one.cert, authority)
    client = await make("client", tls=openline.Tls(ca=str(authority)))
    for scheme in SCHEMES:
        assert isinstance(await nothing(within(client.send(scheme + address, task()))), openline.Refused)
    authority.write_bytes(b"")
    with pytest.raises(OSError, match="stays in use"):
        client.reload_tls()
    shutil.copy(two.cert, authority)
    for scheme in SCHEMES:
        assert (await within(client.send(scheme + address, task("hi")))).acked


async def test_stats_tell_how_long_it_is_good_for(
    make: Make, live: Live, two: Certificate, one: Certificate
) -> None:
    server, other = await make("server", tls=live.tls), await make("other")
    assert server.stats().certificate_days == pytest.approx(30, abs=0.1)
    assert other.stats().certificate_days is None
    other.reload_tls()
    live.put(two)
    server.reload_tls()
    assert server.stats()["certificate_days"] == pytest.approx(60, abs=0.1)
