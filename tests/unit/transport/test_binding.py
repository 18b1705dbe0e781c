"""``listen(host=...)`` with a name of several addresses, of which not all can be had."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import openline

from .conftest import Make
from .helpers import Box, task

# Loopback addresses of this host (Linux has all of 127.0.0.0/8), and one that is nobody's (RFC 5737).
ONE, TWO, NOBODYS = "127.0.0.2", "127.0.0.3", "203.0.113.1"
NAMES = {
    "both.test": [ONE, TWO],
    "first.test": [ONE, NOBODYS],
    "second.test": [NOBODYS, ONE],
    "neither.test": [NOBODYS, "203.0.113.2"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def looked_up(host: Any, *arguments: Any, **more: Any) -> list[Any]:
        return [item for ip in NAMES.get(host, [host]) for item in real(ip, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with socket.socket() as probe:
        try:
            probe.bind((ONE, 0))
        except OSError:
            pytest.skip(f"{ONE} is not this host's")


@pytest.fixture
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that is somebody's at the second address; TCP's, or UDP's."""
    kind = getattr(request, "param", socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((TWO, 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        yield sock.getsockname()[1]


async def reached(make: Make, *addresses: str) -> list[str]:
    """What carries a message to each; from others each time, or it would ride what is there."""
    return [(await (await make()).send(address, task())).backend for address in addresses]


async def test_all_addresses_of_a_name_get_one_port(make: Make) -> None:
    listener = await (await make()).listen(0, host="both.test")
    assert (listener.backends, listener.unavailable) == (("websocket", "quic"), {})
    ways = [f"{scheme}://{ip}:{listener.port}" for ip in (ONE, TWO) for scheme in ("ws", "quic")]
    assert await reached(make, *ways) == ["websocket", "quic"] * 2


@pytest.mark.parametrize("name", ["first.test", "second.test"])
@pytest.mark.parametrize("backends", [("quic", "websocket"), ("websocket",), ("quic",)])
async def test_what_can_be_had_is_had_and_the_rest_is_said(
    make: Make, name: str, backends: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    listener = await (await make(backends=backends)).listen(0, host=name)
    kind = "tcp" if "websocket" in backends else "udp"
    where, why = f"{kind} {NOBODYS}:{listener.port}", "EADDRNOTAVAIL: Cannot assign requested address"
    assert listener.unavailable[where] == why
    assert f"not listening on {where}: {why}" in caplog.text
    assert sorted(listener.backends) == sorted(backends)
    schemes = ["quic" if backend == "quic" else "ws" for backend in backends]
    assert await reached(make, *(f"{scheme}://{ONE}:{listener.port}" for scheme in schemes)) == list(backends)


async def test_where_one_address_is_somebody_elses(make: Make, taken: int) -> None:
    listener = await (await make()).listen(taken, host="both.test")
    assert listener.port == taken
    assert listener.unavailable == {f"tcp {TWO}:{taken}": "EADDRINUSE: Address already in use"}
    # Nor is it listened on by UDP there, where nothing else is in the way.
    assert listener.backends == ("websocket", "quic")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((TWO, taken))
    assert await reached(make, f"quic://{ONE}:{taken}") == ["quic"]


@pytest.mark.parametrize("taken", [socket.SOCK_DGRAM], indirect=True)
async def test_udp_is_had_where_tcp_is_or_not_at_all(make: Make, taken: int) -> None:
    listener = await (await make()).listen(taken, host="both.test")
    assert listener.backends == ("websocket",)
    why = f"udp port {taken}: udp {TWO}:{taken}: EADDRINUSE: Address already in use"
    assert listener.unavailable == {"quic": why}
    assert await reached(make, f"ws://{ONE}:{taken}", f"ws://{TWO}:{taken}") == ["websocket"] * 2


async def test_a_picked_port_is_one_that_is_free_everywhere(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number that the system picks for one address is somebody's on the other, twice."""
    real, tried = socket.socket.bind, []

    def bind(self: socket.socket, sockaddr: Any) -> None:
        if sockaddr[0] == TWO and sockaddr[1]:
            tried.append(sockaddr[1])
            if len(tried) <= 2:
                raise OSError(errno.EADDRINUSE, "in use")
        real(self, sockaddr)

    monkeypatch.setattr(socket.socket, "bind", bind)
    listener = await (await make()).listen(0, host="both.test")
    assert listener.unavailable == {}
    assert listener.port == tried[2]


async def test_none_of_them(make: Make) -> None:
    t = await make()
    with pytest.raises(OSError, match="EADDRNOTAVAIL") as caught:
        await t.listen(8770, host="neither.test")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    for ip in NAMES["neither.test"]:
        assert f"tcp {ip}:8770: EADDRNOTAVAIL" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "number"), [(TWO, errno.EADDRINUSE), (NOBODYS, errno.EADDRNOTAVAIL), (None, errno.EADDRINUSE)]
)
async def test_an_address_that_was_asked_for_is_had_or_it_is_an_error(
    make: Make, taken: int, host: str | None, number: int
) -> None:
    t = await make()
    with pytest.raises(OSError, match=errno.errorcode[number]) as caught:
        await t.listen(taken, host=host)
    assert caught.value.errno == number
    assert f"tcp {host or '0.0.0.0'}:{taken}: " in str(caught.value)
    assert t.stats().pending_handshakes == 0


async def test_a_name_that_nobody_knows(make: Make) -> None:
    t = await make()
    with pytest.raises(OSError, match=r"look-up of nobody\.invalid"):
        await t.listen(0, host="nobody.invalid")
    with pytest.raises(OSError, match="not a name"):
        await t.listen(0, host="a" * 64 + ".test")


async def test_nothing_is_left_open_by_what_has_failed(make: Make, taken: int) -> None:
    """Of a port that is picked again, and of several addresses that are all needed."""
    from openline.backends.binding import bind

    with pytest.raises(OSError, match="EADDRINUSE"):
        await bind((ONE, TWO), taken)
    with socket.socket() as again:
        again.bind((ONE, taken))


async def test_a_host_header_names_no_interface(make: Make) -> None:
    """A scope is this host's own affair; servers take it for a malformed header."""
    try:
        server = await asyncio.start_server(_read_head, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    async with server:
        port = server.sockets[0].getsockname()[1]
        t = await make()
        for scope in ("%1", "%251"):
            with pytest.raises(openline.Unreachable):
                await t.send(f"ws://[::1{scope}]:{port}", task())
    assert heads == [f"[::1]:{port}"] * 2


heads: list[str] = []


async def _read_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    heads.extend(line[6:] for line in head.split("\r\n") if line.lower().startswith("host: "))
    writer.close()


async def test_an_ipv4_address_may_be_written_as_ipv6_has_it(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    listener = await b.listen(0, host="::ffff:127.0.0.1")
    await a.send(f"127.0.0.1:{listener.port}", task("hi"))
    assert box.payloads == ["hi"]
