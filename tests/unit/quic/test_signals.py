"""What the system says of datagrams, where it cannot be made to say it: errors of a socket, by hand."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

import openline
from openline.address import Address
from openline.backends.quic.backend import QuicBackend
from openline.backends.quic.client import TRANSIENT, ClientPath
from openline.backends.quic.limits import MIN_DATAGRAM
from openline.backends.quic.parts import Inlet
from openline.backends.quic.udp import Datagrams, _Transport
from openline.backends.websocket import listener as acceptor

from ..transport.helpers import eventually, task
from .conftest import Make
from .test_racing import serving


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[ClientPath[bytes]]:
    """Those of all QUIC dials."""
    made: list[ClientPath[bytes]] = []
    begin = ClientPath.begin

    async def noted(path: ClientPath[bytes]) -> None:
        made.append(path)
        await begin(path)

    monkeypatch.setattr(ClientPath, "begin", noted)
    return made


@pytest.mark.parametrize("number", [*TRANSIENT, errno.EMSGSIZE])
async def test_a_dial_goes_on_when_the_system_has_no_room_for_a_moment(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _, box, address = await serving(make)
    client = await make(backends=("quic",))
    start = Datagrams.start

    async def complaining(self: Datagrams, inlet: Inlet[bytes]) -> None:
        await start(self, inlet)
        self.error_received(fail(number))

    monkeypatch.setattr(Datagrams, "start", complaining)
    receipt = await client.send(f"quic://{address}", task(1))
    assert receipt.backend == "quic"
    assert box.payloads == [1]


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.ECONNREFUSED}))
async def test_no_error_of_a_socket_ends_a_connection_that_is_up(
    make: Make, paths: list[ClientPath[bytes]], number: int
) -> None:
    _, box, address = await serving(make)
    client = await make(backends=("quic",))
    await client.send(f"quic://{address}", task(1))
    for _ in range(5):
        paths[-1].on_error(fail(number))
    await client.send(f"quic://{address}", task(2))
    assert box.payloads == [1, 2]
    assert client.stats().created == 1


@pytest.mark.parametrize("number", sorted(errno.errorcode))
async def test_no_error_of_a_socket_ends_a_port_that_listens(make: Make, number: int) -> None:
    server, box, address = await serving(make)
    door: Any = next(d for backend, d in server._listeners[0]._acceptor._doors if backend.name == "quic")
    for port in door.ports.sockets:
        port.datagrams.error_received(fail(number))
    client = await make(backends=("quic",))
    await client.send(f"quic://{address}", task(1))
    assert box.payloads == [1]


async def test_an_error_that_belongs_to_an_earlier_datagram_costs_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ICMP comes as the error of whatever is sent next."""
    _, box, address = await serving(make)
    client = await make(backends=("quic",))
    send_one, failed = _Transport._send_one, []

    def first_fails(self: _Transport, data: Any, addr: Any) -> None:
        if data not in failed:
            failed.append(bytes(data))
            raise fail(errno.EMSGSIZE)
        send_one(self, data, addr)

    monkeypatch.setattr(_Transport, "_send_one", first_fails)
    await client.send(f"quic://{address}", task(1))
    assert failed
    assert box.payloads == [1]


async def test_a_listening_host_whose_own_mtu_is_too_small_says_so(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In its own log: no answer leaves it."""
    server, _, address = await serving(make)
    client = await make(backends=("quic",), dial_timeout=0.5)
    send_one = _Transport._send_one

    def small_only(self: _Transport, data: Any, addr: Any) -> None:
        if len(data) >= MIN_DATAGRAM and self._connected_addr is None:
            raise fail(errno.EMSGSIZE)
        send_one(self, data, addr)

    monkeypatch.setattr(_Transport, "_send_one", small_only)
    with pytest.raises(openline.Unreachable):
        await client.send(f"quic://{address}", task(1))
    assert server.stats().malformed
    assert "the MTU of this host's way to it is less than QUIC needs, 1228" in caplog.text


async def test_larger_datagrams_leave_only_after_a_probe(make: Make, paths: list[ClientPath[bytes]]) -> None:
    server, _, address = await serving(make)
    client = await make(backends=("quic",))
    await client.send(f"quic://{address}", task(1))
    engine = paths[-1].engine
    await eventually(lambda: engine.core.datagram_size > MIN_DATAGRAM)
    engine.shrink("a test")
    assert engine.core.datagram_size == MIN_DATAGRAM
    await client.send(f"quic://{address}", task("x" * 1_000_000))
    assert engine.core.datagram_size == MIN_DATAGRAM
    door: Any = next(d for backend, d in server._listeners[0]._acceptor._doors if backend.name == "quic")
    assert {each.core.datagram_size for each in door.live} == {MIN_DATAGRAM}


# Which backend goes first, and TCP's listening socket


async def test_what_did_not_get_through_goes_last(make: Make) -> None:
    client = await make()
    backends, address = client._node.backends, Address.parse("127.0.0.1:1")

    def order() -> list[str]:
        return [backend.name for backend in backends.order(address)]

    assert order() == ["quic", "websocket"]
    backends.distrust(address, "quic")
    assert order() == ["websocket", "quic"]
    backends.distrust(address, "websocket")
    assert order() == ["quic", "websocket"]
    assert isinstance(backends.backends[0], QuicBackend)


async def test_segments_are_small_where_large_ones_did_not_get_through(make: Make) -> None:
    _, box, address = await serving(make)
    client = await make(backends=("websocket",))
    client._node.backends.distrust(Address.parse(address), "websocket")
    await client.send(address, task("x" * 100_000))
    [connection] = client.peers()[0]._remote.connections
    link: Any = connection.link
    assert link._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1160
    assert len(box.payloads) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EINVAL, errno.ECONNABORTED, errno.EPERM])
async def test_accepting_goes_on_after_errors_and_does_not_spin(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_ACCEPT", 0.05)
    loop = asyncio.get_running_loop()
    accept, left = loop.sock_accept, [3]

    async def failing(sock: socket.socket) -> Any:
        if left[0]:
            left[0] -= 1
            raise fail(number)
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    _, box, address = await serving(make, backends=("websocket",))
    client = await make(backends=("websocket",))
    await client.send(address, task(1))
    assert left == [0]
    assert box.payloads == [1]
