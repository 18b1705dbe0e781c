"""Eclipse Zenoh by its Python binding: two sessions in peer mode over TCP, nothing in between.

The binding has no asyncio side: its calls block, and callbacks come from threads of its own.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import zenoh
from zenoh.handlers import Callback

from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send, free_port
from benchmarks.messages import decode, encode

KEY = "bench"
# `matching_status` is true before the other session's declaration has any effect: the first messages, up to
# some thousands, would go nowhere.
SETTLE = 1.0
ALONE: dict[str, Any] = {
    "mode": "peer",
    "scouting/multicast/enabled": False,
    "scouting/gossip/enabled": False,
    # TCP is what is measured.
    "transport/shared_memory/enabled": False,
}


class Zenoh(Contender):
    congestion_control = zenoh.CongestionControl.DEFAULT

    async def echo(self) -> int:
        session, port = self._listen()

        def answer(query: zenoh.Query) -> None:
            with query:
                query.reply(KEY, encode(decode(query.payload.to_bytes())))

        # Directly on the thread that has read it: in a thread of its own each answer takes 100 µs longer.
        session.declare_queryable(KEY, Callback(answer, indirect=False))
        return port

    async def asker(self, port: int) -> Ask:
        querier = self._session(connect=port).declare_querier(KEY)
        await matching(querier)

        async def ask(message: Any) -> None:
            decode(querier.get(payload=encode(message)).recv().ok.payload.to_bytes())

        return ask

    async def receive(self, seen: Seen) -> int:
        session, port = self._listen()

        def count(sample: zenoh.Sample) -> None:
            decode(sample.payload.to_bytes())
            seen()

        session.declare_subscriber(KEY, count)
        return port

    async def sender(self, port: int) -> Send:
        session = self._session(connect=port)
        publisher = session.declare_publisher(KEY, congestion_control=self.congestion_control)
        await matching(publisher)

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                publisher.put(encode(message))

        return send

    def _listen(self) -> tuple[zenoh.Session, int]:
        port = free_port()
        return self._session(listen=port), port

    def _session(self, **ends: int) -> zenoh.Session:
        config = zenoh.Config()
        endpoints = {way: [f"tcp/{HOST}:{ends[way]}"] if way in ends else [] for way in ("listen", "connect")}
        settings = ALONE | {f"{way}/endpoints": list_ for way, list_ in endpoints.items()}
        for key, value in settings.items():
            config.insert_json5(key, json.dumps(value))
        return self.exits.enter_context(zenoh.open(config))


class ZenohBlock(Zenoh):
    """A put waits where the default would drop what does not fit into the queue."""

    congestion_control = zenoh.CongestionControl.BLOCK


async def matching(declared: zenoh.Querier | zenoh.Publisher) -> None:
    await asyncio.sleep(SETTLE)
    if not declared.matching_status:
        raise RuntimeError("the other session is not there")
