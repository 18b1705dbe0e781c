"""What works on this machine, tested and not assumed."""

from __future__ import annotations

import importlib.util

import msgspec


class Capabilities(msgspec.Struct, frozen=True):
    """``backends`` are really usable here, ``selected`` is what a bare ``host:port`` dials;
    ``unavailable`` says why for each of the others."""

    backends: tuple[str, ...]
    selected: str
    unavailable: dict[str, str]
    uvloop: bool


def capabilities() -> Capabilities:
    """The backends really usable here, and the one that would be selected."""
    return Capabilities(
        backends=("websocket",),
        selected="websocket",
        unavailable={"quic": "not in this version of openline"},
        uvloop=importlib.util.find_spec("uvloop") is not None,
    )
