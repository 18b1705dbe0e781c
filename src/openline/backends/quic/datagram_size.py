"""How large the datagrams of a QUIC connection are (RFC 9000 section 14, RFC 8899).

All begin with what every path for QUIC carries. A client probes for more, in steps up to 1,472 bytes,
once the handshake is over; that is in qh3, and so is that its server never does.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from qh3._hazmat import QuicConnectionCore
from qh3.quic.packet import QuicTransportParameters

from .limits import MIN_DATAGRAM

log = logging.getLogger("openline")

# Where the core's active path has the size of a datagram.
_SIZE = 5
# Defaults of transport parameters (RFC 9000 section 18.2), the second one in milliseconds.
_ACK_DELAY_EXPONENT, _ACK_DELAY = 3, 25

# What a peer has said of itself, as the core is told of it, up to the size of its datagrams.
PeerLimits = tuple[int, int, int, int, int, int, int, float, float | None, int | None, None, int, bool]


@lru_cache(maxsize=64)
def _shared(limits: PeerLimits) -> PeerLimits:
    """Nearly all peers say the same."""
    return limits


def limits_of(theirs: QuicTransportParameters) -> PeerLimits:
    return _shared(
        (
            theirs.initial_max_data or 0,
            theirs.initial_max_stream_data_bidi_local or 0,
            theirs.initial_max_stream_data_bidi_remote or 0,
            theirs.initial_max_stream_data_uni or 0,
            theirs.initial_max_streams_bidi or 0,
            theirs.initial_max_streams_uni or 0,
            _ACK_DELAY_EXPONENT if theirs.ack_delay_exponent is None else theirs.ack_delay_exponent,
            (_ACK_DELAY if theirs.max_ack_delay is None else theirs.max_ack_delay) / 1000,
            theirs.max_idle_timeout / 1000 if theirs.max_idle_timeout else None,
            theirs.max_datagram_frame_size,
            None,
            theirs.active_connection_id_limit or 2,
            bool(theirs.disable_active_migration),
        )
    )


def size_of(core: QuicConnectionCore) -> int:
    """The largest that leaves now, but for probes."""
    path: tuple[Any, ...] = core.active_path
    return int(path[_SIZE])


def apply_smallest(core: QuicConnectionCore, limits: PeerLimits) -> bool:
    """Back to the size that every path carries, for good; False where it is that already.

    Nothing makes the core send smaller ones but a lower limit of the peer's (``max_udp_payload_size``):
    so it is told once more what the peer has said of itself, with that limit.
    """
    if size_of(core) <= MIN_DATAGRAM:
        return False
    try:
        core.apply_peer_transport_parameters(*limits, MIN_DATAGRAM)
    except (ValueError, RuntimeError) as error:
        log.debug("datagrams stay of %d bytes: %s", size_of(core), error)
        return False
    return True
