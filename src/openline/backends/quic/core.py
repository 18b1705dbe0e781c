"""qh3's connection, with what an engine needs of it that is not public.

Hence the dependency is pinned to 2.1: ``QuicConnection._core``, the compiled half, which says how many
packets were authentic; ``_drain_core``, which hands over what has been received, and with that gives the
peer more credit (not calling it is how a link stops reading); and ``_tls`` and ``_create_tls``, because
its two halves keep each other alive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qh3.quic.connection import QuicConnection

from ...core.portion import Portion
from ..sockets import forget_frames


def _nobody() -> None:
    """Is told, once it is over."""


class Quic(QuicConnection):
    """A connection that can be told to hand nothing over, and hands stream data over directly."""

    holding = False
    # It has had its share of this turn of the loop; and who is told that.
    resting = False
    on_share: Callable[[], None]
    portion: Portion
    # Takes stream data, once the handshake is done.
    sink: Callable[[int, bytes, bool], None] | None = None

    _bridge: Any = None

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        """qh3's TLS, its context and the connection hold each other. After a retry packet there is
        another one."""
        before, bridge = self._bridge, super()._create_tls(remote_source_cid)
        if before is not None:
            vars(before).clear()
        bridge.receive_crypto = partial(_receive_crypto, bridge.receive_crypto)  # type: ignore[method-assign]
        self._bridge = bridge
        return bridge

    def let_go(self) -> None:
        """It is over: tell nobody any more."""
        self.sink = self._session_ticket_handler = self._session_ticket_fetcher = None
        self.on_share = _nobody
        if self._bridge is not None:
            vars(self._bridge).clear()
        self._bridge = self._tls = None

    def _drain_core(self) -> None:
        core, sink = self._core, self.sink
        if sink is None or core is None:
            if not self.holding:
                super()._drain_core()
            return
        if self.resting:
            return
        left = self.portion.size
        while not self.holding and self.sink is not None:
            native = core.next_event()
            if native is None:
                return
            if native[0] == "stream_data" and not self._events:
                data = native[2]
                sink(native[1], data, native[3])
                left -= len(data)
                if left < 0:
                    self.resting = True
                    self.on_share()
                    return
            else:
                self._drain_one(native)

    def _drain_one(self, native: tuple[Any, ...]) -> None:
        """Have qh3 handle one event that has been taken from its core."""
        core = self._core
        self._core = _Before(core, native)  # type: ignore[assignment]
        try:
            super()._drain_core()
        finally:
            self._core = core


def _receive_crypto(receive: Callable[..., None], *data: Any, **where: Any) -> None:
    """Some of qh3's errors are kept by the very call that raises them, and keep all calls up to the loop."""
    try:
        receive(*data, **where)
    except BaseException as error:
        forget_frames(error)
        raise


class _Before:
    """A core whose next event is this one, and then none for now."""

    def __init__(self, core: Any, native: tuple[Any, ...]) -> None:
        self._rest = [native]
        self._real = core

    def next_event(self) -> Any:
        return self._rest.pop() if self._rest else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
