"""`openline demo`: the failure openline was made for, made to happen for real on this machine."""

from __future__ import annotations

import asyncio
import time

from openline import capabilities
from openline.config import BackendName
from openline.testing.lab.netns import HostName, LabError, availability

from .program import Pair, ProgramError
from .screen import Comparison, Outcome, Screen
from .stage import PORTS, Loopback, Namespaces, Stage

HELLOS = 3
MESSAGES = 20
PATIENCE = 10.0
SEEN_WITHIN = 0.1  # a state is looked at from outside, and on a busy machine
IDLE_TIMEOUT = 30.0  # openline's default
INTERRUPTED = 130
PLAIN: dict[BackendName, str] = {"websocket": "TCP", "quic": "UDP"}


def run_demo(idle_timeout: float = IDLE_TIMEOUT, namespaces: bool = True) -> int:
    """Tell the story; the exit code: 0 when it came out, 1 when it did not, 130 on Ctrl-C."""
    try:
        return show(Screen(), idle_timeout, namespaces)
    except KeyboardInterrupt:
        Screen().stopped()
        return INTERRUPTED


def show(screen: Screen, idle_timeout: float, namespaces: bool) -> int:
    screen.opening()
    try:
        failures = asyncio.run(play(screen, choose_stage(screen, idle_timeout, namespaces), idle_timeout))
    except (LabError, OSError, TimeoutError, ProgramError) as error:
        failures = [f"it broke off: {str(error) or type(error).__name__}"]
    screen.verdict(failures)
    return 1 if failures else 0


def choose_stage(screen: Screen, idle_timeout: float, namespaces: bool) -> Stage:
    here = availability()
    stage = Namespaces if here and namespaces else Loopback
    if stage is Namespaces:
        screen.say(
            "Two Linux hosts, A and B (network namespaces on this machine), joined by one virtual cable. "
            "The openline programs on them are real processes, and the faults are the kernel's own. "
            "Nothing leaves this machine."
        )
    else:
        screen.warn(f"Not on virtual hosts: {'not asked for' if here else here.reason}.")
        screen.warn(
            "So this is the same story on loopback, with INJECTED faults: B's dialers are told to fail, and "
            "A reaches B through relays that can go silent. The openline programs are real processes."
        )
    return stage(idle_timeout, choose_backends(screen))


def choose_backends(screen: Screen) -> list[BackendName]:
    found = capabilities()
    for backend, reason in found.unavailable.items():
        screen.warn(f"Not over {backend}: {reason}.")
    backends = [backend for backend in PORTS if backend in found.backends]
    screen.say(f"A and B have a program for each backend: {' and '.join(backends)}.")
    return backends


async def play(screen: Screen, stage: Stage, idle_timeout: float) -> list[str]:
    """The story; what did not come out as promised."""
    try:
        await stage.open()
        return await Story(screen, stage, idle_timeout).tell()
    finally:
        await stage.close()


class Story:
    """The same one on every line, each of which has its own pair of programs."""

    def __init__(self, screen: Screen, stage: Stage, idle_timeout: float) -> None:
        self._screen = screen
        self._stage = stage
        self._interval = idle_timeout / 6
        self._injected = " (injected)" if stage.injected else ""
        # Of each pair's A, until the cut.
        self._stalled: dict[str, float] = {}
        self._failures: list[str] = []

    async def tell(self) -> list[str]:
        await self._exchange()
        await self._break_route()
        await self._two_columns()
        await self._cut_and_recover()
        return self._failures

    # The four steps

    async def _exchange(self) -> None:
        self._screen.step("A dials B, and they talk")
        for pair in self._stage.pairs:
            await pair.programs["A"].ask("connect", to=join(pair.b_from_a))
            await self._talk(pair, "A", "B")
            await self._talk(pair, "B", "A")

    async def _talk(self, pair: Pair, sender: HostName, receiver: HostName) -> None:
        outcome = await send(pair, sender, receiver, "send", HELLOS)
        text = f"{sender} to {receiver}: {outcome.score} delivered, over {outcome.line(sender)}"
        self._report(outcome.all_arrived_at_once and outcome.by(pair.backend), text)

    async def _break_route(self) -> None:
        self._screen.step("B's route to A breaks" + self._injected)
        await self._stage.break_route()
        self._screen.say("B now has a stale route: every new connection to A is refused on the spot.")
        for pair in self._stage.pairs:
            host, port = pair.listening["A"]
            error = await pair.programs["B"].ask("dial", host=host, port=port) or "it connects"
            text = f"plain {PLAIN[pair.backend]} connect from B to {host}:{port}: {error}"
            self._report("EHOSTUNREACH" in error, text)

    async def _two_columns(self) -> None:
        self._screen.step(f"B sends {MESSAGES} messages to A, in two ways")
        comparisons = [await compare(pair) for pair in self._stage.pairs]
        self._screen.side_by_side(comparisons)
        self._screen.say("openline answers on the line that is already open: the one A opened to B.")
        for each in comparisons:
            nothing, everything = each.dialing.delivered == 0, each.answering.all_arrived_at_once
            self._expect(nothing, f"{each.backend}: always dialing should deliver nothing")
            self._expect(everything, f"{each.backend}: openline should deliver all at once, dialing nothing")
            self._expect(each.answering.by(each.backend), f"{each.backend} should carry it all")

    async def _cut_and_recover(self) -> None:
        self._screen.step("The cable goes silent: packets vanish, nobody gets an error" + self._injected)
        self._screen.limits(self._interval)
        self._stalled = {pair.backend: await pair.programs["A"].ask("stalls") for pair in self._stage.pairs}
        cut = time.monotonic()
        self._stage.cut()
        self._screen.moment(0, "the cable is cut")
        with self._screen.waiting("waiting for A to notice"):
            await asyncio.gather(*(self._notice(pair, cut) for pair in self._stage.pairs))
        self._stage.heal()
        self._screen.moment(time.monotonic() - cut, "the cable works again; B's route stays broken")
        with self._screen.waiting("waiting for A to dial B again"):
            await asyncio.gather(*(self._recover(pair, cut) for pair in self._stage.pairs))

    async def _notice(self, pair: Pair, cut: float) -> None:
        line = f"{pair.backend} line"
        await self._moment(pair, "suspect", cut, 2, f"A suspects the {line}: its ping was not answered")
        await self._moment(pair, "gone", cut, 3, f"A gives the {line} up for dead")

    async def _recover(self, pair: Pair, cut: float) -> None:
        text = f"recovered: A has opened a new {pair.backend} line to B by itself"
        await self._moment(pair, "live", cut, 6, text)
        after = await send(pair, "B", "A", "send", 1)
        text = f"B to A: {after.score} delivered, over {after.line('B')}"
        self._screen.moment(time.monotonic() - cut, text)
        self._expect(after.all_arrived_at_once and after.by(pair.backend), text)

    # What they are made of

    async def _moment(self, pair: Pair, state: str, cut: float, intervals: float, text: str) -> None:
        """Wait for a state of A's line, which is promised within some intervals of the cut."""
        limit = intervals * self._interval
        a = pair.programs["A"]
        event = await a.event(event="line", state=state, since=cut, timeout=limit + PATIENCE)
        seconds = float(event["at"]) - cut
        self._screen.moment(seconds, text)
        excuse = self._excuse(float(event["stalled"]) - self._stalled[pair.backend])
        in_time = seconds <= limit + SEEN_WITHIN + excuse
        self._expect(in_time, f"{text}, but after {limit:.1f} s at most")

    def _excuse(self, stalled: float) -> float:
        """Where this whole machine has stood still, openline asks once more before it judges."""
        if stalled == 0.0:
            return 0.0
        self._screen.say(f"          (this machine stood still for {stalled:.1f} s, which blames nobody)")
        return stalled + self._interval

    def _report(self, as_told: bool, text: str) -> None:
        self._screen.result(as_told, text)
        self._expect(as_told, text)

    def _expect(self, condition: bool, text: str) -> None:
        if not condition:
            self._failures.append(text)


async def compare(pair: Pair) -> Comparison:
    dialing = await send(pair, "B", "A", "send_dialing", MESSAGES)
    return Comparison(pair.backend, dialing, await send(pair, "B", "A", "send", MESSAGES))


async def send(pair: Pair, sender: HostName, receiver: HostName, way: str, count: int) -> Outcome:
    """Send messages one way, and count those that really arrived at the other end."""
    source, sink = pair.programs[sender], pair.programs[receiver]
    to = join(pair.b_from_a if receiver == "B" else pair.listening["A"])
    tag = f"{way} {time.monotonic()}"
    before = len(await sink.ask("receive", count=0, timeout=0))
    payloads = [[tag, number] for number in range(count)]
    reports = await source.ask(way, to=to, payloads=payloads)
    hoped = sum(report["error"] is None for report in reports)
    received = await sink.ask("receive", count=before + hoped, timeout=5)
    delivered = len({payload[1] for payload in received if payload[0] == tag})
    return Outcome(delivered, reports)


def join(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
