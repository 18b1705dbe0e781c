"""What was sent, what became of it, and where it arrived; and what must hold of all that."""

from __future__ import annotations

import itertools
from collections import defaultdict

import msgspec

from openline import Message

# Taken in by the peer; certainly not; perhaps; not known yet.
ACKED, UNSENT, UNSURE, PENDING = "acked", "unsent", "unsure", "pending"


class Sent(msgspec.Struct):
    """One message, from the moment its sender was asked to send it."""

    id: str
    flow: str
    number: int
    source: str
    target: str
    at: float
    outcome: str = PENDING
    error: str = ""
    # What the sender got back: a receipt, or an answer.
    result: object = None
    # (host, generation, time), once for each time it was handed to a program.
    received: list[tuple[str, int, float]] = msgspec.field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.id} ({self.source}→{self.target} at {self.at:.3f}, {self.outcome} {self.error})"


class Ledger:
    """All messages of one run."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        # Violations found on the way.
        self.strange: list[str] = []
        # Per flow and receiving process, the numbers in the order in which they came.
        self.order: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)

    def receive(self, host: str, generation: int, at: float, message: Message) -> None:
        sent = self.sent.get(str(message.id))
        if sent is None:
            self._late_answer(host, generation, message)
            return
        sent.received.append((host, generation, at))
        self.order[sent.flow, host, generation].append(sent.number)

    def _late_answer(self, host: str, generation: int, message: Message) -> None:
        """The answer to a request that has been given up comes as a message like any other.

        So it does where the process that asked has ended, even if it had the answer already.
        """
        asked = self.sent.get(str(message.reply_to))
        if asked is None or asked.source != host or (asked.outcome == ACKED and generation == 1):
            self.strange.append(f"{host} got {message.id}, reply to {message.reply_to}, which nobody sent")

    def violations(self, restarted: set[str]) -> list[str]:
        """``restarted``: hosts on which more than one process has lived."""
        found = list(self.strange)
        for sent in self.sent.values():
            found += self._of(sent, restarted)
        for (flow, host, generation), numbers in self.order.items():
            turned = [pair for pair in itertools.pairwise(numbers) if pair[0] > pair[1]]
            if turned:
                found.append(f"flow {flow} came to {host}/{generation} out of order: {turned}")
        return found

    def _of(self, sent: Sent, restarted: set[str]) -> list[str]:
        found = []
        where = [(host, generation) for host, generation, _ in sent.received]
        if any(host != sent.target for host, _ in where):
            found.append(f"{sent} was delivered to {where}")
        if len(set(where)) < len(where):
            found.append(f"{sent} was delivered twice to the same process: {sent.received}")
        if sent.target not in restarted:
            if len(where) > 1:
                found.append(f"{sent} was delivered {len(where)} times: {sent.received}")
            if sent.outcome == ACKED and not where:
                found.append(f"{sent} was never delivered")
        if sent.outcome == UNSENT and where:
            found.append(f"{sent} was delivered all the same: {sent.received}")
        if sent.outcome == PENDING and sent.source not in restarted:
            found.append(f"{sent} never ended")
        return found
