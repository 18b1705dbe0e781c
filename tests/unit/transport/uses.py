"""All that a program does with an address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import openline

from .helpers import task

ABSENT = openline.Identity().node_id

Use = Callable[[openline.Transport, str], Awaitable[Any]]
USES: dict[str, Use] = {
    "send": lambda t, to: t.send(to, task("secret")),
    "send_batch": lambda t, to: t.send_batch(to, [task("secret"), task("secret")]),
    "request": lambda t, to: t.request(to, task("secret"), timeout=2.0),
    "connect": lambda t, to: t.connect(to),
    "ping": lambda t, to: t.ping(to),
}
