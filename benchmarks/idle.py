"""Ten thousand idle connections: the memory each takes, and the time that keeping watch over them takes."""

import asyncio
import gc
import sys
from contextlib import AsyncExitStack
from typing import Any

import psutil
import uvloop

from benchmarks.contenders.base import HOST
from benchmarks.works import Plan

# Long enough for the last handshakes to end and the first pings to spread.
SETTLE = 5.0
AT_ONCE = 50


async def listen(plan: Plan) -> dict[str, Any]:
    import openline

    async with openline.load_transport(openline.Config(name="listener")) as transport:
        listener = await transport.listen(0, host=HOST)
        before = resident()
        dialer = await start_dialer(listener.port, plan.count)
        await asyncio.sleep(SETTLE)
        result: dict[str, Any] = {"tried": plan.count, "connections": len(transport.peers())}
        result["bytes"] = resident() - before
        result["cpu"] = await cpu_share(plan.seconds)
        result["still_there"] = len(transport.peers())
        await dialer.communicate(b"")
        return result


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def cpu_share(seconds: float) -> float:
    loop, process = asyncio.get_running_loop(), psutil.Process()
    start, before = loop.time(), process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return float(used / (loop.time() - start))


async def start_dialer(port: int, count: int) -> asyncio.subprocess.Process:
    """In another process: one could not hold both ends of so many connections within its file limit."""
    pipe = asyncio.subprocess.PIPE
    arguments = ("-m", "benchmarks.idle", str(port), str(count))
    dialer = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
    assert dialer.stdout is not None
    if await dialer.stdout.readline() != b"ready\n":
        raise RuntimeError("the dialing process failed")
    return dialer


async def dial(port: int, count: int) -> None:
    """Each connection comes from a node of its own: two of the same node would become one."""
    turn = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as exits:
        await asyncio.gather(*(connect(exits, turn, port, number) for number in range(count)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def connect(exits: AsyncExitStack, turn: asyncio.Semaphore, port: int, number: int) -> None:
    import openline

    async with turn:
        config = openline.Config(name=f"dialer-{number}")
        transport = await exits.enter_async_context(openline.load_transport(config))
        await transport.connect(f"ws://{HOST}:{port}")


if __name__ == "__main__":
    uvloop.run(dial(int(sys.argv[1]), int(sys.argv[2])))
