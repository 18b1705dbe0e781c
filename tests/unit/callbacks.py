"""Calling something as the loop calls what belongs to a socket."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_callback(function: Callable[[], T]) -> T:
    """Call ``function`` the way a socket callback is called: by the loop, in no task."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    loop.call_soon(call, context=contextvars.Context())
    return await answer
