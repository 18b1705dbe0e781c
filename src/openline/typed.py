"""Payloads of a type that the program names: a ``msgspec.Struct``, a dataclass, a ``TypedDict``, or whatever
else ``msgspec.convert`` makes; and models of pydantic, where that is installed, by ``model_validate``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from .errors import InvalidMessage
from .message import Message

if TYPE_CHECKING:
    from .peer import Peer

    NOTHING: Any = None

# Types that are remembered; a program names a few.
MAX_TYPES = 256

T = TypeVar("T")
Convert = Callable[[Any], Any]


class TypedMessage(Message, Generic[T]):
    """A ``Message`` whose payload has been converted to the type that was asked for."""

    if TYPE_CHECKING:
        payload: T = msgspec.field(default=NOTHING)


class InvalidPayload(InvalidMessage):
    """A payload that is not of the type that was asked for; the text says where."""


def converter(kind: Any) -> Convert:
    """As ``_converter``, which is not asked again for the same type."""
    try:
        return _cached(kind)
    except TypeError:  # what cannot be hashed can be a type all the same
        return _converter(kind)


def _converter(kind: Any) -> Convert:
    """What makes a payload, as it has come, into one of that type.

    It raises ``ValueError`` for one that does not fit. Raises ``TypeError`` for what cannot be made.
    """
    if isinstance(kind, str):
        raise TypeError(
            f"{kind!r} is a text; give the payload's type itself: a Struct, a dataclass, dict, int ..."
        )
    if hasattr(kind, "model_validate") and hasattr(kind, "model_fields"):
        return _pydantic(kind.model_validate)
    msgspec.json.Decoder(kind)  # a type that cannot be made comes out now, and not with the first message
    return lambda payload: msgspec.convert(payload, kind)


_cached = lru_cache(MAX_TYPES)(_converter)


def _pydantic(validate: Convert) -> Convert:
    def convert(payload: Any) -> Any:
        try:
            return validate(payload)
        except ValueError as error:
            raise ValueError(_without_input(error)) from None

    return convert


def _without_input(error: ValueError) -> str:
    """pydantic's own text repeats what it was given, which may be long; this says what and where."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    found = errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{each['msg']} - at `{'.'.join(['$', *map(str, each['loc'])])}`" for each in found)


def typed(message: Message, convert: Convert) -> TypedMessage[Any]:
    """The same message with its payload converted. Raises ``InvalidPayload``."""
    try:
        payload = convert(message.payload)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPayload(f"the payload of message {message.id!r} does not fit: {error}") from None
    return TypedMessage(message.id, message.type, payload, message.metadata, message.stream_id, message.extra)


class TypedHandler:
    """Stands for a handler that wants payloads of a type; equal to it, so that it can be taken off again."""

    def __init__(self, handler: Callable[[Peer, Any], Any], kind: Any) -> None:
        self._handler = handler
        self._convert = converter(kind)
        self.__qualname__ = getattr(handler, "__qualname__", repr(handler))

    def __call__(self, peer: Peer, message: Message) -> Any:
        return self._handler(peer, typed(message, self._convert))

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self._handler == other)

    def __hash__(self) -> int:
        return hash(self._handler)


async def answer(asking: Coroutine[Any, Any, Message], kind: Any, peer: object) -> TypedMessage[Any]:
    """An answer whose payload is of that type. Raises ``InvalidMessage`` with the peer and the place."""
    try:
        convert = converter(kind)
    except BaseException:
        asking.close()
        raise
    return _returned(await asking, convert, peer)


async def parts(
    stream: AsyncGenerator[Message, None], kind: Any, peer: object
) -> AsyncGenerator[TypedMessage[Any], None]:
    """The same of an answer in pieces. To leave it leaves that."""
    convert = converter(kind)
    async with aclosing(stream):
        async for part in stream:
            yield _returned(part, convert, peer)


def _returned(message: Message, convert: Convert, peer: object) -> TypedMessage[Any]:
    try:
        return typed(message, convert)
    except InvalidPayload as error:
        raise InvalidPayload(f"{peer} answers with something else: {error}") from None
