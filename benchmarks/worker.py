"""One contender, one work, one round, in a process of its own; prints one JSON line.

python -m benchmarks.worker run NAME PLAN           both ends, or the receiving end of two processes
python -m benchmarks.worker send NAME PLAN PORT     the sending end of two processes
python -m benchmarks.worker ask NAME PLAN PORT      the asking end of two processes
python -m benchmarks.worker join NAME PLAN PORT     many ends that connect and stay
"""

import asyncio
import gc
import importlib
import sys
from statistics import median
from time import perf_counter, process_time
from typing import Any

import msgspec
import uvloop

from benchmarks.contenders import TABLE
from benchmarks.contenders.base import Contender, Dialed, Send
from benchmarks.measure import Tally, calls_each
from benchmarks.messages import chunks, messages
from benchmarks.works import Plan

Result = dict[str, Any]

# The receiver has surely taken in the warm-up by then.
PAUSE = 0.3
# Long enough for the last handshakes to end and the first pings to spread.
SETTLE = 5.0
# How many dial at the same time.
AT_ONCE = 20
# All times of one round in one line.
LONGEST_LINE = 2**22


class Sent(msgspec.Struct):
    started: float
    # The processor time that the process had used by then.
    used: float = 0.0
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


async def rtt(contender: Contender, plan: Plan, port: int | None = None) -> Result:
    ready = prepare(contender, plan)
    before = process_time()
    times = await contender.rtt(await contender.echo() if port is None else port, ready)
    used = (process_time() - before) / len(ready)
    return {
        "times_us": [round(seconds * 1e6, 2) for seconds in times[plan.warmup :]],
        "cpu_us": round(used * 1e6, 2),
    }


async def calls(contender: Contender, plan: Plan) -> float:
    ready = prepare(contender, plan)
    ask = await contender.asker(await contender.echo())
    return median((await calls_each(ask, ready))[plan.warmup :])


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
    used = (process_time() - sent.used) / plan.count
    # Once more: a connection may have closed since.
    sent.closed = contender.closed()
    return received(plan, tally, sent) | {"cpu_us": round(used * 1e6, 3)}


async def send(contender: Contender, plan: Plan, port: int) -> Sent:
    ready = prepare(contender, plan)
    put = await contender.sender(port)
    await in_chunks(put, ready[: plan.warmup], plan)
    await asyncio.sleep(PAUSE)
    started, used = perf_counter(), process_time()
    await in_chunks(put, ready[plan.warmup :], plan)
    return Sent(started, used, contender.acked(), contender.closed())


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
    sender, line = await other_end("send", name, plan, await contender.receive(tally.seen))
    await tally.settled()
    await ended(sender)
    return received(plan, tally, msgspec.json.decode(line, type=Sent))


async def rtt_two(contender: Contender, plan: Plan, name: str) -> Result:
    asker, line = await other_end("ask", name, plan, await contender.echo())
    await ended(asker)
    return dict(msgspec.json.decode(line))


async def idle(contender: Contender, plan: Plan, name: str) -> Result:
    """What the end that listens needs, while nobody sends: its memory, and its time."""
    # Here, for no other work needs psutil.
    from benchmarks.resources import cpu_share, resident

    port = await contender.receive(lambda number=1: None)
    before = resident()
    dialer, _ = await other_end("join", name, plan, port)
    await asyncio.sleep(SETTLE)
    result: Result = {"tried": plan.count, "connections": contender.connected()}
    result["bytes"] = resident() - before
    result["cpu"] = await cpu_share(plan.seconds)
    result["still_there"] = contender.connected()
    # Thousands of farewells, one after the other, would take longer than all that was measured.
    dialer.kill()
    await dialer.wait()
    return result


async def other_end(role: str, name: str, plan: Plan, port: int) -> tuple[asyncio.subprocess.Process, bytes]:
    """Another process, and the line that it prints when it has done its part."""
    arguments = ("-m", "benchmarks.worker", role, name, msgspec.json.encode(plan).decode(), str(port))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=pipe, stdout=pipe, limit=LONGEST_LINE
    )
    assert process.stdout is not None
    if not (line := await process.stdout.readline()):
        raise RuntimeError("the other process failed, and has said why")
    return process, line


async def ended(process: asyncio.subprocess.Process) -> None:
    """The end of its input is what it waits for before it closes."""
    await process.communicate(b"")


async def do_and_stay(role: str, name: str, plan: Plan, port: int) -> None:
    """The other process: says what it has done, and stays until its parent has counted."""
    contender = load(name)
    async with contender.exits:
        match role:
            case "send":
                say(await send(contender, plan, port))
            case "ask":
                say(await rtt(contender, plan, port))
            case _:
                say(await join(contender, plan, port))
        await asyncio.to_thread(sys.stdin.read)


async def join(contender: Contender, plan: Plan, port: int) -> Result:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turn:
            await contender.join(port, number)

    await asyncio.gather(*map(one, range(plan.count)))
    return {"joined": plan.count}


async def run(name: str, plan: Plan) -> Result | float:
    contender = load(name)
    async with contender.exits:
        match plan.work:
            case "rtt" | "tls-rtt" | "quic-rtt":
                return await rtt(contender, plan)
            case "rtt-two":
                return await rtt_two(contender, plan, name)
            case "calls":
                return await calls(contender, plan)
            case "idle" | "tls-idle" | "quic-idle":
                return await idle(contender, plan, name)
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
    if role != "run":
        uvloop.run(do_and_stay(role, name, plan, int(port[0])))
    elif plan.work == "calls":
        # asyncio's own loop is Python too, and what a program runs on that does not choose another.
        say({"uvloop": uvloop.run(run(name, plan)), "asyncio": asyncio.run(run(name, plan))})
    else:
        say(uvloop.run(run(name, plan)))


if __name__ == "__main__":
    main()
