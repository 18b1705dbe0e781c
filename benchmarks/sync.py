"""What a request costs through ``openline.sync``: ``python -m benchmarks.sync``.

The other side is a process of its own. Runs with and without ``async`` take turns, so that whatever else the
machine does meets both alike. The limit: twice the round trip with ``async`` plus 60 µs.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time

import openline
import openline.sync

ROUNDS = 8
REQUESTS = 2000
WARM_UP = 200
EXTRA = 60e-6
CONFIG = openline.Config(backends=("websocket",))


def question() -> openline.Message:
    return openline.Message(payload={"n": 1, "text": "x" * 200})


def run(work):
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def serve() -> None:
    async with openline.load_transport(CONFIG) as transport:

        @transport.on_message
        async def echo(peer: openline.Peer, message: openline.Message) -> None:
            await peer.reply(message, message.payload)

        print((await transport.listen(host="127.0.0.1")).port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def with_async(address: str) -> list[float]:
    times = []
    async with openline.load_transport(CONFIG) as transport:
        for _ in range(WARM_UP + REQUESTS):
            begun = time.perf_counter()
            await transport.request(address, question())
            times.append(time.perf_counter() - begun)
    return times[WARM_UP:]


def without(address: str) -> list[float]:
    times = []
    with openline.sync.load_transport(CONFIG) as transport:
        for _ in range(WARM_UP + REQUESTS):
            begun = time.perf_counter()
            transport.request(address, question())
            times.append(time.perf_counter() - begun)
    return times[WARM_UP:]


def main() -> int:
    command = [sys.executable, "-m", "benchmarks.sync", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        plain: list[float] = []
        synchronous: list[float] = []
        for _ in range(ROUNDS):
            plain += run(with_async(address))
            synchronous += without(address)
        server.stdin.close()
    print(f"{'µs':12}{'with async':>12}{'openline.sync':>15}{'limit':>8}")
    for name, rank in (("p10", 9), ("median", 49), ("p90", 89)):
        a, b = (statistics.quantiles(times, n=100)[rank] for times in (plain, synchronous))
        print(f"{name:12}{a * 1e6:12.1f}{b * 1e6:15.1f}{(2 * a + EXTRA) * 1e6:8.1f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        run(serve())
    else:
        sys.exit(main())
