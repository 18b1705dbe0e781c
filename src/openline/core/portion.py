"""How much of what a connection brings is looked at before others have their turn. Pure."""

from __future__ import annotations

# Seconds that a portion may take: what others wait for each connection that brings as much as it can. QUIC
# has the longer one, as each trip through the loop also looks for what may leave.
TARGET, TARGET_QUIC = 0.0005, 0.001
# Bytes, at first and at the least and the most: small messages take longer, byte for byte, than large
# ones. At the least it is a page; at the most a trip through the loop costs nothing beside them.
FIRST, LEAST, MOST = 8 * 1024, 4 * 1024, 256 * 1024


class Portion:
    """A size in bytes that finds out how long so much takes."""

    __slots__ = ("_target", "size")

    def __init__(self, target: float = TARGET) -> None:
        self._target = target
        self.size = FIRST

    def took(self, seconds: float) -> None:
        """So long for all of it."""
        if seconds > self._target:
            self.size = max(LEAST, self.size // 2)
        elif seconds < self._target / 4:
            self.size = min(MOST, self.size * 2)
