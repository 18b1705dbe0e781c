"""Floods and garbage at a listening UDP port: bounded memory, and an honest client gets in."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from typing import Any

import pytest
from qh3._hazmat import pull_quic_header
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicPacketType, encode_quic_version_negotiation

import openline
from openline.backends.quic import listener as quiclistener
from openline.backends.quic import ports as quicports
from openline.backends.quic import tls as quictls
from openline.backends.quic import udp
from openline.backends.quic.listener import RETRY_ABOVE, QuicListener
from openline.backends.quic.tls import RetryTokens

from ..transport.helpers import DEADLINE, Box, eventually, task
from ..transport.rawsocket import Actor
from .conftest import Dial, Make, Serve
from .rawquic import RawQuic, client_configuration

SLOW = 4 * DEADLINE


async def serving(
    make: Make, host: str = "127.0.0.1", **config: Any
) -> tuple[openline.Transport, Box, int, QuicListener]:
    t = await make("server", **config)
    box = Box(t)
    listener = await t.listen(0, host=host)
    door = next(door for backend, door in listener._acceptor._doors if backend.name == "quic")
    assert isinstance(door, QuicListener)
    return t, box, listener.port, door


def engines(door: QuicListener) -> int:
    return len(set(door.ports.connections.values()))


def first_packets() -> list[bytes]:
    """What a client begins with, as one that will never go on."""
    quic = QuicConnection(configuration=client_configuration())
    quic.connect(("127.0.0.1", 1), time.monotonic())
    return [data for data, _ in quic.datagrams_to_send(time.monotonic())]


def answers(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(65536))
        except (BlockingIOError, ConnectionRefusedError):
            return found


def plain_socket(port: int, ip: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((ip, 0))
    sock.connect(("127.0.0.1", port))
    return sock


async def marker(client: RawQuic, box: Box, text: str) -> None:
    """All that was sent before has come: one socket is read in order."""
    client.post(task(text))
    await eventually(lambda: text in box.payloads, SLOW)


async def test_a_flood_of_beginnings(make: Make, dial: Dial) -> None:
    """From made-up addresses, which never answer."""
    t, box, port, door = await serving(make, max_pending_handshakes=64)
    good = await dial(port, Actor())
    floods = [plain_socket(port, f"127.1.{number // 200}.{number % 200 + 1}") for number in range(150)]
    most = 0
    try:
        for number, flood in enumerate(floods):
            for data in first_packets():
                flood.send(data)
            if number % 10 == 9:
                await marker(good, box, f"marker {number}")
                most = max(most, engines(door))
        await marker(good, box, "all")
        assert t.stats().pending_handshakes <= 64
        assert most <= RETRY_ABOVE + 1  # and the good one
        # An honest one gets in meanwhile.
        late = await dial(port, Actor())
        await marker(late, box, "late")
        # Those beyond the threshold have been asked to come again with a token.
        kinds = {pull_quic_header(data, 0, 8)[1] for data in answers(floods[-1])}
        assert kinds == {int(QuicPacketType.RETRY)}
    finally:
        for flood in floods:
            flood.close()
    assert t.stats().active == 2


async def test_a_flood_that_shows_its_address(make: Make, dial: Dial) -> None:
    """Clients that answer the retry packet and then fall silent: the oldest make room, and are gone."""
    t, box, port, door = await serving(make, max_pending_handshakes=8)
    good = await dial(port, Actor())
    flood: list[RawQuic] = []
    for number in range(60):
        client = RawQuic.begin(port)
        client.start()
        flood.append(client)
        if number % 6 == 5:
            await marker(good, box, f"marker {number}")
            for silent in flood:
                silent.mute = True
    try:
        await eventually(lambda: t.stats().handshakes_evicted > 0, SLOW)
        await marker(good, box, "all")
        assert t.stats().pending_handshakes <= 8
        assert engines(door) <= 2 * 8 + 1, "engines of clients that were pushed out"
    finally:
        for client in flood:
            client.close()
    late = await dial(port, Actor())
    await marker(late, box, "late")


async def test_unfinished_handshakes_leave_nothing(make: Make, dial: Dial) -> None:
    t, box, port, door = await serving(make, handshake_timeout=0.3)
    flood = plain_socket(port)
    for _ in range(20):
        for data in first_packets():
            flood.send(data)
    await eventually(lambda: t.stats().pending_handshakes == 20)
    await eventually(lambda: t.stats().malformed == 20)
    flood.close()
    assert not door.handshakes
    await eventually(lambda: engines(door) == 0, SLOW)
    good = await dial(port, Actor())
    await marker(good, box, "in")


async def test_a_silent_client_is_sent_three_times_what_it_sent_at_most(make: Make) -> None:
    """RFC 9000 section 8.1: nobody is flooded by us with a made-up address."""
    t, _, port, _ = await serving(make, handshake_timeout=1.5)
    victim = plain_socket(port)
    sent = 0
    for data in first_packets():
        sent += victim.send(data)
    await eventually(lambda: t.stats().pending_handshakes == 1)
    await eventually(lambda: t.stats().pending_handshakes == 0)
    received = sum(map(len, answers(victim)))
    victim.close()
    assert received <= 3 * sent


async def test_the_first_datagram_is_large(make: Make) -> None:
    """RFC 9000 section 14.1, so that nothing is answered that is small."""
    t, _, port, door = await serving(make)
    sock = plain_socket(port)
    for data in first_packets():
        sock.send(data[:1199])
    tall = plain_socket(port)
    for data in first_packets():
        tall.send(data)
    await eventually(lambda: len(door.handshakes) == 1)
    assert answers(sock) == []
    assert t.stats().pending_handshakes == 1
    sock.close()
    tall.close()


# Versions -------------------------------------------------------------------------------------------


async def exchange(sock: socket.socket, good: RawQuic, box: Box, data: bytes) -> list[bytes]:
    sock.send(data)
    await marker(good, box, f"marker {len(box)}")
    return answers(sock)


async def test_unknown_versions_are_told_ours(make: Make, dial: Dial) -> None:
    t, box, port, _ = await serving(make)
    good, sock = await dial(port, Actor()), plain_socket(port)
    first = first_packets()[0]
    [answer] = await exchange(sock, good, box, first[:1] + b"\x0a\x0a\x0a\x0a" + first[5:])
    head, asked = pull_quic_header(answer, 0, 8), pull_quic_header(first, 0, 8)
    assert head[1] == int(QuicPacketType.VERSION_NEGOTIATION)
    assert (head[3], head[4]) == (asked[4], asked[3])
    assert t.stats().pending_handshakes == 0
    assert await exchange(sock, good, box, first[:1] + b"\x0a\x0a\x0a\x0a" + first[5:600]) == []
    sock.close()


async def test_a_version_negotiation_is_never_answered(make: Make, dial: Dial) -> None:
    """RFC 9000 section 6.1: or two listeners talk to each other for ever."""
    _, box, port, _ = await serving(make)
    good, sock = await dial(port, Actor()), plain_socket(port)
    packet = encode_quic_version_negotiation(
        source_cid=os.urandom(8), destination_cid=os.urandom(8), supported_versions=[1] * 400
    )
    assert len(packet) >= 1200
    assert await exchange(sock, good, box, packet) == []
    sock.close()


# Tokens ---------------------------------------------------------------------------------------------

HERE = ("10.0.0.1", 4000)
ELSEWHERE = [("10.0.0.2", 4000), ("10.0.0.1", 4001), ("::a00:1", 4000)]


def test_a_token_holds_what_went_in() -> None:
    tokens = RetryTokens()
    assert tokens.read(HERE, tokens.make(HERE, b"original", b"chosen!!")) == (b"original", b"chosen!!")
    long = bytes(range(20))
    assert tokens.read(HERE, tokens.make(HERE, long, b"")) == (long, b"")


@pytest.mark.parametrize("other", ELSEWHERE)
def test_a_token_of_another_address(other: tuple[str, int]) -> None:
    tokens = RetryTokens()
    with pytest.raises(ValueError, match="address"):
        tokens.read(other, tokens.make(HERE, b"original", b"chosen!!"))


def test_altered_cut_and_made_up_tokens() -> None:
    tokens = RetryTokens()
    good = tokens.make(HERE, b"original", b"chosen!!")
    bad = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
    bad += [good[:at] for at in range(len(good))] + [good + b"x", os.urandom(len(good)), b"", b"x"]
    bad.append(RetryTokens().make(HERE, b"original", b"chosen!!"))
    for token in bad:
        with pytest.raises(ValueError, match=r"not a token"):
            tokens.read(HERE, token)


def test_a_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = RetryTokens()
    assert tokens.read(HERE, tokens.make(HERE, b"original", b"chosen!!"))
    monkeypatch.setattr(quictls, "RETRY_LIFETIME", -0.001)
    token = tokens.make(HERE, b"original", b"chosen!!")
    with pytest.raises(ValueError, match="expired"):
        tokens.read(HERE, token)


class Tokened(RawQuic):
    """A client that comes with a token of its own choice."""

    def start_with(self, token: bytes) -> None:
        self.quic.connect(self.sock.getpeername(), time.monotonic())
        assert self.quic._core is not None
        self.quic._core.set_initial_token(token)
        self.transmit()


async def test_a_wary_door_takes_no_other_token(
    make: Make, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, box, port, door = await serving(make)
    monkeypatch.setattr(quiclistener, "RETRY_ABOVE", 0)
    good = await dial(port, Actor())  # by way of a retry packet
    assert good.quic._retry_count == 1
    sock = plain_socket(port)
    [retry] = await exchange(sock, good, box, first_packets()[0])
    token = pull_quic_header(retry, 0, 8)[5]
    stolen = Tokened.begin(port)
    stolen.start_with(token)  # from another port
    for other in (token[:-1], b"\x00" * len(token), b"x"):
        made_up = Tokened.begin(port)
        made_up.start_with(other)
        await marker(good, box, f"marker {len(box)}")
        made_up.close()
    assert (t.stats().pending_handshakes, engines(door)) == (0, 1)
    stolen.close()
    sock.close()


async def test_an_openline_dialer_gets_in_by_way_of_a_retry_packet(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: also with a ticket, and with its hello in the first packet."""
    _, box, port, _ = await serving(make)
    monkeypatch.setattr(quiclistener, "RETRY_ABOVE", 0)
    client = await make(zero_rtt=True)
    for number in range(3):
        await client.send(f"quic://127.0.0.1:{port}", task(number), timeout=SLOW)
        for connection in list(client._table.connections):
            connection.link.close(1000, "again")
        await eventually(lambda: client.stats().active == 0)
    assert box.payloads == [0, 1, 2]


# Garbage --------------------------------------------------------------------------------------------


def garbage(seed: int, like: list[bytes]) -> bytes:
    rnd = random.Random(seed)
    what = rnd.randrange(5)
    if what == 0:
        return rnd.randbytes(rnd.randint(1, 1500))
    if what == 1:  # a long header, and nonsense
        return bytes([0xC0 | rnd.randrange(64)]) + b"\x00\x00\x00\x01" + rnd.randbytes(rnd.randint(0, 1400))
    data = bytearray(rnd.choice(like))
    if what == 2:
        for _ in range(rnd.randint(1, 8)):
            data[rnd.randrange(len(data))] = rnd.randrange(256)
    elif what == 3:
        del data[rnd.randint(1, len(data)) :]
    else:
        data += rnd.randbytes(rnd.randint(1, 200))
    return bytes(data)


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_to_a_listener(
    make: Make, dial: Dial, problems: list[dict[str, Any]], seed: int
) -> None:
    t, box, port, _ = await serving(make, handshake_timeout=0.5)
    good = await dial(port, Actor())
    await marker(good, box, "before")
    sock = plain_socket(port)
    like = [*first_packets(), *good.sent]
    for number in range(300):
        data = garbage(seed * 1000 + number, like)
        sock.send(data[:1500])
        if number % 50 == 49:
            await marker(good, box, f"marker {number}")
    for size in range(40):
        sock.send(bytes([0xC3]) + b"\x00\x00\x00\x01" + bytes(size))
        sock.send(bytes(size))
    await marker(good, box, "after")
    await eventually(lambda: t.stats().pending_handshakes == 0, SLOW)
    sock.close()
    assert not problems, [problem.get("exception") for problem in problems]
    assert t.stats().active == 1
    late = await dial(port, Actor())
    await marker(late, box, "late")


@pytest.mark.parametrize("seed", range(2))
async def test_garbage_from_the_servers_address_to_a_dialer(
    make: Make, listen: Serve, problems: list[dict[str, Any]], seed: int
) -> None:
    t, server = await make(), listen()
    first = asyncio.ensure_future(t.send(server.url, task("hi"), timeout=SLOW))
    end = await server.accept()
    await end.takes(first)
    addr = next(iter(server._by_addr))
    for number in range(300):
        server.sock.sendto(garbage(seed * 1000 + number, end.sent)[:1500], addr)
        if number % 50 == 49:
            await end.takes(t.send(server.url, task(number), timeout=SLOW))
    assert not problems, [problem.get("exception") for problem in problems]
    assert (t.stats().active, t.stats().created, t.stats().malformed) == (1, 1, 0)


async def test_datagrams_played_again_change_nothing(make: Make, dial: Dial) -> None:
    t, box, port, _ = await serving(make)
    good = await dial(port, Actor())
    await marker(good, box, "one")
    recorded, sock = list(good.sent), plain_socket(port)
    for data in recorded * 3:
        sock.send(data)
        good.sock.send(data)
    await marker(good, box, "two")
    await eventually(lambda: t.stats().active == 1)
    assert box.payloads == ["one", "two"]
    assert t.stats().malformed == 0
    # Nor does it lead our packets to the one who plays them.
    assert t._table.connections
    assert next(iter(t._table.connections)).endpoint.port == good.port
    sock.close()


async def test_a_socket_opened_later_for_one_address_takes_nothing_from_those_who_are_here(
    make: Make, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener on all addresses finds a new one of this host; a connection to it goes on."""
    real = udp.local_addresses
    monkeypatch.setattr(quicports, "local_addresses", lambda family: set())
    t, box, port, door = await serving(make, host="0.0.0.0")
    good = await dial(port, Actor())
    await marker(good, box, "before")
    monkeypatch.setattr(quicports, "local_addresses", real)
    await door.ports.look_around()
    assert len(door.ports.sockets) > 1
    await marker(good, box, "after")
    assert t.stats().active == 1


async def test_a_listener_on_all_addresses_answers_from_the_one_that_was_dialed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for a second address of this host; what the system prefers is 127.0.0.1."""
    real = udp.local_addresses
    monkeypatch.setattr(
        quicports,
        "local_addresses",
        lambda family: {*real(family), *(["127.0.0.2"] if family == socket.AF_INET else [])},
    )
    t, _, port, _ = await serving(make, host="0.0.0.0")
    client = await make(dial_timeout=2.0)
    await client.connect(f"quic://127.0.0.2:{port}")
    assert t.stats().active == 1
