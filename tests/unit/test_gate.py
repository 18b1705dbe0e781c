"""Streams that are held up, by the peer's inbox or by what is unacknowledged (peers/gate.py)."""

from __future__ import annotations

import asyncio

from openline.peers.gate import Gates


async def test_an_answer_goes_on_when_there_is_room_though_the_stream_is_stopped() -> None:
    """In whichever order "stop, but answers are welcome" and the acknowledgement come."""
    gates = Gates()
    gates.fill("s")
    gate = gates["s"]
    answer = asyncio.ensure_future(gate.wait(True))
    other = asyncio.ensure_future(gate.wait(False))
    await asyncio.sleep(0)
    gates.halt("s", answers=True)
    await asyncio.sleep(0)
    again = asyncio.ensure_future(gate.wait(True))
    await asyncio.sleep(0)
    assert not again.done()
    gates.make_room("s")
    await asyncio.wait_for(asyncio.gather(answer, other, again), 1.0)
    assert gate.passes(True)
    assert not gate.passes(False)
