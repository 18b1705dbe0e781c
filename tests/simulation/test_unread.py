"""Peers that send and do not read what they are owed, and two that both send as much as they can."""

from __future__ import annotations

import asyncio

from openline.connection.connection import State

from .stage import Puppet, Stage, eventually, simulated, task

LONG = [f"{number:03}" + "n" * 1000 for number in range(300)]


@simulated
async def test_two_with_full_links_both_ways_do_not_wait_for_each_other(stage: Stage) -> None:
    """Acknowledgements alone fill the links: their names are a hundred times longer than the messages."""
    stage.network.bandwidth(stage.a, stage.b, 500_000)
    a, b = await stage.two(write_high_water=2048, window_messages=8, inbox_messages=2, send_timeout=600.0)
    a.pause = b.pause = 0.001
    await b.send(a, "first")
    sending = [a.send(b, n, stream_id=name) for n in range(8) for name in LONG[:60]]
    sending += [b.send(a, n, stream_id=name) for n in range(8) for name in LONG[60:120]]
    for each in sending:
        assert (await each).acked
    for node, names in ((b, LONG[:60]), (a, LONG[60:120])):
        for name in names:
            assert node.of(name) == list(range(8))
    assert a.stats.closed == b.stats.closed == 0


@simulated
async def test_what_a_peer_does_not_read_does_not_pile_up_and_in_the_end_it_is_cut(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, progress_cap=60.0), Puppet(stage.b)
    end = await puppet.dial(a)
    await asyncio.sleep(0.1)
    [connection] = a.connections()
    end.link.pause_reading()
    for number in range(100):
        end.post(*(task(number, stream_id=name) for name in LONG))
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.5)
    assert len(a.got) == 100 * len(LONG)
    assert connection.link._sock.waiting < 1024 * 1024  # type: ignore[attr-defined]
    assert connection.in_arrears

    async def goes_on() -> None:
        while True:
            end.post(task("more"))
            await asyncio.sleep(0.5)

    going = asyncio.ensure_future(goes_on())
    began = stage.now
    await eventually(lambda: connection.reading_paused, 10.0)
    await eventually(lambda: connection.state is State.CLOSED, 70.0)
    assert 50 < stage.now - began < 70
    going.cancel()


@simulated
async def test_whoever_reads_again_is_told_all_of_it(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    end = await puppet.dial(a)
    await asyncio.sleep(0.1)
    [connection] = a.connections()
    end.link.pause_reading()
    for number in range(30):
        end.post(*(task(number, stream_id=name) for name in LONG))
        await asyncio.sleep(0.3)
    await eventually(lambda: connection.reading_paused, 10.0)
    end.link.resume_reading()
    await eventually(lambda: not connection.reading_paused and not connection.in_arrears, 10.0)
    await asyncio.sleep(1.0)
    assert [end.acks.get(name) for name in LONG] == [31] * len(LONG)
    assert connection.state is State.LIVE
