"""`openline demo`: the failure openline was made for, made to happen for real on this machine."""

from __future__ import annotations

import asyncio
import time

from openline.testing.netns import LabError, availability

from .demo_screen import Outcome, Screen
from .demo_stage import Loopback, Namespaces, Program, ProgramError, Stage

HELLOS = 3
MESSAGES = 20
PATIENCE = 10.0
SEEN_WITHIN = 0.1  # a state is looked at from outside, and on a busy machine
IDLE_TIMEOUT = 30.0  # openline's default
INTERRUPTED = 130


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
    if here and namespaces:
        screen.say(
            "Two Linux hosts, A and B (network namespaces on this machine), joined by one virtual cable. "
            "Each runs a real openline program; the faults are the kernel's own. "
            "Nothing leaves this machine."
        )
        return Namespaces(idle_timeout)
    screen.warn(f"Not on virtual hosts: {'not asked for' if here else here.reason}.")
    screen.warn(
        "So this is the same story on loopback, with INJECTED faults: B's dialer is told to fail, and A "
        "reaches B through a relay that can go silent. The two openline programs are real processes."
    )
    return Loopback(idle_timeout)


async def play(screen: Screen, stage: Stage, idle_timeout: float) -> list[str]:
    """The story; what did not come out as promised."""
    try:
        await stage.open()
        return await Story(screen, stage, idle_timeout).tell()
    finally:
        await stage.close()


class Story:
    def __init__(self, screen: Screen, stage: Stage, idle_timeout: float) -> None:
        self._screen = screen
        self._stage = stage
        self._interval = idle_timeout / 6
        self._a: Program = stage.programs["A"]
        self._b: Program = stage.programs["B"]
        self._injected = " (injected)" if stage.injected else ""
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
        await self._a.ask("connect", to=join(self._stage.b_from_a))
        for sender, receiver in (("A", "B"), ("B", "A")):
            outcome = await self._send(sender, receiver, "send", HELLOS)
            text = f"{sender} to {receiver}: {outcome.score} delivered, over {outcome.line(sender)}"
            self._report(outcome.all_arrived_at_once, text)

    async def _break_route(self) -> None:
        self._screen.step("B's route to A breaks" + self._injected)
        await self._stage.break_route()
        self._screen.say("B now has a stale route: every new connection to A is refused on the spot.")
        host, port = self._stage.listening["A"]
        error = await self._b.ask("dial", host=host, port=port) or "it connects"
        self._report("EHOSTUNREACH" in error, f"plain connect from B to {host}:{port}: {error}")

    async def _two_columns(self) -> None:
        self._screen.step(f"B sends {MESSAGES} messages to A, in two ways")
        dialing = await self._send("B", "A", "send_dialing", MESSAGES)
        answering = await self._send("B", "A", "send", MESSAGES)
        self._screen.side_by_side(dialing, answering)
        self._screen.say("openline answers on the line that is already open: the one A opened to B.")
        self._expect(dialing.delivered == 0, "always dialing should deliver nothing")
        self._expect(answering.all_arrived_at_once, "openline should deliver all at once, dialing nothing")

    async def _cut_and_recover(self) -> None:
        self._screen.step("The cable goes silent: packets vanish, nobody gets an error" + self._injected)
        self._screen.limits(self._interval)
        cut = time.monotonic()
        self._stage.cut()
        self._screen.moment(0, "the cable is cut")
        await self._moment("suspect", cut, 2, "A suspects the line: its ping was not answered")
        await self._moment("gone", cut, 3, "A gives the line up for dead")
        self._stage.heal()
        self._screen.moment(time.monotonic() - cut, "the cable works again; B's route stays broken")
        await self._moment("live", cut, 6, "recovered: A has dialed B again by itself")
        after = await self._send("B", "A", "send", 1)
        text = f"B to A: {after.score} delivered, over {after.line('B')}"
        self._screen.moment(time.monotonic() - cut, text)
        self._expect(after.all_arrived_at_once, text)

    # What they are made of

    async def _send(self, sender: str, receiver: str, way: str, count: int) -> Outcome:
        """Send messages one way, and count those that really arrived at the other end."""
        source, sink = self._program(sender), self._program(receiver)
        tag = f"{way} {time.monotonic()}"
        before = len(await sink.ask("receive", count=0, timeout=0))
        payloads = [[tag, number] for number in range(count)]
        reports = await source.ask(way, to=self._address(receiver), payloads=payloads)
        hoped = sum(report["error"] is None for report in reports)
        received = await sink.ask("receive", count=before + hoped, timeout=5)
        delivered = len({payload[1] for payload in received if payload[0] == tag})
        return Outcome(delivered, reports)

    async def _moment(self, state: str, cut: float, intervals: float, text: str) -> None:
        """Wait for a state of A's line, which is promised within some intervals of the cut."""
        limit = intervals * self._interval
        with self._screen.waiting(f"waiting for: {text}"):
            event = await self._a.event(event="line", state=state, timeout=limit + PATIENCE)
        seconds = float(event["at"]) - cut
        self._screen.moment(seconds, text)
        in_time = seconds <= limit + SEEN_WITHIN + self._excuse(float(event["stalled"]))
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

    def _program(self, name: str) -> Program:
        return self._a if name == "A" else self._b

    def _address(self, name: str) -> str:
        return join(self._stage.b_from_a if name == "B" else self._stage.listening["A"])


def join(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
