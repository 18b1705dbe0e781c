"""How many file descriptors there are, and what may be taken of them before anybody is in."""

from __future__ import annotations

import sys

from ..config import Config

if sys.platform != "win32":
    import resource

# Unfinished handshakes may take this part of the descriptors.
PENDING_PART = 8


def descriptors() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def max_pending(config: Config) -> int:
    """Unfinished handshakes of one listener that a descriptor may be kept for."""
    return min(config.max_pending_handshakes, max(1, descriptors() // PENDING_PART))
