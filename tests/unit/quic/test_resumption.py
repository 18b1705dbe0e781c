"""Tickets: the second dial resumes, each ticket once, and what was sent early opens nothing twice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from qh3.tls import SessionTicket

import openline
from openline.backends.quic.client_core import Qh3ClientCore
from openline.backends.quic.framing import HELLO
from openline.backends.quic.link import QuicLink
from openline.backends.quic.listener import QuicListener

from ..transport.certificates import Certificate
from ..transport.helpers import DEADLINE, Box, eventually, port_of, task
from ..transport.rawsocket import Actor
from .conftest import Dial, Make
from .rawquic import RawQuic, client_configuration, unit

SLOW = 4 * DEADLINE


class Handshakes(list[Qh3ClientCore]):
    """The cores of dials whose handshake is over: whether they were resumed, and what went early."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = QuicLink.on_handshake

        def on_handshake(link: QuicLink) -> None:
            if isinstance(link._engine.core, Qh3ClientCore):
                self.append(link._engine.core)
            original(link)

        monkeypatch.setattr(QuicLink, "on_handshake", on_handshake)

    @property
    def resumed(self) -> list[bool]:
        return [core.session_resumed for core in self]


@pytest.fixture
def handshakes(monkeypatch: pytest.MonkeyPatch) -> Handshakes:
    return Handshakes(monkeypatch)


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, str, QuicListener]:
    t = await make("server", **config)
    box = Box(t)
    listener = await t.listen(config.pop("port", 0), host="127.0.0.1")
    door = next(door for backend, door in listener._acceptor._doors if backend.name == "quic")
    assert isinstance(door, QuicListener)
    return t, box, f"127.0.0.1:{listener.port}", door


async def hang_up(*transports: openline.Transport) -> None:
    for connection in list(transports[0]._table.connections):
        connection.link.close(1000, "again")
    await eventually(lambda: all(t.stats().active == 0 for t in transports), SLOW)


@pytest.mark.parametrize("zero_rtt", [False, True])
@pytest.mark.parametrize("scheme", ["", "quic://"])
async def test_the_second_dial_resumes(
    make: Make, handshakes: Handshakes, zero_rtt: bool, scheme: str
) -> None:
    server, box, address, _ = await serving(make)
    client = await make(zero_rtt=zero_rtt)
    for number in range(3):
        await client.send(scheme + address, task(number), timeout=SLOW)
        await hang_up(client, server)
    assert handshakes.resumed == [False, True, True]
    assert box.payloads == [0, 1, 2]
    assert client.stats().created == 3


async def test_tickets_of_pins_are_those_of_the_same_pins(
    make: Make, handshakes: Handshakes, certificate: Certificate, stranger: Certificate
) -> None:
    """A resumed connection shows no certificate: the one that came with the ticket counts."""
    server, _, address, _ = await serving(make, tls=stranger.serving(), backends=("quic",))
    client = await make(tls=openline.Tls(pins=(certificate.pin,)))
    await client.connect(address)  # a bare address is not held to pins, and brings a ticket
    await hang_up(client, server)
    for _ in range(2):
        with pytest.raises(openline.Refused, match="pin"):
            await client.connect(f"quic://{address}")
        await client.connect(address)
        await hang_up(client, server)


@pytest.mark.parametrize("zero_rtt", [False, True])
async def test_pins_hold_on_resumed_connections(
    make: Make, handshakes: Handshakes, certificate: Certificate, zero_rtt: bool
) -> None:
    server, box, address, _ = await serving(make, tls=certificate.serving())
    client = await make(tls=openline.Tls(pins=(certificate.pin,)), zero_rtt=zero_rtt)
    for number in range(2):
        await client.send(f"quic://{server.node_id}@{address}", task(number), timeout=SLOW)
        await hang_up(client, server)
    assert handshakes.resumed == [False, True]
    assert box.payloads == [0, 1]


@pytest.mark.parametrize("zero_rtt", [False, True])
async def test_the_server_has_started_again(make: Make, handshakes: Handshakes, zero_rtt: bool) -> None:
    """It knows no tickets: a full handshake, and what went early is sent again."""
    identity = openline.Identity()
    server, _, address, _ = await serving(make, identity=identity)
    client = await make(zero_rtt=zero_rtt)
    await client.send(address, task("one"), timeout=SLOW)
    await server.close()
    await eventually(lambda: client.stats().active == 0, SLOW)
    again = await make("again", identity=identity)
    box = Box(again)
    await again.listen(port_of(address), host="127.0.0.1")
    await client.send(f"quic://{address}", task("two"), timeout=SLOW)
    await hang_up(client, again)
    await client.send(f"quic://{address}", task("three"), timeout=SLOW)
    assert box.payloads == ["two", "three"]
    assert handshakes.resumed[-2:] == [False, True]


@pytest.mark.parametrize("zero_rtt", [False, True])
async def test_a_server_with_another_key_at_the_same_address(
    make: Make, handshakes: Handshakes, zero_rtt: bool
) -> None:
    server, _, address, _ = await serving(make)
    client = await make(zero_rtt=zero_rtt)
    wanted = f"quic://{server.node_id}@{address}"
    await client.connect(wanted)
    await server.close()
    await eventually(lambda: client.stats().active == 0, SLOW)
    other = await make("other")
    await other.listen(port_of(address), host="127.0.0.1")
    with pytest.raises(openline.Refused, match=other.node_id):
        await client.connect(wanted)


async def test_the_server_forgets_tickets(make: Make, handshakes: Handshakes) -> None:
    server, box, address, door = await serving(make)
    client = await make(zero_rtt=True)
    await client.connect(address)
    await hang_up(client, server)
    door.ports.shown.tickets._kept.clear()
    await client.send(address, task("hi"), timeout=SLOW)
    assert handshakes.resumed == [False, False]
    assert box.payloads == ["hi"]


async def test_tickets_are_bounded_on_both_sides(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from openline.backends.quic import tls as quictls

    monkeypatch.setattr(quictls, "SERVER_TICKETS", 3)
    monkeypatch.setattr(quictls, "CLIENT_TICKETS", 2)
    client = await make()
    for _ in range(3):
        server, _, address, door = await serving(make)
        for scheme in ("", "quic://"):
            await client.connect(scheme + address)
            await hang_up(client, server)
        assert len(door.ports.shown.tickets._kept) <= 3
    quic = next(backend for backend in client._node.backends.backends if backend.name == "quic")
    assert len(quic._parts.tickets._kept) == 2  # type: ignore[attr-defined]


# By hand --------------------------------------------------------------------------------------------


async def ticket_for(dial: Dial, port: int) -> SessionTicket:
    tickets: list[SessionTicket] = []
    client = await dial(port, Actor(), session_ticket_handler=tickets.append)
    await eventually(lambda: tickets)
    client.hang_up(1000)
    return tickets[0]


def early_client(port: int, ticket: SessionTicket) -> RawQuic:
    return RawQuic.begin(port, client_configuration(session_ticket=ticket))


async def test_a_ticket_opens_one_connection(make: Make, dial: Dial) -> None:
    _, box, address, _ = await serving(make)
    ticket = await ticket_for(dial, port_of(address))
    first = await dial(port_of(address), None, client_configuration(session_ticket=ticket))
    second = await dial(port_of(address), None, client_configuration(session_ticket=ticket))
    assert first.completed is not None
    assert second.completed is not None
    assert (first.completed.session_resumed, second.completed.session_resumed) == (True, False)
    await second.enter(Actor())
    second.post(task("in"))
    await eventually(lambda: box.payloads == ["in"])


async def test_early_datagrams_played_again_open_nothing(make: Make, dial: Dial) -> None:
    """Hello, and even a message, in 0-RTT; recorded and played again from elsewhere, now and later."""
    import socket

    server, box, address, door = await serving(make, handshake_timeout=1.0)
    port = port_of(address)
    ticket = await ticket_for(dial, port)
    await eventually(lambda: server.stats().active == 0)
    accepted = server.stats().accepted
    client, actor = early_client(port, ticket), Actor()
    mine = actor.hello(1)
    client.quic.connect(client.sock.getpeername(), time.monotonic())
    client.quic.send_stream_data(2, unit(HELLO, mine.encode()))
    client.actor = actor
    client.quic.send_stream_data(client.track(1), unit(0, client.numbered(task("early"))))
    client.transmit()
    recorded = list(client.sent)
    await client.handshake()
    assert client.completed is not None
    assert client.completed.early_data_accepted
    from openline.core.handshake import Transcript, split_proof

    kind, answer = await client.read(0)
    assert kind == HELLO
    # A resumed connection shows no certificate; the proofs are bound to the one of before.
    client.transcript = Transcript(mine, split_proof(answer.decode())[0], door.ports.shown.certificate)
    assert not box
    client.prove()
    await client.welcomed()
    await eventually(lambda: box.payloads == ["early"])

    attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    attacker.connect(("127.0.0.1", port))
    for data in recorded:  # while it lives
        attacker.send(data)
    client.post(task("marker"))
    await eventually(lambda: "marker" in box.payloads)
    client.hang_up(1000)
    await eventually(lambda: server.stats().active == 0)
    await eventually(lambda: not door.ports.connections, SLOW)
    before = server.stats().malformed
    for data in recorded:  # and when nothing is known of it any more
        attacker.send(data)
    await eventually(lambda: server.stats().pending_handshakes == 1)
    await eventually(lambda: server.stats().pending_handshakes == 0, SLOW)
    attacker.close()
    client.close()
    assert server.stats().accepted == accepted + 1
    assert box.payloads == ["early", "marker"]
    assert server.stats().malformed == before + 1


async def test_a_hello_goes_early_and_nothing_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the server has answered, a dialer has written one unit: its hello."""
    server, _, address, _ = await serving(make)
    client = await make(zero_rtt=True)
    await client.connect(address)
    await hang_up(client, server)
    written: list[tuple[bool, int]] = []
    original = QuicLink._write_unit

    def write(link: QuicLink, kind: int, buffer: bytearray, track: int) -> None:
        if link.endpoint.direction == "outbound":
            written.append((link._engine.core.established, kind))
        original(link, kind, buffer, track)

    monkeypatch.setattr(QuicLink, "_write_unit", write)
    await client.send(address, task("hi"), timeout=SLOW)
    assert written[0] == (False, HELLO)
    assert [kind for early, kind in written if not early and kind == HELLO] == [HELLO]
    assert all(established for established, kind in written if kind != HELLO)
