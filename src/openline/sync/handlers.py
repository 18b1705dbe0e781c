"""Plain functions as handlers of an asynchronous transport: each is called in a thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .workers import Workers


class Handling:
    """A function as the asynchronous transport calls it. Equal for equal functions.

    ``convert`` makes what the function takes out of what the asynchronous one would get.
    """

    def __init__(
        self, function: Callable[..., Any], workers: Workers, convert: Callable[..., tuple[object, ...]]
    ) -> None:
        self._function, self._workers, self._convert = function, workers, convert
        # For what is logged.
        self.__qualname__ = getattr(function, "__qualname__", repr(function))

    async def __call__(self, *args: Any) -> Any:
        return await self._workers.run(self._function, *self._convert(*args))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handling) and other._function == self._function

    def __hash__(self) -> int:
        return hash(self._function)


def handling(
    function: Callable[..., Any], workers: Workers, convert: Callable[..., tuple[object, ...]]
) -> Handling:
    """Raises ``TypeError`` for what is not a plain function."""
    if not callable(function):
        raise TypeError(f"a handler is a function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("a handler of openline.sync is a plain function, not an async one")
    return Handling(function, workers, convert)
