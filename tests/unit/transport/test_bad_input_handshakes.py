"""Bad handshakes cost their own connection, are counted, and are logged once (rule 3.6)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from typing import Any

import pytest
import websockets

import openline
from openline.core.handshake import HEADER, REFUSED_HEADER, with_proof

from ..clock import hurry
from .attacks import BREACHES, BUSY, NOT_FRAMES, Node, warnings_in
from .certificates import Certificate
from .conftest import Make, Open, attacked
from .floods import connect_many
from .helpers import Box, again, eventually, port_of, serve, task, within
from .rawsocket import NODE, Actor, Raw, RawServer
from .wire import BINARY, TEXT, frame, plain, switching, upgrade


async def answer(port: int, request: bytes) -> bytes:
    client = await Raw.tcp(port)
    await client.send(request)
    said = await within(client.gone(), 2.0)
    client.close()
    return said


@pytest.mark.parametrize("path", ["/", "/index.html", "/status?x=1"])
async def test_plain_http_gets_an_http_answer_and_is_counted(node: Node, path: str) -> None:
    said = await answer(node.port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 4")
    await eventually(lambda: node.malformed == 1, 1.0)


NOT_UPGRADES = {
    "http post": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "no key": upgrade().replace(b"Sec-WebSocket-Key", b"X-Key"),
    "wrong version": upgrade().replace(b"Version: 13", b"Version: 8"),
    "wrong upgrade": upgrade().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "a long header": upgrade({"X-Long": "x" * 100_000}),
    "very many headers": upgrade({f"X-{n}": "x" for n in range(5000)}),
    "binary header": upgrade().replace(b"Host: 127.0.0.1", b"Host: \xff\xfe\x00\x01"),
    "no colon": upgrade().replace(b"Host: 127.0.0.1", b"Host 127.0.0.1"),
    "empty lines": b"\r\n" * 100,
}


@pytest.mark.parametrize("name", sorted(NOT_UPGRADES))
async def test_what_is_no_upgrade_never_becomes_a_connection(
    node: Node, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Raw.tcp(node.port)
    await client.send(NOT_UPGRADES[name])
    said = await within(client.gone(), 2.0)
    client.close()
    assert b" 101 " not in said
    await eventually(lambda: node.t.stats().pending_handshakes == 0)
    assert node.t.stats().accepted == 2
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await eventually(lambda: node.malformed == 1, 1.0)


UPGRADES = {
    "several connection tokens": upgrade().replace(
        b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"
    ),
    "other case": upgrade().replace(b"Upgrade: websocket", b"UPGRADE: WebSocket").replace(b"Sec-", b"sec-"),
    "a path": upgrade().replace(b"GET / ", b"GET /agents/7?token=x "),
    "a subprotocol": upgrade({"Sec-WebSocket-Protocol": "chat"}),
    "a browser's headers": upgrade(
        {"Origin": "http://127.0.0.1:8000", "Cookie": "a=b", "User-Agent": "x" * 500}
    ),
}


@pytest.mark.parametrize("name", sorted(UPGRADES))
async def test_honest_forms_of_the_upgrade_are_accepted(node: Node, name: str) -> None:
    client = await Raw.tcp(node.port)
    await client.send(UPGRADES[name])
    head = await client.head()
    assert " 101 " in head
    assert "Sec-WebSocket-Protocol" not in head
    await client.say("hi")
    await eventually(lambda: node.box.payloads == ["hi"])
    client.close()


async def test_an_upgrade_that_comes_in_pieces_is_accepted(node: Node) -> None:
    client = await Raw.tcp(node.port)
    request = upgrade() + frame(TEXT, plain("right behind"))
    for start in range(0, len(request), 20):
        await client.send(request[start : start + 20])
        await asyncio.sleep(0)
    await eventually(lambda: node.box.payloads == ["right behind"])
    client.close()


GOOD_HELLO = f"1; node={NODE}; nonce={'n' * 32}; instance={'i' * 22}; dial=1"

NOT_HELLOS = {
    "empty": "",
    "another version": GOOD_HELLO.replace("1;", "2;", 1),
    "no node": GOOD_HELLO.replace("node=", "edon="),
    "a short node": GOOD_HELLO.replace(NODE, "abc"),
    "an upper-case node": GOOD_HELLO.replace(NODE, NODE.upper()),
    "a node in another spelling": GOOD_HELLO.replace(NODE, NODE[:-1] + ("b" if NODE[-1] == "a" else "r")),
    "no nonce": GOOD_HELLO.replace("nonce=", "once="),
    "a short nonce": GOOD_HELLO.replace("n" * 32, "n"),
    "no instance": GOOD_HELLO.replace("instance=", "class="),
    "a short instance": GOOD_HELLO.replace("i" * 22, "i"),
    "a dial in words": GOOD_HELLO.replace("dial=1", "dial=first"),
    "a dial too high": GOOD_HELLO.replace("dial=1", "dial=" + "9" * 17),
    "a port too high": f"{GOOD_HELLO}; listen=70000",
    "port zero": f"{GOOD_HELLO}; listen=0",
    "ports in words": f"{GOOD_HELLO}; listen=http",
    "too many ports": f"{GOOD_HELLO}; listen=" + ",".join(map(str, range(1, 100))),
    "too many capabilities": f"{GOOD_HELLO}; caps=" + ",".join(map(str, range(100))),
    "a capability too long": f"{GOOD_HELLO}; caps={'c' * 33}",
    "far too long": f"{GOOD_HELLO}; name={'x' * 5000}",
}


async def test_the_hello_that_those_below_differ_from_is_answered(node: Node, raw: Open) -> None:
    client = await Raw.tcp(node.port)
    await client.send(upgrade({HEADER: GOOD_HELLO}))
    assert " 101 " in await client.head()
    client.close()


@pytest.mark.parametrize("name", sorted(NOT_HELLOS))
async def test_an_invalid_hello_is_turned_away_counted_and_logged_once(
    node: Node, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Raw.tcp(node.port)
    await client.send(upgrade({"Openline-Hello": NOT_HELLOS[name]}))
    said = await within(client.gone(), 2.0)
    client.close()
    assert said.startswith(b"HTTP/1.1 4")
    await eventually(lambda: node.malformed == 1, 1.0)
    assert node.t.stats().accepted == 2
    [line] = warnings_in(caplog)
    assert str(client.port) in line


async def test_an_invalid_hello_of_a_server_is_unreachable_with_the_reason(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    server = await raw_server.accept({HEADER: with_proof("1; node=abc", b"s" * 64)})
    with pytest.raises(openline.Unreachable, match="hello without a valid node id"):
        await within(sending)
    assert b"secret" not in await server.gone()
    assert t.stats().active == 0


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno entry",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"",
    ],
    ids=["404", "200", "no accept key", "ssh", "garbage", "nothing"],
)
async def test_a_server_that_does_not_upgrade_is_unreachable(
    make: Make, raw_server: RawServer, said: bytes
) -> None:
    t = await make(dial_timeout=1.0)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    await server.head()
    await server.send(said)
    server.close()
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(sending)
    assert (t.stats().active, t.stats().created) == (0, 0)


async def test_a_page_of_another_site_is_turned_away(
    make: Make, plain_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    t, good = await make(), await make(origins=("https://good.example",))
    port, other = port_of(await serve(t)), port_of(await serve(good))
    with pytest.raises(websockets.InvalidStatus, match="403"):
        await plain_client(port, origin="https://evil.example")
    assert "evil.example" in caplog.text
    for where, origin in ((port, None), (port, f"http://127.0.0.1:{other}"), (other, "https://good.example")):
        await plain_client(where, origin=origin)
    assert (len(t.peers()), len(good.peers()), t.stats().malformed) == (2, 1, 1)


async def test_a_servers_first_message_may_come_with_its_answer(make: Make, raw_server: RawServer) -> None:
    t = await make()
    box = Box(t)
    dialing = asyncio.ensure_future(t.connect(raw_server.address))
    server = await raw_server.tcp()
    server.request = await server.head()
    actor = Actor(raw_server.port)
    answer, _ = server.answered(actor)
    # HTTP has no case in the names of headers.
    answer = answer.replace(HEADER.encode(), HEADER.lower().encode()).replace(b"Upgrade", b"UPGRADE")
    await server.send(answer + frame(BINARY, server.numbered(task("first")), mask=False))
    peer = await within(dialing)
    await eventually(lambda: box.payloads == ["first"])
    assert box.peers == [peer]
    assert peer.node_id == actor.node_id


async def test_a_plain_servers_first_message_may_come_with_its_answer(
    make: Make, raw_server: RawServer
) -> None:
    t = await make()
    box = Box(t)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    answer = switching(await server.head())
    await server.send(answer + frame(TEXT, plain("first"), mask=False))
    assert (await within(sending)).attempts == 1
    await eventually(lambda: box.payloads == ["first"])


async def refused(make: Make, server: RawServer, status: str, headers: str = "") -> openline.Error:
    """What a send raises where the server answers the upgrade with ``status``."""
    t = await make()
    sending = asyncio.ensure_future(t.send(server.address, task()))
    client = await server.tcp()
    await client.head()
    await client.send(f"HTTP/1.1 {status}\r\n{headers}Content-Length: 8\r\n\r\nno entry".encode())
    with pytest.raises(openline.Error, match=rf"{server.address}.*no entry") as caught:
        await within(sending)
    assert t.stats().active == 0
    return caught.value


@pytest.mark.parametrize("status", ["403 Forbidden", "409 Conflict", "503 Service Unavailable"])
async def test_a_refused_upgrade_shows_what_the_server_said(
    make: Make, raw_server: RawServer, status: str
) -> None:
    error = await refused(make, raw_server, status)
    assert isinstance(error, openline.Unreachable)
    assert status[:3] in str(error)


@pytest.mark.parametrize(
    ("status", "kind"), [("403 Forbidden", openline.Refused), ("409 Conflict", openline.IdentityConflict)]
)
async def test_a_refusal_by_an_openline_node_is_told_from_a_web_servers(
    make: Make, raw_server: RawServer, status: str, kind: type[openline.Error]
) -> None:
    error = await refused(make, raw_server, status, f"{REFUSED_HEADER}: 1\r\n")
    assert type(error) is kind


async def test_a_server_that_never_stops_its_head_is_unreachable(make: Make, raw_server: RawServer) -> None:
    t = await make(dial_timeout=0.5)
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    server = await raw_server.tcp()
    await server.head()
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    with pytest.raises(ConnectionError):
        await again(100_000, lambda number: server.send(f"X-{number}: {'x' * 1000}\r\n".encode()))
    with pytest.raises(openline.Unreachable):
        await within(sending)


async def test_an_unfinished_handshake_is_cut_and_counted(node: Node) -> None:
    clients = [await Raw.tcp(node.port) for _ in range(3)]
    await clients[1].send(b"GET / HT")
    await clients[2].send(upgrade()[:-2])
    for client in clients:
        await within(client.gone(), 2.0)
        client.close()
    await eventually(lambda: node.t.stats().pending_handshakes == 0)
    assert node.malformed == 3


async def test_a_slow_loris_is_cut_although_it_always_says_a_little_more(node: Node) -> None:
    client = await Raw.tcp(node.port)
    request = upgrade({"X": "y" * 1000})
    with hurry() as passed, pytest.raises(ConnectionError):
        await again(len(request), lambda number: client.send(request[number : number + 1]), pause=0.02)
    assert passed() < 2.0
    client.close()


def files_allowed() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


needs_files = pytest.mark.skipif(files_allowed() < 5000, reason="needs 5,000 file descriptors")


@needs_files
@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n"], ids=["silent", "begun"])
async def test_2000_half_open_handshakes_do_not_stop_the_listener(
    make: Make, raw: Open, first: bytes
) -> None:
    node = await attacked(make, raw, handshake_timeout=3.0, max_pending_handshakes=64)
    flooders = await connect_many(node.port, 2000, first)
    try:
        await eventually(lambda: node.t.stats().handshakes_evicted > 0)
        await node.still_serves()
        await eventually(lambda: node.t.stats().handshakes_evicted >= 2000 - 64 - 1)
        assert node.t.stats().pending_handshakes <= 64
        await node.still_serves()
    finally:
        for sock in flooders:
            sock.close()


@needs_files
async def test_2000_half_open_tls_handshakes_do_not_stop_the_listener(
    make: Make, certificate: Certificate
) -> None:
    t = await make(tls=certificate.serving(), max_pending_handshakes=64)
    box = Box(t)
    address = await serve(t)
    honest = await make(tls=openline.Tls(ca=certificate.cert))
    await honest.send(f"wss://{address}", task("before"))
    flooders = await connect_many(port_of(address), 2000, b"\x16\x03\x01\x02\x00")
    try:
        await within(honest.send(f"wss://{address}", task("open")), 1.0)
        # While a burst is being accepted, a handshake of several turns of the loop may be pushed out.
        await eventually(lambda: t.stats().handshakes_evicted >= 2000 - 64 - 1)
        assert t.stats().pending_handshakes <= 64
        new = await make(tls=openline.Tls(ca=certificate.cert))
        await within(new.send(f"wss://{address}", task("new")))
        await eventually(lambda: box.payloads == ["before", "open", "new"])
    finally:
        for sock in flooders:
            sock.close()


@needs_files
async def test_the_number_of_pending_handshakes_never_exceeds_its_limit(make: Make) -> None:
    """Also while a burst is being accepted in one turn of the loop."""
    t = await make(max_pending_handshakes=32)
    port = port_of(await serve(t))
    most = 0
    watching = True

    async def watch() -> None:
        nonlocal most
        while watching:
            most = max(most, t.stats().pending_handshakes)
            await asyncio.sleep(0)

    task_ = asyncio.ensure_future(watch())
    flooders = await connect_many(port, 1000)
    await eventually(lambda: t.stats().handshakes_evicted >= 1000 - 33)
    watching = False
    await task_
    for sock in flooders:
        sock.close()
    assert most <= 32


async def test_a_burst_of_connects_does_not_hold_up_the_loop(make: Make) -> None:
    """They are not all accepted in one turn, in which nothing else would happen."""
    t = await make(max_pending_handshakes=1000)
    flooders = await connect_many(port_of(await serve(t)), 900, at_once=True)
    most = before = 0
    while t.stats().pending_handshakes < 900:
        await asyncio.sleep(0)
        most = max(most, t.stats().pending_handshakes - before)
        before = t.stats().pending_handshakes
    for sock in flooders:
        sock.close()
    assert most <= 300


async def test_many_bad_peers_at_once_do_not_disturb_a_good_one(node: Node) -> None:
    async def bad(number: int) -> None:
        attacks = [*BREACHES.values(), *(frame(BINARY, data) for data in NOT_FRAMES.values())]
        client = await Raw.connect(node.port, Actor(9) if number % 2 else None)
        await client.send(attacks[number % len(attacks)])
        await asyncio.sleep(0.01)
        client.close()

    async def good() -> None:
        for _ in range(20):
            await node.still_serves()

    await within(asyncio.gather(good(), *(bad(number) for number in range(150))), BUSY)
    await eventually(lambda: node.t.stats().active == 2)


async def test_a_hello_is_shown_without_control_characters(make: Make, raw: Open) -> None:
    t = await make()
    box = Box(t)
    peer = await raw(port_of(await serve(t)), Actor(9, name="\x1b[31mred\r\n"))
    await peer.post(task())
    await eventually(lambda: box)
    assert box.peers[0].name == "[31mred"
    assert json.dumps(box.peers[0].name).count("\\") == 0
    assert os.linesep not in repr(box.peers[0])
