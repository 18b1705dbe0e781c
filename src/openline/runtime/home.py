"""Where a transport belongs, and whether it is open: calls from another loop or process are turned away.

At the door, before anything has happened: half a call on the wrong loop leaves bytes on a socket,
and timers that nobody runs.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from asyncio import get_running_loop
from collections.abc import Callable
from sys import get_asyncgen_hooks

from ..core.lifecycle import Phase
from ..errors import Closed, Error, WrongLoop


class Home:
    """The loop that runs now, in this process. ``loop`` is None in a child that came by fork.

    ``mark`` is for the hot path: while ``get_asyncgen_hooks()[0]`` is it, all is well, else ``check``. A loop
    sets these hooks for its thread whenever it begins to run, a new object each time; to read them costs
    half of ``get_running_loop``, which makes a system call in Python 3.11.
    """

    def __init__(self, in_child: Callable[[], None]) -> None:
        self.phase = Phase.OPEN
        # Called in a child that came by fork.
        self._in_child = in_child
        self.loop: asyncio.AbstractEventLoop | None = get_running_loop()
        self.mark: object = _NOWHERE
        self._loop = self.loop
        self._pid = os.getpid()
        _homes.add(self)

    def disown(self) -> None:
        """In a child that came by fork: its copy neither dials nor takes anything in."""
        self.loop, self.mark, self.phase = None, _NOWHERE, Phase.CLOSED
        self._in_child()

    @property
    def foreign(self) -> bool:
        """Is this a child of the process that it was made in?"""
        return self.loop is None

    @property
    def closing(self) -> bool:
        """Goodbye to whatever still comes up."""
        return self.phase is not Phase.OPEN

    @property
    def leaving(self) -> bool:
        """What openline peers send from now on is the next process's."""
        return self.phase.value >= Phase.LEAVING.value

    @property
    def closed(self) -> bool:
        """Nothing is sent or taken in."""
        return self.phase is Phase.CLOSED

    def enter(self, phase: Phase) -> None:
        """Never back to an earlier one."""
        if self.phase < phase:
            self.phase = phase

    def check_open(self) -> None:
        """For coroutines that begin something. Raises as ``check`` does, and ``Closed`` once it closes."""
        self.check()
        if self.closing:
            raise Closed("the transport is closed")

    def check(self) -> None:
        """For coroutines. Raises ``WrongLoop``, and ``Closed`` in a child that came by fork."""
        try:
            here = get_running_loop() is self.loop
        except RuntimeError:  # none runs: a child goes on in its parent's
            here = False
        if not here:
            raise self._refusal()
        self.mark = get_asyncgen_hooks()[0] or _NOWHERE

    def check_call(self) -> None:
        """For functions that change something: also while the loop does not run. Raises as ``check`` does."""
        if self.loop is None or self.loop.is_running():
            self.check()

    def check_process(self) -> None:
        """For functions that only look, which any thread may call. Raises ``Closed``."""
        if self.loop is None:
            raise self._refusal()

    def _refusal(self) -> Error:
        if self.foreign:
            return Closed(
                f"this transport was made in process {self._pid}, and this is process {os.getpid()}: "
                "its connections are that one's; make a new one after fork"
            )
        return WrongLoop(
            f"this transport belongs to the event loop {self._loop!r}, and this call comes from another "
            "thread or another loop; use asyncio.run_coroutine_threadsafe(t.send(...), loop).result() there"
        )


# What no loop sets as its hook.
_NOWHERE = object()
_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _disown() -> None:
    for home in list(_homes):
        home.disown()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_disown)
