"""TLS: what is trusted, what is refused, and that nothing leaves before that is known (rule 3.6)."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets

import openline

from ..clock import elapse
from .certificates import Certificate, self_signed
from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, Raw, RawServer, Who, hello

OTHER_PIN = "sha256/" + "A" * 43 + "="


async def secure_server(
    make: Make, certificate: Certificate, host: str = "127.0.0.1"
) -> tuple[openline.Transport, str, Box]:
    """A transport that serves ``wss``, its address, and what it gets."""
    server = await make("server", tls=certificate.serving())
    return server, f"wss://{await serve(server, host)}", Box(server)


class Listening:
    """A TLS server that keeps every decrypted byte and answers nothing."""

    def __init__(self) -> None:
        self.heard = b""
        self.shaken = 0
        self.ended = 0
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.shaken += 1
        try:
            while data := await reader.read(4096):
                self.heard += data
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            self.ended += 1
            writer.transport.abort()


@pytest.fixture
async def listening(stack: AsyncExitStack, certificate: Certificate) -> Listening:
    told = Listening()
    server = await asyncio.start_server(told, "127.0.0.1", 0, ssl=certificate.context())
    told.port = server.sockets[0].getsockname()[1]
    stack.callback(server.close)
    return told


# Trusted ------------------------------------------------------------------------------------------


async def test_a_trusted_authority_is_enough(make: Make, certificate: Certificate) -> None:
    _, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(ca=certificate.cert))
    assert (await client.send(address, task("secret"))).attempts == 1
    await eventually(lambda: box.payloads == ["secret"])


async def test_the_host_name_in_the_certificate_is_enough(make: Make, certificate: Certificate) -> None:
    _, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(ca=certificate.cert))
    await client.send(f"wss://localhost:{port_of(address)}", task("named"))
    await eventually(lambda: box.payloads == ["named"])


async def test_the_right_pin_is_enough(make: Make, certificate: Certificate) -> None:
    _, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    await client.send(address, task("pinned"))
    await eventually(lambda: box.payloads == ["pinned"])


async def test_one_right_pin_of_several_is_enough(make: Make, certificate: Certificate) -> None:
    _, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(pins=(OTHER_PIN, certificate.pin)))
    await client.send(address, task("rotated"))
    await eventually(lambda: box.payloads == ["rotated"])


async def test_everything_works_over_wss(make: Make, certificate: Certificate) -> None:
    server, address, box = await secure_server(make, certificate)
    server.on_message(lambda peer, message: peer.reply(message, message.payload), stream_id="rpc")
    client = await make(tls=openline.Tls(ca=certificate.cert))
    await client.send_batch(address, tasks(500))
    await eventually(lambda: box.payloads == list(range(500)))
    await client.send(address, task("x" * 3_000_000))
    await eventually(lambda: len(box) == 501)
    reply = await client.request(address, task(7, stream_id="rpc"), timeout=2.0)
    assert (reply.payload, client.stats().created) == (7, 1)


async def test_the_server_answers_on_the_inbound_wss_socket(make: Make, certificate: Certificate) -> None:
    server, address, at_server = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(ca=certificate.cert))
    box = Box(client)
    home = await serve(client)
    await client.send(address, task())
    await eventually(lambda: at_server)
    assert (await server.send(home, task("listening address"))).direction == "inbound"
    assert (await at_server.peers[0].reply(at_server[0], "reply")).direction == "inbound"
    await eventually(lambda: box.payloads == ["listening address", "reply"])
    assert server.stats().created == 0


async def test_messages_to_a_wss_address_share_its_connection(make: Make, certificate: Certificate) -> None:
    server, address, _ = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(ca=certificate.cert))
    await asyncio.gather(*(client.send(address, message) for message in tasks(50)))
    assert (client.stats().dials, server.stats().accepted) == (1, 1)


async def test_a_plain_websockets_client_talks_to_a_wss_listener(
    make: Make, certificate: Certificate
) -> None:
    server, address, box = await secure_server(make, certificate)
    server.on_message(lambda peer, message: peer.reply(message, "pong"))
    context = ssl.create_default_context(cafile=certificate.cert)
    async with websockets.connect(address, ssl=context, compression=None, proxy=None) as client:
        await client.send('{"id": "1", "type": "task", "payload": "ping"}')
        assert '"pong"' in await within(client.recv())
    assert box.payloads == ["ping"]


async def test_a_transport_talks_to_a_websockets_server_over_wss(
    make: Make, certificate: Certificate, plain_server: Callable[..., Any]
) -> None:
    server = await plain_server(ssl=certificate.context())
    client = await make(tls=openline.Tls(ca=certificate.cert))
    await client.send(f"wss://{server.address}", task("hi"))
    await eventually(lambda: server.payloads == ["hi"])


# Refused ------------------------------------------------------------------------------------------


async def refused(client: openline.Transport, address: str, reason: str) -> None:
    for attempt in (client.send(address, task("secret")), client.request(address, task("secret"))):
        with pytest.raises(openline.Refused, match=reason) as caught:
            await attempt
        assert address in str(caught.value)
    with pytest.raises(openline.Refused):
        await client.connect(address)


async def test_an_unknown_authority_is_refused(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    server, address, box = await secure_server(make, certificate)
    await refused(await make(tls=openline.Tls(ca=stranger.cert)), address, "(?i)certificate")
    assert (box, server.stats().accepted) == ([], 0)


async def test_without_configuration_a_self_signed_certificate_is_refused(
    make: Make, certificate: Certificate
) -> None:
    server, address, box = await secure_server(make, certificate)
    await refused(await make(), address, "(?i)certificate")
    assert (box, server.stats().accepted) == ([], 0)


async def test_another_host_name_is_refused_with_a_trusted_authority(make: Make, tmp_path: Path) -> None:
    elsewhere = self_signed(tmp_path, "elsewhere.test", "192.0.2.1")
    server, address, box = await secure_server(make, elsewhere)
    client = await make(tls=openline.Tls(ca=elsewhere.cert))
    await refused(client, address, "(?i)mismatch|not valid for")
    await refused(client, f"wss://localhost:{port_of(address)}", "(?i)mismatch|not valid for")
    assert (box, server.stats().accepted) == ([], 0)


async def test_an_expired_certificate_is_refused(make: Make, tmp_path: Path) -> None:
    old = self_signed(tmp_path, days=-1)
    _, address, box = await secure_server(make, old)
    await refused(await make(tls=openline.Tls(ca=old.cert)), address, "(?i)expired")
    assert box == []


async def test_a_wrong_pin_is_refused_and_names_what_was_shown(make: Make, certificate: Certificate) -> None:
    server, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(pins=(OTHER_PIN,)))
    await refused(client, address, re.escape(certificate.pin))
    assert (box, server.stats().accepted) == ([], 0)


async def test_a_wrong_pin_is_refused_even_where_the_authority_is_trusted(
    make: Make, certificate: Certificate
) -> None:
    _, address, box = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(ca=certificate.cert, pins=(OTHER_PIN,)))
    await refused(client, address, "pin")
    assert box == []


async def test_with_a_wrong_pin_not_one_byte_leaves(make: Make, listening: Listening) -> None:
    """No hello, no request line, no message: the check comes before all of them."""
    client = await make("secret name", tls=openline.Tls(pins=(OTHER_PIN,)))
    with pytest.raises(openline.Refused):
        await client.send(f"wss://127.0.0.1:{listening.port}", task("secret"))
    await elapse(0.1)
    assert listening.ended == listening.shaken
    assert listening.heard == b""


async def test_with_the_right_pin_the_hello_leaves(
    make: Make, listening: Listening, certificate: Certificate
) -> None:
    """Without this the test above would prove nothing."""
    client = await make(dial_timeout=0.2, tls=openline.Tls(pins=(certificate.pin,)))
    with pytest.raises(openline.Unreachable):
        await client.send(f"wss://127.0.0.1:{listening.port}", task("secret"))
    assert b"Openline-Hello" in listening.heard
    assert b"secret" not in listening.heard


async def test_with_an_unknown_authority_not_one_byte_leaves(
    make: Make, listening: Listening, stranger: Certificate
) -> None:
    client = await make(tls=openline.Tls(ca=stranger.cert))
    with pytest.raises(openline.Refused):
        await client.send(f"wss://127.0.0.1:{listening.port}", task("secret"))
    assert listening.heard == b""


async def test_a_refused_dial_leaves_no_connection_and_is_counted(
    make: Make, certificate: Certificate
) -> None:
    _, address, _ = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(pins=(OTHER_PIN,)))
    with pytest.raises(openline.Refused):
        await client.send(address, task())
    stats = client.stats()
    assert (stats.active, stats.created, stats.dial_failures) == (0, 0, 1)


async def test_all_waiters_of_a_refused_dial_are_refused(make: Make, certificate: Certificate) -> None:
    _, address, _ = await secure_server(make, certificate)
    client = await make(tls=openline.Tls(pins=(OTHER_PIN,)))
    sends = (client.send(address, message) for message in tasks(20))
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert {type(result) for result in results} == {openline.Refused}


async def test_the_listener_goes_on_after_refusals(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    _, address, box = await secure_server(make, certificate)
    for tls in (openline.Tls(pins=(OTHER_PIN,)), openline.Tls(ca=stranger.cert)) * 5:
        with pytest.raises(openline.Refused):
            await (await make(tls=tls)).send(address, task("no"))
    good = await make(tls=openline.Tls(ca=certificate.cert))
    await good.send(address, task("yes"))
    await eventually(lambda: box.payloads == ["yes"])


# Never weaker than asked --------------------------------------------------------------------------


async def test_a_wss_address_is_never_answered_by_the_peers_inbound_socket(
    make: Make, certificate: Certificate
) -> None:
    """It came in over TLS, but it has shown no certificate."""
    a, address_a, _ = await secure_server(make, certificate)
    b, address_b, at_b = await secure_server(make, certificate)
    b_client = await make(tls=openline.Tls(ca=certificate.cert))
    await b_client.connect(address_a)
    await b.close()
    await eventually(lambda: a.stats().accepted == 1)
    with pytest.raises(openline.Error):
        await a.send(address_b, task("secret"))
    assert at_b == []


def forgers(port: int, node_id: str) -> list[Who]:
    """Clients that claim a node's port and name it or themselves; only the second may prove its claim."""
    return [hello(port, node=node_id), Actor(port)]


@pytest.mark.parametrize("proven", [0, 1], ids=["as that node, without proof", "as itself"])
async def test_a_forged_hello_does_not_get_messages_for_a_wss_peer(
    make: Make, raw: Open, certificate: Certificate, proven: int
) -> None:
    b, address_b, at_b = await secure_server(make, certificate)
    a = await make(tls=openline.Tls(ca=certificate.cert))
    forger = await raw(port_of(await serve(a)), forgers(port_of(address_b), b.node_id)[proven])
    peer = await a.connect(address_b)
    assert peer is not None
    await a.send(address_b, task("one"))
    await eventually(lambda: at_b.payloads == ["one"])
    await b.close()
    await eventually(lambda: a.stats().active == proven)
    for target in (address_b, b.node_id, f"{b.node_id}@{address_b.removeprefix('wss://')}"):
        with pytest.raises(openline.Error):
            await a.send(target, task("secret"))
    with pytest.raises(openline.Error):
        await peer.send(task("secret"))
    await a.close()
    assert b"secret" not in await forger.gone()


@pytest.mark.parametrize("proven", [0, 1], ids=["as that node, without proof", "as itself"])
async def test_a_forged_hello_does_not_get_replies_for_a_wss_peer(
    make: Make, raw: Open, certificate: Certificate, proven: int
) -> None:
    """A port and a name are claims: a forger that repeats them must not be preferred to the TLS link."""
    b, address_b, at_b = await secure_server(make, certificate)
    a = await make(tls=openline.Tls(ca=certificate.cert))
    peer = await a.connect(address_b)
    assert peer is not None
    forger = await raw(port_of(await serve(a)), forgers(port_of(address_b), b.node_id)[proven])
    await eventually(lambda: a.stats().active == 1 + proven)
    await peer.send(task("secret"))
    await eventually(lambda: at_b.payloads == ["secret"])
    await a.close()
    assert b"secret" not in await forger.gone()


async def test_a_wss_address_is_not_answered_by_a_plain_connection_to_the_same_port(
    make: Make, raw_server: RawServer, certificate: Certificate
) -> None:
    a = await make(tls=openline.Tls(ca=certificate.cert), dial_timeout=0.3)
    dialing = asyncio.ensure_future(a.connect(raw_server.address))
    server = await raw_server.accept(Actor(raw_server.port))
    await within(dialing)
    await server.takes(a.send(raw_server.address, task("plain")))
    with pytest.raises(openline.Error):
        await a.send(f"wss://{raw_server.address}", task("secret"))
    assert server.payloads == ["plain"]
    await a.close()
    assert b"secret" not in await server.gone()


# Mixed up -----------------------------------------------------------------------------------------


async def test_a_plain_dial_to_a_tls_port_is_a_clear_error_and_the_listener_goes_on(
    make: Make, certificate: Certificate
) -> None:
    _, address, box = await secure_server(make, certificate)
    plain = await make()
    bare = address.removeprefix("wss://")
    with pytest.raises(openline.Unreachable, match=bare):
        await within(plain.send(f"ws://{bare}", task("plain")), 2.0)
    good = await make(tls=openline.Tls(ca=certificate.cert))
    await good.send(address, task("secure"))
    await eventually(lambda: box.payloads == ["secure"])


async def test_a_wss_dial_to_a_plain_port_is_a_clear_error_at_once(make: Make) -> None:
    """A listener without a certificate of its own shows that of its node, which no CA has signed."""
    server, client = await make(), await make()
    box = Box(server)
    address = await serve(server)
    with pytest.raises(openline.Refused, match="not trusted"):
        await within(client.send(f"wss://{address}", task("secure")), 2.0)
    await client.send(address, task("anything"))
    await eventually(lambda: box.payloads == ["anything"])


async def test_a_wss_dial_to_a_server_without_tls_is_a_clear_error(make: Make, plain_server: Any) -> None:
    server, client = await plain_server(), await make()
    with pytest.raises(openline.Unreachable, match=r"(?i)wss.*tls|tls.*wss"):
        await within(client.send(f"wss://{server.address}", task("secure")), 20.0)


async def test_a_wss_dial_to_a_server_that_hangs_up_is_a_clear_error(
    make: Make, raw_server: RawServer
) -> None:
    client = await make()
    sending = asyncio.ensure_future(client.send(f"wss://{raw_server.address}", task()))
    (await raw_server.tcp(tls=True)).close()
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(sending, 2.0)


async def test_a_tls_handshake_that_hangs_ends_with_the_dial_time_out(
    make: Make, raw_server: RawServer
) -> None:
    client = await make(dial_timeout=0.2)
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(client.send(f"wss://{raw_server.address}", task()), 2.0)
    assert client.stats().active == 0


async def test_garbage_on_a_tls_port_costs_only_itself(make: Make, certificate: Certificate) -> None:
    _, address, box = await secure_server(make, certificate)
    for garbage in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 500):
        client = await Raw.tcp(port_of(address))
        await client.send(garbage)
        await client.gone()
        client.close()
    good = await make(tls=openline.Tls(ca=certificate.cert))
    await good.send(address, task("fine"))
    await eventually(lambda: box.payloads == ["fine"])


async def test_half_open_tls_handshakes_end_with_the_handshake_time_out(
    make: Make, certificate: Certificate
) -> None:
    server = await make(tls=certificate.serving(), handshake_timeout=0.2)
    port = port_of(await serve(server))
    silent = [await Raw.tcp(port) for _ in range(5)]
    await eventually(lambda: server.stats().pending_handshakes == 5)
    await eventually(lambda: server.stats().pending_handshakes == 0, 2.0)
    for client in silent:
        await client.gone()
        client.close()


async def test_tls_without_an_upgrade_ends_with_the_handshake_time_out(
    make: Make, certificate: Certificate
) -> None:
    server = await make(tls=certificate.serving(), handshake_timeout=0.2)
    port = port_of(await serve(server))
    context = ssl.create_default_context(cafile=certificate.cert)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert await within(reader.read(), 2.0) == b""
    # Also where the client never hangs up on its side.
    await eventually(lambda: server.stats().pending_handshakes == 0, 2.0)
    writer.close()


async def test_files_that_cannot_be_used_are_an_error_when_the_transport_is_loaded(
    certificate: Certificate, stranger: Certificate, tmp_path: Path
) -> None:
    missing = openline.Tls(cert=str(tmp_path / "no.pem"), key=certificate.key)
    with pytest.raises(OSError, match="No such file"):
        await openline.load_transport(openline.Config(tls=missing))
    mismatched = openline.Tls(cert=certificate.cert, key=stranger.key)
    with pytest.raises(ssl.SSLError):
        await openline.load_transport(openline.Config(tls=mismatched))


async def test_old_tls_versions_are_turned_down(make: Make, certificate: Certificate) -> None:
    _, address, _ = await secure_server(make, certificate)
    context = ssl.create_default_context(cafile=certificate.cert)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port_of(address), ssl=context)


async def test_an_inbound_connection_that_comes_while_a_wss_dial_hangs_does_not_answer_for_it(
    make: Make, raw: Open, certificate: Certificate
) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials, dial_timeout=0.3, tls=openline.Tls(ca=certificate.cert))
    sending = asyncio.ensure_future(a.send("wss://127.0.0.1:9", task("secret")))
    await eventually(lambda: dials.made)
    forger = await raw(port_of(await serve(a)), Actor(9))
    with pytest.raises(openline.Unreachable):
        await within(sending)
    await a.close()
    assert b"secret" not in await forger.gone()


async def test_the_host_in_the_certificate_is_asked_for_by_name(make: Make, certificate: Certificate) -> None:
    """SNI: a server that serves several names must be told which one."""
    asked = []
    context = certificate.context()
    context.sni_callback = lambda sock, name, ctx: asked.append(name)
    done = asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        done.set()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context, family=socket.AF_INET)
    client = await make(tls=openline.Tls(ca=certificate.cert))
    with pytest.raises(openline.Unreachable):
        await client.send(f"wss://localhost:{server.sockets[0].getsockname()[1]}", task())
    await within(done.wait())
    server.close()
    assert asked == ["localhost"]
