"""Candidates for the tests of selection."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from openline.address import Address
from openline.core.handshake import Hello
from openline.core.selection import (
    Endpoint,
    Plan,
    Quality,
    Want,
    plan,
)

HOST, NEIGHBOUR = "10.0.0.2", "10.0.0.3"
CAROL, DAVE = "c" * 51 + "a", "d" * 51 + "a"

numbers = itertools.count(1)


@dataclasses.dataclass(eq=False, repr=False)
class Line:
    """A live connection, as far as a plan looks at it. Made later means newer."""

    endpoint: Endpoint
    quality: Quality = Quality.GOOD
    owner: object = None
    number: int = dataclasses.field(default_factory=numbers.__next__)

    def __repr__(self) -> str:
        end = self.endpoint
        kind = "plain" if end.hello is None else f"openline {end.hello.ports}"
        return f"<{kind} {end.direction} {end.remote} {self.quality.name}>"


def hello(node: str, *ports: int) -> Hello:
    return Hello(node, "n" * 22, ports)


def inbound(port: int, said: Hello | None = None, *, ip: str = HOST, **more: Any) -> Line:
    return Line(Endpoint("inbound", ip, port, hello=said), **more)


def outbound(target: str, said: Hello | None = None, *, ip: str = HOST, **more: Any) -> Line:
    address = Address.parse(target)
    secure = address.scheme == "wss"
    end = Endpoint("outbound", ip, address.port, target=address, secure=secure, hello=said)
    return Line(end, **more)


def choose(
    address: str, *lines: Line, ips: tuple[str, ...] = (HOST,), reuse: str = "unambiguous", **known: Any
) -> Plan[Line]:
    return plan(Want(Address.parse(address), ips, reuse, **known), lines)


def reasons(result: Plan[Line]) -> list[str]:
    return [reason for _, reason in result.passed_over]


WORSE = [Quality.CONGESTED, Quality.SUSPECT, Quality.DRAINING]
