"""A QUIC client that breaks the rules costs its own connection only, and is counted (rule 3.6)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

import openline
from openline.backends.quic.framing import BINARY, GOODBYE, HELLO, TEXT, header

from ..transport.helpers import DEADLINE, Box, eventually, task, within
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Dial, Make
from .rawquic import Over, RawQuic, client_configuration, unit

SLOW = 4 * DEADLINE


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, int]:
    t = await make("server", **config)
    box = Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    assert "quic" in listener.backends
    return t, box, listener.port


async def fine(t: openline.Transport, box: Box, port: int, dial: Dial, *others: RawQuic) -> None:
    """The listener and the peers that were there go on, and new ones get in."""
    for number, other in enumerate([*others, await dial(port, Actor())]):
        other.post(task(f"still {number}"))
        await eventually(lambda n=number: f"still {n}" in box.payloads, SLOW)  # type: ignore[misc]
    assert t.stats().active == len(others) + 1
    await eventually(lambda: t.stats().pending_handshakes == 0, SLOW)


# Before the proof -----------------------------------------------------------------------------------

LONG = Actor(name="x" * 100).hello(1) + "; note=" + "y" * 1400


def bad_utf8() -> bytes:
    return unit(HELLO, Actor(name="b").hello(1).encode() + b"; note=\xc3\xa4")


OPENINGS: dict[str, bytes] = {
    "garbage": bytes(range(200)),
    "zeros": bytes(100),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 30,
    "an empty hello": unit(HELLO),
    "a hello of another version": unit(HELLO, b"2; node=x"),
    "a hello without a node": unit(HELLO, b"1; nonce=" + b"A" * 32),
    "a hello over MAX_LENGTH": unit(HELLO, Actor().hello(1).encode() + b"; note=" + b"y" * 2048),
    "a hello over HELLO_BYTES": header(HELLO, 4097),
    "a hello of an exabyte": header(HELLO, 2**59),
    "a hello outside ASCII": bad_utf8(),
    "a text": unit(TEXT, b"{}"),
    "a message": unit(BINARY, batch([task("early")], opens={"default": 1})),
    "a goodbye": unit(GOODBYE, bytes(10)),
    "a hello with line breaks": unit(HELLO, Actor().hello(1).encode() + b"\r\nX: y; name=\n"),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
async def test_something_else_than_a_hello(make: Make, dial: Dial, opening: bytes) -> None:
    t, box, port = await serving(make)
    good = await dial(port, Actor())
    bad = await dial(port)
    bad.write(2, opening)
    if opening == OPENINGS["a hello with line breaks"]:
        # Unknown parameters are ignored; what counts is that nothing of it gets anywhere.
        bad.close()
        await eventually(lambda: t.stats().active == 1)
        assert t.peers()[0].name == "actor"
        return
    over = await bad.gone()
    assert over.by_program
    assert over.code in (1002, 1009)
    assert t.stats().malformed == 1
    assert not box
    await fine(t, box, port, dial, good)


async def test_no_hello_within_the_handshake_timeout(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make, handshake_timeout=0.3)
    bad = await dial(port)
    assert t.stats().pending_handshakes == 1
    await bad.gone()
    assert (t.stats().pending_handshakes, t.stats().malformed) == (0, 1)
    await fine(t, box, port, dial)


async def test_half_a_hello(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make, handshake_timeout=0.3)
    bad = await dial(port)
    bad.write(2, unit(HELLO, Actor().hello(1).encode())[:-1])
    await bad.gone()
    assert t.stats().malformed == 1
    await fine(t, box, port, dial)


async def test_tls_is_never_finished(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make, handshake_timeout=0.3)
    bad = RawQuic.begin(port)
    bad.start()
    bad.mute = True
    await eventually(lambda: t.stats().pending_handshakes == 1)
    await eventually(lambda: t.stats().malformed == 1, SLOW)
    assert t.stats().pending_handshakes == 0
    bad.close()
    await fine(t, box, port, dial)


async def test_a_hello_and_no_proof(make: Make, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    t, box, port = await serving(make, handshake_timeout=0.3)
    bad = await dial(port)
    await bad.greet(Actor())
    assert t.stats().pending_handshakes == 1
    over = await bad.gone()
    assert (over.code, over.reason) == (1008, "no proof came")
    await eventually(lambda: t.stats().malformed == 1)
    assert (t.stats().pending_handshakes, t.stats().accepted) == (0, 0)
    await fine(t, box, port, dial)


@pytest.mark.parametrize("said", [False, True], ids=["before the hello", "after the hello"])
async def test_a_client_that_goes_away_by_itself_is_not_counted(make: Make, dial: Dial, said: bool) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    if said:
        await bad.greet(Actor())
    bad.hang_up(0)
    await eventually(lambda: t.stats().pending_handshakes == 0)
    await fine(t, box, port, dial)
    assert t.stats().malformed == 0


@pytest.mark.parametrize("protocols", [None, [], ["h3"], ["openline/2", "h3"]], ids=str)
async def test_another_protocol_than_ours(make: Make, dial: Dial, protocols: list[str] | None) -> None:
    t, box, port = await serving(make)
    with pytest.raises(Over) as over:
        await dial(port, None, client_configuration(alpn_protocols=protocols))
    assert not over.value.by_program
    assert t.stats().malformed == 1
    await fine(t, box, port, dial)


async def test_a_reason_of_the_peer_reaches_the_log_without_control_characters(
    make: Make, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    t, _, port = await serving(make)
    bad = await dial(port)
    await eventually(lambda: t.stats().pending_handshakes == 1)
    with caplog.at_level(logging.DEBUG, "openline"):
        bad.hang_up(0x10, "evil\x1b[31m\nWARNING openline: all is well", frame_type=0x1C)
        await eventually(lambda: t.stats().pending_handshakes == 0)
    assert any("all is well" in message for message in caplog.messages)
    assert all(message.isprintable() for message in caplog.messages), caplog.messages


# Streams --------------------------------------------------------------------------------------------


def bidirectional(bad: RawQuic) -> None:
    bad.write(0, unit(HELLO, b"x"))


def ended(bad: RawQuic) -> None:
    bad.write(2, b"", end=True)


def ended_track(bad: RawQuic) -> None:
    bad.write(bad.track(1), b"\x04", end=True)


def reset(bad: RawQuic) -> None:
    bad.write(2, b"\x40")
    bad.quic.reset_stream(2, 7)
    bad.transmit()


def stopped(bad: RawQuic) -> None:
    """It wants to hear nothing of us."""
    bad.quic.stop_stream(3, 7)
    bad.transmit()


STREAMS = [bidirectional, ended, ended_track, reset, stopped]


@pytest.mark.parametrize("break_it", STREAMS)
async def test_streams_that_are_none_of_this_protocols(
    make: Make, dial: Dial, break_it: Callable[[RawQuic], None]
) -> None:
    """Once it is in."""
    t, box, port = await serving(make)
    good, bad = await dial(port, Actor()), await dial(port, Actor())
    break_it(bad)
    await bad.gone()
    await eventually(lambda: t.stats().active == 1)
    assert t.stats().malformed == 1
    await fine(t, box, port, dial, good)


@pytest.mark.parametrize("break_it", [bidirectional, ended, ended_track, reset])
async def test_such_streams_before_the_hello(
    make: Make, dial: Dial, break_it: Callable[[RawQuic], None]
) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    break_it(bad)
    await bad.gone()
    assert t.stats().pending_handshakes == 0
    assert t.stats().malformed == 1
    await fine(t, box, port, dial)


@pytest.mark.parametrize("kind", [HELLO, GOODBYE])
async def test_a_control_unit_on_a_track(make: Make, dial: Dial, kind: int) -> None:
    t, box, port = await serving(make)
    bad = await dial(port, Actor())
    bad.write(bad.track(1), unit(kind, bytes(10)))
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial)


async def test_a_second_hello(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port, Actor())
    bad.write(2, unit(HELLO, Actor().hello(1).encode()))
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial)


async def test_a_second_hello_instead_of_the_proof(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.write(2, unit(HELLO, Actor().hello(1).encode()))
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial)


async def test_more_tracks_than_there_are(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port, Actor())
    for track in range(1, 65):
        bad.write(bad.track(track), unit(BINARY, bytes([200])))
    bad.post(task("the last one"), track=64)
    await eventually(lambda: box.payloads == ["the last one"])
    bad.write(bad.track(65), unit(BINARY, bytes([200])))
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial)


# Between hello and proof ----------------------------------------------------------------------------


async def test_a_little_on_other_streams_waits_for_the_proof(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    client, actor = await dial(port), Actor()
    await client.greet(actor)
    client.post(task("one"), track=1)
    client.post(task("two", stream_id="b"), track=2)
    client.write(client.track(3), b"\x40")
    door = t._listeners[0]._acceptor._doors[1][1]
    visit = next(iter(door.handshakes))  # type: ignore[attr-defined]
    await eventually(lambda: len(visit._link._incoming._early) == 3)
    assert not box
    client.prove()
    await client.welcomed()
    await eventually(lambda: sorted(box.payloads) == ["one", "two"])


async def test_data_on_a_track_before_the_hello_waits_too(make: Make, dial: Dial) -> None:
    _, box, port = await serving(make)
    client, actor = await dial(port), Actor()
    client.actor = actor
    client.post(task("one"), track=1)
    await client.greet(actor)
    client.prove()
    await client.welcomed()
    await eventually(lambda: box.payloads == ["one"])


async def test_too_much_on_other_streams_before_the_proof(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    good, bad = await dial(port, Actor()), await dial(port)
    await bad.greet(Actor())
    bad.write(bad.track(1), bytes(300 * 1024))
    over = await bad.gone()
    assert (over.code, over.reason) == (1002, "too much before the proof")
    await eventually(lambda: t.stats().malformed == 1)
    assert not box
    await fine(t, box, port, dial, good)


async def test_what_came_early_and_is_wrong_costs_the_connection(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.write(bad.track(1), unit(HELLO, b"x"))
    bad.prove()
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial)


async def test_many_tiny_pieces_before_the_proof_take_little_memory(make: Make, dial: Dial) -> None:
    """Each piece of one byte is kept as an object of its own: EARLY_BYTES of them would be 30 MB."""
    t, _, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    for number in range(6000):
        bad.quic.send_stream_data(bad.track(1 + number % 60), b"\x00")
        if number % 60 == 59:
            bad.transmit()
            await asyncio.sleep(0)
    door = t._listeners[0]._acceptor._doors[1][1]
    visit = next(iter(door.handshakes), None)  # type: ignore[attr-defined]
    await eventually(lambda: visit is None or visit._over or visit._link._incoming._early_bytes >= 5900, SLOW)
    assert visit is None or visit._over or len(visit._link._incoming._early) <= 1000


async def test_a_proof_and_a_larger_control_frame_in_one_packet(make: Make, dial: Dial) -> None:
    """The limit for the proof ends with the proof, also within what has come together."""
    _, box, port = await serving(make)
    client, actor = await dial(port), Actor()
    transcript = await client.greet(actor)
    unknown = unit(BINARY, bytes([200]) + bytes(5000))  # other kinds are ignored
    client.write(2, unit(BINARY, actor.prove(transcript)) + unknown)
    await client.welcomed()
    client.post(task("in"))
    await eventually(lambda: box.payloads == ["in"])


# Once it is in --------------------------------------------------------------------------------------


async def test_a_unit_over_the_limit_is_refused_before_its_bytes_come(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make, max_message_size=100_000)
    good, bad = await dial(port, Actor()), await dial(port, Actor())
    bad.write(bad.track(1), header(BINARY, 100_000 + 64 * 1024))
    assert (await bad.gone()).code == 1009
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial, good)


async def test_thousands_of_tiny_units_are_no_harm(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    client = await dial(port, Actor())
    empty = unit(BINARY, bytes([200]))
    for _ in range(20):
        client.write(client.track(1), empty * 1000)
        await asyncio.sleep(0)
    client.post(task("after"), track=1)
    await eventually(lambda: box.payloads == ["after"], SLOW)
    assert t.stats().malformed == 0


@pytest.mark.parametrize(
    "content", [b"", b"\x01", b"\x01\xc1", random.Random(50).randbytes(50), b"\x04\x92\xc4\x00\x90"]
)
async def test_frames_that_cannot_be_read(make: Make, dial: Dial, content: bytes) -> None:
    t, box, port = await serving(make)
    good, bad = await dial(port, Actor()), await dial(port, Actor())
    bad.write(bad.track(1), unit(BINARY, content if content[:1] != b"\x02" else b"\x01\xc1"))
    if content[:1] and content[0] > 5:
        return  # another kind of frame: ignored
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    await fine(t, box, port, dial, good)


async def test_a_text_between_openline_peers(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port, Actor())
    bad.write(bad.track(1), unit(TEXT, b"{}"))
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)
    assert not box


async def test_partial_units_on_all_tracks_are_bounded_together(make: Make, dial: Dial) -> None:
    """65 streams with almost a whole message each: 65 times max_message_size must not be held."""
    size = 400_000
    t, _, port = await serving(make, max_message_size=size)
    bad = await dial(port, Actor())
    connection = next(iter(t._table.connections))
    for track in range(1, 65):
        bad.write(bad.track(track), header(BINARY, size) + bytes(size - 1))

    def held() -> int:
        return sum(len(reader._rest) for reader in connection.link._incoming._readers.values())  # type: ignore

    seen = 0

    async def until_all_or_cut() -> None:
        nonlocal seen
        while t.stats().active and seen < 64 * (size - 1):
            seen = max(seen, held())
            await asyncio.sleep(0.01)

    await within(until_all_or_cut(), 30)
    assert seen <= 24 * size, f"{seen // size} messages of full size held for one connection"
