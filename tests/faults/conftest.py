import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from openline.testing.lab.netns import (
    ADDRESS,
    Feature,
    HostName,
    TwoHosts,
    availability,
)

from .lab_hosts import PORT, TCP, UDP, Line, Open, connect, is6, socket_on
from .processes import PATIENCE


def require_lab(feature: Feature = "hosts") -> None:
    """Skip where the lab cannot be had, but fail where somebody counts on it."""
    if here := availability(feature):
        return
    if os.environ.get("OPENLINE_REQUIRE_FAULTS") == "1":
        pytest.fail(f"OPENLINE_REQUIRE_FAULTS=1, but: {here.reason}")
    pytest.skip(here.reason)


@pytest.fixture
def lab() -> Iterator[TwoHosts]:
    require_lab()
    with TwoHosts() as hosts:
        yield hosts


@pytest.fixture
def line(lab: TwoHosts) -> Line:
    """A connection that A opened to B."""
    return connect(lab, ADDRESS["B"])


@pytest.fixture
def opened(lab: TwoHosts) -> Iterator[Open]:
    """Makes sockets on a host, held by the test itself."""
    with contextlib.ExitStack() as stack:

        def make(host: HostName, kind: int = UDP, to: str = "", at: int | None = None) -> socket.socket:
            made = stack.enter_context(socket_on(lab, host, kind, is6(to)))
            made.settimeout(PATIENCE)
            if at is not None:
                made.bind((to, at))
                if kind == TCP:
                    made.listen()
            elif to:
                made.connect((to, PORT))
            return made

        yield make


@pytest.fixture(params=["ipv4", "ipv6"])
def addresses(lab: TwoHosts, request: pytest.FixtureRequest) -> dict[HostName, str]:
    if request.param == "ipv4":
        return lab.address
    if not lab.ipv6:
        pytest.skip("no IPv6 here")
    return lab.address6


@pytest.fixture
def firewall() -> None:
    here = availability("firewall")
    if not here and os.environ.get("OPENLINE_REQUIRE_FAULTS") == "1":
        pytest.fail(f"OPENLINE_REQUIRE_FAULTS=1, but: {here.reason}")
    if not here:
        pytest.skip(here.reason)
