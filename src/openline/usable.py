"""What works on this machine, tested and not assumed."""

from __future__ import annotations

import importlib.util
import socket
from functools import cache

import msgspec


class Capabilities(msgspec.Struct, frozen=True):
    """``backends`` are really usable here, ``selected`` is what a bare ``host:port`` dials first;
    ``unavailable`` says why for each of the others."""

    backends: tuple[str, ...]
    selected: str
    unavailable: dict[str, str]
    uvloop: bool


def capabilities() -> Capabilities:
    """The backends really usable here, and the one that would be selected."""
    why = why_no_quic()
    backends = ("quic", "websocket") if why is None else ("websocket",)
    return Capabilities(
        backends=backends,
        selected=backends[0],
        unavailable={} if why is None else {"quic": why},
        uvloop=importlib.util.find_spec("uvloop") is not None,
    )


@cache
def why_no_quic() -> str | None:
    """None where QUIC works here: the library can be loaded, and UDP sockets can be had."""
    try:
        import qh3.quic.connection  # noqa: F401
    except Exception as error:  # a library for another machine may fail in any way
        return f"qh3 cannot be loaded: {type(error).__name__}: {error}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
    except OSError as error:
        return f"no UDP sockets here: {error}"
    return None
