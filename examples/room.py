"""Agents in one room: what one says, each of the others hears, once.

    python examples/room.py alice --port 8770            # the first one
    python examples/room.py bob --join HOST:8770         # the others join whoever is there
    python examples/room.py carol --join HOST:8770

Who joins is told where the others are and connects to each, so that nobody is in the middle: alice may
leave, and the rest goes on. Lines from the standard input are said; its end, or Ctrl-C, leaves the room. A
line tells who is here, who does not answer (after 2 s), and who has gone (after 3 s).

Each agent keeps its key in a file, NAME.pem: who comes back is the same node. The others go on dialing it
where it was; at another port it has to --join again. Give --join an address that all others can reach, too.
Who is in the room tells the others where to connect to: let in only whom you trust, by --allow.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from functools import partial
from typing import Any

import openline

# Who is silent is asked; after a third of this it does not answer, after a half it has gone.
IDLE_TIMEOUT = 6.0
# Messages under way before the next line is read.
MANY = 1000
SEEN = {"connected": "is here", "suspect": "does not answer", "gone": "has gone"}
SEEN["recovered"] = "answers again"
show = partial(print, flush=True)


class Room:
    """This agent, and those that it is connected to."""

    def __init__(self, transport: openline.Transport) -> None:
        self._transport = transport
        self._kept: dict[str, openline.Address] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        transport.on_peer(self._seen)
        transport.on_message(self._receive)

    @property
    def others(self) -> list[openline.Peer]:
        return [peer for peer in self._transport.peers() if peer.proven]

    async def join(self, address: str) -> None:
        """Be connected to who is there, and to all whom it knows."""
        peer = await self._transport.connect(address)
        if peer is not None:
            await self._meet(peer)

    async def say(self, text: str) -> None:
        """To all who are here; it returns before they have heard it, unless much is under way."""
        for peer in self.others:
            self._start(self._tell(peer, text))
        while len(self._tasks) > MANY:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def leave(self) -> None:
        """Wait until all have heard all, or for as long as it takes to notice that one has gone."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=IDLE_TIMEOUT)

    async def _meet(self, peer: openline.Peer) -> None:
        answer = await peer.request(openline.Message(type="who"), returns=dict[str, str])
        members = {**answer.payload, str(peer.node_id): peer.address}
        members.pop(self._transport.node_id, None)
        # Who is connected is not dialed now, but from now on whenever it is lost.
        await asyncio.gather(*(self._keep(*each) for each in members.items()))

    async def _keep(self, node_id: str, address: str) -> None:
        place = openline.Address.parse(address)
        named = openline.Address(place.host, place.port, node_id=node_id)
        # One address for each, as nothing ends what keep begins.
        await self._transport.connect(self._kept.setdefault(node_id, named), keep=True)

    async def _tell(self, peer: openline.Peer, text: str) -> None:
        try:
            await peer.send(openline.Message(type="say", payload=text))
        except (openline.Error, TimeoutError) as error:
            show(f"({peer.name} may not have heard {text!r}: {error})")

    async def _receive(self, peer: openline.Peer, message: openline.Message) -> None:
        if message.type == "who":
            await peer.reply(message, {str(other.node_id): other.address for other in self.others})
        elif message.type == "say" and peer.proven:
            # What could steer the terminal is not printed.
            show(f"{peer.name}: {''.join(c for c in str(message.payload) if c.isprintable())}")

    def _seen(self, event: openline.PeerEvent) -> None:
        if event.peer.proven and event.kind in SEEN:
            show(f"{event.peer.name} {SEEN[event.kind]}")
            if event.kind == "connected":
                self._start(self._meet(event.peer))

    def _start(self, doing: Any) -> None:
        task = asyncio.create_task(self._quietly(doing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, doing: Any) -> None:
        with contextlib.suppress(openline.Error, TimeoutError):  # presence tells of it
            await doing


def read(loop: asyncio.AbstractEventLoop, room: Room, ended: asyncio.Event) -> None:
    """Say what is on the standard input: in a thread, as that works for terminals, pipes and files."""
    # At the end of the program, nobody says anything any more.
    with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
        with open(0, errors="replace", closefd=False) as lines:
            for line in lines:
                asyncio.run_coroutine_threadsafe(room.say(line.rstrip("\n")), loop).result()
        loop.call_soon_threadsafe(ended.set)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--port", type=int, default=0, help="where to listen; any that is free, unless given")
    parser.add_argument("--join", metavar="HOST:PORT", help="where one of the others is")
    parser.add_argument("--allow", action="append", metavar="NODEID", help="let this node in; repeat it")
    told = parser.parse_args()
    if sys.stdin is None:
        parser.error("the standard input is closed; give it /dev/null, and this agent joins and leaves")
    key = openline.Identity.load_or_create(f"{told.name}.pem")
    config = openline.Config(name=told.name, identity=key, allow=told.allow, max_idle_timeout=IDLE_TIMEOUT)
    async with openline.load_transport(config) as t:
        room, ended = Room(t), asyncio.Event()
        listener = await t.listen(told.port)
        if told.join:
            await room.join(told.join)
        show(f"{told.name} is node {t.node_id}, at port {listener.port}")
        loop = asyncio.get_running_loop()
        threading.Thread(target=read, args=(loop, room, ended), daemon=True).start()
        await ended.wait()
        await room.leave()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (openline.Error, OSError) as error:
        sys.exit(f"room.py: {error}")
