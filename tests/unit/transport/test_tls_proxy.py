"""Proxies that end TLS: told from liars, and let through where ``Config.tls_proxy`` names them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

import openline
from openline.address import Address
from openline.connection.proxies import Proxies

from .certificates import Certificate, self_signed
from .conftest import Make
from .helpers import Box, port_of, serve, task, within
from .proofs import Middle, nothing, proof_frame, speak, with_hello
from .rawsocket import Actor, Raw

ENDS = "the certificate that this side saw is not the one the peer shows: something in between ends TLS"
HINT = "Config.tls_proxy"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The server's, where it has one."""
    return self_signed(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def proxys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("proxy"))


Through = Callable[..., Awaitable[Middle]]


@pytest.fixture
def through(stack: AsyncExitStack, proxys: Certificate, own: Certificate) -> Through:
    """A proxy that ends TLS, and dials without TLS or, ``again``, with it."""

    async def made(address: str, *, again: bool = False, **how: object) -> Middle:
        dials = ssl.create_default_context(cafile=own.cert) if again else None
        how = {"asks": proxys.context(), "dials": dials, **how}
        return await stack.enter_async_context(Middle(port_of(address), **how))  # type: ignore[arg-type]

    return made


class Behind:
    """A server behind a proxy, and the addresses at which it is dialed there."""

    def __init__(self, server: openline.Transport, box: Box, proxy: Middle) -> None:
        self.server, self.box, self.proxy = server, box, proxy
        at = proxy.address
        self.addresses = (f"wss://{at}", f"wss://{at}/peers/alice", f"wss://{server.node_id}@{at}/x")


@pytest.fixture(params=[False, True], ids=["plain behind", "TLS behind"])
async def behind(request: pytest.FixtureRequest, make: Make, through: Through, own: Certificate) -> Behind:
    server = await make("server", tls=own.serving() if request.param else None, backends=("websocket",))
    box, address = Box(server), await serve(server)
    return Behind(server, box, await through(address, again=request.param))


def ca(certificate: Certificate) -> openline.Tls:
    return openline.Tls(ca=certificate.cert)


# Not named ------------------------------------------------------------------------------------------


async def test_it_is_said_what_stands_in_between(
    make: Make, behind: Behind, own: Certificate, proxys: Certificate
) -> None:
    for tls in (ca(proxys), openline.Tls(pins=(proxys.pin,))):
        client = await make(tls=tls)
        for address in behind.addresses:
            error = await nothing(within(client.send(address, task("secret"))))
            assert isinstance(error, openline.Refused), repr(error)
            text = str(error)
            assert ENDS in text
            assert HINT in text
            assert proxys.pin in text
            assert (own.pin if behind.server.config.tls else "without TLS") in text
    assert (behind.server.stats().accepted, behind.box) == (0, [])


@pytest.mark.parametrize(
    "named", [("sha256/" + "A" * 43 + "=",), ("10.0.0.1",), ("127.0.0.1:1",), ("localhost",), ()]
)
async def test_another_ones_name_is_of_no_use(
    make: Make, behind: Behind, proxys: Certificate, named: tuple[str, ...]
) -> None:
    client = await make(tls=ca(proxys), tls_proxy=named)
    error = await nothing(within(client.send(behind.addresses[0], task("secret"))))
    assert isinstance(error, openline.Refused)
    assert not behind.box


# Named ----------------------------------------------------------------------------------------------


def by_certificate(behind: Behind, proxys: Certificate) -> str:
    return proxys.pin


def by_host(behind: Behind, proxys: Certificate) -> str:
    return "127.0.0.1"


def by_place(behind: Behind, proxys: Certificate) -> str:
    return behind.proxy.address


def by_url(behind: Behind, proxys: Certificate) -> str:
    return f"wss://{behind.proxy.address}"


@pytest.mark.parametrize("name", [by_certificate, by_host, by_place, by_url])
async def test_what_is_named_may_stand_in_between(
    make: Make, behind: Behind, proxys: Certificate, name: Callable[[Behind, Certificate], str]
) -> None:
    client = await make("client", tls=ca(proxys), tls_proxy=(name(behind, proxys),))
    at_client = Box(client)
    for address in behind.addresses:
        assert (await within(client.send(address, task(address)))).acked
    assert behind.box.payloads == list(behind.addresses)
    assert {peer.node_id for peer in behind.box.peers} == {client.node_id}
    assert (await within(behind.box.peers[-1].send(task("back")))).acked
    assert at_client.payloads == ["back"]
    assert client.stats().malformed == behind.server.stats().malformed == 0


async def test_a_pinned_proxy_that_is_named_by_its_place(
    make: Make, behind: Behind, proxys: Certificate
) -> None:
    client = await make(tls=openline.Tls(pins=(proxys.pin,)), tls_proxy=("127.0.0.1",))
    assert (await within(client.send(behind.addresses[2], task("pinned")))).acked


async def test_it_is_found_by_the_address_that_its_name_leads_to(
    make: Make, behind: Behind, proxys: Certificate
) -> None:
    client = await make(tls=ca(proxys), tls_proxy=("127.0.0.1",))
    address = f"wss://localhost:{behind.proxy.port}"
    assert (await within(client.send(address, task("by name")))).acked


async def test_without_a_proxy_nothing_changes(make: Make, own: Certificate) -> None:
    """Who names proxies is still refused where the server's own proof does not fit."""
    server = await make("server", tls=own.serving())
    box, address = Box(server), await serve(server)
    client = await make(tls=ca(own), tls_proxy=("127.0.0.1", own.pin))
    for scheme in ("wss://", "quic://", ""):
        assert (await within(client.send(scheme + address, task(scheme)))).acked
    assert len(box) == 3


# Others in its place --------------------------------------------------------------------------------


async def test_a_middle_with_another_certificate_is_refused(
    make: Make, stranger: Certificate, behind: Behind, proxys: Certificate, own: Certificate
) -> None:
    """Also at the named place, where nobody trusts it; and, trusted, where another certificate is named."""
    target = behind.proxy.target
    dials = ssl.create_default_context(cafile=own.cert) if behind.server.config.tls else None
    async with Middle(target, asks=stranger.context(), dials=dials) as middle:
        for tls, named in (
            (ca(proxys), ("127.0.0.1", middle.address)),
            (openline.Tls(pins=(proxys.pin,)), ("127.0.0.1",)),
            (ca(stranger), (proxys.pin,)),
        ):
            client = await make(tls=tls, tls_proxy=named)
            error = await nothing(within(client.send(f"wss://{middle.address}", task("secret"))))
            assert isinstance(error, openline.Refused), repr(error)
    assert not behind.box


@pytest.mark.parametrize("field", ["name", "nonce", "instance", "cert"])
async def test_a_named_proxy_cannot_change_what_was_signed(
    make: Make, through: Through, proxys: Certificate, own: Certificate, field: str
) -> None:
    server = await make("server", tls=own.serving(), backends=("websocket",))
    address = await serve(server)

    def lie(value: str) -> str:
        parts = value.split("; ")
        other = "A" * 43
        return "; ".join(f"{field}={other}" if part.startswith(f"{field}=") else part for part in parts)

    def cut(value: str) -> str:
        return "; ".join(part for part in value.split("; ") if not part.startswith("cert="))

    for change in (lie, cut):
        proxy = await through(address, again=True, response=with_hello(change))
        client = await make(tls=ca(proxys), tls_proxy=("127.0.0.1",))
        error = await nothing(within(client.send(f"wss://{proxy.address}", task("secret"))))
        assert isinstance(error, openline.Refused), repr(error)
        assert ENDS not in str(error)


async def test_a_named_proxy_cannot_lead_to_another_node(
    make: Make, behind: Behind, proxys: Certificate
) -> None:
    wanted = openline.Identity().node_id
    client = await make(tls=ca(proxys), tls_proxy=("127.0.0.1",))
    error = await nothing(within(client.send(f"wss://{wanted}@{behind.proxy.address}", task("secret"))))
    assert isinstance(error, openline.Refused)
    assert "the node there is" in str(error)


async def test_a_proxy_that_begins_tls_is_told_from_a_lie(
    make: Make, through: Through, own: Certificate
) -> None:
    """Dialed without TLS, and it dials with TLS."""
    server = await make("server", tls=own.serving(), backends=("websocket",))
    proxy = await through(await serve(server), again=True, asks=None)
    client = await make()
    error = await nothing(within(client.send(f"ws://{proxy.address}", task("secret"))))
    assert isinstance(error, openline.Refused)
    assert "in between begins TLS" in str(error)


async def test_the_server_says_that_a_client_saw_no_certificate(
    make: Make, own: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    server = await make("server", tls=own.serving(), backends=("websocket",))
    address = await serve(server)
    async with Middle(port_of(address), dials=ssl.create_default_context(cafile=own.cert)) as middle:
        raw, actor = await Raw.tcp(middle.port), Actor()
        said = await speak(raw, actor)
        await raw.frame(2, proof_frame(said.proof()))
        await within(raw.gone())
        raw.close()
        while not caplog.records:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert any("something in between begins TLS" in record.message for record in caplog.records)
    assert server.stats().accepted == 0


async def test_over_quic_a_proxy_that_is_named_by_its_place_is_none(make: Make) -> None:
    proxies = Proxies(("127.0.0.1",))
    for text in ("quic://127.0.0.1:1", "127.0.0.1:1", "ws://127.0.0.1:1"):
        assert not proxies.may_stand(Address.parse(text), "127.0.0.1", b"certificate")
    assert not proxies.may_stand(Address.parse("wss://127.0.0.1:1"), "127.0.0.1", None)
    assert proxies.may_stand(Address.parse("wss://127.0.0.1:1"), "127.0.0.1", b"certificate")


@pytest.mark.parametrize(
    ("name", "address", "ip"),
    [
        ("Proxy.Example", "wss://proxy.example:1", "10.0.0.1"),
        ("proxy.example:443", "wss://proxy.example", "10.0.0.1"),
        ("[::1]", "wss://[::1]:1", "::1"),
        ("[0:0::1]:7", "wss://name:7", "::1"),
        ("::ffff:10.0.0.1"[7:], "wss://name:7", "::ffff:10.0.0.1"),
    ],
)
def test_a_place_is_known_in_all_its_spellings(name: str, address: str, ip: str) -> None:
    assert Proxies((name,)).may_stand(Address.parse(address), ip, b"certificate")


@pytest.mark.parametrize("wrong", ["sha256/short", "", "ws://a:1", "a b", "::1", "a:b", "a:99999"])
def test_what_is_named_must_be_a_certificate_or_a_place(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"pin|address"):
        openline.Config(tls_proxy=(wrong,))
    with pytest.raises(ValueError, match="tuple"):
        openline.Config(tls_proxy="127.0.0.1")  # type: ignore[arg-type]
