"""Plain functions as handlers of an asynchronous transport: each is called in a thread."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from .workers import Workers

_END = object()


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


class Generating(Handling):
    """A generator function: each step of what it returns is taken in a thread."""

    async def _walk(self, *args: Any) -> AsyncGenerator[Any, None]:
        steps = _Steps(self._function(*self._convert(*args)))
        try:
            while (part := await self._workers.run(steps.next)) is not _END:
                yield part
        finally:
            self._workers.start(steps.close)

    def __call__(self, *args: Any) -> Any:
        return self._walk(*args)


class _Steps:
    """A generator that one thread after the other goes on with."""

    def __init__(self, generator: Generator[Any, None, None]) -> None:
        self._generator = generator
        self._turn = threading.Lock()

    def next(self) -> Any:
        with self._turn:
            return next(self._generator, _END)

    def close(self) -> None:
        with self._turn:  # a step that was cancelled may still be under way
            self._generator.close()


def handling(
    function: Callable[..., Any], workers: Workers, convert: Callable[..., tuple[object, ...]]
) -> Handling:
    """Raises ``TypeError`` for what is not a plain function."""
    if not callable(function):
        raise TypeError(f"a handler is a function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("a handler of openline.sync is a plain function, not an async one")
    if inspect.isgeneratorfunction(function):
        return Generating(function, workers, convert)
    return Handling(function, workers, convert)
