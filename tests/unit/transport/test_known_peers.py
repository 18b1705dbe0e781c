"""``Config.known_peers`` over real sockets: whoever else answers at an address gets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import openline
from openline.address import Address
from openline.known_peers.file import KnownFile
from openline.known_peers.lines import Entry

from .conftest import Make, Open
from .helpers import Box, closed_port, eventually, port_of, serve, task, within
from .rawsocket import Actor, Raw, RawServer

BACKENDS = [("quic", "websocket"), ("websocket",), ("quic",)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known_peers"


def known(path: Path) -> dict[str, str]:
    return {place: entry.node_id for place, entry in KnownFile(path).read().entries.items()}


def know(path: Path, address: str, node_id: str) -> None:
    file = KnownFile(path)
    file.merge([Entry(place=address, node_id=node_id, first=1_790_000_000, last=1_790_000_000)])


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


def text(path: Path) -> str:
    return path.read_text()


async def at(make: Make, address: str, **config: Any) -> openline.Transport:
    t = await make(**config)
    await t.listen(port_of(address), host="127.0.0.1")
    return t


@pytest.mark.parametrize("backends", BACKENDS)
async def test_another_node_there_is_refused_until_it_is_accepted(
    make: Make, path: Path, backends: Any
) -> None:
    first = await make(name="first", backends=backends)
    address = await serve(first)
    client = await make(known_peers=str(path), backends=backends)
    await client.send(address, task())
    await eventually(lambda: known(path) == {address: first.node_id})
    await first.close()

    second = await at(make, address, backends=backends)
    got = Box(second)
    for dialer in (client, await make(known_peers=str(path), backends=backends)):  # and after a restart
        with pytest.raises(openline.Refused) as refused:
            await dialer.send(address, task("not for you"), timeout=5)
        for part in (first.node_id, second.node_id, "first seen 2", f"openline known accept {address}"):
            assert part in str(refused.value)
    assert (list(got), known(path)) == ([], {address: first.node_id})

    command = str(refused.value).rpartition("known accept ")[2].split()
    KnownFile(path).update(lambda document: document.put(Entry(place=command[0], node_id=command[1])))
    await client.send(address, task("for you"))
    await eventually(lambda: got.payloads == ["for you"])


@pytest.mark.parametrize("scheme", ["ws://", "quic://", ""])
async def test_a_place_is_one_whatever_the_scheme(make: Make, path: Path, scheme: str) -> None:
    server = await make()
    address = await serve(server)
    know(path, address, openline.Identity().node_id)
    client = await make(known_peers=str(path))
    with pytest.raises(openline.Refused, match="answered there before"):
        await client.connect(f"{scheme}{address}")


async def test_an_address_with_its_node_id_is_the_users_word(make: Make, path: Path) -> None:
    server = await make()
    address = await serve(server)
    know(path, address, openline.Identity().node_id)
    before = text(path)
    client = await make(known_peers=str(path))
    receipt = await client.send(f"{server.node_id}@{address}", task())
    assert receipt.matched == "node id"
    # The connection is open, and still not for the address alone.
    assert "another node is known to answer there" in str(client.explain(address))
    with pytest.raises(openline.Refused):
        await client.send(address, task())
    assert text(path) == before


async def test_a_plain_peer_where_a_node_was_is_refused(
    make: Make, raw_server: RawServer, path: Path
) -> None:
    node = openline.Identity().node_id
    know(path, raw_server.address, node)
    client = await make(known_peers=str(path))
    dialing = asyncio.ensure_future(client.send(raw_server.address, task("secret")))
    end = await raw_server.accept()
    with pytest.raises(openline.Refused) as refused:
        await within(dialing)
    assert "proves no node id" in str(refused.value)
    assert node in str(refused.value)
    assert f"openline known forget {raw_server.address}" in str(refused.value)
    assert b"secret" not in await end.gone()


async def test_plain_peers_are_not_remembered(make: Make, plain_server: Any, path: Path) -> None:
    server = await plain_server()
    client = await make(known_peers=str(path))
    await client.send(server.address, task())
    await client.close()
    assert known(path) == {}


async def test_only_who_was_dialed_is_remembered(make: Make, path: Path) -> None:
    """Strangers can not fill the file, whatever their hellos claim."""
    server = await make(known_peers=str(path))
    address = await serve(server)
    for _ in range(3):
        client = await make()
        await serve(client)
        await client.send(address, task())
    for peer in server.peers():
        await peer.send(task())
    await server.close()
    assert known(path) == {}


async def test_who_is_turned_away_is_not_remembered(make: Make, path: Path) -> None:
    address = await serve(await make())
    client = await make(known_peers=str(path), allow=(openline.Identity().node_id,))
    with pytest.raises(openline.Refused):
        await client.connect(address)
    await client.close()
    assert known(path) == {}


# Connections that are there ---------------------------------------------------------------------------


async def entered(make: Make, raw: Open, path: Path, who: Actor) -> tuple[openline.Transport, Raw]:
    """A transport with that file, and ``who`` has come in."""
    t = await make(known_peers=str(path))
    client = await raw(port_of(await serve(t)), who)
    await eventually(lambda: len(t.peers()) == 1)
    return t, client


async def test_a_neighbour_that_claims_the_port_gets_nothing(make: Make, raw: Open, path: Path) -> None:
    port = closed_port()
    know(path, f"127.0.0.1:{port}", openline.Identity().node_id)
    t, mallory = await entered(make, raw, path, Actor(port))
    with pytest.raises(openline.Unreachable):
        await mallory.takes(t.send(f"127.0.0.1:{port}", task("secret")))
    assert "another node is known to answer there" in str(t.explain(f"127.0.0.1:{port}"))
    assert mallory.payloads == []


async def test_the_known_node_is_believed_without_a_dial(make: Make, raw: Open, path: Path) -> None:
    """Its own word that it listens there is no claim any more: the file says that it does."""
    port = closed_port()
    friend = Actor(port)
    know(path, f"127.0.0.1:{port}", friend.node_id)
    t, end = await entered(make, raw, path, friend)
    await raw(port_of(t._listeners[0].address), Actor(port))  # somebody else claims it, too
    receipt = await end.takes(t.send(f"127.0.0.1:{port}", task("for a friend")))
    assert (receipt.matched, end.payloads, t.stats().dials) == ("exact address", ["for a friend"], 0)


async def test_a_plain_peer_at_that_ip_does_not_stand_for_a_known_node(
    make: Make, plain_client: Callable[..., Any], path: Path
) -> None:
    port = closed_port()
    know(path, f"127.0.0.1:{port}", openline.Identity().node_id)
    t = await make(known_peers=str(path))
    client = await plain_client(port_of(await serve(t)))
    await eventually(lambda: len(t.peers()) == 1)
    with pytest.raises(openline.Unreachable):
        await t.send(f"127.0.0.1:{port}", task())
    elsewhere = f"127.0.0.1:{closed_port()}"
    await t.send(elsewhere, task("as ever"))
    assert "as ever" in await within(client.recv())


async def test_a_connection_that_is_open_is_left_once_another_node_is_accepted(
    make: Make, path: Path
) -> None:
    server = await make()
    address = await serve(server)
    client = await make(known_peers=str(path))
    await client.send(address, task())
    await eventually(path.exists)
    other = openline.Identity().node_id
    KnownFile(path).update(lambda document: document.put(Entry(place=address, node_id=other)))
    # The next dial, wherever to, reads the file.
    await client.connect(await serve(await make()))
    with pytest.raises(openline.Refused):
        await client.send(address, task())


async def test_what_is_received_by_address_is_from_the_known_node(make: Make, raw: Open, path: Path) -> None:
    port = closed_port()
    address = f"127.0.0.1:{port}"
    know(path, address, openline.Identity().node_id)
    t = await make(known_peers=str(path))
    mallory = await make()
    await mallory.listen(port, host="127.0.0.1")
    await mallory.send(await serve(t), task("from somebody else"))
    with pytest.raises(TimeoutError):
        await t.receive(address, timeout=0.05)
    assert t._router.want_now(Address.parse(address)).known is not None


async def test_a_broken_file_stops_no_pinned_address(make: Make, path: Path) -> None:
    write(path, b"\xff")
    server = await make()
    address = await serve(server)
    client = await make(known_peers=str(path))
    with pytest.raises(openline.Refused, match="cannot be read"):
        await client.send(address, task())
    await client.send(f"{server.node_id}@{address}", task())
    write(path, f"{address} {server.node_id}\n".encode())
    await client.send(address, task())


async def test_closing_writes_what_was_learned(path: Path) -> None:
    async with openline.load_transport() as server:
        address = await serve(server)
        async with openline.load_transport(openline.Config(known_peers=str(path))) as client:
            await client.connect(address)
        assert known(path) == {address: server.node_id}


async def test_dialing_oneself_is_not_remembered(make: Make, path: Path) -> None:
    t = await make(known_peers=str(path))
    await t.connect(await serve(t))
    await t.close()
    assert known(path) == {}
