"""permessage-deflate without context takeover (RFC 7692): every message stands alone.

No takeover keeps memory per connection flat and is what agentic-flow offers.
"""

from __future__ import annotations

import zlib

from ...core.frames import Buffer, Malformed, TooBig

EXTENSION = "permessage-deflate"
OFFER = f"{EXTENSION}; client_no_context_takeover; server_no_context_takeover"
# Below this, deflate costs more than it saves (rule 3.7).
THRESHOLD = 256
LEVEL = 3
# What a server may answer to OFFER; its own window may be smaller without our having to care.
_ANSWERABLE = {"client_no_context_takeover", "server_no_context_takeover", "server_max_window_bits"}
_TAIL = b"\x00\x00\xff\xff"


def compress(data: Buffer, window_bits: int) -> bytes:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def decompress(data: Buffer, limit: int) -> bytes:
    """Inflate one message; never holds more than ``limit`` bytes. Raises ``Malformed``."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = inflate.decompress(bytes(data) + _TAIL, limit + 1)
    except zlib.error as error:
        raise Malformed(f"compressed data: {error}") from None
    if len(out) > limit:
        raise TooBig(f"compressed message of more than {limit} bytes")
    return out


def accept_offer(header: str) -> tuple[str, int] | None:
    """The server's answer to the client's offers, and our window bits; None to decline."""
    for offer in header.split(","):
        name, *parameters = (part.strip().lower() for part in offer.split(";"))
        if name != EXTENSION:
            continue
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        bits = values.get("server_max_window_bits", "15").strip('"')
        # zlib cannot make raw streams with a window of 2**8.
        if bits.isascii() and bits.isdigit() and len(bits) < 3 and 9 <= int(bits) <= 15:
            answer = OFFER if bits == "15" else f"{OFFER}; server_max_window_bits={bits}"
            return answer, int(bits)
    return None


def check_answer(header: str) -> bool:
    """Did the server agree to our offer? Raises ``Malformed`` where it answers what was not offered."""
    if not header.strip():
        return False
    name, *parameters = (part.strip().lower() for part in header.split(";"))
    names = {parameter.partition("=")[0] for parameter in parameters}
    if name != EXTENSION or "server_no_context_takeover" not in parameters or not names <= _ANSWERABLE:
        raise Malformed(f"extensions that were not offered: {header[:80]!r}")
    return True
