"""TLS messages that are changed on their way, from a stranger: they cost their own connection only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from qh3.quic.connection import QuicConnection

from ..transport.helpers import eventually, task
from ..transport.rawsocket import Actor
from .conftest import Dial, Make
from .rawquic import RawQuic, client_configuration
from .test_hostile_client import SLOW, fine, serving


class Mutant(QuicConnection):
    """A client whose TLS messages are changed on their way out."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        super().__init__(configuration=client_configuration())
        self._change = change

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        original = bridge.next_crypto_data

        def changed() -> Any:
            crypto = original()
            if crypto is not None:
                object.__setattr__(crypto, "data", self._change(crypto.data))
            return crypto

        bridge.next_crypto_data = changed  # type: ignore[method-assign]
        return bridge


def mutant(port: int, change: Callable[[bytes], bytes]) -> RawQuic:
    bad = RawQuic.begin(port)
    bad.quic = Mutant(change)
    bad.start()
    return bad


def short_key_share(hello: bytes) -> bytes:
    """An X25519 share (group 29, 32 bytes) that is all zeros, which no exchange takes."""
    at = hello.rfind(b"\x00\x1d\x00\x20")
    kyber = hello.find(b"\x11\xec\x04\xc0")
    out = bytearray(hello)
    out[at + 4 : at + 36] = bytes(32)
    if kyber >= 0:
        out[kyber : kyber + 2] = b"\x0a\x0b"  # a group that nobody knows
    return bytes(out)


async def test_a_key_share_that_cannot_be_used(
    make: Make, dial: Dial, problems: list[dict[str, Any]]
) -> None:
    t, box, port = await serving(make, handshake_timeout=1.0)
    bad = mutant(port, short_key_share)
    await eventually(lambda: t.stats().malformed == 1 or problems, SLOW)
    bad.close()
    assert not problems, [p.get("exception") for p in problems]
    await fine(t, box, port, dial)


@pytest.mark.parametrize("seed", range(4))
async def test_changed_client_hellos_cost_their_own_connection(
    make: Make, dial: Dial, problems: list[dict[str, Any]], seed: int
) -> None:
    rnd = random.Random(seed)
    t, box, port = await serving(make, handshake_timeout=2.0, max_pending_handshakes=1000)
    good = await dial(port, Actor())

    def change(hello: bytes) -> bytes:
        out = bytearray(hello)
        what = rnd.randrange(4)
        if what == 0:  # some bytes
            for _ in range(rnd.randint(1, 6)):
                out[rnd.randrange(len(out))] = rnd.randrange(256)
        elif what == 1:  # cut, the length kept right
            del out[rnd.randrange(40, len(out)) :]
            out[1:4] = (len(out) - 4).to_bytes(3, "big")
        elif what == 2:  # a hole, the length kept right
            at = rnd.randrange(4, len(out) - 8)
            del out[at : at + rnd.randint(1, 8)]
            out[1:4] = (len(out) - 4).to_bytes(3, "big")
        else:
            out[4:] = rnd.randbytes(len(out) - 4)
        return bytes(out)

    for _ in range(12):  # below the number from which tokens are asked for
        mutant(port, change).close()
    good.post(task("all have come"))
    await eventually(lambda: "all have come" in box.payloads, SLOW)
    await eventually(lambda: t.stats().pending_handshakes == 0, SLOW)
    assert not problems, [p.get("exception") for p in problems]
    await fine(t, box, port, dial, good)


async def test_endless_tls_messages_are_not_collected(make: Make, dial: Dial) -> None:
    """A ClientHello that says it has 16 MB, from somebody who has shown nothing yet."""
    t, box, port = await serving(make, handshake_timeout=3.0)
    bad = mutant(port, lambda hello: b"\x01\xff\xff\xff" + bytes(400_000))
    door = t._listeners[0]._acceptor._doors[1][1]

    def collected() -> int:
        cores: list[Any] = [each._engine.core for each in door.handshakes]  # type: ignore[attr-defined]
        tls = [core._quic._tls for core in cores if core._quic is not None]
        return sum(len(item.tls._receive_buffer) for item in tls if item is not None)

    most = 0
    for _ in range(100):
        bad.transmit()
        await asyncio.sleep(0.01)
        most = max(most, collected())
        if not t.stats().pending_handshakes:
            break
    bad.close()
    assert most <= 100_000, f"{most} bytes of one TLS message"
    await eventually(lambda: t.stats().pending_handshakes == 0, SLOW)
    await fine(t, box, port, dial)
