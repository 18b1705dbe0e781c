"""Does what is sent over a connection get through, though small things do? (rule 3.1) Pure.

A path may carry handshakes, pings and acknowledgements and lose all that is larger: its MTU is smaller
than the ends think, and ICMP is filtered. Liveness sees nothing of it. So one looks at what has waited
longest for its acknowledgement: if that has stayed the same, no more of it has left or been taken in
below, and meanwhile the link has sent again and again, the connection is doubted. As soon as something
moves it is trusted again.

A slow peer, or a slow link, is not doubted: a kernel acknowledges for a program that stands still, and
of a long message on a slow link ever more leaves.
"""

from __future__ import annotations

import msgspec

# Without any progress for so long: TCP has tried three times by then, at 0.2, 0.6 and 1.4 s.
PATIENCE = 1.0
# And for so many round trips, where they are long.
ROUNDS = 8.0
# So often something has been sent again meanwhile. One or two losses in a row are nothing.
AGAIN = 3
# What is not acknowledged fits in a packet that passes where handshakes do: if that stays away, it is lost
# at random, or all is lost, which is for liveness to find.
SMALL = 1000


class Sending(msgspec.Struct, frozen=True):
    """What a link tells of what it sends: whatever rises when data gets on, how often it has sent
    something again, and the round trip in seconds."""

    moved: int
    again: int
    rtt: float


class Doubt:
    """What was seen of one connection. ``look`` as often as you like; only while it carries something."""

    __slots__ = ("_again", "_head", "_moved", "_since")

    def __init__(self) -> None:
        self._head: object = None
        self._since = 0.0
        self._moved = self._again = 0

    def look(self, now: float, head: object, sending: Sending) -> bool:
        """Is it doubted? ``head`` is what has waited longest for its acknowledgement."""
        progress = head is not self._head or sending.moved > self._moved
        self._head, self._moved = head, sending.moved
        if progress:
            self._since, self._again = now, sending.again
            return False
        patience = max(PATIENCE, ROUNDS * sending.rtt)
        return now - self._since >= patience and sending.again - self._again >= AGAIN
