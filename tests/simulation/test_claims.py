"""A neighbour behind one IP claims somebody's port, and everything that can happen to connections happens."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openline import Error, Identity

from .stage import PORT, Node, Stage, eventually, gathered, simulated

# Else it would be its host's, as that of the other program there is.
MALLORY = Identity(Ed25519PrivateKey.from_private_bytes(bytes(32)))


class Scene:
    """``honest`` and ``mallory`` run on one host. ``a`` dials the first, whose port the second claims."""

    def __init__(self, stage: Stage, chance: Random) -> None:
        self.stage = stage
        self.chance = chance
        self.a: Node
        self.honest: Node
        self.mallory: Node

    async def set(self) -> None:
        stage = self.stage
        quickly = {"backoff_min": 0.1, "backoff_max": 1.0, "send_timeout": 5.0, "resume_timeout": 60.0}
        self.a = await stage.start(stage.a, **quickly)
        self.honest = await stage.start(stage.b)
        self.mallory = await stage.start(stage.b, port=PORT + 1, identity=MALLORY)
        await self.a.do(self.a.transport.connect(self.honest.address))
        self.mallory.transport._node.announce((PORT, PORT + 1))
        await self.comes_in(self.mallory)

    async def comes_in(self, who: Node) -> None:
        await gathered([who.do(who.transport.connect(self.a.address))])

    async def happens(self) -> None:
        network, a, b = self.stage.network, self.stage.a, self.stage.b
        match self.chance.randrange(8):
            case 0:
                network.break_links(a, b)
            case 1:
                network.silence(a, b)
            case 2:
                network.stale_route(a, b)
            case 3:
                network.heal()
            case 4:
                b.freeze()
                await asyncio.sleep(self.chance.choice([1.0, 8.0, 20.0]))
                b.thaw()
            case 5:
                await self.comes_in(self.honest)
            case 6:
                await self.comes_in(self.mallory)
            case 7:
                await asyncio.sleep(self.chance.choice([0.01, 3.0, 30.0]))


@pytest.mark.parametrize("seed", range(60))
@simulated
async def test_a_neighbour_never_gets_what_is_for_who_was_dialed(stage: Stage, seed: int) -> None:
    scene = Scene(stage, Random(seed))
    await scene.set()
    sending = []
    for number in range(25):
        await scene.happens()
        sending.append(scene.a.send(scene.honest, number))
    stage.network.heal()
    ends = await gathered(sending)
    assert all(isinstance(end, Error | TimeoutError) or end.matched == "exact address" for end in ends)
    assert scene.mallory.payloads == []
    confirmed = [number for number, end in enumerate(ends) if not isinstance(end, BaseException)]
    await eventually(lambda: set(confirmed) <= set(scene.honest.payloads))
    assert len(set(scene.honest.payloads)) == len(scene.honest.payloads)
    await scene.a.insist(scene.honest, "at last")
    await eventually(lambda: "at last" in scene.honest.payloads)


@simulated
async def test_a_stale_route_is_no_matter_where_nobody_else_was_ever_known(stage: Stage) -> None:
    """The case that openline exists for, with a neighbour beside it that claims nothing."""
    a, honest = await stage.start(stage.a), await stage.start(stage.b)
    neighbour = await stage.start(stage.b, port=PORT + 1, identity=MALLORY)
    stage.network.stale_route(stage.a, stage.b)
    for who in (neighbour, honest):
        await who.do(who.transport.connect(a.address))
    await eventually(lambda: len(a.connections()) == 2)
    for number in range(20):
        receipt = await a.send(honest, number)
        assert (receipt.attempts, receipt.direction, receipt.matched) == (1, "inbound", "claimed port")
    assert (honest.payloads, neighbour.payloads) == (list(range(20)), [])
    assert (a.stats.created, a.stats.dials) == (0, 0)
