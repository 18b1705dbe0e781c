"""Whole transports on simulated hosts, with seeded traffic of all kinds between them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openline import Closed, Config, Error, Identity, Message, NotConfirmed, Peer, Transport, Unreachable
from openline.address import join
from openline.connection.connection import Connection
from openline.peers.mailbox import Mailbox
from openline.testing import Host, Killed, Network

from .ledger import ACKED, UNSENT, UNSURE, Ledger, Sent
from .presence import Auditor

PORT = 8770
TRACE_LINES = 20_000
# Streams whose receivers are slow now and then, and one that is read by an iterator.
SLOW_STREAMS = ("slow", 2)
ITERATED = "iterated"
STREAMS = ("default", "rpc", "2", ITERATED, *SLOW_STREAMS)
# Many more, so that some of them share a track.
FAN = tuple(f"fan{number}" for number in range(90))
# Sizes of messages; and of one that takes a slow link seconds.
SIZES, LARGE = (0, 10, 10, 100, 1000, 1000, 20_000), 200_000
# With that much waiting, an acknowledgement is one of data, and not of a ping.
FLOWING = 10_000
# How much later than its time-out a send may end: time-outs are looked at on a tick.
LATE = 1.0
# Simultaneous dials need simultaneous first sends.
AT_ONCE = 0.3
# What the hosts of a fleet have; those that differ all have TCP, so that they reach each other.
PLAIN, MULTIPLEXED, MIXED = FLAVOURS = ("plain", "multiplexed", "mixed")
OFFERS = {
    PLAIN: [("memory",)],
    MULTIPLEXED: [("quic",)],
    MIXED: [("quic", "memory"), ("quic", "memory"), ("memory", "quic"), ("memory",)],
}


class Seat:
    """A node: its place in the network, and its key. Programs come and go there."""

    def __init__(self, host: Host, port: int, key: bytes, config: Config, listens: bool) -> None:
        self.host = host
        self.port = port
        self.name = host.name if port == PORT else f"{host.name}{port}"
        self.identity = Identity(Ed25519PrivateKey.from_private_bytes(key))
        self.config = msgspec.structs.replace(config, name=self.name, identity=self.identity)
        self.listens = listens

    def addresses(self) -> list[str]:
        """All that others may call it."""
        node_id = self.identity.node_id
        if not self.listens:
            return [node_id]
        places = [join(ip, self.port) for ip in self.host.ips] + [f"{self.host.name}:{self.port}"]
        if "quic" in self.host.offers and len(self.host.offers) > 1:
            places.append(f"quic://{places[0]}")
        return [*places, places[0], f"{node_id}@{places[0]}", node_id]


class Program:
    """What runs at a seat: a transport, its consumers, and the flows it sends."""

    def __init__(self, fleet: Fleet, seat: Seat, generation: int) -> None:
        self.fleet = fleet
        self.seat = seat
        self.host = seat.host
        self.generation = generation
        self.random = Random(fleet.random.random())
        self.transport: Transport
        self.auditor: Auditor | None = None
        self.flows: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.transport = await self.host.load_transport(self.seat.config)
        await self.host.run(self._serve())

    async def _serve(self) -> None:
        transport = self.transport
        if self.fleet.audited:
            self.auditor = self.fleet.audit(self)
        if self.seat.listens:
            await transport.listen(self.seat.port)
        for stream_id in STREAMS:
            if stream_id in SLOW_STREAMS:
                transport.on_message(self._dawdle, stream_id=stream_id)
            if stream_id != ITERATED:
                transport.on_message(self._on_message, stream_id=stream_id)
        for stream_id in FAN:
            transport.on_message(self._on_message, stream_id=stream_id)
        self.flows.append(asyncio.ensure_future(self._iterate()))
        for other in self.fleet.seats:
            if other.listens and other is not self.seat and self.random.random() < self.fleet.keeping:
                await transport.connect(self.random.choice(other.addresses()[:-1]), keep=True)

    def _on_message(self, peer: Peer, message: Message) -> Awaitable[None] | None:
        self.fleet.ledger.receive(self.seat.name, self.generation, self.fleet.network.now, message)
        return self._answer(peer, message) if message.type == "question" else None

    async def _answer(self, peer: Peer, message: Message) -> None:
        with suppress(Error, TimeoutError):
            await peer.reply(message, message.payload)

    async def _dawdle(self, peer: Peer, message: Message) -> None:
        await asyncio.sleep(self.random.choice([0.0, 0.0, 0.01, 0.01, self.random.random() / 2]))

    async def _iterate(self) -> None:
        async for peer, message in self.transport.messages(ITERATED):
            answer = self._on_message(peer, message)
            if answer is not None:
                await answer
            if not self.random.randrange(10):
                await asyncio.sleep(self.random.random())

    def mailboxes(self) -> list[Mailbox]:
        return [each for remote in self.transport._table for each in remote.mailboxes.by_stream.values()]

    # Sending -------------------------------------------------------------------------------------

    def begin_flows(self, number: int, seconds: float) -> None:
        others = [seat for seat in self.fleet.seats if seat is not self.seat]
        kinds = [self._send, self._send, self._batch, self._ask, self._burst, self._hasten, self._give_up]
        if self.fleet.flavour != PLAIN:
            kinds.append(self._fan_out)
        for index in range(number):
            target, how = self.random.choice(others), self.random.choice(kinds)
            name = f"{self.seat.name}/{self.generation}.{index}"
            flow = Flow(self, name, target, self.random.choice(STREAMS))
            self.flows.append(self.host.spawn(self._run(flow, how, seconds)))

    async def _run(self, flow: Flow, how: Callable[[Flow], Awaitable[None]], seconds: float) -> None:
        end = self.fleet.network.now + seconds
        pause = self.random.choice([0.01, 0.1, 1.0])
        await asyncio.sleep(self.random.choice([0.0, AT_ONCE, self.random.uniform(0, seconds / 2)]))
        for _ in range(self.random.randint(3, 40)):
            if self.fleet.network.now > end or self.transport._node.home.closing:
                break
            await how(flow)
            await asyncio.sleep(self.random.expovariate(1 / pause))

    async def _send(self, flow: Flow) -> None:
        message, sent = flow.message(large=not self.random.randrange(20))
        send = self.transport.send(flow.address, message)
        await flow.settle([sent], send, self.seat.config.send_timeout)

    async def _hasten(self, flow: Flow) -> None:
        """A send that does not wait for long."""
        message, sent = flow.message()
        limit = self.random.choice([0.001, 0.05, 1.0])
        await flow.settle([sent], self.transport.send(flow.address, message, timeout=limit), limit)

    async def _give_up(self, flow: Flow) -> None:
        """A send that is cancelled, perhaps."""
        message, sent = flow.message()
        task = asyncio.ensure_future(flow.settle([sent], self.transport.send(flow.address, message)))
        await asyncio.wait([task], timeout=self.random.choice([0.0, 0.001, 0.05]))
        task.cancel()
        await asyncio.wait([task])

    async def _burst(self, flow: Flow) -> None:
        """Several sends at a time, begun in order."""
        pairs = [flow.message() for _ in range(self.random.randint(2, 8))]
        send = self.transport.send
        await asyncio.gather(*(flow.settle([sent], send(flow.address, message)) for message, sent in pairs))

    async def _batch(self, flow: Flow) -> None:
        # What a batch hands over at a time may be too much by far, so its messages are small here.
        pairs = [flow.message(small=True) for _ in range(self.random.choice([3, 40]))]
        batch = self.transport.send_batch(flow.address, [message for message, _ in pairs])
        await flow.settle([sent for _, sent in pairs], batch)

    async def _fan_out(self, flow: Flow) -> None:
        """On many streams at a time, each of them a flow of its own."""
        some = self.random.sample(flow.fan, self.random.choice([3, 30, len(flow.fan)]))
        large = self.random.choice(some) if not self.random.randrange(4) else None
        pairs = [
            (one, one.message(large=one is large)) for one in some for _ in range(self.random.randint(1, 2))
        ]
        send = self.transport.send
        await asyncio.gather(
            *(one.settle([sent], send(flow.address, message)) for one, (message, sent) in pairs)
        )

    async def _ask(self, flow: Flow) -> None:
        message, sent = flow.message("question")
        answer = await flow.settle([sent], self.transport.request(flow.address, message, timeout=20.0))
        if isinstance(answer, Message) and answer.payload != message.payload:
            self.fleet.ledger.strange.append(
                f"{sent} was answered by {answer.id}, reply to {answer.reply_to}"
            )


class Flow:
    """Messages from one host to another on one stream, numbered."""

    def __init__(self, program: Program, name: str, target: Seat, stream_id: str | int) -> None:
        self._program = program
        self._name = name
        self._target = target
        self._stream_id = stream_id
        self._count = 0
        self.address = program.random.choice(target.addresses())
        self._fan: list[Flow] = []

    @property
    def fan(self) -> list[Flow]:
        """The same on many streams."""
        if not self._fan:
            for stream_id in FAN:
                flow = Flow(self._program, f"{self._name}.{stream_id}", self._target, stream_id)
                flow.address = self.address
                self._fan.append(flow)
        return self._fan

    def message(
        self, type: str = "task", *, small: bool = False, large: bool = False
    ) -> tuple[Message, Sent]:
        self._count += 1
        program, target = self._program, self._target.name
        now = program.fleet.network.now
        number = self._count
        sent = Sent(f"{self._name}#{number}", self._name, number, program.seat.name, target, now)
        program.fleet.ledger.sent[sent.id] = sent
        size = LARGE if large else program.random.choice(SIZES[:-1] if small else SIZES)
        return Message(sent.id, type, {"to": target, "pad": bytes(size)}, None, self._stream_id), sent

    async def settle(self, sent: list[Sent], sending: Any, limit: float = math.inf) -> Any:
        """Send, and note how it ended; that takes ``limit`` seconds of the host's own time at most."""
        program = self._program
        loop = asyncio.get_running_loop()
        end = loop.time() + limit + LATE
        trace, names = program.fleet.trace, " ".join(each.id for each in sent)
        trace.note(program.host.name, "sends %s", names)
        try:
            result = await sending
        except BaseException as error:
            _note(sent, error)
            if not isinstance(error, Error | TimeoutError):
                raise
        else:
            for each in sent:
                each.outcome = ACKED
            _hand_out(sent, result)
            return result
        finally:
            trace.note(program.host.name, "%s: %s %s", names, sent[-1].outcome, sent[-1].error)
            if loop.time() > end and not program.fleet.stops:
                program.fleet.ledger.strange.append(f"{sent[0]} took until {loop.time():.3f}")


def _hand_out(sent: list[Sent], result: Any) -> None:
    """To each message its receipt, or its answer."""
    for each, got in zip(sent, result if isinstance(result, list) else [result], strict=True):
        each.result = got


def _note(sent: list[Sent], error: BaseException) -> None:
    """What an error says of the messages it is about."""
    for index, each in enumerate(sent):
        each.error = f"{type(error).__name__}: {error}"
        if isinstance(error, Unreachable):
            each.outcome = UNSURE if index < error.sent else UNSENT
        elif isinstance(error, NotConfirmed):
            each.outcome = ACKED if index < error.acked else UNSURE
        elif isinstance(error, TimeoutError) and "no room" in str(error) and len(sent) == 1:
            each.outcome = UNSENT
        else:
            each.outcome = UNSURE


class Fleet:
    """Hosts, seats on them, and what runs there."""

    def __init__(self, seed: int, hosts: int, configs: Sequence[Config], flavour: str = PLAIN) -> None:
        self.random = Random(seed)
        self.flavour = flavour
        self.network = Network(seed, TRACE_LINES)
        # What programs do is noted here, beside what the network notes of itself.
        self.trace = self.network.trace
        self.ledger = Ledger()
        self.seats: list[Seat] = []
        self.programs: dict[Seat, Program] = {}
        self.restarted: set[str] = set()
        # Hosts stand still now and then.
        self.stops = False
        # Is what is told of peers checked? What was wrong with it; and all processes, by their instances.
        self.audited = False
        self.mistold: list[str] = []
        self.processes: dict[str, str] = {}
        # How likely a node stays connected to another.
        self.keeping = self.random.choice([0.0, 0.0, 0.5])
        for index in range(hosts):
            ips = [f"10.0.0.{index + 1}", f"fd00::{index + 1}"]
            host = self.network.host(*ips[: self.random.choice([1, 1, 2])], name="abcd"[index])
            host.offers = OFFERS[flavour][0]
            if flavour == MIXED:
                host.offers = self.random.choice(OFFERS[flavour])
            self._seat(host, PORT, configs, listens=index == 0 or self.random.randrange(5) > 0)
            if not self.random.randrange(6):
                self._seat(host, PORT + 1, configs, listens=True)

    def _seat(self, host: Host, port: int, configs: Sequence[Config], *, listens: bool) -> None:
        key, config = self.random.randbytes(32), self.random.choice(configs)
        self.seats.append(Seat(host, port, key, config, listens))

    async def start(self, host: Host) -> list[Program]:
        """Programs for a host that has none, or whose process has ended."""
        started = []
        for seat in self.seats:
            if seat.host is host:
                before = self.programs.get(seat)
                if before is not None:
                    self.restarted.add(seat.name)
                program = self.programs[seat] = Program(self, seat, before.generation + 1 if before else 1)
                started.append(program)
        with suppress(Killed, Closed):
            for program in started:
                await program.start()
        return started if host.process.alive else []

    def audit(self, program: Program) -> Auditor:
        """From the start of a program on. One in two has a slow handler, too."""
        slow = Random(f"{program.seat.name} {program.generation}") if program.generation % 2 else None
        name, host, transport = program.seat.name, program.host, program.transport
        return Auditor(name, host, transport, self.processes, self.mistold, slow)

    @property
    def auditors(self) -> list[Auditor]:
        return [each.auditor for each in self.programs.values() if each.auditor is not None]

    async def upgrade(self, host: Host) -> None:
        """As one does with a service: close the transport, and end the process; it is to be started again."""
        self.trace.note(host.name, "closes")
        with suppress(Killed):
            for program in self.programs.values():
                if program.host is host and hasattr(program, "transport"):
                    await host.run(program.transport.close())
                    if program.auditor is not None:
                        program.auditor.closed()
        if host.process.alive:
            host.kill()

    async def finish_flows(self) -> None:
        """Wait for all sends."""
        for program in self.programs.values():
            for flow in program.flows[1:]:
                await flow

    async def finish_consumers(self) -> None:
        """Wait until slow consumers have caught up."""
        mailboxes = [each for program in self.programs.values() for each in program.mailboxes()]
        for mailbox in mailboxes:
            for _ in iter(lambda: mailbox.idle, True):  # noqa: B023
                await asyncio.sleep(1.0)

    async def close(self) -> None:
        for program in self.programs.values():
            await program.host.run(program.transport.close())
            if program.auditor is not None:
                program.auditor.closed()


class Undertaker(logging.Handler):
    """Looks at every connection that is declared dead: was it (rule 3.2)?"""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(logging.WARNING)
        self._fleet = fleet

    def emit(self, record: logging.LogRecord) -> None:
        if not record.msg.startswith("dead: ") or not isinstance(record.args, tuple):
            return
        connection = record.args[0]
        assert isinstance(connection, Connection)
        last = _last_life(connection.link)
        silence = self._fleet.network.now - last
        busy = not (connection.reading_paused or connection.link.closing)
        if busy and silence < connection._context.config.ping_interval:
            what = f"{connection!r} declared dead {silence:.3f} s after bytes moved"
            self._fleet.ledger.strange.append(what)


def _last_life(link: Any) -> float:
    """When bytes last moved."""
    if link.multiplexed:
        return float(link._engine.outlet.heard)
    sock = link._sock
    last = sock.into.last_arrival
    if sock.out.written - sock.out.acked > FLOWING:
        last = max(last, sock.out.last_ack)
    return float(last)
