"""What an idle process needs: its memory, and its share of a core."""

import asyncio
import gc

import psutil


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
