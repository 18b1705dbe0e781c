"""Programs that fork, run by ``test_fork.py``: ``python forks.py SCENARIO LOOP [ARGUMENT...]``.

Each ends with exit code 0 if all is well in the parent and in its children.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import select
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import openline
from openline.runtime.environment import RealEnvironment

DEADLINE = 10.0
# Of the one who listens with TLS, for those who dial.
CERT, KEY = os.environ.get("CERT"), os.environ.get("KEY")


def config(name: str) -> openline.Config:
    tls = openline.Tls(cert=CERT, key=KEY, ca=CERT) if CERT and KEY else None
    return openline.Config(name=name, tls=tls)


def task(payload: Any = None) -> openline.Message:
    return openline.Message(payload=payload)


@contextmanager
def ending() -> Iterator[None]:
    """In a child: whatever happens, it ends here, and says with its exit code how it was."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def wait_for(pid: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child ends with {code}"


async def wait_meanwhile(pid: int) -> None:
    """The parent's loop goes on."""
    await asyncio.to_thread(wait_for, pid)


def in_children(count: int, work: Callable[[], str]) -> list[str]:
    """What ``work`` returns in each of as many children."""
    said = []
    for _ in range(count):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with ending():
                os.write(write, work().encode())
        wait_for(pid)
        os.close(write)
        with os.fdopen(read) as pipe:
            said.append(pipe.read())
    return said


# What is unique per process ----------------------------------------------------------------------


async def ids() -> None:
    work = lambda: " ".join(task().id for _ in range(20))  # noqa: E731
    made = " ".join([*in_children(5, work), work()]).split()
    assert len(set(made)) == 120


async def chance() -> None:
    environment = RealEnvironment()
    assert len(set(in_children(5, lambda: str(environment.random.random())))) == 5


async def keys() -> None:
    """What others make: the keys and numbers of a node and of a dial."""
    from qh3._hazmat import X25519KeyExchange

    X25519KeyExchange()
    openline.Identity()
    for work in (lambda: X25519KeyExchange().public_key().hex(), lambda: openline.Identity().node_id):
        assert len({work(), *in_children(3, work)}) == 4


def hub_and_workers() -> None:
    """A hub that drops what has an id it has had, and workers that are forked off one program."""
    context = multiprocessing.get_context("fork")
    ports, jobs = context.Queue(), context.Queue()

    async def hub() -> None:
        async with openline.load_transport() as t:
            done: dict[object, Any] = {}
            t.on_message(lambda peer, message: done.setdefault(message.id, message.payload))
            ports.put((await t.listen(0, host="127.0.0.1")).port)
            while len(done) < 40:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            jobs.put(sorted(done.values()))

    async def worker(number: int, port: int) -> None:
        async with openline.load_transport() as t:
            for n in range(20):
                await t.send(f"127.0.0.1:{port}", task([number, n]))

    running = context.Process(target=lambda: asyncio.run(hub()), daemon=True)
    running.start()
    port = ports.get(timeout=DEADLINE)
    workers = [context.Process(target=lambda n=n: asyncio.run(worker(n, port)), daemon=True) for n in (0, 1)]
    for process in workers:
        process.start()
    assert jobs.get(timeout=DEADLINE) == [[number, n] for number in (0, 1) for n in range(20)]


# A transport that is carried into a child -----------------------------------------------------------


class Two:
    """A hub and a client in the parent, connected; each answers the other."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    async def __aenter__(self) -> Two:
        self._stack = AsyncExitStack()
        self.hub = await self._stack.enter_async_context(openline.load_transport(config("hub")))
        self.client = await self._stack.enter_async_context(openline.load_transport(config("client")))
        self.listener = await self.hub.listen(0, host="127.0.0.1")
        self.to = f"{self.scheme}://127.0.0.1:{self.listener.port}"
        self.peers: list[openline.Peer] = []
        for t in (self.hub, self.client):
            t.on_message(self._answer)
        await self.check()
        self.before = [self._links(t) for t in (self.hub, self.client)]
        return self

    async def _answer(self, peer: openline.Peer, message: openline.Message) -> None:
        if peer not in self.peers:
            self.peers.append(peer)
        await peer.reply(message, message.payload)

    def _links(self, t: openline.Transport) -> tuple[int, ...]:
        stats = t.stats()
        return stats.created, stats.accepted, stats.closed, stats.malformed

    async def check(self) -> None:
        """Both directions, the second one on the socket that came in."""
        assert (await self.client.request(self.to, task("there"), DEADLINE)).payload == "there"
        assert (await self.peers[0].request(task("and back"), DEADLINE)).payload == "and back"

    async def is_as_before(self) -> None:
        await self.check()
        links = [self._links(t) for t in (self.hub, self.client)]
        assert links == self.before, (self.before, links)

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def calls(self) -> list[Callable[[], Any]]:
        """All that a program may call, of the client and of its peer."""
        t, peer, to = self.client, self.peers[0], self.to
        return [
            lambda: t.send(to, task()),
            lambda: t.send_batch(to, [task()]),
            lambda: t.request(to, task()),
            lambda: t.receive(to),
            lambda: t.connect(to),
            lambda: t.connect(to, keep=True),
            lambda: t.ping(to),
            lambda: t.listen(0),
            lambda: anext(t.messages()),
            lambda: t.close(),
            lambda: self.listener.close(),
            lambda: peer.send(task()),
            lambda: peer.request(task()),
            lambda: peer.reply(task(), 1),
            lambda: t.stats(),
            lambda: t.peers(),
            lambda: t.explain(to),
            lambda: t.on_message(print),
            lambda: t.off_message(print),
            lambda: t.on_undelivered(print),
            lambda: t.reload_tls(),
            lambda: self.listener.reload_tls(),
        ]


def refuses(call: Callable[[], Any], run: Callable[[Awaitable[Any]], object]) -> None:
    said = ""
    try:
        result = call()
        if hasattr(result, "__await__"):
            run(result)
    except openline.Closed as error:
        said = str(error)
    assert f"made in process {os.getppid()}" in said
    assert "make a new one after fork" in said


def step(awaitable: Awaitable[Any]) -> None:
    """Without any loop."""
    awaitable.__await__().send(None)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def in_a_loop_of_its_own(awaitable: Awaitable[Any]) -> None:
    asyncio.run(_awaited(awaitable))


async def refused(scheme: str) -> None:
    async with Two(scheme) as two:
        pid = os.fork()
        if pid == 0:
            with ending():
                for call in two.calls():
                    refuses(call, step)
                    refuses(call, in_a_loop_of_its_own)
                assert "another process's" in repr(two.client)
        await wait_meanwhile(pid)
        await two.is_as_before()


async def dropped(scheme: str) -> None:
    """The child forgets all that it was given, and its destructors run."""
    async with Two(scheme) as two:
        pid = os.fork()
        if pid == 0:
            with ending():
                for connection in [*two.hub._table.connections, *two.client._table.connections]:
                    for close in (connection.link.abort, lambda link=connection.link: link.close(1000, "")):
                        try:
                            close()
                        except RuntimeError:
                            traceback.print_exc()  # without a loop that is all it can do
                two.__dict__.clear()
                gc.collect()
        await wait_meanwhile(pid)
        await two.is_as_before()


async def left(scheme: str) -> None:
    """The child leaves its parent's blocks.

    It does not close its copy of the loop: that would make the parent's, with which it shares an epoll,
    deaf to threads. That is asyncio's doing, and uvloop's child does not even survive it.
    """
    try:
        async with Two(scheme) as two:
            await two.client.connect(two.to, keep=True)
            pid = os.fork()
            if pid == 0:
                raise SystemExit(0)
            await wait_meanwhile(pid)
            await two.is_as_before()
    except SystemExit:
        gc.collect()
        os._exit(0)


async def anew(scheme: str) -> None:
    """The child makes its own, and talks to the hub that its parent goes on with."""

    async def talk(port: int) -> None:
        async with openline.load_transport(config("child")) as t:
            listener = await t.listen(0, host="127.0.0.1")
            assert listener.port != port
            for n in range(20):
                assert (await t.request(f"{scheme}://127.0.0.1:{port}", task(n), DEADLINE)).payload == n

    async with Two(scheme) as two:
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                with ending():
                    asyncio.run(talk(two.listener.port))
            pids.append(pid)
        for pid in pids:
            await wait_meanwhile(pid)
        await two.check()
        assert two.client.stats().closed == 0


async def released(scheme: str) -> None:
    """What the parent closes is closed, although the child lives."""
    async with Two(scheme) as two:
        port = two.listener.port
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            while not two.hub.stats().pending_handshakes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                with ending():
                    os.close(write)
                    os.read(read, 1)
            os.close(read)
            await two.listener.close()
            told = await asyncio.to_thread(select.select, [client], [], [], DEADLINE)
            assert told[0], "the far end is not told"
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()
        os.close(write)
        await wait_meanwhile(pid)


def loop_of_the_parent(loop: asyncio.AbstractEventLoop, scheme: str) -> None:
    """The child runs the very loop that it has from its parent."""
    two = Two(scheme)
    loop.run_until_complete(two.__aenter__())
    pid = os.fork()
    if pid == 0:
        with ending():
            for call in two.calls():
                refuses(call, lambda awaitable: loop.run_until_complete(_awaited(awaitable)))
            loop.run_until_complete(asyncio.sleep(0.05))
    loop.run_until_complete(wait_meanwhile(pid))
    loop.run_until_complete(two.is_as_before())
    loop.run_until_complete(two.__aexit__())


def main(scenario: str, loop: str, *arguments: str) -> None:
    if scenario == "hub_and_workers":
        hub_and_workers()
        return
    if loop == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    if scenario == "loop_of_the_parent":
        loop_of_the_parent(factory(), *arguments)
        return
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(globals()[scenario](*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
