"""A fleet of workers behind NAT: they dial, a coordinator listens, and their results stream back.

    python examples/fleet.py coordinate --port 8770 --host 10.0.0.5 --jobs 8    # prints what to dial
    python examples/fleet.py work NODEID@10.0.0.5:8770 --name ant    # on any number of machines

Jobs go out over the lines that the workers have opened: nobody dials a worker, and none needs a port. A
worker has one job at a time and answers in parts, which are printed, and in the end their sum. A connection
lost for a moment costs nothing; the job of a worker that has gone is another one's. The coordinator keeps its
key in a file, so that workers, who talk to no other node, know it again after a restart. It gives jobs to
whoever comes, or with --allow to those nodes only. With --key a worker is the same node each time.
"""

import argparse
import asyncio
import math
import platform
import sys
from collections.abc import AsyncIterator
from functools import partial

import msgspec

import openline

# Who does not answer has gone after half of this, may come back for a while, and may take so long for a part.
IDLE_TIMEOUT, GRACE, PART_TIMEOUT = 6.0, 3.0, 60.0
# Numbers that a job and a part of its answer look at.
JOB, PART = 100_000, 20_000
say = partial(print, flush=True)


class Job(msgspec.Struct):
    number: int
    first: int
    end: int  # the primes before this one are to be counted


class Part(msgspec.Struct):
    end: int
    primes: int  # so many before that, and in no part before


class Coordinator:
    """Gives each worker one job at a time, until all are done."""

    def __init__(self, transport: openline.Transport, jobs: list[Job]) -> None:
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._employed: dict[openline.Peer, asyncio.Task[None]] = {}
        for job in jobs:
            self.jobs.put_nowait(job)
        transport.on_peer(self._seen)

    def _seen(self, event: openline.PeerEvent) -> None:
        peer = event.peer
        say(f"{peer.name} is {event.kind}: {event.why}")
        if event.kind == "gone":
            asyncio.get_running_loop().call_later(GRACE, self._dismiss, peer)
        elif peer not in self._employed or self._employed[peer].done():
            self._employed[peer] = asyncio.create_task(self._employ(peer))

    def _dismiss(self, worker: openline.Peer) -> None:
        if not worker.connected and worker in self._employed:
            self._employed.pop(worker).cancel()

    async def _employ(self, worker: openline.Peer) -> None:
        while True:
            job = await self.jobs.get()
            try:
                primes = await self._have_done(worker, job)
                say(f"job {job.number} done by {worker.name}: {primes} primes")
            except openline.RemoteError as error:  # another worker would fail as well
                say(f"job {job.number} failed: {error}")
            except (openline.Error, TimeoutError, asyncio.CancelledError) as error:
                say(f"job {job.number} goes back: {str(error) or f'{worker.name} stays away'}")
                self.jobs.put_nowait(job)
                if not isinstance(error, openline.NotConfirmed):  # that is a new process, which may do it
                    return
            finally:
                self.jobs.task_done()

    async def _have_done(self, worker: openline.Peer, job: Job) -> int:
        primes = 0
        async for part in worker.stream(openline.Message(payload=job), PART_TIMEOUT, returns=Part):
            primes += part.payload.primes
            say(f"  job {job.number}, {worker.name}: {primes} primes before {part.payload.end}")
        return primes


async def coordinate(t: openline.Transport, told: argparse.Namespace) -> None:
    coordinator = Coordinator(t, [Job(n, n * JOB, (n + 1) * JOB) for n in range(told.jobs)])
    listener = await t.listen(told.port)
    say(f"python {sys.argv[0]} work {t.node_id}@{told.host}:{listener.port}")
    await coordinator.jobs.join()


async def work(t: openline.Transport, told: argparse.Namespace) -> None:
    @t.on_message(type=Job)
    async def count(peer: openline.Peer, message: openline.TypedMessage[Job]) -> AsyncIterator[Part]:
        job = message.payload
        try:
            for first in range(job.first, job.end, PART):
                end = min(first + PART, job.end)
                # In a thread, as the loop answers pings meanwhile.
                primes = await asyncio.to_thread(primes_between, first, end)
                await asyncio.sleep(told.pace)
                yield Part(end, primes)
        except asyncio.CancelledError:  # nobody waits for it any more
            say(f"job {job.number} is taken back")
            raise

    t.on_peer(lambda event: say(f"{event.peer.name} is {event.kind}: {event.why}"))
    say(f"{told.name} is node {t.node_id}")
    await t.connect(told.coordinator, keep=True)
    await asyncio.Event().wait()


def primes_between(first: int, end: int) -> int:
    return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(max(first, 2), end))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    roles = parser.add_subparsers(required=True, metavar="coordinate|work")
    one = roles.add_parser("coordinate", help="listen, give out jobs, print what comes back")
    one.set_defaults(run=coordinate, name="coordinator")
    one.add_argument("--port", type=int, default=8770)
    one.add_argument("--host", default="127.0.0.1", help="where the workers reach this machine")
    one.add_argument("--jobs", type=int, default=8, help="how many there are")
    one.add_argument("--key", default="fleet.pem", help="file of its key; made on first use")
    one.add_argument("--allow", action="append", metavar="NODEID", help="give jobs to this worker; repeat it")
    other = roles.add_parser("work", help="dial a coordinator, for ever, and do what it says")
    other.set_defaults(run=work, allow=None)
    other.add_argument("coordinator", metavar="NODEID@HOST:PORT", help="as the coordinator prints it")
    other.add_argument("--name", default=platform.node(), help="this machine's, unless given")
    other.add_argument("--key", help="file of its key; made on first use")
    other.add_argument("--pace", type=float, default=0.2, help="seconds to rest before each part")
    told = parser.parse_args()
    key = openline.Identity.load_or_create(told.key) if told.key else None
    config = openline.Config(name=told.name, identity=key, allow=told.allow, max_idle_timeout=IDLE_TIMEOUT)
    async with openline.load_transport(config) as t:
        await told.run(t, told)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (openline.Error, OSError) as error:
        sys.exit(f"fleet.py: {error}")
