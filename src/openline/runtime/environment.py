"""The real network, clocks and chance; a simulation brings its own (``backends.base.Environment``)."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING

from ..backends.base import Backend, Doorkeeper, OnBad
from ..backends.certificates import TlsFiles
from ..backends.sockets import Opener, open_socket
from ..backends.websocket.backend import WebSocketBackend
from ..capabilities import why_no_quic
from ..config import Config

if TYPE_CHECKING:
    from ..backends.quic.udp import UdpOpener

_LEFT_OUT = "Config.backends leaves {} out"
_OTHER_OPENER = "a program that opens its own TCP sockets has to open its own UDP sockets, too"


class RealEnvironment:
    """Sockets of this machine.

    ``opener`` and ``udp_opener`` replace how they are dialed (tests, the demo). Where only the first
    is given there is no QUIC, which would go past it.
    """

    def __init__(self, opener: Opener | None = None, udp_opener: UdpOpener | None = None) -> None:
        # Of the system: one with a state of its own would go on alike in two processes after fork.
        self.random: random.Random = random.SystemRandom()
        self._opener = opener
        self._udp_opener = udp_opener

    def backends(
        self, config: Config, door: Doorkeeper, on_bad: OnBad
    ) -> tuple[list[Backend], dict[str, str]]:
        missing = {
            name: _LEFT_OUT.format(name) for name in ("quic", "websocket") if name not in config.backends
        }
        found: list[Backend] = []
        files = TlsFiles(config.tls)
        for name in dict.fromkeys(config.backends):
            if name == "websocket":
                found.append(WebSocketBackend(config, door, on_bad, self._opener or open_socket, files))
            elif (why := self._why_no_quic()) is not None:
                missing["quic"] = why
            else:
                found.append(self._quic(config, door, on_bad, files))
        if not found:
            raise RuntimeError(f"no backend is usable: {missing}")
        return found, missing

    def _why_no_quic(self) -> str | None:
        if self._opener is not None and self._udp_opener is None:
            return _OTHER_OPENER
        return why_no_quic()

    def _quic(self, config: Config, door: Doorkeeper, on_bad: OnBad, files: TlsFiles) -> Backend:
        # qh3 takes 70 ms to import: not before it is needed, and not without need.
        from ..backends.quic.native import quic_backend
        from ..backends.quic.udp import open_udp

        return quic_backend(config, door, on_bad, self._udp_opener or open_udp, files)

    # Called for each ping: the function itself, not one more around it.
    stopwatch = staticmethod(time.perf_counter)
    unix_time = staticmethod(time.time)

    def wall_clock(self) -> float:
        """A clock that goes on while the machine sleeps, and that nobody can set."""
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        if sys.platform == "darwin":
            return time.clock_gettime(time.CLOCK_MONOTONIC)
        return time.monotonic()
