"""Two checkouts of openline beside each other: what did a change make faster, and what slower?

python -m benchmarks.compare --base FOLDER [--this FOLDER] [--rounds N] [--only NAME,...]

Each measurement is a process of its own, with its checkout's `src` first on the path, and the two take
turns: whatever disturbs one disturbs the other. This file needs nothing but openline, uvloop and websockets,
and runs the same code for both, by the public API only.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, TypeVar

HOST = "127.0.0.1"
WARMUP = 1000
ASKED = 4000
# Messages that are sent together.
CHUNK = 1000
CHUNKS = 60
# What sys.setprofile slows down is not timed, so few rounds are enough.
COUNTED = 301
PATIENCE = 120.0
# 240 bytes as JSON, as in the other benchmarks.
PAYLOAD = {"n": 1, "text": ("agent build check deploy fetch graph merge plan query review " * 4)[:173]}

T = TypeVar("T")
Run = Callable[[AsyncExitStack], Awaitable[float]]


@dataclass(frozen=True)
class Measure:
    run: Run
    unit: str
    title: str
    more_is_better: bool = False
    loop: str = "uvloop"


def messages(count: int) -> list[Any]:
    import openline

    ready = [openline.Message(id=f"m{number:011d}", payload=PAYLOAD) for number in range(count)]
    # The list is the benchmark's own; walking it again and again is nobody's cost.
    gc.collect()
    gc.freeze()
    return ready


async def transport(exits: AsyncExitStack, name: str) -> Any:
    import openline

    return await exits.enter_async_context(openline.load_transport(openline.Config(name=name)))


async def server(exits: AsyncExitStack, handler: Any) -> int:
    listening = await transport(exits, "server")
    listening.on_message(handler)
    return int((await listening.listen(0, host=HOST)).port)


async def answer(peer: Any, message: Any) -> None:
    await peer.reply(message, message.payload)


async def echo(peer: Any, message: Any) -> None:
    await peer.send(message)


def take(peer: Any, message: Any) -> None:
    """Nobody answers."""


def p50_us(times: Sequence[float]) -> float:
    return statistics.median(times[WARMUP:]) * 1e6


async def alone(work: Coroutine[Any, Any, T]) -> T:
    """In a task of its own: resumed from the middle of this program, its callers would be resumed as well."""
    return await asyncio.create_task(work)


async def each(do: Callable[[Any], Awaitable[Any]], ready: Sequence[Any]) -> list[float]:
    times = []
    for message in ready:
        start = perf_counter()
        await do(message)
        times.append(perf_counter() - start)
    return times


async def requests(exits: AsyncExitStack, scheme: str) -> Callable[[Any], Awaitable[Any]]:
    port = await server(exits, answer)
    client = await transport(exits, "client")
    address = f"{scheme}://{HOST}:{port}"
    return partial(client.request, address)


async def sends(exits: AsyncExitStack, scheme: str) -> Callable[[Any], Awaitable[Any]]:
    port = await server(exits, take)
    client = await transport(exits, "client")
    address = f"{scheme}://{HOST}:{port}"

    async def send(message: Any) -> None:
        check_acked([await client.send(address, message)])

    return send


def check_acked(receipts: Sequence[Any]) -> None:
    if not all(receipt.acked for receipt in receipts):
        raise RuntimeError("the receiver has not confirmed every message")


def request(scheme: str) -> Run:
    async def run(exits: AsyncExitStack) -> float:
        return p50_us(await alone(each(await requests(exits, scheme), messages(WARMUP + ASKED))))

    return run


def send(scheme: str) -> Run:
    async def run(exits: AsyncExitStack) -> float:
        return p50_us(await alone(each(await sends(exits, scheme), messages(WARMUP + ASKED))))

    return run


def batch(scheme: str) -> Run:
    async def run(exits: AsyncExitStack) -> float:
        port = await server(exits, take)
        client = await transport(exits, "client")
        address = f"{scheme}://{HOST}:{port}"

        async def send_batch(chunk: Sequence[Any]) -> None:
            check_acked(await client.send_batch(address, chunk))

        return await thousands(send_batch)

    return run


def gather(scheme: str) -> Run:
    async def run(exits: AsyncExitStack) -> float:
        port = await server(exits, take)
        client = await transport(exits, "client")
        address = f"{scheme}://{HOST}:{port}"

        async def send_all(chunk: Sequence[Any]) -> None:
            check_acked(await asyncio.gather(*(client.send(address, message) for message in chunk)))

        return await thousands(send_all)

    return run


async def thousands(send_chunk: Callable[[Sequence[Any]], Awaitable[None]]) -> float:
    """Thousands of messages in a second, each chunk acknowledged before the next."""
    ready = messages((CHUNKS + 2) * CHUNK)
    chunks = [ready[start : start + CHUNK] for start in range(0, len(ready), CHUNK)]
    for chunk in chunks[:2]:
        await send_chunk(chunk)
    times = await alone(each(send_chunk, chunks[2:]))
    # The median chunk: one that somebody else's process has held up says nothing of either checkout.
    return CHUNK / statistics.median(times) / 1000


async def handler_echo(exits: AsyncExitStack) -> float:
    """Both ends only ever send from a handler."""
    port = await server(exits, echo)
    client = await transport(exits, "client")
    ready = iter(messages(WARMUP + ASKED))
    times: list[float] = []
    finished = asyncio.get_running_loop().create_future()

    @client.on_message  # type: ignore[untyped-decorator]
    async def answered(peer: Any, message: Any) -> None:
        times.append(perf_counter() - started[0])
        following = next(ready, None)
        if following is None:
            finished.set_result(None)
            return
        started[0] = perf_counter()
        await peer.send(following)

    started = [perf_counter()]
    await client.send(f"ws://{HOST}:{port}", next(ready))
    await finished
    return p50_us(times)


async def plain_client(exits: AsyncExitStack) -> float:
    """A client that speaks no openline: one JSON text frame each way, by `websockets`."""
    from websockets.asyncio.client import connect

    port = await server(exits, answer)
    line = await exits.enter_async_context(connect(f"ws://{HOST}:{port}", compression=None))
    message = {"id": "m00000000000", "type": "task", "payload": PAYLOAD}

    async def ask(number: int) -> None:
        await line.send(json.dumps({**message, "id": f"m{number:011d}"}))
        json.loads(await line.recv())

    return p50_us(await alone(each(ask, range(WARMUP + ASKED))))


async def raw_tcp(exits: AsyncExitStack) -> float:
    """The control: no openline in it, so its ratio is what this machine's noise looks like."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(EchoBack, HOST, 0)
    exits.callback(listening.close)
    port = listening.sockets[0].getsockname()[1]
    line, asking = await loop.create_connection(Asking, HOST, port)
    exits.callback(line.close)
    return p50_us(await alone(each(asking.ask, [bytes(240)] * (WARMUP + ASKED))))


class EchoBack(asyncio.Protocol):
    def connection_made(self, line: Any) -> None:
        self.line = line

    def data_received(self, data: bytes) -> None:
        self.line.write(data)


class Asking(EchoBack):
    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.line.write(data)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)


async def calls_each(do: Callable[[Any], Awaitable[Any]]) -> float:
    """Python calls of one round, from its beginning to the next one's: both ends, and what the ack costs."""
    ready = messages(WARMUP + COUNTED)
    await each(do, ready[:WARMUP])
    count = 0
    counts = []

    def called(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(called)
    for message in ready[WARMUP:]:
        await do(message)
        counts.append(count)
        count = 0
    sys.setprofile(None)
    return statistics.median(counts[1:])


async def request_calls(exits: AsyncExitStack) -> float:
    return await alone(calls_each(await requests(exits, "ws")))


async def send_calls(exits: AsyncExitStack) -> float:
    port = await server(exits, take)
    client = await transport(exits, "client")
    address = f"ws://{HOST}:{port}"
    return await alone(calls_each(partial(client.send, address)))


MEASURES = {
    "ws-request": Measure(request("ws"), "µs", "request() over WebSocket, p50"),
    "ws-echo": Measure(handler_echo, "µs", "handler echo over WebSocket, p50"),
    "ws-send": Measure(send("ws"), "µs", "await send() until its ack, WebSocket, p50"),
    "ws-batch": Measure(batch("ws"), "k/s", "send_batch() over WebSocket", more_is_better=True),
    "ws-gather": Measure(gather("ws"), "k/s", "gather() of send()s, WebSocket", more_is_better=True),
    "quic-request": Measure(request("quic"), "µs", "request() over QUIC, p50"),
    "quic-send": Measure(send("quic"), "µs", "await send() until its ack, QUIC, p50"),
    "quic-batch": Measure(batch("quic"), "k/s", "send_batch() over QUIC", more_is_better=True),
    "quic-gather": Measure(gather("quic"), "k/s", "gather() of send()s, QUIC", more_is_better=True),
    "plain": Measure(plain_client, "µs", "round trip of a websockets client, p50"),
    "calls": Measure(request_calls, "calls", "Python calls of request() and answer, uvloop"),
    "calls-asyncio": Measure(request_calls, "calls", "the same under asyncio", loop="asyncio"),
    "calls-send": Measure(send_calls, "calls", "Python calls of an acked send(), uvloop"),
    "tcp": Measure(raw_tcp, "µs", "control: raw TCP echo, p50"),
}


async def measured(measure: Measure) -> float:
    async with AsyncExitStack() as exits:
        return await measure.run(exits)


def child(name: str, source: str) -> None:
    """The measuring process: one number on stdout."""
    import openline

    if not Path(openline.__file__).is_relative_to(source):
        raise RuntimeError(f"measured {openline.__file__} instead of {source}")
    measure = MEASURES[name]
    if measure.loop == "asyncio":
        print(asyncio.run(measured(measure)))
        return
    import uvloop

    print(uvloop.run(measured(measure)))


def one_round(name: str, checkout: Path) -> float:
    source = str(checkout / "src")
    # -P, for this file's own folder is not what is to be imported from.
    argv = [sys.executable, "-P", __file__, "--child", name, source]
    environment = os.environ | {"PYTHONPATH": source}
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} of {checkout} failed:\n{done.stderr}")
    return float(done.stdout)


def compare(name: str, base: Path, this: Path, rounds: int) -> list[tuple[float, float]]:
    """Pairs of base and this; who goes first changes each time."""
    # Exact but for what a timer adds: a median of few is enough.
    rounds = min(rounds, 3) if MEASURES[name].unit == "calls" else rounds
    pairs = []
    for turn in range(rounds):
        order = (base, this) if turn % 2 == 0 else (this, base)
        numbers = {checkout: one_round(name, checkout) for checkout in order}
        pairs.append((numbers[base], numbers[this]))
        print(f"{name} {turn + 1}/{rounds}: {pairs[-1][0]:.1f} {pairs[-1][1]:.1f}", file=sys.stderr)
    return pairs


def row(name: str, pairs: list[tuple[float, float]]) -> str:
    measure = MEASURES[name]
    base, this = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(mine / theirs for theirs, mine in pairs)
    better = (this - base) / base * (1 if measure.more_is_better else -1)
    verdict = "same" if this == base else f"{abs(better):.1%} {'better' if better > 0 else 'worse'}"
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    numbers = f"{base:9.1f} {this:9.1f} {measure.unit:<5} {this / base:6.3f} × ({spread})"
    return f"{name:<14} {numbers}  {verdict:<13} {measure.title}"


def parse(arguments: list[str]) -> argparse.Namespace:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", epilog=f"names: {', '.join(MEASURES)}"
    )
    parser.add_argument("--base", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--this", type=Path, default=here, help="the checkout to judge (default: this one)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each measurement (default: 7)")
    parser.add_argument("--only", type=names, default=tuple(MEASURES), help="names, with commas between")
    return parser.parse_args(arguments)


def names(text: str) -> tuple[str, ...]:
    """Whole names, or beginnings of names: `ws` is all that begin so."""
    wanted = tuple(name for name in MEASURES if name.startswith(tuple(text.split(","))))
    if not wanted:
        raise argparse.ArgumentTypeError(f"known are {', '.join(MEASURES)}")
    return wanted


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    options = parse(sys.argv[1:])
    base, this = options.base.resolve(), options.this.resolve()
    for checkout in (base, this):
        if not (checkout / "src" / "openline").is_dir():
            raise SystemExit(f"{checkout} is no checkout of openline")
    if base == this:
        # A dictionary by checkout would hold one number: give the same tree by another path to see the noise.
        raise SystemExit("both are the same checkout")
    rows = [row(name, compare(name, base, this, options.rounds)) for name in options.only]
    print(f"{'':<14} {'base':>9} {'this':>9} {'':<5} this/base (lowest and highest pair)")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
