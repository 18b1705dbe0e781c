"""Somebody with a node's key who repeats the instance of its process, over QUIC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline
from openline.backends.quic.framing import HELLO
from openline.backends.race import Race
from openline.core.handshake import Hello, with_proof

from ..transport.helpers import DEADLINE, Box, eventually, task
from ..transport.proofs import between, nothing, signed
from ..transport.thief import FORGED, Thief
from .conftest import Dial, Make, Serve
from .rawquic import unit

CONFLICT = 4002
SLOW = 4 * DEADLINE


async def scene(make: Make) -> tuple[openline.Transport, openline.Transport, int, Box]:
    """The genuine process, and the server that it is connected to."""
    genuine, server = await make("genuine"), await make("server")
    box = Box(server)
    port = (await server.listen(0, host="127.0.0.1")).port
    await genuine.send(f"quic://127.0.0.1:{port}", task("hello"), timeout=SLOW)
    return genuine, server, port, box


def thief_of(genuine: openline.Transport, server: openline.Transport, how: str) -> Thief:
    process = between(server, genuine)[0].endpoint.hello
    return Thief(genuine._node.door.identity, process, FORGED[how])


async def undisturbed(genuine: openline.Transport, server: openline.Transport, box: Box) -> None:
    await eventually(lambda: server.stats().conflicts == 1)
    for number in range(3):
        receipt = await genuine.send(server.node_id, task(number), timeout=SLOW)
        assert (receipt.acked, receipt.attempts) == (True, 1)
    assert box.payloads == ["hello", 0, 1, 2]
    assert (genuine.stats().created, genuine.stats().conflicts, server.stats().conflicts) == (1, 0, 1)


@pytest.mark.parametrize("how", FORGED)
async def test_a_thief_who_dials_is_turned_away(make: Make, dial: Dial, how: str) -> None:
    genuine, server, port, box = await scene(make)
    before = between(server, genuine)
    thief = thief_of(genuine, server, how)
    bad = await dial(port)
    transcript = await bad.greet(thief)
    bad.prove(thief.prove(transcript, [before[0].endpoint.connection_id]))
    bad.post(task("forged"))
    code, _, _ = await bad.farewell()
    assert code == CONFLICT
    await undisturbed(genuine, server, box)
    assert between(server, genuine) == before


@pytest.mark.parametrize("how", FORGED)
async def test_a_thief_who_is_dialed_gets_nothing(make: Make, listen: Serve, how: str) -> None:
    genuine, server, _, box = await scene(make)
    thief, trap = thief_of(genuine, server, how), listen()
    sending = asyncio.ensure_future(server.send(trap.url, task("secret"), timeout=SLOW))
    end = await trap.end()
    kind, client = await end.read(0)
    assert kind == HELLO
    mine = thief.hello()
    data = signed("server", client.decode(), mine, trap.certificate)
    end.write(3, unit(HELLO, with_proof(mine, thief.identity.sign(data) + thief.extra(data)).encode()))
    error = await nothing(asyncio.wait_for(sending, SLOW))
    assert isinstance(error, openline.IdentityConflict), repr(error)
    await end.gone()
    assert end.units == []
    await undisturbed(genuine, server, box)


async def test_a_thief_who_came_first_is_cut(make: Make, dial: Dial) -> None:
    genuine, server = await make("genuine"), await make("server")
    box = Box(server)
    port = (await server.listen(0, host="127.0.0.1")).port
    process = Hello(genuine.node_id, "", instance=genuine._node.door.instance)
    bad = await dial(port, Thief(genuine._node.door.identity, process))
    await genuine.send(f"quic://127.0.0.1:{port}", task("hello"), timeout=SLOW)
    await bad.gone()
    await undisturbed(genuine, server, box)


async def test_a_thief_who_was_dialed_just_before_the_genuine_process_came(
    make: Make, listen: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His hello was good as long as nobody knew the process; his connection is not up yet."""
    genuine, server = await make("genuine"), await make("server")
    box, at_genuine = Box(server), Box(genuine)
    port = (await server.listen(0, host="127.0.0.1")).port
    process = Hello(genuine.node_id, "", instance=genuine._node.door.instance)
    thief, trap, gate = Thief(genuine._node.door.identity, process), listen(), asyncio.Event()
    run = Race.run

    async def later(*arguments: Any) -> Any:
        result = await run(*arguments)
        await gate.wait()
        return result

    monkeypatch.setattr(Race, "run", later)
    sending = asyncio.ensure_future(server.send(trap.url, task("secret"), timeout=SLOW))
    end = await trap.end()
    await end.answer(thief, trap.certificate)
    await asyncio.sleep(0.1)
    monkeypatch.undo()
    await genuine.send(f"quic://127.0.0.1:{port}", task("hello"), timeout=SLOW)
    gate.set()
    await end.gone()
    assert not isinstance(await nothing(asyncio.wait_for(sending, SLOW)), TimeoutError)
    assert (await server.send(genuine.node_id, task("for the genuine one"))).attempts == 1
    assert at_genuine.payloads == ["for the genuine one"]
    assert server.stats().conflicts >= 1
    assert (genuine.stats().created, genuine.stats().conflicts, box.payloads) == (1, 0, ["hello"])
    assert len(between(server, genuine)) == 1
