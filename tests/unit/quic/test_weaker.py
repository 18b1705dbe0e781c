"""Never weaker than asked (rule 3.1), and which connection stays (rule 3.3), with both backends."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from typing import Any

import pytest

import openline
from openline.backends.quic.tls import certificate_of

from ..clock import elapse
from ..transport.certificates import Certificate
from ..transport.helpers import DEADLINE, Box, eventually, task
from ..transport.rawsocket import Actor, Raw, RawServer, two_identities
from .conftest import Dial, Make, Serve

SLOW = 4 * DEADLINE

IDENTITY = openline.Identity()


async def serving(make: Make, name: str = "server", **config: Any) -> tuple[openline.Transport, Box, str]:
    t = await make(name, **config)
    box = Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    return t, box, f"127.0.0.1:{listener.port}"


def backends(t: openline.Transport) -> list[str]:
    return [connection.link.backend for connection in t._table.connections]


# Never weaker ---------------------------------------------------------------------------------------


async def test_quic_is_not_answered_by_websocket(make: Make) -> None:
    _, _, address = await serving(make, backends=("websocket",))
    client = await make()
    await client.connect(f"ws://{address}")
    with pytest.raises(openline.Unreachable):
        await client.send(f"quic://{address}", task("secret"))
    assert client.stats().messages_sent == 0
    assert "not" in str(client.explain(f"quic://{address}"))


async def test_quic_is_not_answered_by_a_bare_dial_of_the_same_place(
    make: Make, certificate: Certificate
) -> None:
    """That went by quic, but was not held to the pins."""
    _, _, address = await serving(make)
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    assert (await client.send(address, task("hi"))).backend == "quic"
    with pytest.raises(openline.Refused):
        await client.send(f"quic://{address}", task("secret"))
    assert client.stats().messages_sent == 1
    assert (await client.send(address, task("still"))).acked


async def test_quic_is_answered_by_an_inbound_quic_connection(make: Make) -> None:
    """Where no certificate is asked for: with a node id, and without."""
    server, _, address = await serving(make)
    client, box, theirs = await serving(make, "client")
    await client.send(address, task("hi"))
    await eventually(lambda: server.stats().active == 1)
    for to in (f"quic://{theirs}", f"quic://{client.node_id}@{theirs}"):
        receipt = await server.send(to, task("back"))
        assert (receipt.backend, receipt.direction) == ("quic", "inbound")
    assert (server.stats().dials, box.payloads) == (0, ["back", "back"])


async def test_quic_is_not_answered_by_an_inbound_connection_where_a_certificate_is_asked_for(
    make: Make,
) -> None:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_of(IDENTITY).decode())).digest()
    pin = "sha256/" + base64.b64encode(digest).decode()
    server, _, address = await serving(make, tls=openline.Tls(pins=(pin,)))
    client, _, theirs = await serving(make, "client", identity=IDENTITY)
    await client.send(address, task("hi"))
    await eventually(lambda: server.stats().active == 1)
    dials = server.stats().dials
    assert (await server.send(theirs, task("back"))).direction == "inbound"
    assert server.stats().dials == dials
    await server.send(f"quic://{theirs}", task("back, by quic"))
    assert server.stats().dials == dials + 1


async def test_wss_is_not_answered_by_quic_without_its_pin(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    _, _, address = await serving(make, tls=stranger.serving())
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    await client.connect(address)
    with pytest.raises(openline.Refused):
        await client.send(f"wss://{address}", task("secret"))
    assert client.stats().messages_sent == 0


async def test_a_node_id_with_quic_is_held_to_both(make: Make, certificate: Certificate) -> None:
    server, _, address = await serving(make)
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    await client.connect(f"{server.node_id}@{address}")
    with pytest.raises(openline.Refused, match="pin"):
        await client.send(f"quic://{server.node_id}@{address}", task("secret"))
    assert client.stats().messages_sent == 0


async def test_a_node_id_is_answered_over_quic_whoever_dialed(make: Make) -> None:
    server, box, address = await serving(make)
    client = await make()
    await client.connect(address)
    await eventually(lambda: server.stats().active == 1)
    got = Box(client)
    receipt = await server.send(client.node_id, task("hi"))
    assert (receipt.backend, receipt.direction) == ("quic", "inbound")
    assert got.payloads == ["hi"]
    assert server.stats().created == 0
    assert not box


async def test_two_nodes_behind_one_ip_never_get_each_others_messages(make: Make, dial: Dial) -> None:
    server, _, address = await serving(make)
    port = int(address.rpartition(":")[2])
    one, other = await dial(port, Actor(8770)), await dial(port, Actor(8771))
    sending = asyncio.ensure_future(server.send("127.0.0.1:8771", task("for 8771"), timeout=SLOW))
    await other.takes(sending)
    assert [message.payload for message in other.got] == ["for 8771"]
    assert one.got == []
    # Both claim that port: neither is believed.
    await dial(port, Actor(8770))
    with pytest.raises(openline.Unreachable):
        await server.send("127.0.0.1:8770", task("for whom"))


async def test_a_plain_peer_is_not_reached_by_quic(make: Make) -> None:
    server, _, address = await serving(make)
    plain = await Raw.connect(int(address.rpartition(":")[2]))
    await plain.say("hello")
    await eventually(lambda: server.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await server.send(f"quic://{plain.address}", task("secret"))
    plain.close()


async def test_bare_addresses_work_with_pins_and_allow(make: Make, certificate: Certificate) -> None:
    identity = openline.Identity()
    server, box, address = await serving(make, allow=(identity.node_id,), tls=certificate.serving())
    client = await make(identity=identity, allow=(server.node_id,), tls=openline.Tls(pins=(certificate.pin,)))
    assert (await client.send(address, task("hi"))).backend == "quic"
    assert box.payloads == ["hi"]


# Which stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("one_way", [("quic",), ("websocket",), ("quic", "websocket")])
async def test_both_dial_at_once(make: Make, turn: int, one_way: tuple[str, ...]) -> None:
    """Each with a backend of its own choice: one connection stays, the better one, and nothing is lost."""
    lesser, greater = two_identities()
    first, second = (lesser, greater) if turn % 2 else (greater, lesser)
    here, here_box, here_at = await serving(make, "here", identity=first)
    there, there_box, there_at = await serving(make, "there", identity=second)
    scheme = {"quic": "quic://", "websocket": "ws://"}
    back = scheme[one_way[-1]]
    await asyncio.gather(
        here.send(scheme[one_way[0]] + there_at, task("to there"), timeout=SLOW),
        there.send(back + here_at, task("to here"), timeout=SLOW),
    )
    assert (here_box.payloads, there_box.payloads) == (["to here"], ["to there"])
    await eventually(lambda: here.stats().active == there.stats().active == 1, SLOW)
    expected = "quic" if "quic" in one_way else "websocket"
    assert backends(here) == backends(there) == [expected]
    assert here.stats().conflicts == there.stats().conflicts == 0
    for number in range(3):
        await here.send(there.node_id, task(number), timeout=SLOW)
        await there.send(here.node_id, task(number), timeout=SLOW)
    assert (here_box.payloads[1:], there_box.payloads[1:]) == ([0, 1, 2], [0, 1, 2])


async def test_quic_replaces_websocket_and_messages_under_way_arrive_once(make: Make) -> None:
    server, box, address = await serving(make)
    client = await make()
    sends = [asyncio.ensure_future(client.send(f"ws://{address}", task(n), timeout=SLOW)) for n in range(200)]
    await asyncio.sleep(0)
    await client.connect(f"quic://{address}")
    sends += [
        asyncio.ensure_future(client.send(f"ws://{address}", task(n), timeout=SLOW)) for n in range(200, 300)
    ]
    await asyncio.gather(*sends)
    assert box.payloads == list(range(300))
    await eventually(lambda: server.stats().active == client.stats().active == 1, SLOW)
    assert backends(client) == ["quic"]


async def test_the_same_direction_twice(make: Make) -> None:
    """By either spelling: the connection that is there."""
    server, box, address = await serving(make)
    client = await make()
    await client.send(address, task("one"), timeout=SLOW)
    await client.send(f"quic://{address}", task("two"), timeout=SLOW)
    await eventually(lambda: server.stats().active == client.stats().active == 1, SLOW)
    await client.send(address, task("three"), timeout=SLOW)
    await client.send(f"quic://{address}", task("four"), timeout=SLOW)
    assert box.payloads == ["one", "two", "three", "four"]
    assert client.stats().dials == 1


async def test_a_process_that_replaces_another_with_its_key(make: Make, listen: Serve, dial: Dial) -> None:
    """The old one is gone without a word: the new one is believed, and there is no conflict."""
    server, box, address = await serving(make, max_idle_timeout=3.0)
    port = int(address.rpartition(":")[2])
    identity = openline.Identity()
    old = await dial(port, Actor(identity=identity))
    old.post(task("old"))
    await eventually(lambda: box.payloads == ["old"])
    old.close()
    new = await dial(port, Actor(identity=identity))
    new.post(task("new"))
    await eventually(lambda: box.payloads == ["old", "new"])
    await eventually(lambda: server.stats().active == 1, SLOW)
    assert server.stats().conflicts == 0


async def test_two_living_processes_with_one_key(make: Make, dial: Dial) -> None:
    """Both answer: both are cut, and are told why."""
    server, _, address = await serving(make)
    port = int(address.rpartition(":")[2])
    identity = openline.Identity()
    one = await dial(port, Actor(identity=identity))
    other = await dial(port, Actor(identity=identity))
    codes = [(await asyncio.wait_for(end.farewell(), SLOW))[0] for end in (one, other)]
    assert codes == [4002, 4002]
    await eventually(lambda: server.stats().conflicts == 1)


# Certificates ---------------------------------------------------------------------------------------


def pin_of(identity: openline.Identity) -> str:
    """Of the certificate that a node without ``Tls.cert`` shows over QUIC."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_of(identity).decode())).digest()
    return "sha256/" + base64.b64encode(digest).decode()


@pytest.mark.parametrize("here_is_greater", [True, False])
async def test_a_pinned_wss_address_never_rides_a_connection_that_was_not_asked_for_the_pin(
    make: Make, certificate: Certificate, here_is_greater: bool
) -> None:
    """The node comes in by QUIC, which ranks higher; there it has shown no certificate."""
    lesser, greater = two_identities()
    mine, theirs = (greater, lesser) if here_is_greater else (lesser, greater)
    here, _, here_at = await serving(make, tls=openline.Tls(pins=(certificate.pin,)), identity=mine)
    there, box, there_at = await serving(make, "there", identity=theirs, tls=certificate.serving())
    pinned = f"wss://{there_at}"
    assert (await here.send(pinned, task(1), timeout=SLOW)).backend == "websocket"
    await there.connect(f"quic://{here_at}")
    before = here.stats().dials
    for number in range(2, 10):
        receipt = await here.send(pinned, task(number), timeout=SLOW)
        assert (receipt.backend, receipt.direction) == ("websocket", "outbound")
        await there.send(here_at, task("back"), timeout=SLOW)
        await elapse(0.2)  # the grace of a connection that is one too many ends in between
    assert box.payloads == list(range(1, 10))
    assert here.stats().dials == before
    assert all(c.endpoint.certified for c in here._table.connections)


@pytest.mark.parametrize("here_is_greater", [True, False])
async def test_of_two_pinned_quic_connections_each_side_keeps_its_own(
    make: Make, here_is_greater: bool
) -> None:
    lesser, greater = two_identities()
    mine, theirs = (greater, lesser) if here_is_greater else (lesser, greater)
    here, _, here_at = await serving(make, identity=mine, tls=openline.Tls(pins=(pin_of(theirs),)))
    there, _, there_at = await serving(make, "there", identity=theirs, tls=openline.Tls(pins=(pin_of(mine),)))
    for number in range(8):
        for t, home in ((here, there_at), (there, here_at)):
            receipt = await t.send(f"quic://{home}", task(number), timeout=SLOW)
            assert (receipt.backend, receipt.direction) == ("quic", "outbound")
            assert (await t.send(home, task(number), timeout=SLOW)).acked
        await elapse(0.2)
    assert here.stats().active == there.stats().active == 2
    assert here.stats().dials == there.stats().dials == 1


# Ports are known with their protocol ------------------------------------------------------------------


def service_at(port: int) -> RawServer | None:
    """What listens there with TCP; None where that is somebody else's just now."""
    try:
        return RawServer(port=port)
    except OSError:
        return None


async def test_a_client_is_answered_at_its_udp_port_which_is_not_tcps_of_that_number(make: Make) -> None:
    server, at_server, address = await serving(make)
    service = None
    while service is None:
        client = await make("client")
        box = Box(client)
        await client.send(address, task("hi"))
        peer = at_server.peers[-1]
        service = service_at(peer._remote.endpoint.port)
    assert peer.address == f"quic://{peer._remote.endpoint.remote}"
    try:
        receipt = await server.send(peer.address, task("back"))
        assert (receipt.backend, receipt.direction, receipt.matched) == ("quic", "inbound", "exact address")
        sending = asyncio.ensure_future(server.send(peer._remote.endpoint.remote, task("for the service")))
        end = await service.accept()
        assert (await end.message())["payload"] == "for the service"
        assert (await sending).backend == "websocket"
        await server.send(peer.address, task("back again"))
        assert box.payloads == ["back", "back again"]
        end.reset()
        await client.close()
        await eventually(
            lambda: not peer._remote.connections and all(p.node_id for p in server.peers()), SLOW
        )
        sending = asyncio.ensure_future(server.send(peer._remote.endpoint.remote, task("not barred")))
        assert (await (await service.accept()).message())["payload"] == "not barred"
        assert (await sending).direction == "outbound"
    finally:
        service.close_all()


async def test_where_quic_asks_for_a_certificate_a_client_is_answered_by_its_node_id(make: Make) -> None:
    server, at_server, address = await serving(make, tls=openline.Tls(pins=(pin_of(IDENTITY),)))
    client = await make("client")
    box = Box(client)
    await client.send(address, task("hi"))
    [peer] = at_server.peers
    assert peer.address == f"{client.node_id}@{peer._remote.endpoint.remote}"
    assert (await server.send(peer.address, task("back"))).matched == "node id"
    assert (box.payloads, server.stats().dials) == (["back"], 0)


async def test_a_claim_answers_no_quic_address_that_somebody_else_was_dialed_at(
    make: Make, dial: Dial
) -> None:
    here, _, here_at = await serving(make)
    _, box, there_at = await serving(make, "there")
    await here.send(f"quic://{there_at}", task(1), timeout=SLOW)
    claimer = await dial(int(here_at.rpartition(":")[2]), Actor(int(there_at.rpartition(":")[2])))
    await eventually(lambda: here.stats().active == 2)
    for number in range(2, 5):
        for connection in list(here._table.connections):
            if connection.endpoint.direction == "outbound":
                connection.link.abort()
        await eventually(lambda: here.stats().active == 1, SLOW)
        for scheme in ("quic://", ""):
            receipt = await here.send(f"{scheme}{there_at}", task(number), timeout=SLOW)
            assert (receipt.direction, receipt.matched) == ("outbound", "exact address")
    assert box.payloads == [1, 2, 2, 3, 3, 4, 4]
    assert claimer.got == []
