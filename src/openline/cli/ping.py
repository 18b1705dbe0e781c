"""``openline ping``: round trips over the connection a send would take."""

from __future__ import annotations

import asyncio
import sys

import openline

from .common import FAILED, carriers, transport
from .show import printable


async def ping(
    config: openline.Config, address: str, count: int | None, interval: float, timeout: float
) -> int:
    """Until ``count`` pings or a signal; failures are part of the picture and do not end it."""
    target = openline.Address.parse(address)
    series = Series(target, timeout)
    try:
        async with transport(config) as t:
            await series.run(t, count, interval)
    except asyncio.CancelledError:
        print()
    series.summary()
    return 0 if series.times else FAILED


class Series:
    def __init__(self, target: openline.Address, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._sent = 0
        self.times: list[float] = []

    async def run(self, t: openline.Transport, count: int | None, interval: float) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while count is None or self._sent < count:
            await asyncio.sleep(due - now())
            await self._once(t)
            due = max(due + interval, now())

    async def _once(self, t: openline.Transport) -> None:
        self._sent += 1
        try:
            rtt = await t.ping(self._target, timeout=self._timeout)
        except (openline.Error, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._timeout:g} s"
            say(f"seq={self._sent} {printable(reason)}")
        else:
            self.times.append(rtt)
            say(f"seq={self._sent} from {self._target} over {carriers(t)} rtt={rtt * 1e3:.3f} ms")

    def summary(self) -> None:
        """As ``ping`` ends: how many, and how fast."""
        answered = len(self.times)
        lost = 100 * (self._sent - answered) / self._sent if self._sent else 0
        say(f"--- {self._target} ---")
        say(f"{self._sent} sent, {answered} answered, {lost:.0f} % lost")
        if self.times:
            low, high = min(self.times) * 1e3, max(self.times) * 1e3
            mean = sum(self.times) / answered * 1e3
            say(f"rtt min/avg/max = {low:.3f}/{mean:.3f}/{high:.3f} ms")


def say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
