"""How much memory something takes: of the process, where the system tells (Linux), or of Python's objects."""

from __future__ import annotations

import gc
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KiB, MiB = 1024, 1024 * 1024


class Peak:
    """How much the memory of this process has grown at its highest, inside ``with``."""

    def __enter__(self) -> Peak:
        gc.collect()
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *exc: object) -> None:
        self.grown = _status("VmHWM") - self._before


def _status(name: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * KiB


def _can_measure_peak() -> bool:
    try:
        with Peak():
            return True
    except (OSError, StopIteration):
        return False


def resident() -> int:
    """Bytes of memory of this process now."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


needs_peak = pytest.mark.skipif(not _can_measure_peak(), reason="needs /proc/self/clear_refs")
needs_resident = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc/self/statm")


class Traced:
    """Bytes of Python's objects: how many more there are since, and at the highest."""

    grown = peak = 0


@contextmanager
def traced() -> Iterator[Traced]:
    found = Traced()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield found
        now, peak = tracemalloc.get_traced_memory()
        found.grown, found.peak = now - before, peak - before
    finally:
        tracemalloc.stop()
