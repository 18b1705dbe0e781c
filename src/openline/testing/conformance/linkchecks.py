"""What ``check_backend`` asks of a link, from the first frame to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...backends.base import By, End
from ...config import Config
from .recording import A_WHILE, NONSENSE, TOO_MUCH, Check, Pair, Recorder, expect, until

MIB = 1024 * 1024
# More than any kernel buffers on one connection.
PLENTY = 64 * MIB
# Frames on each of so many tracks.
TRACKS, PER_TRACK = 40, 5
SIZES = (0, 1, 125, 126, 255, 4096, 8192, 8193, 65_535, 65_536, 65_537, 200_000)

LINK_CHECKS: dict[str, Check] = {}


def _check(function: Callable[[Pair], Awaitable[None]]) -> None:
    LINK_CHECKS[getattr(function, "__name__", "")] = function


def _each_way(function: Callable[[Recorder, Recorder], Awaitable[None]]) -> None:
    """Run it on a link with either end as the near one."""

    async def check(pair: Pair) -> None:
        await pair.listen()
        server, client = await pair.link()
        await function(client, server)
        server, client = await pair.link()
        await function(server, client)

    LINK_CHECKS[getattr(function, "__name__", "")] = check


async def _both_closed(near: Recorder, far: Recorder) -> None:
    await until(lambda: near.ended and far.ended, "on_closed did not come on both sides")


# Frames -----------------------------------------------------------------------------------------


def _pattern(size: int, number: int = 0) -> bytes:
    return (bytes((number + i) % 251 for i in range(min(size, 997))) * (size // 997 + 1))[:size]


@_each_way
async def frames_arrive_whole_and_in_order(near: Recorder, far: Recorder) -> None:
    """Text and binary, of all sizes."""
    sent: list[tuple[str, bytes]] = []
    for number, size in enumerate(SIZES * 3):
        kind = "text" if number % 2 else "binary"
        data = b"%d" % number * size if kind == "text" else _pattern(size, number)
        near.text(data) if kind == "text" else near.binary(data)
        sent.append((kind, data))
    await until(lambda: len(far.frames) >= len(sent), "not all frames came")
    expect(far.frames == sent, "frames came changed or out of order")


@_each_way
async def large_frames(near: Recorder, far: Recorder) -> None:
    """Many times the size of any buffer."""
    data, text = _pattern(5 * MIB), b"0123456789" * (MIB // 4)
    near.binary(data)
    near.text(text)
    near.binary(b"after")
    await until(lambda: len(far.frames) == 3, "large frames did not arrive")
    expect(far.frames == [("binary", data), ("text", text), ("binary", b"after")], "changed on the way")


@_check
async def the_frame_limit_costs_the_link(pair: Pair) -> None:
    """One frame far over ``max_message_size``."""
    await pair.listen(Config(), max_message_size=1000)
    server, client = await pair.link()
    client.binary(b"x" * MIB)
    await _both_closed(server, client)
    expect(server.ended[0].by is By.BAD_INPUT, f"the server was told {server.ended[0]}")
    expect(not server.frames, "the frame was handed over")


@_each_way
async def tracks_are_in_order_each(near: Recorder, far: Recorder) -> None:
    """Where there are several: nothing is lost between them, before a goodbye, either."""
    if near.link.multiplexed:
        _write_tracks(near)
        near.close()
        await _both_closed(near, far)
        _expect_tracks(far)


@_check
async def tracks_wait_for_the_proof(pair: Pair) -> None:
    """What a client writes at once, on other tracks than the proof, is kept until that has come."""
    await pair.listen()
    for _ in range(5):
        client = await pair.dial()
        if not client.link.multiplexed:
            return
        _write_tracks(client)
        last = len(pair.client.links)
        await until(lambda: len(pair.server.links) == last, "the server's link never came in")  # noqa: B023
        server = pair.server.links[-1]
        await until(lambda: len(server.frames) == TRACKS * PER_TRACK, "not all frames came")  # noqa: B023
        _expect_tracks(server)


def _write_tracks(near: Recorder) -> None:
    for number in range(PER_TRACK):
        for track in range(TRACKS):
            near.binary(bytes([track, number]) * (1 + 500 * (track % 3)), track)


def _expect_tracks(far: Recorder) -> None:
    frames = far.of("binary")
    expect(len(frames) == TRACKS * PER_TRACK, f"{len(frames)} of {TRACKS * PER_TRACK} frames came")
    for track in range(TRACKS):
        numbers = [frame[1] for frame in frames if frame[0] == track]
        expect(numbers == list(range(PER_TRACK)), f"track {track} is out of order: {numbers}")


@_each_way
async def pings_and_pongs(near: Recorder, far: Recorder) -> None:
    """Carried with their payloads; nobody answers them but the connection."""
    if near.link.answers_pings:
        await _answered_pings(near, far)
        return
    near.ping(b"")
    near.ping(b"\x00\xff" * 62)
    near.pong(b"unasked")
    await until(lambda: len(far.log) == 3, "pings and pongs did not arrive")
    expect(far.log == [("ping", b""), ("ping", b"\x00\xff" * 62), ("pong", b"unasked")], f"{far.log}")
    await asyncio.sleep(A_WHILE)
    expect(not near.log, "the backend answered a ping itself")


async def _answered_pings(near: Recorder, far: Recorder) -> None:
    """By the far end's link: nobody else there is told, and the payloads come back."""
    near.ping(b"")
    near.ping(b"\x00\xff" * 62)
    near.pong(b"unasked")
    await until(lambda: len(near.log) == 2, "pings were not answered")
    await asyncio.sleep(A_WHILE)
    expect(sorted(near.log) == [("pong", b""), ("pong", b"\x00\xff" * 62)], f"{near.log}")
    expect(not far.log, "somebody was told of a ping that the link answers")


@_each_way
async def ping_overtakes_large_frame(near: Recorder, far: Recorder) -> None:
    """A ping does not wait for megabytes in front of it."""
    near.binary(bytes(12 * MIB))
    near.ping(b"hurry")
    if near.link.answers_pings:
        await until(lambda: near.log, "the ping was not answered")
        expect(not far.log, "the ping was answered after the large frame")
        return
    await until(lambda: len(far.log) == 2, "ping or frame did not arrive")
    expect([kind for kind, _ in far.log] == ["ping", "binary"], "the ping came behind the large frame")


# Flow -------------------------------------------------------------------------------------------


def _fill(near: Recorder) -> int:
    """Write until the link is congested; the number of frames."""
    written = 0
    while not near.link.congested:
        expect(written * 60_000 < PLENTY, f"not congested by {written * 60_000} bytes that nobody reads")
        near.binary(written.to_bytes(4, "big") + bytes(60_000))
        written += 1
    return written


@_each_way
async def congested_until_drained(near: Recorder, far: Recorder) -> None:
    """``congested``, then ``on_writable`` when there is room again."""
    far.do(far.link.pause_reading)
    await asyncio.sleep(A_WHILE)
    written = _fill(near)
    expect(not near.of("writable"), "on_writable before anything was read")
    far.do(far.link.resume_reading)
    await until(lambda: near.of("writable"), "on_writable never came")
    expect(not near.link.congested, "still congested after on_writable")
    await until(lambda: len(far.frames) == written, "not all frames came")
    numbers = [int.from_bytes(data[:4], "big") for data in far.of("binary")]
    expect(numbers == list(range(written)), "out of order")
    near.binary(b"and on")
    await until(lambda: far.frames[-1][1] == b"and on", "nothing arrives after congestion")


@_each_way
async def pause_reading_stops_events(near: Recorder, far: Recorder) -> None:
    """Nothing is handed over while paused, nothing is lost."""
    far.do(far.link.pause_reading)
    await asyncio.sleep(A_WHILE)
    for number in range(10):
        near.text(b"%d" % number)
    await asyncio.sleep(A_WHILE)
    expect(not far.log, "events while reading was paused")
    far.do(far.link.resume_reading)
    await until(lambda: len(far.frames) == 10, "frames written meanwhile did not arrive")
    expect(far.of("text") == [b"%d" % number for number in range(10)], "out of order")


@_check
async def progress_counts_bytes(pair: Pair) -> None:
    """Where the kernel tells: what is acknowledged, what has come, and what waits."""
    await pair.listen()
    server, client = await pair.link()
    if client.link.progress() is None:
        return
    await until(lambda: _pending(client) == 0, "the proof is never acknowledged")
    before, received = client.link.progress(), server.link.progress()
    client.binary(bytes(100_000))
    await until(lambda: server.frames, "the frame did not arrive")
    await until(lambda: _pending(client) == 0, "the frame is never acknowledged")
    after, now = client.link.progress(), server.link.progress()
    expect(before and after and after.acked - before.acked >= 100_000, "acked does not count what was acked")
    expect(received and now and now.received - received.received >= 100_000, "received does not count")


def _pending(recorder: Recorder) -> int:
    progress = recorder.link.progress()
    expect(progress is not None, "progress() tells nothing any more")
    return progress.pending if progress is not None else 0


# The end ----------------------------------------------------------------------------------------


@_each_way
async def close_says_goodbye_after_the_data(near: Recorder, far: Recorder) -> None:
    """All that was written arrives before; both sides know why."""
    for number in range(50):
        near.binary(b"%d" % number)
    near.binary(bytes(2 * MIB))
    near.close(1001, "closing")
    expect(near.link.closing, "not closing after close()")
    await _both_closed(near, far)
    expect(len(far.frames) == 51, f"{len(far.frames)} of 51 frames came before the end")
    expect(near.ended == [End.by_us(1001)], f"this side was told {near.ended}")
    expect(far.ended == [End.by_peer(1001, "closing")], f"the far side was told {far.ended}")


@_each_way
async def frames_under_way_arrive_after_close(near: Recorder, far: Recorder) -> None:
    """Who closes reads on until the far side has agreed."""
    for number in range(20):
        far.binary(b"%d" % number)
    near.close(4001, "replaced")
    await _both_closed(near, far)
    expect(len(near.frames) == 20, f"{len(near.frames)} of 20 frames that were under way came")
    expect(far.ended == [End.by_peer(4001, "replaced")], f"the far side was told {far.ended}")


@_each_way
async def abort_cuts_at_once(near: Recorder, far: Recorder) -> None:
    """Both sides are told, and each of its own."""
    near.abort()
    expect(near.link.closing, "not closing after abort()")
    await _both_closed(near, far)
    expect(near.ended == [End.lost("aborted by this side")], f"this side was told {near.ended}")
    expect(far.ended == [End.lost("connection lost")], f"the far side was told {far.ended}")


def _close_twice(near: Recorder, far: Recorder) -> None:
    near.close()
    near.close(1000, "again")
    far.abort()


def _close_and_abort(near: Recorder, far: Recorder) -> None:
    near.close()
    near.abort()
    near.abort()


def _both_close(near: Recorder, far: Recorder) -> None:
    near.close()
    far.close()


def _both_abort(near: Recorder, far: Recorder) -> None:
    near.abort()
    far.abort()


def _nonsense_and_close(near: Recorder, far: Recorder) -> None:
    near.binary(NONSENSE)
    _both_close(near, far)


@_check
async def closed_exactly_once(pair: Pair) -> None:
    """Whoever ends it, in whatever order, also both at once."""
    await pair.listen()
    for ending in (_both_close, _close_and_abort, _both_abort, _close_twice, _nonsense_and_close):
        for turned in (1, -1):
            near, far = (await pair.link())[::turned]
            ending(near, far)
            await _both_closed(near, far)
    await asyncio.sleep(A_WHILE)
    for recorder in pair.server.links + pair.client.links:
        expect(len(recorder.ended) == 1, f"on_closed {len(recorder.ended)} times: {recorder.ended}")


@_check
async def nothing_happens_after_the_end(pair: Pair) -> None:
    """Every method of a dead link does nothing, and raises nothing."""
    await pair.listen()
    for end in ("close", "abort"):
        server, client = await pair.link()
        client.close() if end == "close" else client.abort()
        _use(client)
        await _both_closed(server, client)
        _use(client)
        _use(server)
        await asyncio.sleep(A_WHILE)
        expect(not server.log, f"{server.log} arrived, written after {end}()")
        for recorder in (server, client):
            expect(recorder.link.closing, "not closing after the end")
            expect(recorder.link.broken(), "not broken after the end")
            expect(recorder.link.progress() is None, "progress after the end")


def _use(recorder: Recorder) -> None:
    link = recorder.link
    recorder.text(b"late")
    recorder.binary(b"late")
    recorder.binary(bytes(MIB))
    recorder.ping(b"late")
    recorder.pong(b"late")
    recorder.do(link.pause_reading)
    recorder.do(link.resume_reading)
    recorder.close(1000, "late")


@_each_way
async def a_paused_link_knows_that_it_is_gone(near: Recorder, far: Recorder) -> None:
    """``broken()`` tells while nobody reads, and reading on tells the rest."""
    far.do(far.link.pause_reading)
    await asyncio.sleep(A_WHILE)
    near.abort()
    await until(lambda: far.link.broken(), "broken() does not tell that the peer has gone")
    far.do(far.link.resume_reading)
    await until(lambda: far.ended, "on_closed did not come after resume_reading()")


@_check
async def bad_input_costs_its_own_link(pair: Pair) -> None:
    """What the events reject ends that link, with a reason, and no other."""
    await pair.listen()
    server, client = await pair.link()
    for turned in (1, -1):
        for data, code in ((NONSENSE, 1002), (TOO_MUCH, 1009)):
            near, far = (await pair.link())[::turned]
            await _is_rejected(near, far, data, code)
    client.text(b"still here")
    await until(lambda: server.frames, "another link does not work any more")


async def _is_rejected(near: Recorder, far: Recorder, data: bytes, code: int) -> None:
    near.binary(data)
    near.binary(b"more")
    await _both_closed(near, far)
    text = data.decode()
    expect(far.ended == [End.bad_input(code, text)], f"who rejected it was told {far.ended}")
    expect(near.ended == [End.by_peer(code, text)], f"who sent it was told {near.ended}")
    expect(not far.frames, "what came behind bad input was handed over")
