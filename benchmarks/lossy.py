"""Eight streams to one peer over a link that loses packets of one of them: what the others notice.

python -m benchmarks.lossy take HOST SCHEME           the receiving end; prints its port
python -m benchmarks.lossy send ADDRESS SECONDS       the sending end; prints one JSON line
"""

import asyncio
import contextlib
import sys
from time import perf_counter
from typing import Any

import msgspec
import uvloop

from benchmarks.lossylink import Link, lossy
from benchmarks.measure import percentile
from benchmarks.works import Plan

LOSSES = (0, 1, 5)
# The one stream with packets large enough to be lost: 17 of them in each message.
LARGE_BYTES = 24 * 1024
LARGE_EVERY = 0.02
# Short, so that even three in one packet stay below what can be lost.
OTHERS = 7
SMALL_BYTES = 100
SMALL_EVERY = 0.01
WARMUP = 0.5


class Sent(msgspec.Struct):
    # Seconds until the acknowledgement of each message of the small streams.
    times: list[float]
    large: int


async def run(scheme: str, plan: Plan) -> dict[str, Any]:
    """One number for each loss, by name; the losses one after the other."""
    numbers: dict[str, float] = {}
    for percent in LOSSES:
        with lossy(percent, seed=percent) as link:
            sent = await once(link, scheme, plan.seconds)
            numbers |= {f"{key}_{percent}": value for key, value in said(sent, link, plan.seconds).items()}
    return numbers


def said(sent: Sent, link: Link, seconds: float) -> dict[str, float]:
    return {
        "p50_us": round(percentile(sent.times, 0.50) * 1e6, 1),
        "p99_us": round(percentile(sent.times, 0.99) * 1e6, 1),
        "large_rate": round(sent.large / seconds, 1),
        **link.counted(),
    }


async def once(link: Link, scheme: str, seconds: float) -> Sent:
    pipe = asyncio.subprocess.PIPE
    module = (sys.executable, "-m", "benchmarks.lossy")
    taker = await asyncio.create_subprocess_exec(
        *link.far([*module, "take", link.host]), stdin=pipe, stdout=pipe
    )
    assert taker.stdout is not None
    port = await link.way(int(await taker.stdout.readline()))
    address = f"{scheme}://{link.host}:{port}"
    sender = await asyncio.create_subprocess_exec(
        *link.near([*module, "send", address, str(seconds)]), stdout=pipe
    )
    output, _ = await sender.communicate()
    await taker.communicate(b"")
    if sender.returncode or taker.returncode:
        raise RuntimeError("an end failed, and has said why")
    return msgspec.json.decode(output, type=Sent)


async def take(host: str) -> None:
    import openline

    async with openline.load_transport(openline.Config(name="taker")) as transport:
        transport.on_message(lambda peer, message: None)
        print((await transport.listen(0, host=host)).port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


class Streams:
    """The sending end: each small stream keeps its own time, whatever becomes of its last message."""

    def __init__(self, transport: Any, address: str) -> None:
        self._transport = transport
        self._address = address
        self._sending: list[asyncio.Task[None]] = []
        self._sent = Sent([], 0)

    async def run(self, seconds: float) -> Sent:
        large = asyncio.ensure_future(self._large())
        await self._small(WARMUP)
        self._sent = Sent([], 0)
        await self._small(seconds)
        large.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await large
        return self._sent

    async def _large(self) -> None:
        """One after the other: the next begins when the last is acknowledged, and not before its time."""
        while True:
            next_at = perf_counter() + LARGE_EVERY
            await self._send("large", LARGE_BYTES)
            self._sent.large += 1
            await asyncio.sleep(max(next_at - perf_counter(), 0))

    async def _small(self, seconds: float) -> None:
        end = perf_counter() + seconds
        number = 0
        while (now := perf_counter()) < end:
            self._sending.append(asyncio.ensure_future(self._timed(f"small-{number % OTHERS}")))
            number += 1
            next_at = end - seconds + number * SMALL_EVERY / OTHERS
            await asyncio.sleep(max(next_at - now, 0))
        await asyncio.gather(*self._sending)
        self._sending.clear()

    async def _timed(self, stream: str) -> None:
        start = perf_counter()
        await self._send(stream, SMALL_BYTES)
        self._sent.times.append(perf_counter() - start)

    async def _send(self, stream: str, size: int) -> None:
        import openline

        message = openline.Message(payload="x" * size, stream_id=stream)
        receipt = await self._transport.send(self._address, message)
        if not receipt.acked:
            raise RuntimeError("the receiver has not confirmed the message")


async def send(address: str, seconds: float) -> Sent:
    import openline

    async with openline.load_transport(openline.Config(name="sender")) as transport:
        await transport.connect(address)
        return await Streams(transport, address).run(seconds)


def main() -> None:
    role, where, *seconds = sys.argv[1:]
    if role == "take":
        uvloop.run(take(where))
    else:
        sent = uvloop.run(send(where, float(seconds[0])))
        print(msgspec.json.encode(sent).decode())


if __name__ == "__main__":
    main()
