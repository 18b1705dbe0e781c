"""The simulated network does what TCP and the weather do."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from openline import Config, Message
from openline.testing import Host, Killed, Network, Process, current_process, run
from openline.testing.simulation.wire import RECEIVE_BUFFER, Socket

PORT = 8770


class End:
    """One end of a connection: notes what comes."""

    def __init__(self, sock: Socket, host: Host) -> None:
        self.sock = sock
        self.network = host.network
        self.items: list[Any] = []
        self.times: list[float] = []
        self.drained = 0
        self.ended: float | None = None
        self.process: Process | None = None
        sock.user = self
        sock.resume()

    def on_item(self, item: Any) -> None:
        self.items.append(item)
        self.times.append(self.network.now)
        self.process = current_process()

    def on_drained(self) -> None:
        self.drained += 1

    def on_end(self) -> None:
        self.ended = self.network.now

    def send(self, *items: Any, size: int = 100) -> None:
        for item in items:
            self.sock.send(item, size)


class Two:
    """Hosts ``a`` and ``b``; ``b`` listens."""

    def __init__(self, seed: int = 1) -> None:
        self.network = Network(seed)
        self.a, self.b = self.network.host("10.0.0.1", name="a"), self.network.host("10.0.0.2", name="b")
        self.accepted: list[End] = []

    async def listen(self) -> None:
        await self.b.run(self.b.bind(None, PORT, self._accept))

    def _accept(self, sock: Socket) -> None:
        self.accepted.append(End(sock, self.b))

    async def open(self, ip: str = "10.0.0.2", port: int = PORT) -> Socket:
        return await self.a.run(self.a.open(socket.AF_INET, (ip, port)))

    async def ends(self) -> tuple[End, End]:
        """A new connection: ``a``'s end and ``b``'s."""
        if not self.b.listening("10.0.0.2", PORT):
            await self.listen()
        near = End(await self.open(), self.a)
        await asyncio.sleep(1)
        return near, self.accepted[-1]


async def fails(opening: Coroutine[Any, Any, Socket], number: int) -> None:
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")) as raised:
        await opening
    assert raised.value.errno == number


def test_frames_of_one_connection_keep_their_order_and_overtake_those_of_another() -> None:
    async def main() -> None:
        two = Two()
        a1, b1 = await two.ends()
        a2, b2 = await two.ends()
        two.network.latency(two.a, two.b, 0.1, 0.5)
        for number in range(50):
            a1.send(number)
            a2.send(number)
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert b1.items == b2.items == list(range(50))
        assert b1.process is two.b.process
        ahead = [first < second for first, second in zip(b1.times, b2.times, strict=True)]
        assert any(ahead)
        assert not all(ahead)

    run(main())


def test_latency_is_within_its_bounds() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.latency(two.a, two.b, 0.1, 0.5)
        took = []
        for number in range(30):
            sent = two.network.now
            near.send(number)
            await asyncio.sleep(1)
            took.append(far.times[-1] - sent)
        assert 0.1 <= min(took) < 0.2
        assert 0.4 < max(took) <= 0.5

    run(main())


def test_bandwidth_is_shared() -> None:
    async def main() -> None:
        two = Two()
        (a1, b1), (a2, b2) = await two.ends(), await two.ends()
        two.network.bandwidth(two.a, two.b, 10_000)
        sent = two.network.now
        a1.send(1, size=10_000)
        a2.send(2, size=20_000)
        await asyncio.sleep(10)
        assert 1.5 < b1.times[0] - sent < 2.1
        assert 3.0 <= b2.times[0] - sent < 3.01

    run(main())


def test_a_cut_holds_everything_back_and_loses_nothing() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        near.send("under way")
        two.network.cut(two.a, two.b)
        near.send("meanwhile")
        await asyncio.sleep(100)
        assert far.items == near.items == []
        assert near.sock.waiting == 200
        two.network.heal(two.a, two.b)
        await asyncio.sleep(100)
        assert far.items == ["under way", "meanwhile"]
        assert near.sock.waiting == 0
        assert near.ended is far.ended is None

    run(main())


def test_a_one_way_cut() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.cut_one_way(two.a, two.b)
        near.send("there")
        far.send("back")
        await asyncio.sleep(10)
        assert near.items == ["back"]
        assert far.items == []
        assert far.sock.waiting == 100  # the acknowledgement would have to go the way that is cut
        two.network.heal()
        await asyncio.sleep(20)
        assert far.items == ["there"]
        assert far.sock.waiting == 0

    run(main())


def test_new_connections_fail_while_open_ones_go_on() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.stale_route(two.a, two.b)
        await fails(two.open(), errno.EHOSTUNREACH)
        two.network.heal(two.a)
        two.network.refuse(two.a, two.b)
        await fails(two.open(), errno.ECONNREFUSED)
        two.network.heal()
        two.network.blackhole(two.a, two.b)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(two.open(), 5)
        near.send("still")
        await asyncio.sleep(1)
        assert far.items == ["still"]
        two.network.heal()
        await two.open()

    run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        two = Two()
        await fails(two.open(), errno.ECONNREFUSED)
        await fails(two.open("10.0.0.9"), errno.EHOSTUNREACH)
        assert two.network.now > 3  # ARP takes its time
        two.network.cut(two.a, two.b)
        await fails(two.open(), errno.ETIMEDOUT)

    run(main())


def test_a_dial_gets_through_after_a_short_cut() -> None:
    async def main() -> None:
        two = Two()
        await two.listen()
        two.network.cut(two.a, two.b)
        dial = asyncio.ensure_future(two.open())
        await asyncio.sleep(2)
        two.network.heal()
        await dial
        assert two.network.now == pytest.approx(3.0, abs=0.01)

    run(main())


def test_broken_links_deliver_a_prefix_and_tell_both() -> None:
    async def main() -> list[int]:
        counts = []
        for seed in range(20):
            two = Two(seed)
            near, far = await two.ends()
            near.send(*range(10))
            assert two.network.break_links(two.a, two.b, spread=1.0) == 1
            near.send("after")
            await asyncio.sleep(5)
            assert near.ended is not None
            assert far.ended is not None
            assert near.ended != far.ended
            assert far.items == list(range(len(far.items)))
            counts.append(len(far.items))
        return counts

    counts = run(main())
    assert len(set(counts)) > 3


def test_half_open() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.forget(two.a, two.b)
        await asyncio.sleep(60)
        assert near.ended is not None
        assert far.ended is None
        far.send("anybody there?")
        await asyncio.sleep(1)
        assert far.ended is not None

    run(main())


def test_silenced_links() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.silence(two.a, two.b)
        near.send("1")
        far.send("2")
        near.sock.reset()
        await asyncio.sleep(3600)
        assert near.items == far.items == []
        assert far.ended is None
        newer, other = await two.ends()
        newer.send("3")
        await asyncio.sleep(1)
        assert other.items == ["3"]

    run(main())


def test_a_reset_that_is_lost_is_made_good_by_the_next_packet() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.network.cut(two.a, two.b)
        near.sock.reset()
        await asyncio.sleep(1)
        two.network.heal()
        await asyncio.sleep(60)
        assert far.ended is None
        far.send("?")
        await asyncio.sleep(1)
        assert far.ended is not None

    run(main())


def test_the_kernel_of_a_frozen_host_goes_on() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        two.b.freeze()
        near.send(*range(100), size=RECEIVE_BUFFER // 50)
        await asyncio.sleep(10)
        assert not far.items
        assert 0 < near.sock.waiting <= RECEIVE_BUFFER
        two.b.thaw()
        await asyncio.sleep(1)
        assert far.items == list(range(100))
        assert near.sock.waiting == 0

    run(main())


def test_drained_is_told_once() -> None:
    async def main() -> None:
        two = Two()
        near, far = await two.ends()
        far.sock.pause()
        near.send(*range(10), size=RECEIVE_BUFFER // 4)
        near.sock.when_drained(1000)
        await asyncio.sleep(10)
        assert near.drained == 0
        far.sock.resume()
        await asyncio.sleep(1)
        assert near.drained == 1

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_kill_tells_the_far_end(seed: int) -> None:
    async def main() -> None:
        two = Two(seed)
        near, far = await two.ends()
        waiting = asyncio.ensure_future(two.b.run(asyncio.sleep(1000)))
        await asyncio.sleep(0)
        far.send("last words")
        two.b.kill()
        await asyncio.sleep(1)
        assert near.ended is not None
        assert far.ended is None
        with pytest.raises(Killed):
            await waiting
        await fails(two.open(), errno.ECONNREFUSED)
        two.b.restart()
        await two.ends()

    run(main())


def test_power_off_tells_nobody() -> None:
    async def main() -> None:
        two = Two()
        near, _ = await two.ends()
        two.b.power_off()
        near.send("?")
        await asyncio.sleep(60)
        assert near.ended is None
        await fails(two.open(), errno.EHOSTUNREACH)
        two.b.restart()
        await asyncio.sleep(60)
        assert near.ended is not None  # what was sent before has been answered by a reset
        assert not two.a.sockets
        assert not two.b.sockets

    run(main())


def test_ports_and_addresses() -> None:
    async def main() -> None:
        network = Network(1)
        host = network.host("10.0.0.1", "fd00::1", name="a")
        other = network.host("10.0.0.2", "fd00::2")
        everywhere = await host.run(host.bind(None, 0, lambda sock: None))
        with pytest.raises(OSError, match="in use"):
            await host.run(host.bind("10.0.0.1", everywhere.port, lambda sock: None))
        with pytest.raises(OSError, match="annot assign"):
            await host.run(host.bind("10.0.0.2", 0, lambda sock: None))
        one = await host.run(host.bind("a", 80, lambda sock: None))
        assert host.listening("fd00::1", 80) is host.listening("10.0.0.1", 80) is one
        assert host.listening("127.0.0.1", 80) is None
        sock = await other.run(other.open(socket.AF_INET6, ("fd00::1", 80, 0, 0)))
        assert sock.local[0] == "fd00::2"
        sock = await host.run(host.open(socket.AF_INET, ("127.0.0.1", everywhere.port)))
        assert sock.local[0] == "127.0.0.1"
        one.close()
        assert host.listening("10.0.0.1", 80) is None

    run(main())


def test_clocks() -> None:
    async def main() -> None:
        host = Network(1).host("10.0.0.1")
        wall, stopwatch = host.wall_clock(), host.stopwatch()
        host.jump_clock(-100)
        assert host.wall_clock() == wall - 100
        host.sleep(50)
        await asyncio.sleep(60)
        assert host.wall_clock() == wall - 40
        assert await host.run(read(host)) == stopwatch + 10

    async def read(host: Host) -> float:
        return host.stopwatch()

    run(main())


# Whole transports -----------------------------------------------------------------------------------


async def a_day_in_the_field(seed: int) -> tuple[list[Any], str]:
    """The failure openline starts from: B cannot dial A, and answers on A's connection."""
    network = Network(seed)
    network.trace.frames = True
    a, b = network.host("10.0.0.1", name="a"), network.host("10.0.0.2", name="b")
    got: list[Any] = []
    async with a.load_transport() as alice, b.load_transport(Config(name="bob")) as bob:
        await a.run(alice.listen(PORT))
        await b.run(bob.listen(PORT))
        alice.on_message(lambda peer, message: got.append(message.payload))
        network.stale_route(b, a)
        await a.run(alice.send(f"b:{PORT}", Message("1", payload="hello")))
        receipt = await b.run(bob.send(f"10.0.0.1:{PORT}", Message("2", payload="answer")))
        got.append((receipt.acked, receipt.backend, receipt.direction))
    return got, re.sub(r"nonce=\S+|proof=\S+|instance=\S+|signature=.*", "…", str(network.trace))


def test_whole_transports() -> None:
    got, _ = run(a_day_in_the_field(3))
    assert got == ["answer", (True, "memory", "inbound")]


def test_the_same_seed_is_the_same_run() -> None:
    assert run(a_day_in_the_field(3)) == run(a_day_in_the_field(3))
    assert run(a_day_in_the_field(3)) != run(a_day_in_the_field(4))


def test_an_identity_outlives_its_process() -> None:
    async def main() -> None:
        host = Network(1).host("10.0.0.1")
        async with host.load_transport() as first:
            pass
        host.restart()
        async with host.load_transport() as second:
            assert second.node_id == first.node_id

    run(main())
