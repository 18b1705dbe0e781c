"""Log lines that a peer can cause: a few of each kind, then their number (rule 3.10).

Lines at INFO and above go through a ``RateLog`` wherever the far end decides how often they come.
Whose they are is the node id where it is proven, else the IP, so that nobody has more of them by
coming again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..core.endpoints import Endpoint
from ..core.origin import origin
from ..core.ratelimit import LINES_PER_KIND, WINDOW, LogLimit


class Source(Protocol):
    """Who causes a line: a peer."""

    @property
    def node_id(self) -> str | None: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def known(self) -> bool: ...


_SUM = "and %s more of the kind in the last %.0f s: %s [%s]"
_PLACE = re.compile(r"%[-.\d]*[a-z]")


# Level, text, and what else tells it apart.
Kind = tuple[int, str, str]


class RateLog:
    """Writes to ``logger`` what ``core/ratelimit.py`` allows, and the sums of what it does not."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._clock = clock
        self._limit: LogLimit[Kind] = LogLimit()

    def about(self, peer: Source, level: int, text: str, *args: object, **more: Any) -> None:
        """A line that ``peer`` is the cause of."""
        source = peer.node_id or origin(peer.endpoint.ip)
        self.line(source, peer.known, level, text, *args, **more)

    def line(
        self,
        source: str,
        known: bool,
        level: int,
        text: str,
        *args: object,
        kind: str = "",
        most: int = LINES_PER_KIND,
        **more: Any,
    ) -> None:
        """``kind`` tells apart what has the same ``text``."""
        if not self._logger.isEnabledFor(level):
            return
        now = self._clock()
        self.tick(now)
        allowed = self._limit.allows(now, source, (level, text, kind), known, most)
        self._logger.log(level if allowed else logging.DEBUG, text, *args, **more)

    def tick(self, now: float) -> None:
        """Write the sums, if it is time."""
        for each in self._limit.sums(now):
            level, text, kind = each.kind
            what = _PLACE.sub("…", text) + (f" ({kind})" if kind else "")
            who = each.source if each.sources == 1 else f"{each.sources} sources, most from {each.source}"
            self._logger.log(level, _SUM, f"{each.count:,}", WINDOW, what, who)

    def close(self) -> None:
        """Write what there is: nothing more comes."""
        self.tick(float("inf"))


# For what is below any transport. Its sources are the places in the code that write.
process_log = RateLog(logging.getLogger("openline"), time.monotonic)
