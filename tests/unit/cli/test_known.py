"""``openline known``, and what the other commands do with its file."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import openline
from openline.cli import common
from openline.known_peers.file import KnownFile
from openline.known_peers.lines import Entry

from .programs import ENVIRONMENT, Here, Start

ALICE, BOB = (openline.Identity().node_id for _ in range(2))
Outcome = tuple[int, str, str]
Run = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def file(tmp_path: Path) -> KnownFile:
    return KnownFile(tmp_path / "home" / ".config" / "openline" / "known_peers")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A user who has set nothing."""
    without = {name: value for name, value in ENVIRONMENT.items() if name != "OPENLINE_KNOWN_PEERS"}
    return {**without, "HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": ""}


@pytest.fixture
def run(start: Start, env: dict[str, str]) -> Run:
    async def run(*args: object, **more: str) -> Outcome:
        return await (await start(*args, env=env | more)).end()

    return run


def put(file: KnownFile, *entries: tuple[str, str]) -> None:
    for place, node_id in entries:
        entry = Entry(place=place, node_id=node_id, first=1_790_000_000, last=1_790_090_000, name="Al\x1b[2J")
        file.update(lambda document, entry=entry: document.put(entry))


async def test_the_command_remembers_by_default_and_refuses_another_node(
    run: Run, listen: Start, here: Here, file: KnownFile
) -> None:
    first = await listen()
    assert (await run("send", first.address, "1"))[0] == 0
    assert (await run("send", here.address, "1"))[0] == 0
    assert set(file.read().entries) == {first.address, here.address}
    await first.end(signal.SIGTERM)

    second = await listen(port=first.port)
    code, out, err = await run("send", second.address, "2")
    assert (code, out, err.count("\n")) == (1, "", 1)
    for part in (first.node_id, second.node_id, "nothing was sent"):
        assert part in err
    command = err.rstrip().rpartition("  openline ")[2].split()
    assert command == ["known", "accept", second.address, second.node_id]
    code, out, _ = await run(*command)
    known = f"{second.address}: {second.node_id} is known there from now on, in place of {first.node_id}\n"
    assert (code, out) == (0, known)
    assert (await run("send", second.address, "3"))[0] == 0
    assert (await run("ping", second.address, "-c", 1))[0] == 0
    assert [(await second.record())["payload"]] == [3]


async def test_off_remembers_nothing(run: Run, here: Here, file: KnownFile, tmp_path: Path) -> None:
    assert (await run("send", here.address, "1", "--known-peers", "off"))[0] == 0
    assert (await run("send", here.address, "1", OPENLINE_KNOWN_PEERS="off"))[0] == 0
    elsewhere = tmp_path / "else where"
    assert (await run("send", here.address, "1", OPENLINE_KNOWN_PEERS=str(elsewhere)))[0] == 0
    assert (file.read().entries, set(KnownFile(elsewhere).read().entries)) == ({}, {here.address})


async def test_list(run: Run, file: KnownFile) -> None:
    assert await run("known", "list") == (0, "", "")
    put(file, ("b.example:8770", BOB), ("10.0.0.5:8770", ALICE))
    code, out, err = await run("known", "list")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{'address':14}  {'node id':52}  first seen (UTC)  last seen   name",
        f"10.0.0.5:8770   {ALICE}  2026-09-21 14:13  2026-09-22  Al\\u001b[2J",
        f"b.example:8770  {BOB}  2026-09-21 14:13  2026-09-22  Al\\u001b[2J",
    ]
    code, out, err = await run("known", "list", "--json")
    assert [json.loads(line)["address"] for line in out.splitlines()] == ["10.0.0.5:8770", "b.example:8770"]
    assert json.loads(out.splitlines()[0]) == {
        "address": "10.0.0.5:8770",
        "nodeId": ALICE,
        "firstSeen": 1_790_000_000,
        "lastSeen": 1_790_090_000,
        "name": "Al\x1b[2J",
    }


async def test_list_names_what_cannot_be_used(run: Run, file: KnownFile) -> None:
    put(file, ("b.example:8770", BOB))
    file.path.write_text(f"{file.path.read_text()}10.0.0.5:8770 bob\n")
    code, out, err = await run("known", "list")
    assert (code, len(out.splitlines()), err.count("\n")) == (1, 2, 1)
    assert "line 2: 'bob' is not a node id" in err
    file.path.chmod(0o666)
    code, out, err = await run("known", "list")
    assert (code, out, err.count("\n"), "chmod 600" in err) == (1, "", 1, True)


async def test_forget_an_address_or_a_node(run: Run, file: KnownFile) -> None:
    put(file, ("a:1", ALICE), ("b:1", BOB), ("c:1/x", ALICE), ("d:1", BOB), ("e:1/x", BOB))
    assert await run("known", "forget", "wss://b:1", "e:1/x") == (0, "forgotten: b:1\nforgotten: e:1/x\n", "")
    assert await run("known", "forget", ALICE) == (0, "forgotten: a:1\nforgotten: c:1/x\n", "")
    code, out, err = await run("known", "forget", "a:1", "d:1")
    assert (code, out, err) == (1, "forgotten: d:1\n", "openline: nothing is known of a:1\n")
    assert file.read().entries == {}


async def test_accept_dials_where_no_node_id_is_given(run: Run, listen: Start, file: KnownFile) -> None:
    server = await listen("--name", "carol")
    put(file, (server.address, ALICE), ("b:1", BOB))
    assert (await run("send", server.address, "1"))[0] == 1
    code, out, err = await run("known", "accept", f"ws://{server.address}")
    assert (code, err) == (0, "")
    assert out == f"{server.address}: {server.node_id} is known there from now on, in place of {ALICE}\n"
    entry = file.read().entries[server.address]
    assert (entry.node_id, entry.name) == (server.node_id, "carol")
    assert (await run("send", server.address, "1"))[0] == 0
    code, out, _ = await run("known", "accept", server.address)
    assert (code, out) == (0, f"{server.address}: {server.node_id} was known there already\n")


async def test_accept_whom_it_is_told_without_a_dial(run: Run, file: KnownFile, closed_port: str) -> None:
    assert (await run("known", "accept", closed_port, ALICE))[0] == 0
    assert (await run("known", "accept", f"{BOB}@b.example:1"))[0] == 0
    assert {e.place: e.node_id for e in file.read().entries.values()} == {
        closed_port: ALICE,
        "b.example:1": BOB,
    }


async def test_mistakes_are_said_in_a_line(run: Run, file: KnownFile, closed_port: str) -> None:
    wrong: dict[tuple[str, ...], tuple[int, str]] = {
        ("accept", closed_port): (1, "ECONNREFUSED"),
        ("accept", closed_port, "bob"): (2, "'bob' is not a node id"),
        ("accept", BOB): (2, "say at which address"),
        ("accept", closed_port, "--known-peers", "off"): (2, "say in which file with --known-peers"),
        ("forget", "10.0.0.5"): (2, "the port is missing"),
        ("list", "--known-peers", "off"): (2, "say in which file with --known-peers"),
    }
    for args, (expected, text) in wrong.items():
        code, out, err = await run("known", *args)
        assert (code, out, err.count("\n"), text in err) == (expected, "", 1, True), args
    assert not file.path.exists()


async def test_accept_takes_no_plain_peer(run: Run, file: KnownFile) -> None:
    import websockets

    async def nothing(connection: websockets.ServerConnection) -> None:
        await connection.wait_closed()

    async with websockets.serve(nothing, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        code, out, err = await run("known", "accept", f"127.0.0.1:{port}", "--backend", "websocket")
    assert (code, out) == (1, "")
    assert "proves no node id: there is nothing to remember" in err
    assert file.read().entries == {}


def test_the_option_goes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "log_to_stderr", lambda verbose: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "c.json").write_text(json.dumps({"known_peers": "mine"}))
    assert common.make_config().known_peers == str(tmp_path / "openline" / "known_peers")
    assert common.make_config(config=tmp_path / "c.json").known_peers == "mine"
    assert common.make_config(config=tmp_path / "c.json", known_peers=Path("x")).known_peers == "x"
    assert common.make_config(config=tmp_path / "c.json", known_peers=Path("off")).known_peers is None
