"""How much one link over QUIC takes in and lets wait, each with its reason."""

from __future__ import annotations

import socket

from ...core.frames import FRAME_BYTES

# The largest datagram that leaves before a probe for larger ones has come through (RFC 9000 section 14.1).
MIN_DATAGRAM = 1200
# A binary frame may carry other messages, its kind and a count besides a message of full size.
FRAME_OVERHEAD = FRAME_BYTES + 64
# Bytes that come to one or two units: these take a shorter way.
SHORT = 1200
# Before the hello has come, no unit is longer.
HELLO_BYTES = 4096
# What a client may send on other streams before its proof has come: a first window's worth (some
# ten packets), and what the next two round trips add while the proof is sent again.
EARLY_BYTES = 256 * 1024
# All that may come until then: the same again for what is sent twice, and for headers. A core keeps what
# has come out of order, and tells nobody.
EARLY_DATAGRAMS = 2 * EARLY_BYTES
# Units over LARGE bytes take turns: so many at a time may have begun and not left. A receiver puts up
# with the beginnings of MAX_HELD units of full size: that, and what is in flight of others.
LARGE = 1024 * 1024
MAX_LARGE = 4
MAX_HELD = 16
# How long a goodbye waits for what is still on its way, and for the other side's.
GOODBYE_WAIT = 3.0
# An application error code that says no more than that it was cut (abort).
CUT = 0

# IP's and UDP's headers.
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}


def least_mtu(family: int) -> int:
    """What QUIC needs: its smallest datagrams, and their headers."""
    return MIN_DATAGRAM + _HEADERS.get(socket.AddressFamily(family), 48)
