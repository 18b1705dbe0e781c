"""The one message that every contender carries: `{id, type, payload}`, of a fixed size as JSON."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec

WORDS = (
    "agent",
    "build",
    "check",
    "deploy",
    "fetch",
    "graph",
    "merge",
    "plan",
    "query",
    "review",
    "route",
    "score",
)


class Plain(msgspec.Struct):
    id: str
    type: str
    payload: Any


# For contenders without a codec of their own.
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Plain).decode


def message(number: int, payload: Any) -> Plain:
    return Plain(f"m{number:011d}", "task", payload)


def messages(count: int, payload: Any, first: int = 0) -> list[Plain]:
    return [message(first + number, payload) for number in range(count)]


def payload_of(message_bytes: int) -> dict[str, str | int]:
    """Words rather than one repeated letter: agentic-flow compresses what is longer than 256 B."""
    payload: dict[str, str | int] = {"n": 1, "text": ""}
    room = message_bytes - len(encode(message(0, payload)))
    return {**payload, "text": _words(room)}


def _words(length: int) -> str:
    pick = random.Random(length)
    return " ".join(pick.choice(WORDS) for _ in range(length))[:length]


def chunks(sequence: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [sequence[start : start + size] for start in range(0, len(sequence), size)]
