"""What QUIC streams carry: units, each a header and its bytes. Pure.

The header is a variable-length integer (RFC 9000 section 16) that holds four times the size, plus
the kind. A unit lies in one stream; a stream holds nothing but units.
"""

from __future__ import annotations

from collections.abc import Callable

from ...core.frames import Malformed, TooBig

# Frames as a WebSocket carries them, binary and text; and, on control streams only, what a
# WebSocket has of its own: the hello in its upgrade, and the goodbye.
BINARY, TEXT, HELLO, GOODBYE = range(4)

_PREFIX = {1: 0x00, 2: 0x4000, 4: 0x8000_0000, 8: 0xC000_0000_0000_0000}

Take = Callable[[int, memoryview], None]


def header(kind: int, size: int) -> bytes:
    """What goes in front of a unit of ``size`` bytes."""
    value = size << 2 | kind
    width = 1 if value < 0x40 else 2 if value < 0x4000 else 4 if value < 0x4000_0000 else 8
    return (value | _PREFIX[width]).to_bytes(width, "big")


class UnitReader:
    """Takes one stream's bytes as they come, and hands out whole units."""

    __slots__ = ("_need", "_rest", "held", "limit")

    def __init__(self) -> None:
        # Of the unit that is looked at next; what ``take`` is given may change it.
        self.limit = 0
        # Bytes of a unit that has not come whole.
        self.held = 0
        self._rest = bytearray()
        # Bytes until it is worth while to look again.
        self._need = 1

    def feed(self, data: bytes, limit: int, take: Take) -> None:
        """Call ``take(kind, content)`` for every unit that is complete; the content is valid only then.

        Raises ``TooBig`` for a unit of more than ``limit`` bytes, before its bytes have come, and
        what ``take`` raises.
        """
        self.limit = limit
        rest = self._rest
        if rest:
            rest += data
            self.held = len(rest)
            if self.held < self._need:
                return
            # A new one for what is left, as the content of the last unit may still be looked at.
            data, self._rest, self.held = bytes(rest), bytearray(), 0
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            first = view[at]
            width = 1 << (first >> 6)
            start = at + width
            if start > end:
                break
            if width == 2:  # as that of nearly all
                value = (first & 0x3F) << 8 | view[at + 1]
            else:
                value = int.from_bytes(view[at:start], "big") & _MASK[width]
            size = value >> 2
            if size > self.limit:
                raise TooBig(f"a unit of {size} bytes, more than {self.limit}")
            if start + size > end:
                break
            at = start + size
            take(value & 3, view[start:at])
        if at < end:
            self._keep(view[at:])

    def _keep(self, view: memoryview) -> None:
        """The beginning of a unit: wait for its end."""
        self._rest += view
        self.held = len(self._rest)
        width = 1 << (view[0] >> 6)
        if len(view) < width:
            self._need = width
        else:
            value = int.from_bytes(view[:width], "big") & _MASK[width]
            self._need = width + (value >> 2)


_MASK = {1: 0x3F, 2: 0x3FFF, 4: 0x3FFF_FFFF, 8: 0x3FFF_FFFF_FFFF_FFFF}


# In a goodbye's code: it answers the other side's, which has come with all that went before it.
ANSWER = 0x8000


def goodbye(code: int, count: int, reason: str) -> bytes:
    """Says that ``count`` units went before it, on all streams of this side, and why it is over."""
    return code.to_bytes(2, "big") + count.to_bytes(8, "big") + reason.encode()[:120]


def read_goodbye(data: memoryview) -> tuple[int, int, str]:
    """Code, count and reason. Raises ``Malformed``."""
    if not 10 <= len(data) <= 130:
        raise Malformed(f"a goodbye of {len(data)} bytes")
    reason = bytes(data[10:]).decode(errors="replace")
    printable = "".join(c for c in reason if c.isprintable())
    return int.from_bytes(data[:2], "big"), int.from_bytes(data[2:10], "big"), printable
