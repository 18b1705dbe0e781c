"""What the tests of ``openline.sync`` share: two transports, messages, threads with their outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openline
import openline.sync
from openline.sync.transport import WORKERS

# Only against hanging.
DEADLINE = 60.0
PLAIN = openline.Config(backends=("websocket",))


def task(payload: Any = None, **fields: Any) -> openline.Message:
    return openline.Message(payload=payload, **fields)


@contextmanager
def two(workers: int = WORKERS) -> Iterator[tuple[openline.sync.Transport, openline.sync.Transport, str]]:
    """Alice, Bob, and where Bob listens."""
    with (
        openline.sync.load_transport(openline.Config(name="alice"), workers=workers) as alice,
        openline.sync.load_transport(openline.Config(name="bob"), workers=workers) as bob,
    ):
        yield alice, bob, serve(bob)


def serve(transport: openline.sync.Transport) -> str:
    return f"127.0.0.1:{transport.listen(host='127.0.0.1').port}"


def echo(peer: openline.sync.Peer, message: openline.Message) -> None:
    peer.reply(message, message.payload)


class Calling(threading.Thread):
    """A function in a thread; ``end()`` returns what it returns and raises what it raises."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._args = function, args
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def end(self) -> Any:
        self.join(DEADLINE)
        assert not self.is_alive(), f"{self._function} hangs"
        if self._error is not None:
            raise self._error
        return self._value


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, condition.__qualname__
        time.sleep(0.005)


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("openline.sync")]
