"""How many connections strangers may have, and who makes room (rule 3.10)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

import openline
from openline.backends import descriptors
from openline.peers import limits

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .rawsocket import Actor, Raw, two_identities
from .wire import upgrade

MOST = 20


class Crowd:
    """Raw clients from addresses of the loopback network."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.inside: list[Raw] = []
        self.answers: list[str] = []

    async def come(self, ip: str, who: Actor | None = None) -> Raw | None:
        raw = await self.tcp(ip)
        try:
            if who is not None:
                await raw.enter(who)
            else:
                await raw.send(upgrade(None))
                head = await raw.head()
                if " 101 " not in head:
                    self.answers.append(head)
                    raw.close()
                    return None
        except (AssertionError, EOFError, ConnectionError) as error:
            self.answers.append(str(error))
            raw.close()
            return None
        self.inside.append(raw)
        return raw

    async def tcp(self, ip: str) -> Raw:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((ip, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return Raw(sock, client=True)

    def close(self) -> None:
        for raw in self.inside:
            raw.close()


@pytest.fixture
async def crowd_at() -> AsyncIterator[Any]:
    crowds: list[Crowd] = []

    def made(address: str) -> Crowd:
        crowds.append(Crowd(port_of(address)))
        return crowds[-1]

    yield made
    for crowd in crowds:
        crowd.close()


async def test_one_place_may_not_take_all(make: Make, crowd_at: Any) -> None:
    t = await make("node", max_strangers=MOST)
    crowd = crowd_at(await serve(t))
    for _ in range(MOST + 10):
        await crowd.come("127.0.0.2")
    assert t.stats().active == MOST
    assert t.stats().turned_away == 10
    assert all(" 503 " in answer and "Retry-After" in answer for answer in crowd.answers)
    for ip in ("127.0.0.3", "127.0.0.4", "127.0.0.3"):
        assert await crowd.come(ip) is not None
    assert await crowd.come("127.0.0.4", Actor()) is not None
    await eventually(lambda: t.stats().active == MOST)
    ips = [connection.endpoint.ip for connection in t._table.connections]
    assert sorted(ips)[-4:] == ["127.0.0.3", "127.0.0.3", "127.0.0.4", "127.0.0.4"]
    assert t.stats().crowded_out == 4
    assert t.stats().malformed == 0


async def test_of_the_same_place_one_that_proves_itself_takes_a_silent_ones_place(
    make: Make, crowd_at: Any
) -> None:
    t = await make("node", max_strangers=MOST)
    box = Box(t)
    crowd = crowd_at(await serve(t))
    talking = await crowd.come("127.0.0.2")
    await talking.say("hello")
    await eventually(lambda: box)
    for _ in range(MOST):
        await crowd.come("127.0.0.2")
    honest = await crowd.come("127.0.0.2", Actor())
    assert honest is not None
    await honest.post(task("in"))
    await talking.say("still here")
    await eventually(
        lambda: box.payloads == ["hello", "in", "still here"] or box.payloads[1:] == ["still here", "in"]
    )


async def test_those_that_this_program_knows_are_not_counted(make: Make, crowd_at: Any) -> None:
    t, friend = await make("node", max_strangers=MOST), await make("friend")
    address = await serve(t)
    await t.send(await serve(friend), task("hello"))
    crowd = crowd_at(address)
    for _ in range(MOST):
        await crowd.come("127.0.0.1")
    for connection in list(t._table.connections):
        if connection.endpoint.target is not None:
            connection.link.abort()
    await eventually(lambda: t.stats().active == MOST)
    assert (await friend.send(f"ws://{address}", task("let me in"))).acked
    assert t.stats().active == MOST + 1


async def test_a_plain_client_that_becomes_known_makes_room(make: Make, crowd_at: Any) -> None:
    t = await make("node", max_strangers=MOST)
    crowd = crowd_at(await serve(t))
    for number in range(MOST):
        raw = await crowd.come("127.0.0.2")
        if number % 2:
            await t.send(raw.address.replace("127.0.0.1", "127.0.0.2"), task("for you"))
    for _ in range(MOST // 2):
        assert await crowd.come("127.0.0.2") is not None
    assert await crowd.come("127.0.0.2") is None


async def test_connections_without_proof_are_bounded_per_ip(make: Make, crowd_at: Any) -> None:
    t = await make("node", max_connections_per_ip=5)
    crowd = crowd_at(await serve(t))
    for _ in range(8):
        await crowd.come("127.0.0.2")
    assert t.stats().active == 5
    assert await crowd.come("127.0.0.3") is not None
    for _ in range(8):
        assert await crowd.come("127.0.0.2", Actor()) is not None
    crowd.inside[0].close()
    await eventually(lambda: t.stats().active == 13)
    assert await crowd.come("127.0.0.2") is not None


async def test_a_flood_of_new_keys_leaves_room_for_others(make: Make, crowd_at: Any) -> None:
    t = await make("node", max_strangers=MOST)
    crowd = crowd_at(await serve(t))
    for _ in range(MOST):
        attacker = await crowd.come("127.0.0.2", Actor())
        await attacker.post(task())
    await eventually(lambda: t.stats().messages_received == MOST)
    assert await crowd.come("127.0.0.2", Actor()) is None
    assert await crowd.come("127.0.0.3", Actor()) is not None
    assert await crowd.come("127.0.0.4") is not None


async def test_an_openline_client_is_told_why(make: Make, crowd_at: Any) -> None:
    t, late = await make("node", max_strangers=1), await make("late")
    address = await serve(t)
    first = await crowd_at(address).come("127.0.0.1", Actor())
    await first.post(task())
    await eventually(lambda: t.stats().messages_received)
    with pytest.raises(openline.Unreachable, match=r"503.*no room just now"):
        await late.connect(f"ws://{address}")


@pytest.mark.parametrize("decides", [True, False], ids=["the node decides", "the other decides"])
async def test_surplus_connections_of_one_node_are_ended(make: Make, crowd_at: Any, decides: bool) -> None:
    lesser, greater = two_identities()
    mine, theirs = (greater, lesser) if decides else (lesser, greater)
    t = await make("node", identity=mine)
    box = Box(t)
    crowd = crowd_at(await serve(t))
    actor = Actor(identity=theirs)
    for _ in range(100):
        await crowd.come("127.0.0.1", actor)
    [peer] = t.peers()
    assert len(peer._remote.connections) <= 2 + limits.MAX_SURPLUS
    await crowd.inside[-1].post(task("newest"))
    await eventually(lambda: box.payloads == ["newest"])


async def test_processes_of_one_key_are_bounded_alike(make: Make, crowd_at: Any) -> None:
    t = await make("node")
    crowd = crowd_at(await serve(t))
    identity = openline.Identity()
    for _ in range(60):
        await crowd.come("127.0.0.1", Actor(identity=identity))
    assert t.stats().active <= 2 + limits.MAX_SURPLUS


async def test_one_place_cannot_fill_the_unfinished_handshakes(make: Make, crowd_at: Any) -> None:
    t = await make("node", max_pending_handshakes=10)
    crowd = crowd_at(await serve(t))
    honest = await crowd.tcp("127.0.0.3")
    await eventually(lambda: t.stats().pending_handshakes == 1)
    silent = [await crowd.tcp("127.0.0.2") for _ in range(40)]
    await eventually(lambda: t.stats().handshakes_evicted == 31)
    await honest.send(upgrade(None))
    assert " 101 " in await honest.head()
    for raw in (honest, *silent):
        raw.close()


@pytest.mark.parametrize(
    ("there", "pending", "strangers"),
    [(256, 32, 96), (1024, 128, 384), (20_000, 256, 16_384), (65_536, 256, 16_384), (4, 1, 1)],
)
def test_descriptors_are_kept_for_those_that_are_known(
    monkeypatch: pytest.MonkeyPatch, there: int, pending: int, strangers: int
) -> None:
    monkeypatch.setattr(descriptors, "descriptors", lambda: there)
    monkeypatch.setattr(limits, "descriptors", lambda: there)
    config = openline.Config()
    assert descriptors.max_pending(config) == pending
    assert limits.max_strangers(config, "websocket") == strangers
    assert strangers + pending <= max(2, there - min(there // 2, limits.RESERVE))
    assert limits.max_strangers(config, "quic") == 4096


async def test_quic_connections_of_strangers_are_bounded(make: Make) -> None:
    t = await make("node", max_strangers=4 * limits.QUIC_PART, backends=("quic",))
    address = await serve(t)
    others = [await make(f"n{number}", backends=("quic",), dial_timeout=2.0) for number in range(6)]
    for other in others[:4]:
        await other.send(address, task())
    for other in others[4:]:
        with pytest.raises(openline.Unreachable, match="no room just now"):
            await within(other.send(address, task(), timeout=1.0))
    assert t.stats().active == 4
    assert t.stats().turned_away >= 2
    await others[0].close()
    await eventually(lambda: t.stats().active == 3)
    with suppress(TimeoutError):
        await others[5].connect(address)
    assert t.stats().active == 4


async def test_an_honest_crowd_that_comes_at_once_gets_in(make: Make, raw: Open) -> None:
    t = await make("server", backends=("websocket",), max_pending_handshakes=8)
    port = port_of(await serve(t))
    await asyncio.gather(*(raw(port) for _ in range(64)))
    await eventually(lambda: t.stats().active == 64)
    assert t.stats().handshakes_evicted == 0
