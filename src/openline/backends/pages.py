"""Memory back to the system, where it can be told: what a flood has taken shall not stay with us.

An allocator keeps what is freed in the middle of its heap, and a buffer keeps its size.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

_libc: Any = None if sys.platform == "win32" else ctypes.CDLL(None)
_madvise = getattr(_libc, "madvise", None)
_malloc_trim = getattr(_libc, "malloc_trim", None)  # glibc
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
if _malloc_trim is not None:
    _malloc_trim.argtypes = (ctypes.c_size_t,)


def give_back(view: memoryview) -> None:
    """The whole pages of a part of a heap buffer that is not in use. It stays valid; its content is lost."""
    if _madvise is None or not view:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + len(view)) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        _madvise(first, last - first, mmap.MADV_DONTNEED)


def trim() -> None:
    """All whole pages of the heap that are free. Takes a few milliseconds after a flood."""
    if _malloc_trim is not None:
        _malloc_trim(0)
