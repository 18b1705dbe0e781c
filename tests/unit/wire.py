"""Messages and bytes for the tests of both wire forms."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from openline import Message
from openline.core.frames import (
    encode_plain,
)


def fields(message: Message) -> dict[str, Any]:
    return json.loads(encode_plain(message))


def nested(value: object, depth: int) -> object:
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


UNWRITABLE: list[Any] = [
    object(),
    "\ud800",
    {"\ud800": 1},
    10**5000,
    cycle(),
    nested(0, 100_000),
    {(1, 2): 3},
    1j,
]

text = st.text(st.characters(exclude_categories=("Cs",)))
numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text
unknown = st.dictionaries(
    text.filter(lambda key: key not in fields(Message(metadata={}, stream_id=1))), scalars
)
