"""Messages that have been sent together, by different callers or by one (peers/in_flight.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from openline import IdentityConflict, Message, NotConfirmed, Receipt
from openline.address import Address
from openline.core.session import Outgoing
from openline.message import Receipts
from openline.peers.in_flight import Send

LIMITS = (1000, 1_000_000)
RECEIPTS = Receipts(True, "memory", "outbound")


class Shared:
    """One send, and as many that have joined it, as ``asyncio.gather`` makes them."""

    def __init__(self, joined: int) -> None:
        self.out: Outgoing[Send] = Outgoing(1, LIMITS)
        loop = asyncio.get_running_loop()
        self.send = Send(loop, [Message(id="m0")], Address.parse("h:1"), 5.0, loop.time() + 5.0)
        self.out.add(self.send, 10)
        self.waiting: list[asyncio.Future[Receipt]] = [self.send]
        for number in range(1, 1 + joined):
            self.out.extend(self.send, 10)
            self.waiting.append(self.send.join(Message(id=f"m{number}"), RECEIPTS))

    def acknowledge(self, count: int) -> None:
        """So many of the messages."""
        for done in self.out.ack(1 + count):
            done.acknowledged(RECEIPTS)

    def restart(self) -> None:
        """Another process goes on with what the first one has not acknowledged."""
        new: Outgoing[Send] = Outgoing(100, LIMITS)
        new.take_over(self.out, list(self.out.unacked))
        self.out.give_up()
        self.out = new

    def give_up(self, why: str = "the peer was gone") -> None:
        for send in self.out.unacked:
            send.fail(send.unconfirmed(why))

    async def ends(self) -> list[object]:
        """ "acked", the id that an error names, or what else became of each."""
        results = await asyncio.gather(*map(_outcome, self.waiting), return_exceptions=True)
        return [_end(result) for result in results]


async def _outcome(future: Awaitable[Receipt]) -> Receipt:
    return await future


def _end(result: Receipt | BaseException) -> object:
    if isinstance(result, Receipt):
        return "acked" if result.acked else "not acked"
    return str(result).split("'")[1] if isinstance(result, NotConfirmed) else type(result)


async def test_one_acknowledgement_is_for_all() -> None:
    shared = Shared(3)
    assert [m.id for m in shared.send.messages] == ["m0", "m1", "m2", "m3"]
    assert (shared.send.first, shared.send.end, shared.out.next, shared.out.size) == (1, 5, 5, 40)
    shared.acknowledge(4)
    assert await shared.ends() == ["acked"] * 4
    assert not shared.out.unacked


@pytest.mark.parametrize("who", [0, 2])
async def test_who_gives_up_does_not_take_the_others_along(who: int) -> None:
    shared = Shared(3)
    shared.waiting[who].cancel()
    shared.acknowledge(4)
    expected: list[object] = ["acked"] * 4
    expected[who] = asyncio.CancelledError
    assert await shared.ends() == expected


@pytest.mark.parametrize("acked", range(4))
async def test_each_has_an_end_of_its_own(acked: int) -> None:
    """What the peer has is not called in doubt, and an error names the message of whom it is told."""
    shared = Shared(3)
    shared.acknowledge(acked)
    shared.give_up()
    assert await shared.ends() == ["acked"] * acked + [f"m{number}" for number in range(acked, 4)]
    errors = [f.exception() for f in shared.waiting[acked:]]
    assert all("more" not in str(error) and "the peer was gone" in str(error) for error in errors)
    assert len(set(map(id, errors))) == len(errors)


@pytest.mark.parametrize(("first", "then"), [(0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (3, 0)])
async def test_the_same_after_another_process_has_taken_over(first: int, then: int) -> None:
    shared = Shared(3)
    shared.acknowledge(first)
    shared.restart()
    assert [m.id for m in shared.send.messages] == [f"m{number}" for number in range(first, 4)]
    for done in shared.out.ack(100 + then):
        done.acknowledged(RECEIPTS)
    shared.restart()
    shared.give_up()
    confirmed = first + then
    assert await shared.ends() == ["acked"] * confirmed + [f"m{number}" for number in range(confirmed, 4)]


async def test_all_acknowledged_by_the_process_that_has_taken_over() -> None:
    shared = Shared(3)
    shared.acknowledge(2)
    shared.restart()
    for done in shared.out.ack(102):
        done.acknowledged(RECEIPTS)
    assert await shared.ends() == ["acked"] * 4


async def test_a_conflict_is_told_to_each() -> None:
    shared = Shared(2)
    shared.send.fail(IdentityConflict("two processes"))
    assert await shared.ends() == [IdentityConflict] * 3
    assert len({id(f.exception()) for f in shared.waiting}) == 3
