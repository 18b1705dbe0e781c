"""``openline id``, and the identities of the other commands."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import openline
from openline.cli import common

from .programs import ENVIRONMENT, Start


@pytest.mark.parametrize("where", ["HOME", "XDG_CONFIG_HOME"])
async def test_id_makes_the_identity_of_the_user_once(start: Start, tmp_path: Path, where: str) -> None:
    env = {**ENVIRONMENT, "HOME": str(tmp_path), "XDG_CONFIG_HOME": "relative", where: str(tmp_path)}
    file = tmp_path / (".config" if where == "HOME" else "") / "openline" / "identity.pem"
    code, out, err = await (await start("id", env=env)).end()
    assert (code, err) == (0, f"openline: made a new identity: {file}\n")
    assert out == openline.Identity.load(file).node_id + "\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert await (await start("id", env=env)).end() == (0, out, "")


async def test_id_of_a_file_given_by_option_or_environment(start: Start, tmp_path: Path) -> None:
    a, b = tmp_path / "a.pem", tmp_path / "b.pem"
    env = {**ENVIRONMENT, "OPENLINE_IDENTITY": str(b)}
    _, made, _ = await (await start("id", "--identity", a, env=env)).end()
    assert not b.exists()
    assert await (await start("id", "--identity", a)).end() == (0, made, "")
    _, other, err = await (await start("id", env=env)).end()
    assert (other.strip(), str(b) in err) == (openline.Identity.load(b).node_id, True)


async def test_a_program_keeps_its_identity_if_it_is_told_where(listen: Start, tmp_path: Path) -> None:
    file = tmp_path / "new" / "alice.pem"
    first = await listen("--identity", file)
    assert (await first.end(signal.SIGTERM))[2] == f"openline: made a new identity: {file}\n"
    first = await listen(env={**ENVIRONMENT, "OPENLINE_IDENTITY": str(file)})
    assert await first.end(signal.SIGTERM) == (0, "", "")
    assert openline.Identity.load(file).node_id == first.node_id
    without = [await listen() for _ in range(2)]
    assert len({first.node_id, *(program.node_id for program in without)}) == 3


async def test_an_identity_that_cannot_be_used_is_wrong_usage(start: Start, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    (tmp_path / "text.pem").chmod(0o600)
    (tmp_path / "config.toml").write_text(f"identity = '{tmp_path}/missing.pem'")
    wrong = {
        ("--identity", str(tmp_path / "text.pem")): "is not a private key in PEM form",
        ("--identity", str(tmp_path / "text.pem" / "x.pem")): "cannot be made: ENOTDIR: Not a directory",
        ("--config", str(tmp_path / "config.toml")): f"openline id --identity {tmp_path}/missing.pem",
    }
    for options, complaint in wrong.items():
        code, out, err = await (await start("send", "127.0.0.1:1", "1", *options)).end()
        assert (code, out, err.count("\n"), complaint in err) == (2, "", 1, True)


async def test_an_identity_that_others_can_read_is_warned_of(start: Start, tmp_path: Path) -> None:
    openline.Identity().save(tmp_path / "open.pem")
    (tmp_path / "open.pem").chmod(0o644)
    code, _, err = await (await start("id", "--identity", tmp_path / "open.pem")).end()
    warning = f"openline: identity {tmp_path / 'open.pem'} is open to other users (mode 644): chmod 600 it\n"
    assert (code, err) == (0, warning)


async def test_wrong_options_leave_no_identity_behind(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "alice.pem"
    wrong = await start("listen", 0, "--identity", file, "--allow", "bob")
    code, out, err = await wrong.end()
    assert (code, out, err.count("\n"), "'bob' is not a node id" in err) == (2, "", 1, True)
    assert not file.exists()


async def test_only_nodes_that_are_allowed_get_through(start: Start, listen: Start, tmp_path: Path) -> None:
    names = ["alice", "bob", "carol"]
    files = {name: tmp_path / f"{name}.pem" for name in names}
    ids = {name: openline.Identity.load_or_create(files[name]).node_id for name in names}
    server = await listen("--identity", files["alice"], "--allow", ids["bob"], "--allow", ids["carol"])

    async def send(*options: object) -> tuple[int, str, str]:
        return await (await start("send", server.address, "1", "--timeout", 5, *options)).end()

    assert (await send("--identity", files["carol"]))[0] == 0
    assert (await send("--identity", files["bob"], "--allow", ids["alice"]))[0] == 0
    assert (await send())[0] == 1
    code, _, err = await send("--identity", files["bob"], "--allow", ids["carol"])
    assert (code, err.count("\n")) == (1, 1)
    assert [(await server.record())["payload"] for _ in range(2)] == [1, 1]


def test_allow_replaces_what_the_file_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "log_to_stderr", lambda verbose: None)
    a, b = openline.Identity().node_id, openline.Identity().node_id
    (tmp_path / "c.json").write_text(json.dumps({"allow": [a]}))
    assert common.make_config(config=tmp_path / "c.json").allow == (a,)
    assert common.make_config(config=tmp_path / "c.json", allow=[b, a]).allow == (b, a)
    assert common.make_config().allow is None
