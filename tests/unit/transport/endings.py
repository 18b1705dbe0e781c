"""Both loops, and how to wait for the end of a connection."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any

import pytest

from .helpers import DEADLINE

SOON = DEADLINE

LOOPS = ("asyncio", "uvloop")


def run(loop: str, work: Coroutine[Any, Any, None]) -> None:
    """On a loop of its own."""
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        try:
            factory = importlib.import_module("uvloop").new_event_loop
        except ImportError:
            work.close()
            pytest.skip("uvloop is not installed")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
