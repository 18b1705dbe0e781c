"""One contender, one work, one round, in a process of its own; prints one JSON line.

python -m benchmarks.worker run NAME PLAN           both ends, or the receiving end of two processes
python -m benchmarks.worker send NAME PLAN PORT     the sending end of two processes
"""

import asyncio
import gc
import importlib
import sys
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import uvloop

from benchmarks import idle
from benchmarks.contenders import TABLE
from benchmarks.contenders.base import Contender, Dialed, Send
from benchmarks.measure import Tally
from benchmarks.messages import chunks, messages
from benchmarks.works import Plan

Result = dict[str, Any]

# The receiver has surely taken in the warm-up by then.
PAUSE = 0.3


class Sent(msgspec.Struct):
    started: float
    acked: bool = False
    closed: int | None = None


def load(name: str) -> Contender:
    entry = TABLE[name]
    module = importlib.import_module(f"benchmarks.contenders.{entry.module}")
    contender: Contender = getattr(module, entry.kind)()
    return contender


def prepare(contender: Contender, plan: Plan) -> list[Any]:
    gc.disable()
    ready = [contender.native(message) for message in messages(plan.warmup + plan.count, plan.payload)]
    # The list is the benchmark's own; walking it again and again is nobody's cost.
    gc.freeze()
    gc.enable()
    return ready


async def rtt(contender: Contender, plan: Plan) -> Result:
    ready = prepare(contender, plan)
    times = await contender.rtt(await contender.echo(), ready)
    return {"times_us": [round(seconds * 1e6, 2) for seconds in times[plan.warmup :]]}


async def dial(contender: Contender, plan: Plan) -> Result:
    ready = prepare(contender, plan)
    port = await contender.echo()
    times: dict[str, list[Dialed]] = {how: [] for how in contender.dials}
    for message in ready:
        for how, dialed in times.items():
            dialed.append(await contender.dial(port, how, message))
    return {
        f"{how}_{part}_ms": round(median(getattr(each, part) for each in dialed[plan.warmup :]) * 1e3, 3)
        for how, dialed in times.items()
        for part in Dialed._fields
    }


async def one_way(contender: Contender, plan: Plan) -> Result:
    tally = Tally(plan.warmup + plan.count)
    port = await contender.receive(tally.seen)
    sent = await send(contender, plan, port)
    await tally.settled()
    # Once more: a connection may have closed since.
    return received(plan, tally, msgspec.structs.replace(sent, closed=contender.closed()))


async def send(contender: Contender, plan: Plan, port: int) -> Sent:
    ready = prepare(contender, plan)
    put = await contender.sender(port)
    await in_chunks(put, ready[: plan.warmup], plan)
    await asyncio.sleep(PAUSE)
    started = perf_counter()
    await in_chunks(put, ready[plan.warmup :], plan)
    return Sent(started, contender.acked(), contender.closed())


async def in_chunks(put: Send, ready: list[Any], plan: Plan) -> None:
    for chunk in chunks(ready, plan.chunk):
        await put(chunk)


def received(plan: Plan, tally: Tally, sent: Sent) -> Result:
    arrived = tally.count - plan.warmup
    return {
        "sent": plan.count,
        "received": arrived,
        "seconds": tally.last - sent.started,
        "acked": sent.acked,
        "closed": sent.closed,
    }


async def one_way_two(contender: Contender, plan: Plan, name: str) -> Result:
    tally = Tally(plan.warmup + plan.count)
    port = await contender.receive(tally.seen)
    arguments = ("-m", "benchmarks.worker", "send", name, msgspec.json.encode(plan).decode(), str(port))
    pipe = asyncio.subprocess.PIPE
    sender = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
    assert sender.stdout is not None
    sent = msgspec.json.decode(await sender.stdout.readline(), type=Sent)
    await tally.settled()
    # The end of its input is what the sender waits for before it closes.
    await sender.communicate(b"")
    return received(plan, tally, sent)


async def send_and_stay(name: str, plan: Plan, port: int) -> None:
    """The sending process: says when it began, and stays until its parent has counted."""
    contender = load(name)
    async with contender.exits:
        say(await send(contender, plan, port))
        await asyncio.to_thread(sys.stdin.read)


async def run(name: str, plan: Plan) -> Result:
    if plan.work == "idle":
        return await idle.listen(plan)
    contender = load(name)
    async with contender.exits:
        match plan.work:
            case "rtt" | "quic-rtt":
                return await rtt(contender, plan)
            case "one-way-two":
                return await one_way_two(contender, plan, name)
            case "quic-dial":
                return await dial(contender, plan)
            case "quic-loss":
                # Not above: it imports openline, which the others are measured without.
                from benchmarks import lossy

                return await lossy.run(contender.scheme, plan)
            case _:
                return await one_way(contender, plan)


def say(line: Any) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    role, name, plan_json, *port = sys.argv[1:]
    plan = msgspec.json.decode(plan_json, type=Plan)
    if role == "send":
        uvloop.run(send_and_stay(name, plan, int(port[0])))
    else:
        say(uvloop.run(run(name, plan)))


if __name__ == "__main__":
    main()
