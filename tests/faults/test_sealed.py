"""Encryption by default on real kernels (rule 3.8): TLS over what carries little, and what is on the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from openline.testing.lab.netns import TwoHosts
from openline.testing.lab.router import Routed

from .agents import Agent, Pair, two
from .conftest import require_lab

pytestmark = pytest.mark.faults

# Over TCP, and nothing in plain text: what connects is TLS.
SEALED: dict[str, Any] = {"backends": ("websocket",), "plaintext": "never", "max_idle_timeout": 30.0}
LARGE = 100_000

# Prints all that a host's interfaces carry for so many seconds.
SNIFF = """
import select, socket, sys, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
print("ready", flush=True)
until = time.monotonic() + float(sys.argv[1])
while (left := until - time.monotonic()) > 0:
    if select.select([sock], [], [], left)[0]:
        sys.stdout.write(sock.recv(65536).hex() + "\\n")
"""


@pytest.fixture
def routed() -> Iterator[Routed]:
    require_lab("firewall")
    with Routed() as routed:
        yield routed


@pytest.mark.parametrize(
    ("mtu", "told"), [(576, True), (1280, True), (1280, False)], ids=["576", "1280", "1280, silent router"]
)
def test_a_handshake_through_a_small_mtu(routed: Routed, mtu: int, told: bool) -> None:
    """A certificate and two hellos are more than one packet of 576 bytes."""
    routed.limit(mtu, told=told)
    a, b = (Agent(routed, host, routed.address[host], **SEALED).ready() for host in ("A", "B"))
    receipts = a.ask("send", to=b.address, numbers=[0, 1], size=LARGE, patience=40)
    # Where nobody tells, what is large gets through at the second attempt: with small segments.
    assert receipts == [[1 if told else 2, "outbound"], [1, "outbound"]]
    assert b.received(2) == [0, 1]
    assert b.send(a, 2, first=5) == [[1, "inbound"]] * 2


def test_a_handshake_over_a_slow_link(lab: TwoHosts) -> None:
    a, b = two(lab, **SEALED)
    lab.throttle("64kbit")
    assert a.send(b, 5) == [[1, "outbound"]] * 5
    assert b.received(5) == list(range(5))
    assert a.backends == {"websocket": 1}


def seen_on_the_wire(lab: TwoHosts, pair: Pair, how: str) -> bytes:
    a, b = pair
    argv = [sys.executable, "-c", SNIFF, "4"]
    sniffer = lab.popen("B", argv, stdout=subprocess.PIPE, text=True)
    assert sniffer.stdout is not None
    assert sniffer.stdout.readline() == "ready\n"
    to = f"{how}{b.address}"
    assert a.ask("send", to=to, numbers=[0, 1, 2], size=300) == [[1, "outbound"]] * 3
    assert b.received(3) == [0, 1, 2]
    assert b.send(a, 3, first=10) == [[1, "inbound"]] * 3
    packets, _ = sniffer.communicate(timeout=60)
    return b"".join(map(bytes.fromhex, packets.split()))


@pytest.mark.parametrize("udp", [True, False], ids=["quic", "tls"])
def test_nothing_is_seen_by_who_listens_on_the_path(lab: TwoHosts, udp: bool) -> None:
    pair = two(lab)
    if not udp:
        lab.block_udp()
    seen = seen_on_the_wire(lab, pair, "")
    a, _ = pair
    assert len(seen) > 3 * 300
    assert a.backends == ({"quic": 1} if udp else {"websocket": 1})
    for word in (b"Openline-Hello", b"GET / ", a.address.encode(), b"payload", b"listen=8770"):
        assert word not in seen


def test_the_same_by_ws_is_seen(lab: TwoHosts) -> None:
    """So the test above sees what there is to see."""
    seen = seen_on_the_wire(lab, two(lab), "ws://")
    assert b"Openline-Hello" in seen
    assert b"listen=8770" in seen
