"""Agents on the hosts of the lab, as the tests speak with them."""

import itertools
import json
import os
import signal
import time
from typing import Any, Self

from openline.testing.lab.netns import ADDRESS, HostName, TwoHosts

from .processes import PATIENCE, Child

PORT = 8770
# The ways to reach a peer: one backend, or whichever of them is up first.
WAYS: dict[str, tuple[str, ...]] = {
    "websocket": ("websocket",),
    "quic": ("quic",),
    "race": ("quic", "websocket"),
}
IDLE_TIMEOUT = 3.0
INTERVAL = IDLE_TIMEOUT / 6
# Verdicts fall on ticks; reading them from outside adds a look every 10 ms and some scheduling.
GRACE = 0.15


def join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Agent(Child):
    """Listens on one address of its host; `listen=""` makes that all of them.

    Starting Python takes a while, so several are made first, and then waited for: `ready()`.
    """

    script = "agent.py"
    port = PORT
    arguments: tuple[str, ...] = ()

    def __init__(
        self,
        lab: TwoHosts,
        host: HostName,
        address: str | None = None,
        listen: str | None = None,
        **config: Any,
    ) -> None:
        self.ip = address or ADDRESS[host]
        bind = self.ip if listen is None else listen
        settings = {"name": host, "max_idle_timeout": IDLE_TIMEOUT, "backoff_max": 0.5, **config}
        self.address = join(self.ip, self.port)
        super().__init__(lab, host, self.script, json.dumps(settings), bind, str(self.port), *self.arguments)
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._stalled = 0.0

    def ready(self) -> Self:
        self.event("listening")
        return self

    # Orders

    def post(self, do: str, **arguments: Any) -> int:
        """Give an order without waiting for its answer."""
        number = next(self._numbers)
        self.say(json.dumps({"id": number, "do": do, **arguments}))
        return number

    def answer(self, number: int, timeout: float = PATIENCE) -> Any:
        said = self._answer(number, timeout)
        assert "error" not in said, f"{self.host} could not do that: {said['error']}"
        return said["result"]

    def error(self, number: int, timeout: float = PATIENCE) -> str:
        """The error that an order ended in."""
        return str(self._answer(number, timeout)["error"])

    def _answer(self, number: int, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while number not in self._answers:
            self._take_in(deadline)
        return self._answers.pop(number)

    def ask(self, do: str, *, patience: float = PATIENCE, **arguments: Any) -> Any:
        return self.answer(self.post(do, **arguments), patience)

    # What happens by itself

    def event(self, kind: str, timeout: float = PATIENCE, **expected: Any) -> dict[str, Any]:
        """The next event of that kind with these values; earlier ones are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            while not self._events:
                self._take_in(deadline)
            event = self._events.pop(0)
            if event.items() >= {"event": kind, **expected}.items():
                return event

    def forget_events(self) -> None:
        """Those that have been told so far."""
        self.ask("stats")
        self._events.clear()

    def becomes(self, state: str) -> None:
        """Wait for the peer's state."""
        self._stalled = self.event("state", state=state)["stalled"]

    def becomes_within(self, intervals: float, state: str, since: float) -> None:
        """The same, and it must come in time; but not where this machine has stood still meanwhile."""
        event = self.event("state", state=state)
        stalled = event["stalled"] - self._stalled
        excuse = stalled + INTERVAL if stalled else 0.0
        assert event["at"] - since <= intervals * INTERVAL + GRACE + excuse

    def _take_in(self, deadline: float) -> None:
        said = json.loads(self.hear(max(0.0, deadline - time.monotonic())))
        if "event" in said:
            self._events.append(said)
        else:
            self._answers[said["id"]] = said

    # Short forms

    def send(self, to: "Agent", count: int, first: int = 0, **how: Any) -> list[list[Any]]:
        return self.ask("send", to=to.address, numbers=list(range(first, first + count)), **how)

    def received(self, count: int, timeout: float = PATIENCE) -> list[int]:
        return self.ask("receive", count=count, timeout=timeout, patience=timeout + 5)

    def stat(self, *names: str) -> list[int]:
        stats = self.ask("stats")
        return [stats[name] for name in names]

    @property
    def backends(self) -> dict[str, int]:
        """How many live connections each of them carries."""
        backends: dict[str, int] = self.ask("stats")["backends"]
        return {name: count for name, count in backends.items() if count}

    @property
    def lines(self) -> list[list[str]]:
        lines: list[list[str]] = self.ask("lines")
        return lines

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


Pair = tuple[Agent, Agent]


def two(lab: TwoHosts, addresses: dict[HostName, str] = ADDRESS, **config: Any) -> Pair:
    a, b = (Agent(lab, host, addresses[host], **config) for host in ("A", "B"))
    return a.ready(), b.ready()


def introduce(a: Agent, b: Agent, keep: bool) -> None:
    a.ask("connect", to=b.address, keep=keep)
    a.becomes("live")
    b.becomes("live")


def connections(agent: Agent) -> list[int]:
    return agent.stat("created", "accepted", "closed", "active")
