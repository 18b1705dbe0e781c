"""How much a peer may ask for without saying anything new. Pure.

A message costs the peer's window and its handlers' time, and that is bounded elsewhere. Frames that
bring no message, a ping, "I listen on", a repetition, cost only us, so they have a rate.
"""

from __future__ import annotations

from .frames import Malformed

# Control frames that bring nothing new: so many a second on the average, and so many at once. Pings and
# pongs of honest peers come to a few a second; programs that measure round trips one after the other
# are slowed down by it, not cut.
CONTROL_RATE = 1000.0
CONTROL_BURST = 2000.0
# Beyond that their answers are put off, and after so many more the connection is cut: at the rates at
# which this is a flood, a few milliseconds of our time.
CONTROL_EXCESS = 4000.0
# Acknowledgements that acknowledge nothing more are honest after a change of connections, when everything
# that is sent again is acknowledged again; and so are stops of streams that have been forgotten. One of
# these counts as a part of a frame.
NO_NEWS = 0.25
# Streams opened without a message on them: so many count as a frame.
OPENS = 16
# Changes of what a send may depend on, ports and addresses: so many take effect at once, and then so
# many a second, each as it comes. What comes faster takes effect together, the last one of each peer.
CHANGE_RATE = 1.0
CHANGE_BURST = 8.0


class TokenBucket:
    """So many a second, and so many at once."""

    __slots__ = ("_at", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        # Below 0 by what has been taken nevertheless.
        self.tokens = burst
        self._at = now

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take ``cost``, whether it is there or not; what is left, below 0 where it was not."""
        self.tokens = min(self.burst, self.tokens + (now - self._at) * self.rate) - cost
        self._at = now
        return self.tokens

    def give_back(self, cost: float) -> None:
        """What it was taken for has not been done."""
        self.tokens += cost


class Allowance:
    """What one connection's peer may ask for."""

    __slots__ = ("_changes", "_control")

    def __init__(self, now: float) -> None:
        self._control = TokenBucket(CONTROL_RATE, CONTROL_BURST, now)
        self._changes = TokenBucket(CHANGE_RATE, CHANGE_BURST, now)

    def frame(self, now: float, cost: float = 1.0) -> bool:
        """A frame that brings nothing new. Is it within the rate? Raises ``Malformed`` for a flood."""
        left = self._control.take(now, cost)
        if left < -CONTROL_EXCESS:
            raise Malformed(f"more than {CONTROL_RATE:g} control frames a second")
        return left >= 0

    def change(self, now: float) -> bool:
        """May a change take effect at once?"""
        if self._changes.take(now) >= 0:
            return True
        self._changes.give_back(1)  # it is put off and not lost, so nothing has been taken
        return False
