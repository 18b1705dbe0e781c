"""Lines: who comes first leaves first, whoever gives up in between."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Message
from openline.sending.turns import Turns


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def occupied(lines: Turns, to: Any = "there", stream_id: Any = "default", answer: bool = False) -> bool:
    return lines.has(to, Message(stream_id=stream_id, metadata={"replyTo": "m-1"} if answer else None))


class Queue:
    """People who stand in one line, each doing its business when it is their turn."""

    def __init__(self, lines: Turns, *key: Any) -> None:
        self.lines = lines
        self.key = key or ("there", "default")
        self.order: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.business = asyncio.Event()
        self.business.set()

    def add(self, name: Any) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._stand(name))
        self.tasks.append(task)
        return task

    async def _stand(self, name: Any) -> None:
        place = self.lines.enter(*self.key)
        try:
            await place.turn()
            assert place.first
            await self.business.wait()
            assert place.first
            self.order.append(name)
        finally:
            place.leave()


async def test_the_first_need_not_wait() -> None:
    lines = Turns()
    assert not occupied(lines, "there", 1)
    place = lines.enter("there", 1)
    assert occupied(lines, "there", 1)
    await place.turn()
    place.leave()
    assert not occupied(lines, "there", 1)


async def test_in_the_order_they_came() -> None:
    queue = Queue(Turns())
    for number in range(50):
        queue.add(number)
        if number % 7 == 0:
            await turns(1)
    await asyncio.gather(*queue.tasks)
    assert queue.order == list(range(50))
    assert not occupied(queue.lines, *queue.key)


async def test_who_comes_later_waits_for_all_who_are_there() -> None:
    queue = Queue(Turns())
    queue.business.clear()
    first, second = queue.add(1), queue.add(2)
    await turns()
    third = queue.add(3)
    await turns()
    assert not any(each.done() for each in (first, second, third))
    queue.business.set()
    await asyncio.gather(first, second, third)
    assert queue.order == [1, 2, 3]


@pytest.mark.parametrize("who", range(5))
async def test_one_who_gives_up(who: int) -> None:
    queue = Queue(Turns())
    queue.business.clear()
    for number in range(5):
        queue.add(number)
    await turns()
    queue.tasks[who].cancel()
    await turns()
    queue.business.set()
    await asyncio.gather(*queue.tasks, return_exceptions=True)
    assert queue.order == [number for number in range(5) if number != who]
    assert not occupied(queue.lines, *queue.key)


async def test_all_give_up_but_the_last() -> None:
    queue = Queue(Turns())
    queue.business.clear()
    for number in range(20):
        queue.add(number)
    await turns()
    for task in queue.tasks[:-1]:
        task.cancel()
    await turns()
    queue.business.set()
    await asyncio.gather(*queue.tasks, return_exceptions=True)
    assert queue.order == [19]


async def test_called_and_cancelled_in_the_same_turn() -> None:
    """The turn is handed on, not lost."""
    queue = Queue(Turns())
    queue.business.clear()
    for number in range(4):
        queue.add(number)
    await turns()
    queue.tasks[0].cancel()
    await asyncio.sleep(0)  # the first leaves and calls the second
    queue.tasks[1].cancel()
    await turns()
    queue.business.set()
    await asyncio.gather(*queue.tasks, return_exceptions=True)
    assert queue.order == [2, 3]
    assert not occupied(queue.lines, *queue.key)


async def test_before_it_has_begun_to_wait() -> None:
    """Called in between: nobody waits for a call that has been."""
    lines = Turns()
    first, second = lines.enter("there", 1), lines.enter("there", 1)
    first.leave()
    assert second.first
    async with asyncio.timeout(1.0):
        await second.turn()
    second.leave()
    assert not occupied(lines, "there", 1)


async def test_leaving_without_ever_waiting() -> None:
    lines = Turns()
    places = [lines.enter("there", 1) for _ in range(10)]
    for place in reversed(places):
        place.leave()
    assert not occupied(lines, "there", 1)


async def test_a_new_line_after_the_last_has_left() -> None:
    lines = Turns()
    for _ in range(3):
        place = lines.enter("there", 1)
        await place.turn()
        place.leave()
    queue = Queue(lines, "there", 1)
    queue.add(1)
    queue.add(2)
    await asyncio.gather(*queue.tasks)
    assert queue.order == [1, 2]


async def test_lines_are_kept_apart() -> None:
    """By where to, by stream (42 and its text are two), and answers from all else."""
    lines = Turns()
    keys: list[Any] = [("there", 42), ("there", "42"), ("elsewhere", 42), (object(), 42), ("there", 42, True)]
    held = [lines.enter(*key) for key in keys[:1]]
    others = [lines.enter(*key) for key in keys[1:]]
    for place in others:
        async with asyncio.timeout(1.0):
            await place.turn()
        place.leave()
    assert occupied(lines, *keys[0])
    assert not any(occupied(lines, *key) for key in keys[1:])
    held[0].leave()


async def test_nothing_is_left_behind() -> None:
    lines = Turns()
    for number in range(1000):
        queue = Queue(lines, number % 10, number)
        queue.add(1)
        queue.add(2)
        late = queue.add(3)
        asyncio.get_running_loop().call_soon(late.cancel)
        await asyncio.gather(*queue.tasks, return_exceptions=True)
    assert not lines.lines


@given(st.integers(0, 10**9))
def test_whoever_gives_up_whenever(seed: int) -> None:
    """All who do not give up have their turn, in order, and one at a time."""
    chance = random.Random(seed)

    async def play() -> None:
        queue = Queue(Turns())
        gave_up: set[int] = set()
        count = 0
        for _ in range(60):
            act = chance.random()
            if act < 0.4:
                queue.add(count)
                count += 1
            elif act < 0.6 and queue.tasks:
                who = chance.randrange(len(queue.tasks))
                if not queue.tasks[who].done() and who not in queue.order:
                    queue.tasks[who].cancel()
                    gave_up.add(who)
            elif act < 0.75:
                queue.business.set() if chance.random() < 0.5 else queue.business.clear()
            else:
                await turns(chance.randint(1, 2))
        queue.business.set()
        async with asyncio.timeout(5.0):
            await asyncio.gather(*queue.tasks, return_exceptions=True)
        assert queue.order == [number for number in range(count) if number not in gave_up]
        assert not occupied(queue.lines, *queue.key)

    asyncio.run(play())
