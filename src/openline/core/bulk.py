"""What a message becomes when it is decoded: an array of one byte takes 72 in memory. Pure.

So a few megabytes can take a gigabyte, and a collector that looks at all of it again and again
takes seconds. What large messages may hold is bounded before they are decoded, the collector rests
meanwhile, and what they take is told to whoever counts it.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

# Arrays and objects in one message, or in one frame of several: 16 MiB of points, a pair of floats each, come
# to 0.9 million. Decoding so many takes about 0.1 s and 80 MB.
MAX_CONTAINERS = 1024 * 1024
OVERLOAD = f"holds more than {MAX_CONTAINERS:,} arrays and objects"
# What one takes, about, besides what it holds.
CONTAINER_BYTES = 72
# A larger frame is measured while it is decoded; of a smaller one each message, if it has to wait.
MEASURED = 512
# Other values looked at in a message that may hold too many arrays. Four bytes each fill 16 MiB.
_MAX_LOOKED_AT = 4 * 1024 * 1024

_MSGPACK = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_NOT_IN_JSON = bytes(set(range(256)) - set(b'"[{'))
# msgpack: runs of numbers and the like; of arrays and maps; what else is of a fixed size, and of what size;
# and what begins with its length, and how long that is and what comes besides.
_SCALARS = re.compile(
    rb"(?:[\x00-\x7f\xc0-\xc3]|[\xcb\xcf\xd3].{8}|[\xca\xce\xd2].{4}|[\xcc\xd0].|[\xcd\xd1]..){1,1000}",
    re.DOTALL,
)
_SMALL_CONTAINERS = re.compile(rb"[\x80-\x9f]+")
_FIXED = {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
_COUNTED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_COUNTED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_EXT = (0xC7, 0xC8, 0xC9)
_ARRAYS = {0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}


def overloaded(data: Buffer, is_json: bool) -> bool:
    """Does it hold more arrays and objects than a message may?"""
    if len(data) <= MAX_CONTAINERS:
        return False
    whole = bytes(data)
    if is_json:
        return whole.count(b"[") + whole.count(b"{") > MAX_CONTAINERS and _in_json(whole) > MAX_CONTAINERS
    # Strings and numbers hold such bytes, too: only where there are many is it worth a closer look.
    left = len(whole.translate(None, _MSGPACK)) - whole.count(b"[") - whole.count(b"{")
    return len(whole) - left > MAX_CONTAINERS and _in_msgpack(whole) > MAX_CONTAINERS


def _in_json(data: bytes) -> int:
    """Outside of strings; at most a little more than ``MAX_CONTAINERS``."""
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_IN_JSON).replace(b'""', b"")
    if text.count(b'"') > _MAX_LOOKED_AT:
        return MAX_CONTAINERS + 1
    return sum(map(len, text.split(b'"')[::2]))


def _in_msgpack(data: bytes) -> int:
    """At most a little more than ``MAX_CONTAINERS``; what is malformed comes out when it is decoded."""
    count = looked = at = 0
    end = len(data)
    while at < end and count <= MAX_CONTAINERS:
        kind = data[at]
        if (run := _SCALARS.match(data, at)) is not None:
            at = run.end()
        elif (run := _SMALL_CONTAINERS.match(data, at)) is not None:
            count, at = count + run.end() - at, run.end()
        elif kind < 0xC0:
            at += kind - 0x9F
        elif kind in _ARRAYS:
            count, at = count + 1, at + _ARRAYS[kind]
        elif kind in _COUNTED:
            width, more = _COUNTED[kind]
            start = at + 1 + width + more
            at = start + int.from_bytes(data[at + 1 : at + 1 + width], "big")
            if kind in _EXT:  # a JSON text
                count += _in_json(data[start:at])
        else:
            at += _FIXED.get(kind, 1)
        looked += 1
        if looked > MAX_CONTAINERS + _MAX_LOOKED_AT:
            return MAX_CONTAINERS + 1
    return count


def measured(decode: Callable[[Any], T], data: Buffer) -> tuple[T, int]:
    """What ``decode`` makes of ``data``, and how many bytes the containers in it take.

    What it has made is looked at by the collector afterwards, and once.
    """
    if not gc.isenabled():
        return decode(data), 0
    gc.disable()
    try:
        before = gc.get_count()[0]
        made = decode(data)
        return made, max(0, gc.get_count()[0] - before) * CONTAINER_BYTES
    finally:
        gc.enable()


def weight_of(value: Any) -> int:
    """The same of a small value that has been decoded."""
    size = 0
    values = [value]
    while values:
        value = values.pop()
        if type(value) is dict:
            values.extend(value.values())
        elif type(value) is list:
            values.extend(value)
        else:
            continue
        size += CONTAINER_BYTES
    return size
