"""Somebody with a node's key who repeats the instance of its process (rules 3.3 and 3.6)."""

from __future__ import annotations

import asyncio
import logging

import pytest

import openline
from openline.core.handshake import SIGNATURE_BYTES, Hello, split_proof, with_proof
from openline.peers import paths

from ..clock import elapse
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import HELLO, Middle, answer, between, nothing, proof_frame, settled, speak, with_hello
from .rawsocket import Actor, Raw, RawServer
from .thief import FORGED, Thief
from .wire import BINARY, header

CONFLICT = 4002
OLD_INSTANCE = "o" * 22


@pytest.fixture(params=["websocket", "quic"])
def scheme(request: pytest.FixtureRequest) -> str:
    """How the genuine process is connected."""
    return {"websocket": "ws://", "quic": "quic://"}[request.param]


class Scene:
    """A node that somebody has stolen the key of, and one that it is connected to."""

    def __init__(self, genuine: openline.Transport, server: openline.Transport, address: str) -> None:
        self.genuine = genuine
        self.server = server
        self.address = address
        self.identity: openline.Identity = genuine._node.door.identity
        self.at_genuine, self.at_server = Box(genuine), Box(server)

    @property
    def process(self) -> Hello:
        """What anybody on the way can read of the genuine process."""
        said = between(self.server, self.genuine)[0].endpoint.hello
        assert said is not None
        return said

    def thief(self, how: str) -> Thief:
        return Thief(self.identity, self.process, FORGED[how])

    async def undisturbed(self, conflicts: int) -> None:
        """The thief was noticed, and the genuine one has noticed nothing."""
        await eventually(lambda: self.server.stats().conflicts == conflicts)
        created = self.genuine.stats().created
        for number in range(3):
            receipt = await within(self.genuine.send(self.server.node_id, task(number)))
            assert (receipt.acked, receipt.attempts) == (True, 1)
            receipt = await within(self.server.send(self.genuine.node_id, task(number)))
            assert (receipt.acked, receipt.attempts) == (True, 1)
        assert self.at_genuine.payloads[-3:] == self.at_server.payloads[-3:] == [0, 1, 2]
        assert (self.genuine.stats().created, self.genuine.stats().conflicts) == (created, 0)
        assert len(between(self.server, self.genuine)) == 1
        assert self.server.stats().conflicts == conflicts


@pytest.fixture
async def scene(make: Make, scheme: str) -> Scene:
    genuine, server = await make("genuine"), await make("server")
    address = await serve(server)
    await genuine.send(scheme + address, task("hello"))
    await server.send(genuine.node_id, task("hello"))
    return Scene(genuine, server, address)


# He dials -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", FORGED)
async def test_a_thief_who_dials_is_turned_away(scene: Scene, how: str) -> None:
    before = between(scene.server, scene.genuine)
    raw = await Raw.tcp(port_of(scene.address))
    thief = scene.thief(how)
    transcript = await raw.greet(thief)
    await raw.frame(BINARY, thief.prove(transcript, [before[0].endpoint.connection_id]))
    await raw.post(task("forged"))
    assert await within(raw.closed()) == CONFLICT
    raw.close()
    await scene.undisturbed(conflicts=1)
    assert between(scene.server, scene.genuine) == before
    assert "forged" not in scene.at_server.payloads


async def test_a_thief_who_tries_again_and_again_is_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        raw = await Raw.tcp(port_of(scene.address))
        thief = scene.thief("and noise")
        await raw.frame(BINARY, thief.prove(await raw.greet(thief)))
        assert await within(raw.closed()) == CONFLICT
        raw.close()
    await scene.undisturbed(conflicts=20)
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([text for text in said if scene.genuine.node_id in text]) == 1, said


async def test_a_thief_gets_nothing_while_the_genuine_process_is_away(
    make: Make, scene: Scene, scheme: str
) -> None:
    """What is under way to it waits for it."""
    server, genuine = scene.server, scene.genuine
    thief = scene.thief("the node's signature alone")
    for connection in list(genuine._table.connections):
        connection.link.abort()
    await eventually(lambda: not between(server, genuine))
    raw = await Raw.tcp(port_of(scene.address))
    sending = asyncio.ensure_future(server.send(genuine.node_id, task("for the genuine one")))
    await raw.frame(BINARY, thief.prove(await raw.greet(thief)))
    assert await within(raw.closed()) == CONFLICT
    raw.close()
    assert not between(server, genuine)
    await nothing(within(sending))  # nobody could be reached
    await within(genuine.send(scheme + scene.address, task("back")))
    assert scene.at_server.payloads[-1] == "back"
    await scene.undisturbed(conflicts=1)


async def test_a_thief_who_came_first_is_cut_when_the_genuine_process_comes(make: Make, scheme: str) -> None:
    server, genuine = await make("server"), await make("genuine")
    box, address = Box(genuine), await serve(server)
    identity: openline.Identity = genuine._node.door.identity
    process = Hello(genuine.node_id, "", instance=genuine._node.door.instance)
    raw = await Raw.connect(port_of(address), Thief(identity, process))
    await raw.post(task("as if he were"))
    await eventually(lambda: server.stats().accepted == 1)
    waiting = asyncio.ensure_future(server.send(genuine.node_id, task("under way")))
    await within(raw.decoded())  # which he does not acknowledge
    await genuine.connect(scheme + address)
    assert await within(raw.closed()) == CONFLICT
    assert (await within(waiting)).acked
    assert box.payloads == ["under way"]
    assert (server.stats().conflicts, len(between(server, genuine))) == (1, 1)
    again = await Raw.tcp(port_of(address))
    thief = Thief(identity, process)
    await again.frame(BINARY, thief.prove(await again.greet(thief)))
    assert await within(again.closed()) == CONFLICT
    assert (genuine.stats().created, genuine.stats().active) == (1, 1)
    raw.close()
    again.close()


async def test_a_thief_who_dials_the_genuine_process_in_its_own_name(make: Make) -> None:
    t = await make()
    box, address = Box(t), await serve(t)
    process = Hello(t.node_id, "", instance=t._node.door.instance)
    for extra in FORGED.values():
        raw = await Raw.tcp(port_of(address))
        thief = Thief(t._node.door.identity, process, extra)
        await raw.frame(BINARY, thief.prove(await raw.greet(thief)))
        assert await within(raw.closed()) == CONFLICT
        raw.close()
    assert (t.stats().conflicts, t.stats().accepted, t.peers(), list(box)) == (len(FORGED), 0, [], [])
    await t.send(address, task("to myself"))
    assert box.payloads == ["to myself"]


async def test_a_proof_of_the_instance_is_good_for_one_connection(
    scene: Scene, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the genuine process has signed for one connection is recorded, and shown on another."""
    if scheme != "ws://":
        pytest.skip("nobody on the way can read it there")
    monkeypatch.setattr(paths, "DRAIN_GRACE", 0.05)
    async with Middle(port_of(scene.address)) as middle:
        await scene.genuine.connect(f"ws://{middle.address}")
        await eventually(lambda: middle.said)
    # A header of 4 bytes, the mask; then kind, array of two, bin8 header and two signatures.
    mask = middle.said[4:8]
    plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(middle.said[8:]))
    recorded = plain[1 + 1 + 2 + 64 : 1 + 1 + 2 + 128]
    assert len(recorded) == 64
    await scene.genuine.send(scheme + scene.address, task("without him"))
    await eventually(lambda: settled(scene.genuine, scene.server))
    thief = Thief(scene.identity, scene.process, lambda data: recorded)
    raw = await Raw.tcp(port_of(scene.address))
    await raw.frame(BINARY, thief.prove(await raw.greet(thief)))
    assert await within(raw.closed()) == CONFLICT
    raw.close()
    await scene.undisturbed(conflicts=1)


# He listens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", FORGED)
async def test_a_thief_who_is_dialed_gets_nothing(scene: Scene, raw_server: RawServer, how: str) -> None:
    before = between(scene.server, scene.genuine)
    thief = scene.thief(how)
    sending = asyncio.ensure_future(scene.server.send(f"ws://{raw_server.address}", task("secret")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    mine = thief.hello()
    theirs = header(raw.request, HELLO)
    transcript = raw._introduced(thief, theirs, mine, theirs)
    await answer(raw, with_proof(mine, thief.proof(transcript, "server")))
    error = await nothing(within(sending))
    assert isinstance(error, openline.IdentityConflict), repr(error)
    assert "nothing was sent" in str(error)
    assert b"secret" not in await within(raw.gone())
    await scene.undisturbed(conflicts=1)
    assert between(scene.server, scene.genuine) == before


# What is no theft -----------------------------------------------------------------------------------


async def test_half_a_proof_is_a_wrong_one_where_the_hello_says_that_there_are_two(make: Make) -> None:
    """Nobody on the way can make a process into one that proves nothing."""
    server, client = await make("server"), await make("client")
    address = await serve(server)

    def cut(value: str) -> str:
        hello, proof = split_proof(value)
        return with_proof(hello, proof[:SIGNATURE_BYTES])

    async with Middle(port_of(address), response=with_hello(cut)) as middle:
        error = await nothing(client.connect(f"ws://{middle.address}"))
    assert isinstance(error, openline.Refused), repr(error)
    raw = await Raw.tcp(port_of(address))
    actor = Actor()
    own = actor.hello(1).replace("; dial=1", "; dial=1; caps=instance")
    said = await speak(raw, actor, own)
    await raw.frame(BINARY, proof_frame(said.proof()))
    await within(raw.gone())
    raw.close()
    assert (server.stats().accepted, server.stats().conflicts, client.stats().conflicts) == (0, 0, 0)


async def test_connections_of_one_process_are_one_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "DRAIN_GRACE", 0.05)
    server, client = await make("server"), await make("client")
    address = await serve(server)
    box = Box(server)
    for number in range(3):
        await client._node.backends.dial(openline.Address.parse(f"ws://{address}"))
        await client.send(address, task(number))
    await eventually(lambda: len(between(server, client)) == len(between(client, server)) == 1)
    assert box.payloads == [0, 1, 2]
    assert (server.stats().conflicts, client.stats().conflicts) == (0, 0)


# Processes that cannot prove themselves -------------------------------------------------------------


def old(identity: openline.Identity) -> Actor:
    actor = Actor(identity=identity)
    actor.instance = OLD_INSTANCE
    return actor


async def test_a_copy_of_a_process_that_proves_no_instance_is_found_by_its_dial_number(
    make: Make, raw: Open
) -> None:
    server, identity = await make("server"), openline.Identity()
    address = await serve(server)
    ends = [await raw(port_of(address), old(identity)) for _ in range(2)]
    ended = [asyncio.ensure_future(within(end.closed())) for end in ends]
    assert [await end for end in ended] == [CONFLICT, CONFLICT]
    assert server.stats().conflicts == 1


async def test_two_connections_of_a_process_that_proves_no_instance_are_no_conflict(
    make: Make, raw: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "DRAIN_GRACE", 0.05)
    server, actor = await make("server"), old(openline.Identity())
    address = await serve(server)
    first, second = await raw(port_of(address), actor), await raw(port_of(address), actor)
    reading = asyncio.ensure_future(first.whole())
    await second.post(task("in"))
    await eventually(lambda: server.stats().messages_received == 1)
    await elapse(0.1)
    assert server.stats().conflicts == 0
    reading.cancel()


async def test_who_has_another_instance_that_it_proves_is_another_process(make: Make) -> None:
    """Nobody can tell which of them is genuine: both are told."""
    identity = openline.Identity()
    server = await make("server")
    address = await serve(server)
    one, other = await make("one", identity=identity), await make("other", identity=identity)
    await one.connect(address)
    await other.connect(address)
    await eventually(lambda: server.stats().conflicts == 1)
    await eventually(lambda: one.stats().conflicts == other.stats().conflicts == 1)
