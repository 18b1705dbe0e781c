"""A process whose key is stolen, and a thief on another host, at every moment of their exchange."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from openline import Address, Identity, IdentityConflict

from .stage import Node, Puppet, Stage, eventually, simulated, task

MESSAGES = 200


def thief(stage: Stage, genuine: Node, identity: Identity) -> Puppet:
    """Has the key, and repeats the instance; signs for nothing but the node."""
    puppet = Puppet(stage.c, identity)
    puppet.instance = genuine.transport._node.door.instance
    return puppet


async def steal(puppet: Puppet, server: Node, closed: list[str]) -> None:
    """He dials, says what he can, and comes again."""
    for number in itertools.count():
        try:
            end = await puppet.dial(server)
            end.post(task(("forged", number)))
            end.polite = True
            await eventually(lambda end=end: end.closed)
            closed.append(end.closed or "")
        except (OSError, AssertionError, IdentityConflict) as error:
            closed.append(repr(error))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("cuts", [False, True], ids=["a quiet line", "a line that is cut"])
@pytest.mark.parametrize("seed", range(5))
@simulated
async def test_he_takes_nothing_and_disturbs_nobody(stage: Stage, seed: int, cuts: bool) -> None:
    """Whatever is under way, and whether the genuine process is there or away for a moment."""
    identity = Identity()
    server = await stage.start(stage.a)
    genuine = await stage.start(stage.b, identity=identity)
    await genuine.send(server, "hello")
    puppet = thief(stage, genuine, identity)
    closed: list[str] = []
    stealing = asyncio.ensure_future(steal(puppet, server, closed))
    sending = []
    for number in range(MESSAGES):
        sending += server.insist(genuine, number), genuine.insist(server, number)
        await asyncio.sleep(0.01)
        if cuts and number % (37 + seed) == 0:
            for connection in server.connections(genuine):
                connection.link.abort()
    receipts = await asyncio.wait_for(asyncio.gather(*sending), 60)
    await asyncio.sleep(2.0)
    stealing.cancel()
    assert all(receipt.acked for receipt in receipts)
    assert genuine.payloads == list(range(MESSAGES))
    assert server.payloads == ["hello", *range(MESSAGES)]
    assert closed
    assert all(not end.messages for end in puppet.ends)
    assert server.stats.conflicts >= len(closed) - 1
    assert genuine.stats.conflicts == 0
    assert len(server.connections(genuine)) == 1


@simulated
async def test_where_he_listens_nothing_is_sent(stage: Stage) -> None:
    identity = Identity()
    server = await stage.start(stage.a)
    genuine = await stage.start(stage.b, identity=identity)
    await genuine.send(server, "hello")
    puppet = thief(stage, genuine, identity)
    await puppet.listen()
    for _ in range(3):
        with pytest.raises(IdentityConflict, match="nothing was sent"):
            await server.do(server.transport.connect(Address.parse(puppet.address)))
    await server.send(genuine, "for the genuine one")
    assert genuine.payloads == ["for the genuine one"]
    assert not puppet.ends
    assert (server.stats.conflicts, genuine.stats.conflicts) == (3, 0)
