"""Standard input and output, terminals, and signals."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest

import openline

from .programs import Here, Start


def _ignore_as_under_nohup() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def test_a_signal_ends_listening_cleanly(listen: Start) -> None:
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for program, number in [(await listen(stdin=DEVNULL), number) for number in signals]:
        assert await program.end(number) == (0, "", "")


async def test_what_was_ignored_at_the_start_stays_ignored(listen: Start) -> None:
    """``nohup openline listen``, and a background job of a script: whoever started it wanted that."""
    program = await listen(stdin=DEVNULL, preexec_fn=_ignore_as_under_nohup)
    for number in (signal.SIGINT, signal.SIGHUP):
        program.process.send_signal(number)
    async with openline.load_transport() as t:
        await t.send(program.address, openline.Message(payload="still there?"))
    assert (await program.record())["payload"] == "still there?"
    assert (await program.end(signal.SIGTERM))[0] == 0


async def test_the_end_of_input_ends_it_once_all_is_sent(listen: Start, closed_port: str) -> None:
    program = await listen()
    program.write({"to": program.address, "payload": 1, "id": "a"}, {"to": closed_port, "id": "b"})
    program.close_input()
    code, out, _ = await program.end()
    assert code == 0
    outcomes = [json.loads(line) for line in out.splitlines()]
    assert {record.get("sent") or record["id"] for record in outcomes} == {"a", "b"}


@pytest.mark.parametrize("stay", [True, False])
async def test_where_the_end_of_input_does_not_end_it(listen: Start, tmp_path: Path, stay: bool) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"to": "bad"}\n' if stay else "")
    stdin = os.open(lines, os.O_RDONLY)
    program = await listen(*(["--stay"] if stay else []), stdin=stdin)
    os.close(stdin)
    if stay:
        assert "error" in await program.record()
    async with openline.load_transport() as t:
        await t.send(program.address, openline.Message(payload="still there?"))
    assert (await program.record())["payload"] == "still there?"
    assert (await program.end(signal.SIGTERM))[0] == 0


async def test_it_ends_when_nobody_reads_any_more(start: Start) -> None:
    read, write = os.pipe()
    program = await start("listen", 0, "--host", "127.0.0.1", "--json", stdout=write)
    os.close(write)
    await asyncio.to_thread(os.read, read, 1)
    os.close(read)
    assert await program.end() == (0, "", "")


async def test_output_that_nobody_reads_does_not_stop_pings(start: Start) -> None:
    read, write = os.pipe()
    program = await start("listen", 0, "--host", "127.0.0.1", "--json", stdout=write)
    os.close(write)
    port = json.loads((await asyncio.to_thread(os.read, read, 4096)).splitlines()[0])["listening"]
    address = f"127.0.0.1:{port}"
    async with openline.load_transport() as t:
        await t.send_batch(address, [openline.Message(payload="x" * 100_000)] * 20)
        assert await t.ping(address) > 0
    os.close(read)
    assert (await program.end())[0] == 0


async def test_standard_streams_that_are_closed(start: Start, here: Here) -> None:
    code = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    sender = await start("-m", "openline.cli", "send", here.address, "-", python=("-c", code))
    assert await sender.end() == (0, "", "")
    assert (await here.next())[1].payload == ""


async def test_control_d_in_a_terminal(start: Start) -> None:
    terminal, theirs = pty.openpty()
    program = await start("listen", 0, "--host", "127.0.0.1", stdin=theirs)
    os.close(theirs)
    assert "listening" in await program.line()
    os.write(terminal, b"\x04")
    assert await program.end() == (0, "", "")
    os.close(terminal)
