"""What a dialer meets: servers that break the rules, and certificates that will not do."""

from __future__ import annotations

import asyncio
import datetime
import importlib
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import openline
from openline.backends.quic.framing import BINARY, GOODBYE, HELLO, header

from ..transport.certificates import Certificate, self_signed
from ..transport.helpers import DEADLINE, Box, eventually, task
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Make, Serve
from .rawquic import RawQuic, RawQuicServer, unit

SLOW = 4 * DEADLINE


# Before the hello -----------------------------------------------------------------------------------


async def failing(make: Make, server: RawQuicServer, act: Callable[[RawQuic], object], **config: Any) -> str:
    """The text of the error where the server does ``act`` after TLS; no message has left."""
    t = await make(**config)
    sending = asyncio.ensure_future(t.send(server.url, task("secret"), timeout=SLOW))
    end = await server.end()
    act(end)
    with pytest.raises((openline.Refused, openline.Unreachable)) as failed:
        await asyncio.wait_for(sending, SLOW)
    assert all(kind == HELLO for _, kind, _ in end.units)
    stats = t.stats()
    assert (stats.active, stats.created, stats.messages_sent, stats.dial_failures) == (0, 0, 0, 1)
    text = str(failed.value)
    assert server.address in text
    assert text.isprintable()
    return text


ACTS: dict[str, Callable[[RawQuic], object]] = {
    "garbage": lambda end: end.write(3, bytes(300)),
    "a text": lambda end: end.write(3, unit(1, b"{}")),
    "a message": lambda end: end.write(3, unit(BINARY, batch([task("x")], opens={"default": 1}))),
    "a goodbye": lambda end: end.write(3, unit(GOODBYE, bytes(10))),
    "an endless hello": lambda end: end.write(3, header(HELLO, 2**50)),
    "its stream ends": lambda end: end.write(3, b"", end=True),
    "a bidirectional stream": lambda end: end.write(1, b"x"),
    "another stream ends": lambda end: end.write(7, b"x", end=True),
    "it closes": lambda end: end.hang_up(1000, "no\x1b[2Jthanks\n"),
    "it closes as TLS does": lambda end: end.hang_up(0x128, "no", frame_type=6),
    "it says refused": lambda end: end.hang_up(4003, "not\nyou"),
    "too much elsewhere": lambda end: end.write(7, bytes(300_000)),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
async def test_something_else_than_a_hello(
    make: Make, listen: Serve, act: Callable[[RawQuic], object]
) -> None:
    await failing(make, listen(), act)


async def test_silence_after_the_handshake(make: Make, listen: Serve) -> None:
    text = await failing(make, listen(), lambda end: None, dial_timeout=0.4)
    assert "0.4" in text


async def test_silence_from_the_beginning(make: Make, listen: Serve) -> None:
    t, server = await make(dial_timeout=0.3), listen()
    server.on_new = lambda end: setattr(end, "mute", True)
    with pytest.raises(openline.Unreachable, match="dial_timeout"):
        await t.connect(server.url)
    assert t.stats().active == 0


async def test_another_protocol(make: Make, listen: Serve) -> None:
    t, server = await make(), listen(alpn_protocols=["h3"])
    with pytest.raises(openline.Unreachable, match="ALPN"):
        await t.connect(server.url)


async def test_another_version_of_quic(make: Make, listen: Serve) -> None:
    """The server answers with a version negotiation packet that has none of ours."""
    from qh3._hazmat import pull_quic_header
    from qh3.quic.packet import encode_quic_version_negotiation

    t, server = await make(dial_timeout=SLOW), listen()

    def negotiate(end: RawQuic) -> None:
        def received(data: bytes, addr: Any) -> None:
            head = pull_quic_header(data, 0, 8)
            answer = encode_quic_version_negotiation(
                source_cid=head[3], destination_cid=head[4], supported_versions=[0x0A1A2A3A]
            )
            end.put(answer, addr)

        end.received = received  # type: ignore[method-assign]

    server.on_new = negotiate
    with pytest.raises(openline.Unreachable, match="version"):
        await t.connect(server.url)


async def test_nobody_there(make: Make, listen: Serve) -> None:
    server = listen()
    server.close()
    t = await make()
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED"):
        await t.connect(server.url)


# Once the server is in ------------------------------------------------------------------------------


def stop(end: RawQuic) -> None:
    end.quic.stop_stream(2, 1)
    end.transmit()


LATER: dict[str, Callable[[RawQuic], object]] = {
    "a second hello": lambda end: end.write(3, unit(HELLO, b"x")),
    "a control unit on a track": lambda end: end.write(7, unit(GOODBYE, bytes(10))),
    "a proof": lambda end: end.say(3, end.actor.prove(end.transcript)),
    "a stream that ends": lambda end: end.write(7, b"", end=True),
    "a short goodbye": lambda end: end.write(3, unit(GOODBYE, bytes(9))),
    "a unit over the limit": lambda end: end.write(7, header(BINARY, 2**30)),
    "our stream is stopped": lambda end: stop(end),
    "an acknowledgement of nothing": lambda end: end.say(3, batch([], acks={"default": 99})),
}


@pytest.mark.parametrize("act", LATER.values(), ids=LATER)
async def test_rules_broken_later(make: Make, listen: Serve, act: Callable[[RawQuic], object]) -> None:
    t, server = await make(), listen()
    sending = asyncio.ensure_future(t.send(server.url, task("hi"), timeout=SLOW))
    end = await server.accept()
    assert (await end.takes(sending)).backend == "quic"
    act(end)
    await end.gone()
    await eventually(lambda: t.stats().active == 0)
    assert t.stats().malformed == 1


async def test_fewer_streams_than_tracks_are_allowed(make: Make, listen: Serve) -> None:
    """Another implementation may allow 10: what does not fit waits or shares, and is not lost."""
    bridge: Any = importlib.import_module("qh3.quic.tls_bridge")
    t, server = await make(), listen()

    def few(end: RawQuic) -> None:
        original = end.quic._create_tls

        def create(remote_source_cid: bytes | None) -> Any:
            push = bridge.push_quic_transport_parameters

            def fewer(buf: Any, parameters: Any) -> None:
                parameters.initial_max_streams_uni = 10
                push(buf, parameters)

            bridge.push_quic_transport_parameters = fewer
            try:
                return original(remote_source_cid)
            finally:
                bridge.push_quic_transport_parameters = push

        end.quic._create_tls = create  # type: ignore[method-assign]

    server.on_new = few
    first = asyncio.ensure_future(t.send(server.url, task("hi"), timeout=SLOW))
    end = await server.accept()
    await end.takes(first)
    many = asyncio.gather(
        *(t.send(server.url, task(n, stream_id=n), timeout=3.0) for n in range(30)), return_exceptions=True
    )
    results = await end.takes(many)
    assert all(isinstance(found, openline.Receipt) and found.acked for found in results), results


# Certificates ---------------------------------------------------------------------------------------


async def dialed(
    make: Make, listen: Serve, tls: openline.Tls, serving: Certificate | None, host: str = "127.0.0.1"
) -> tuple[openline.Transport, RawQuicServer]:
    options = {"cert": serving.cert, "key": serving.key} if serving is not None else {}
    server, t = listen(**options), await make(tls=tls)
    sending = asyncio.ensure_future(t.send(f"quic://{host}:{server.port}", task("hi"), timeout=SLOW))
    accepting = asyncio.ensure_future(server.accept())
    await asyncio.wait([sending, accepting], return_when=asyncio.FIRST_COMPLETED)
    if sending.done():
        accepting.cancel()
        await sending
    await accepting.result().takes(sending)
    assert t.stats().active == 1
    return t, server


async def turned_down(
    make: Make, listen: Serve, tls: openline.Tls, serving: Certificate | None, host: str = "127.0.0.1"
) -> str:
    """Refused, and not even the hello has left."""
    options = {"cert": serving.cert, "key": serving.key} if serving is not None else {}
    server, t = listen(**options), await make(tls=tls)
    with pytest.raises(openline.Refused) as refused:
        await t.send(f"quic://{host}:{server.port}", task("secret"), timeout=SLOW)
    assert not any(end.units for end in server.ends)
    assert (t.stats().active, t.stats().created, t.stats().messages_sent) == (0, 0, 0)
    return str(refused.value)


async def test_a_pin(make: Make, listen: Serve, certificate: Certificate) -> None:
    await dialed(make, listen, openline.Tls(pins=(certificate.pin,)), certificate)


async def test_pins_take_turns(
    make: Make, listen: Serve, certificate: Certificate, stranger: Certificate
) -> None:
    await dialed(make, listen, openline.Tls(pins=(stranger.pin, certificate.pin)), certificate)


async def test_a_pin_of_another_certificate(
    make: Make, listen: Serve, certificate: Certificate, stranger: Certificate
) -> None:
    assert "pin" in await turned_down(make, listen, openline.Tls(pins=(certificate.pin,)), stranger)


async def test_a_pin_against_the_certificate_of_an_identity(
    make: Make, listen: Serve, certificate: Certificate
) -> None:
    await turned_down(make, listen, openline.Tls(pins=(certificate.pin,)), None)


async def test_the_pin_counts_and_not_the_ca(
    make: Make, listen: Serve, certificate: Certificate, stranger: Certificate
) -> None:
    await turned_down(make, listen, openline.Tls(pins=(certificate.pin,), ca=stranger.cert), stranger)
    await dialed(make, listen, openline.Tls(pins=(stranger.pin,), ca=certificate.cert), stranger)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_ca_for_name_and_ip(make: Make, listen: Serve, certificate: Certificate, host: str) -> None:
    await dialed(make, listen, openline.Tls(ca=certificate.cert), certificate, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_another_ca(
    make: Make, listen: Serve, certificate: Certificate, stranger: Certificate, host: str
) -> None:
    text = await turned_down(make, listen, openline.Tls(ca=certificate.cert), stranger, host)
    assert "certificate" in text


async def test_a_ca_against_the_certificate_of_an_identity(
    make: Make, listen: Serve, certificate: Certificate
) -> None:
    await turned_down(make, listen, openline.Tls(ca=certificate.cert), None)


async def test_an_expired_certificate(make: Make, listen: Serve, expired: Certificate) -> None:
    assert "expired" in (await turned_down(make, listen, openline.Tls(ca=expired.cert), expired)).lower()


@pytest.mark.parametrize(("name", "ip"), [("elsewhere.example", "127.0.0.1"), ("localhost", "127.0.0.9")])
async def test_a_certificate_for_somebody_else(
    make: Make, listen: Serve, tmp_path: Path, name: str, ip: str
) -> None:
    other = self_signed(tmp_path, name=name, ip=ip)
    host = "localhost" if name != "localhost" else "127.0.0.1"
    await turned_down(make, listen, openline.Tls(ca=other.cert), other, host)


def signed_by_a_ca(folder: Path, *, intermediate: bool = False) -> tuple[Certificate, str]:
    """A leaf for 127.0.0.1 and localhost; and the CA's file."""
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, key: Any, by: Any, by_key: Any, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder(by or subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(by_key, hashes.SHA256())

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = made("root", root_key, None, root_key, True)
    chain: list[x509.Certificate] = []
    signer, signer_key = root, root_key
    if intermediate:
        signer_key = ec.generate_private_key(ec.SECP256R1())
        signer = made("between", signer_key, root.subject, root_key, True)
        chain.append(signer)
    leaf = made("leaf", key, signer.subject, signer_key, False)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    (folder / "cert.pem").write_bytes(b"".join(one.public_bytes(pem) for one in [leaf, *chain]))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return Certificate(str(folder / "cert.pem"), str(folder / "key.pem"), ""), str(folder / "ca.pem")


@pytest.mark.parametrize("intermediate", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_real_ca(make: Make, listen: Serve, tmp_path: Path, intermediate: bool, host: str) -> None:
    leaf, ca = signed_by_a_ca(tmp_path, intermediate=intermediate)
    await dialed(make, listen, openline.Tls(ca=ca), leaf, host)


async def test_a_self_signed_certificate_is_trusted_where_it_is_named_itself(
    make: Make, listen: Serve, tmp_path: Path
) -> None:
    """As with ``wss``: OpenSSL takes the very certificate in the CA file, with its name and dates."""
    own = self_signed(tmp_path)
    await dialed(make, listen, openline.Tls(ca=own.cert), own)


@pytest.mark.parametrize("ca", ["missing", "garbage"])
async def test_a_ca_file_that_cannot_be_used(make: Make, tmp_path: Path, ca: str) -> None:
    """Said when the transport is made, and not by a traceback in the middle of a dial."""
    path = tmp_path / "ca.pem"
    if ca == "garbage":
        path.write_text("no certificate")
    with pytest.raises((OSError, ValueError)):
        await make(tls=openline.Tls(ca=str(path)), backends=("quic",))


@pytest.mark.parametrize("address", ["{host}:{port}", "{node}@{host}:{port}"])
async def test_a_bare_address_is_not_held_to_pins(make: Make, certificate: Certificate, address: str) -> None:
    server = await make()
    box = Box(server)
    port = (await server.listen(0, host="127.0.0.1")).port
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    receipt = await client.send(address.format(host="127.0.0.1", port=port, node=server.node_id), task("hi"))
    assert (receipt.backend, box.payloads) == ("quic", ["hi"])


async def test_own_listener_with_a_certificate_and_a_client_with_its_ca(make: Make, tmp_path: Path) -> None:
    leaf, ca = signed_by_a_ca(tmp_path)
    server = await make(tls=leaf.serving())
    listener = await server.listen(0, host="127.0.0.1")
    assert set(listener.backends) == {"quic", "websocket"}
    client = await make(tls=openline.Tls(ca=ca))
    for scheme, backend in (("quic", "quic"), ("wss", "quic")):
        await client.connect(f"{scheme}://localhost:{listener.port}")
        await eventually(lambda: client.stats().active == 1)
        assert (await client.send(f"{scheme}://localhost:{listener.port}", task("x"))).backend == backend


async def test_an_actor_is_let_in(make: Make, listen: Serve) -> None:
    t, server, actor = await make(), listen(), Actor(name="bob")
    connecting = asyncio.ensure_future(t.connect(f"quic://{actor.node_id}@{server.address}"))
    await server.accept(actor)
    peer = await asyncio.wait_for(connecting, SLOW)
    assert peer is not None
    assert (peer.node_id, peer.name) == (actor.node_id, "bob")
