"""How large the datagrams of a QUIC connection are (RFC 9000 section 14, RFC 8899).

All begin with what every path for QUIC carries. A client probes for more, in steps up to 1,472 bytes,
once the handshake is over; that is in qh3, and so is that its server never does.
"""

from __future__ import annotations

import logging
from typing import Any

from qh3.quic.connection import QuicConnection, QuicConnectionError

log = logging.getLogger("openline")

# The largest datagram that leaves before a probe for larger ones has come through.
MIN_DATAGRAM = 1200
# Where the core's active path has the size of a datagram.
_SIZE = 5
# Defaults of transport parameters (RFC 9000 section 18.2), the second one in milliseconds.
_ACK_DELAY_EXPONENT, _ACK_DELAY = 3, 25


def datagram_size(quic: QuicConnection) -> int:
    """The largest that leaves now, but for probes."""
    core: Any = quic._core
    return 0 if core is None else int(core.active_path[_SIZE])


def shrink(quic: QuicConnection) -> bool:
    """Back to the size that every path carries, for good; False where it is that already.

    Nothing makes the core send smaller ones but a lower limit of the peer's (``max_udp_payload_size``):
    so it is told once more what the peer has said of itself, with that limit.
    """
    core, theirs = quic._core, quic._applied_transport_parameters
    if core is None or theirs is None or datagram_size(quic) <= MIN_DATAGRAM:
        return False
    try:
        core.apply_peer_transport_parameters(
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
            MIN_DATAGRAM,
        )
    except (QuicConnectionError, ValueError, RuntimeError) as error:
        log.debug("datagrams stay of %d bytes: %s", datagram_size(quic), error)
        return False
    return True
