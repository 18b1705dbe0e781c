"""Host names, IPv6, and peers with several listeners (rule 3.1)."""

from __future__ import annotations

import socket

import pytest

import openline

from .conftest import Make
from .helpers import Box, eventually, port_of, resolve_to, serve, task


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def test_a_host_name_matches_an_inbound_connection_through_resolution(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(f"localhost:{port_of(home)}", task())
    assert (receipt.direction, a.stats().created) == ("inbound", 0)


async def test_a_name_of_another_ip_does_not_match(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    resolve_to(monkeypatch, "127.0.0.2")
    with pytest.raises(openline.Unreachable):
        await a.send(f"agent.test:{port_of(home)}", task("for another"))
    await a.send(home, task("last"))
    await eventually(lambda: box)
    assert box.payloads == ["last"]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6_works_and_its_inbound_socket_is_reused(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b, "::1")
    assert (await b.send(await serve(a, "::1"), task())).attempts == 1
    receipt = await a.send(home, task("six"))
    assert (receipt.direction, a.stats().created) == ("inbound", 0)
    await eventually(lambda: box.payloads == ["six"])
    [peer] = a.peers()
    assert peer.address == home


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_listening_without_a_host_serves_ipv4_and_ipv6_on_one_port(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    listener = await a.listen(0)
    await b.send(f"127.0.0.1:{listener.port}", task("four"))
    await b.send(f"[::1]:{listener.port}", task("six"))
    await eventually(lambda: sorted(box.payloads) == ["four", "six"])


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_an_ipv4_mapped_address_is_the_ipv4_address(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(f"[::ffff:127.0.0.1]:{port_of(home)}", task())
    assert (receipt.direction, a.stats().created) == ("inbound", 0)


async def test_both_ports_of_a_peer_that_listens_twice_are_reached_on_one_socket(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    homes = [await serve(b), await serve(b)]
    await b.connect(await serve(a))
    for home in homes:
        assert (await a.send(home, task())).direction == "inbound"
    await eventually(lambda: len(box) == 2)
    assert a.stats().created == 0


async def test_both_listeners_of_a_transport_accept(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    box = Box(a)
    await b.send(await serve(a), task("b"))
    await c.send(await serve(a), task("c"))
    await eventually(lambda: sorted(box.payloads) == ["b", "c"])


async def test_a_peer_that_listens_after_it_connected_is_recognised_by_its_port(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    await b.connect(await serve(a))
    home = await serve(b)
    await eventually(lambda: a.explain(home).chosen)
    assert (await a.send(home, task("back"))).direction == "inbound"
    await eventually(lambda: box.payloads == ["back"])
    assert a.stats().created == 0


async def test_a_peer_that_no_longer_listens_is_no_longer_recognised_by_that_port(make: Make) -> None:
    a, b = await make(), await make()
    listener = await b.listen(0, host="127.0.0.1")
    home = f"127.0.0.1:{listener.port}"
    await b.connect(await serve(a))
    await eventually(lambda: a.explain(home).chosen)
    await listener.close()
    await eventually(lambda: not a.explain(home).chosen)
    with pytest.raises(openline.Unreachable):
        await a.send(home, task())


async def test_closing_a_listener_keeps_its_connections(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    listener = await a.listen(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.port}"
    await b.send(address, task(1))
    await listener.close()
    await b.send(address, task(2))
    await eventually(lambda: box.payloads == [1, 2])


async def test_a_peer_that_listens_on_very_many_ports_keeps_its_connection(make: Make) -> None:
    """More than a hello can name."""
    a, b = await make(), await make()
    box = Box(b)
    await b.connect(await serve(a))
    homes = [await serve(b) for _ in range(20)]
    await eventually(lambda: a.explain(homes[15]).chosen)
    assert (await a.send(homes[0], task("first"))).direction == "inbound"
    assert (await a.send(homes[19], task("last"))).attempts == 1
    await eventually(lambda: box.payloads == ["first", "last"])
    assert (a.stats().closed, a.stats().malformed) == (0, 0)


NAMES = ["", "a", "a; listen=1,2", "b=c, d", "ünïcödé", "🚀" * 128, "x" * 128, "line\r\nX-Evil: 1", "%41"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:12]))
async def test_any_name_travels_in_the_hello_and_breaks_nothing(make: Make, name: str) -> None:
    a, b = await make(name), await make(name)
    box = Box(a)
    peer = await b.connect(await serve(a))
    assert peer is not None
    await peer.send(task())
    await eventually(lambda: box)
    shown = "".join(letter for letter in name if letter.isprintable())
    assert peer.name == box.peers[0].name == shown
    assert a.stats().malformed == 0


async def test_a_transport_can_talk_to_itself(make: Make) -> None:
    a = await make()
    a.on_message(lambda peer, message: peer.reply(message, "me") if message.type == "ask" else None)
    assert (await a.request(await serve(a), task(type="ask"), timeout=2.0)).payload == "me"
