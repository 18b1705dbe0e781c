"""Streams that are held up, by the peer's inbox or by what is unacknowledged (peers.Gate)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from openline.core.selection import Endpoint
from openline.peers.table import Peer


async def test_an_answer_goes_on_when_there_is_room_though_the_stream_is_stopped() -> None:
    """In whichever order "stop, but answers are welcome" and the acknowledgement come."""
    peer = Peer(cast(Any, None), cast(Any, None), "key", Endpoint("inbound", "10.0.0.1", 1))
    peer.fill("s")
    gate = peer.stopped["s"]
    answer = asyncio.ensure_future(gate.wait(True))
    other = asyncio.ensure_future(gate.wait(False))
    await asyncio.sleep(0)
    peer.stop("s", answers=True)
    await asyncio.sleep(0)
    again = asyncio.ensure_future(gate.wait(True))
    await asyncio.sleep(0)
    assert not again.done()
    peer.make_room("s")
    await asyncio.wait_for(asyncio.gather(answer, other, again), 1.0)
    assert gate.passes(True)
    assert not gate.passes(False)
