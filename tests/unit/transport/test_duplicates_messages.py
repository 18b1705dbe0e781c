"""Messages under way while one connection replaces another (rules 3.3 and 3.4)."""

from __future__ import annotations

import asyncio
import itertools

import pytest

import openline
from openline.peers import paths

from ..clock import elapse
from .conftest import Make
from .duplicates import QUICK, Between, Talk, check, two
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import Middle, ids, settled


@pytest.mark.parametrize("grace", [0.0, 0.05])
async def test_nothing_is_lost_doubled_or_reordered_while_both_dial_again_and_again(
    make: Make, middle: Between, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    """Each round adds a dial in each direction, at once, over paths of their own."""
    monkeypatch.setattr(paths, "DRAIN_GRACE", grace)
    a, b = await two(make)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    talks = Talk(a, [home_b]), Talk(b, [home_a])
    await eventually(lambda: len(boxes[0]) > 10 and len(boxes[1]) > 10)
    for _ in range(25):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
        count = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > count[0] + 5 and len(boxes[1]) > count[1] + 5)  # noqa: B023
    for talk in talks:
        await talk.end()
    await eventually(lambda: settled(a, b))
    check(talks[0], boxes[1])
    check(talks[1], boxes[0])
    for t in (a, b):
        stats = t.stats()
        assert (stats.malformed, stats.conflicts, stats.in_doubt, stats.active) == (0, 0, 0, 1)


async def test_nothing_is_lost_doubled_or_reordered_while_connections_are_also_cut(
    make: Make, middle: Between, short_grace: None
) -> None:
    a, b = await two(make, **QUICK)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    paths = [await middle(home_b), await middle(home_b)], [await middle(home_a), await middle(home_a)]
    talks = Talk(a, [p.address for p in paths[0]]), Talk(b, [p.address for p in paths[1]])
    for turn in range(40):
        count = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > count[0] + 3 and len(boxes[1]) > count[1] + 3)  # noqa: B023
        paths[turn % 2][turn // 2 % 2].cut()
        if turn % 3 == 0:
            paths[1 - turn % 2][turn // 2 % 2].cut()
    for talk in talks:
        await talk.end()
    await eventually(lambda: settled(a, b))
    check(talks[0], boxes[1])
    check(talks[1], boxes[0])
    assert (a.stats().malformed, b.stats().malformed) == (0, 0)
    assert (a.stats().in_doubt, b.stats().in_doubt) == (0, 0)


async def test_requests_get_their_answers_while_connections_replace_each_other(
    make: Make, middle: Between, short_grace: None
) -> None:
    a, b = await two(make)
    for t in (a, b):
        t.on_message(lambda peer, message: peer.reply(message, message.payload * 2))
    home_a, home_b = await serve(a), await serve(b)
    stop = False

    async def ask(t: openline.Transport, to: str) -> int:
        for number in itertools.count():
            reply = await t.request(to, task(number), timeout=5.0)
            assert reply.payload == 2 * number
            if stop:
                return number
        return 0

    asking = [asyncio.ensure_future(ask(a, home_b)) for _ in range(4)]
    asking += [asyncio.ensure_future(ask(b, home_a)) for _ in range(4)]
    for _ in range(20):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
    stop = True
    assert min(await within(asyncio.gather(*asking))) > 5
    await eventually(lambda: settled(a, b))


async def test_large_messages_survive_the_end_of_the_connection_that_carries_them(
    make: Make, middle: Between, short_grace: None
) -> None:
    """Some are longer than the grace time."""
    a, b = await two(make)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    body = "x" * 3_000_000
    sending = [asyncio.ensure_future(a.send(home_b, task([n, body]))) for n in range(6)]
    sending += [asyncio.ensure_future(b.send(home_a, task([n, body]))) for n in range(6)]
    for _ in range(6):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
    receipts = await within(asyncio.gather(*sending), 15.0)
    assert all(receipt.acked for receipt in receipts)
    for box in boxes:
        assert [n for n, _ in box.payloads] == list(range(6))


class Stage:
    """Lets the first connection of a middle go on step by step."""

    def __init__(self) -> None:
        self._gates = {name: asyncio.Event() for name in ("request", "response", "proof")}
        self._left = list(self._gates)
        self.reached: set[str] = set()

    async def __call__(self, name: str) -> None:
        self.reached.add(name)
        await self._gates[name].wait()

    async def advance(self) -> None:
        name = self._left.pop(0)
        # A step behind one that was cut, or spared, is never reached.
        for _ in range(50):
            if name in self.reached:
                break
            await asyncio.sleep(0.001)
        self._gates[name].set()
        for _ in range(20):
            await asyncio.sleep(0)

    def open(self) -> None:
        for gate in self._gates.values():
            gate.set()


ORDERS = sorted(set(itertools.permutations("AAABBB")))
CRASHES = [None, *((at, who) for at in range(7) for who in "AB")]


async def interleaved(make: Make, order: tuple[str, ...], crash: tuple[int, str] | None) -> None:
    """Two dials whose steps come in that order, and a crash of one of them before one of the steps."""
    a, b = await two(make, **QUICK)
    boxes = Box(a), Box(b)
    stages = {"A": Stage(), "B": Stage()}
    async with (
        Middle(port_of(await serve(b)), step=stages["A"]) as there,
        Middle(port_of(await serve(a)), step=stages["B"]) as back,
    ):
        paths = {"A": there, "B": back}
        keeping = asyncio.gather(a.connect(there.address, keep=True), b.connect(back.address, keep=True))
        talks = Talk(a, [there.address], 2), Talk(b, [back.address], 2)
        for at, who in enumerate([*order, ""]):
            if crash is not None and crash[0] == at:
                paths[crash[1]].cut()
            if who:
                await stages[who].advance()
        for stage in stages.values():
            stage.open()
        await within(keeping)
        counts = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > counts[0] + 3 and len(boxes[1]) > counts[1] + 3)
        for talk in talks:
            await talk.end()
        await eventually(lambda: settled(a, b))
        check(talks[0], boxes[1])
        check(talks[1], boxes[0])
        kept = ids(a, b)
        await elapse(0.2)
        assert (ids(a, b), ids(b, a)) == (kept, kept)
        for t in (a, b):
            assert (t.stats().active, t.stats().conflicts) == (1, 0)
            assert t.stats().in_doubt == 0


@pytest.mark.parametrize("order", ORDERS, ids=["".join(order) for order in ORDERS])
async def test_any_interleaving_of_two_dials_and_a_crash_ends_with_one_connection_and_every_message_once(
    make: Make, short_grace: None, order: tuple[str, ...]
) -> None:
    """A step is the request, the answer or the proof of one of the two dials."""
    found = await asyncio.gather(
        *(interleaved(make, order, crash) for crash in CRASHES), return_exceptions=True
    )
    wrong = {crash: error for crash, error in zip(CRASHES, found, strict=True) if error is not None}
    assert not wrong
