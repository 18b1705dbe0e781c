"""What is told of peers while connections come, are suspect, recover, move, are replaced and lost, in any
order.

The connections are a transport's own, with nothing behind them: each step is what a link or the clock of
liveness would say. ``Auditor`` is the model, and looks after every change of every connection.
"""

from __future__ import annotations

import asyncio
import itertools
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from openline import Address, Config, Identity, Transport, public_key_of
from openline.backends.base import GOING_AWAY, REPLACED, End, Link
from openline.connection.connection import CHALLENGE, Connection
from openline.core.endpoints import Endpoint
from openline.core.handshake import Hello
from openline.core.lifecycle import State
from openline.testing import Host, Network, run

from .presence import Auditor

# Openline nodes, of which one has a greater key than ours and one a smaller; and plain peers.
OPENLINE, PLAIN = ("greater", "smaller"), ("dialed", "came in")
PROCESSES = ("one", "two", "claims to be one")
BACKENDS = ("websocket", "quic")
ENDS = (
    End.lost("connection lost"),
    End.by_peer(GOING_AWAY, "closing"),
    End.by_peer(REPLACED, "another connection stays"),
    End.by_us(1000, "enough"),
)

index = st.integers(0, 5)
opening = st.tuples(
    st.just("open"),
    st.sampled_from(OPENLINE),
    st.sampled_from(PROCESSES),
    st.sampled_from(["inbound", "outbound"]),
    st.sampled_from(BACKENDS),
    st.integers(1, 3),
)
steps = st.lists(
    opening
    | opening
    | st.tuples(st.just("open plain"), st.sampled_from(PLAIN))
    | st.tuples(st.just("suspect"), index)
    | st.tuples(st.just("recover"), index)
    | st.tuples(st.just("lose"), index, st.sampled_from(ENDS))
    | st.tuples(st.just("move"), index, st.integers(1, 3))
    | st.tuples(st.just("answer"), index)
    | st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 5.0, 100.0])),
    max_size=25,
)


class NoLink(Link):
    """Carries nothing. Says that it has ended when it is asked to."""

    def __init__(self, backend: str, endpoint: Endpoint) -> None:
        self.backend = backend
        self.endpoint = endpoint
        self.limit = 0
        self.connection: Connection[Any]
        self._closing = False

    @property
    def closing(self) -> bool:
        return self._closing

    def _end(self, end: End) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(lambda: self.connection.on_closed(end))

    def close(self, code: int, reason: str) -> None:
        self._end(End.by_us(code, reason))

    def cut(self, code: int, reason: str) -> None:
        self._end(End.by_us(code, reason))

    def abort(self) -> None:
        self._end(End.lost("aborted"))

    def write_text(self, data: bytes) -> None: ...
    def write_binary(self, buffer: bytearray, track: int = 0) -> None: ...
    def ping(self, payload: bytes) -> None: ...
    def pong(self, payload: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def broken(self) -> bool:
        return False

    def progress(self) -> None:
        return None

    def taken(self) -> int:
        return 0


class Bench:
    """A transport, and what happens to its connections."""

    def __init__(self, host: Host, transport: Transport) -> None:
        self.transport = transport
        self.keys = {name: key(transport.node_id, name == "greater") for name in OPENLINE}
        self.wrong: list[str] = []
        processes = {f"{who} {name}": who for who in OPENLINE for name in ("one", "two")}
        self.auditor = Auditor("t", host, transport, processes, self.wrong, Random(1))
        self._dials = itertools.count(1)

    def step(self, what: str, *details: Any) -> Any:
        return getattr(self, what.replace(" ", "_"))(*details)

    @property
    def live(self) -> list[Connection[Any]]:
        return list(self.transport._table.connections)

    def open(self, who: str, process: str, direction: Any, backend: str, place: int) -> None:
        number = next(self._dials)
        node_id = self.keys[who]
        proven = process in ("one", "two")
        hello = Hello(
            node_id,
            f"nonce {number}",
            name=who,
            instance=f"{who} {process.split()[-1]}",
            dial=number,
            connection_id=number.to_bytes(16, "big"),
            proven=proven,
        )
        ip = f"10.0.{OPENLINE.index(who)}.{place}"
        target = Address(ip, 8770) if direction == "outbound" else None
        port = 8770 if target is not None else 40_000 + number
        end = Endpoint(direction, ip, port, target=target, hello=hello, secure=True, backend=backend)
        self._up(NoLink(backend, end))

    def open_plain(self, how: str) -> None:
        ip, number = "10.0.9.1", next(self._dials)
        if how == "dialed":
            self._up(NoLink("websocket", Endpoint("outbound", ip, 8770, target=Address(ip, 8770))))
        else:
            self._up(NoLink("websocket", Endpoint("inbound", ip, 40_000 + number)))

    def _up(self, link: NoLink) -> None:
        node, target = self.transport._node, link.endpoint.target
        link.events = link.connection = connection = node._link_up(link, [])
        connection.when_changed(self.auditor.look)
        if target is not None:
            node._dialed(target, connection)

    def _one(self, number: int) -> Connection[Any] | None:
        return self.live[number % len(self.live)] if self.live else None

    def suspect(self, number: int) -> None:
        if (connection := self._one(number)) is not None:
            connection.set_state(State.SUSPECT)

    def recover(self, number: int) -> None:
        if (connection := self._one(number)) is not None and connection.state is State.SUSPECT:
            connection.set_state(State.LIVE)

    def lose(self, number: int, end: End) -> None:
        if (connection := self._one(number)) is not None:
            connection.on_closed(end)

    def move(self, number: int, place: int) -> None:
        if (connection := self._one(number)) is not None and not connection.plain:
            connection.on_moved(connection.endpoint.ip, 50_000 + place)

    def answer(self, number: int) -> None:
        """The process behind it says that it is still there."""
        if (connection := self._one(number)) is not None:
            connection.on_pong(CHALLENGE)

    def wait(self, seconds: float) -> Any:
        return asyncio.sleep(seconds)


def key(ours: str, greater: bool) -> str:
    random = Random(7)
    while True:
        node_id = Identity(Ed25519PrivateKey.from_private_bytes(random.randbytes(32))).node_id
        if (public_key_of(node_id) > public_key_of(ours)) is greater:
            return node_id


async def play(script: list[tuple[Any, ...]]) -> Bench:
    network = Network(1)
    host = network.host("10.0.0.1")
    transport = await host.load_transport(Config(max_idle_timeout=1e6, close_timeout=0.5))

    async def story() -> Bench:
        bench = Bench(host, transport)
        for step in script:
            waiting = bench.step(*step)
            if waiting is not None:
                await waiting
            bench.auditor.look()
        await asyncio.sleep(0.3)
        bench.auditor.look()
        bench.auditor.look_at_peers()
        await transport.close()
        bench.auditor.closed()
        await asyncio.sleep(0.1)
        bench.auditor.over()
        return bench

    bench = await host.run(story())
    assert not bench.wrong, "\n".join(bench.wrong[:5])
    return bench


@settings(deadline=None, max_examples=200)
@given(steps)
def test_every_transition_is_told_once_and_in_order(script: list[tuple[Any, ...]]) -> None:
    run(play(script), limit=100_000.0)
