"""Help, versions, missing extras, and what is shown to people."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable

import pytest

import openline
from openline.cli import main, protocol, show
from openline.cli.once import read_payload, read_stream

from .programs import ENVIRONMENT, Start

COMMANDS = ["demo", "listen", "send", "request", "ping", "id", "capabilities"]

RunHere = Callable[..., tuple[int, str]]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Runs a command that starts no event loop in this process: its exit code and output."""

    def run_here(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["openline", *args])
        code = main()
        return code, capsys.readouterr().out

    return run_here


async def test_help_in_a_process_of_its_own(start: Start) -> None:
    code, out, err = await (await start("listen", "--help", env={**ENVIRONMENT, "NO_COLOR": "1"})).end()
    assert (code, err, "\x1b" in out) == (0, "", False)
    assert "Usage: openline listen" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(run_here: RunHere, command: str) -> None:
    code, out = run_here(command, "--help")
    assert (code, f"Usage: openline {command}" in out) == (0, True)
    if command not in ("demo", "capabilities"):
        assert "Examples:" in out
        assert f" openline {command} " in out.partition("Examples:")[2]


def test_help_lists_the_commands(run_here: RunHere) -> None:
    code, out = run_here("--help")
    assert code == 0
    assert all(f" {command} " in out for command in COMMANDS)


def test_version_and_capabilities(run_here: RunHere) -> None:
    assert run_here("--version") == (0, f"openline {openline.__version__}\n")
    assert run_here("capabilities")[1].startswith("quic: usable, selected\nwebsocket: usable\n")
    assert json.loads(run_here("capabilities", "--json")[1])["selected"] == "quic"


@pytest.mark.parametrize("args", [("sned",), ("send", "127.0.0.1:1"), ("ping", "127.0.0.1:1", "-c", "0")])
def test_wrong_usage_is_exit_code_2(run_here: RunHere, args: tuple[str, ...]) -> None:
    assert run_here(*args)[0] == 2


async def test_without_typer_it_says_what_to_install(start: Start) -> None:
    code = "import sys; sys.modules['typer'] = None; from openline.cli import main; sys.exit(main())"
    result = await (await start("listen", python=("-c", code))).end()
    assert result == (2, "", 'openline: the command needs typer: run  pip install "openline[cli]"\n')


async def test_without_uvloop(listen: Start) -> None:
    code = "import sys; sys.modules['uvloop'] = None; from openline.cli import main; sys.exit(main())"
    program = await listen(python=("-c", code))
    program.write({"to": program.address, "payload": 1})
    assert {*(await program.record()), *(await program.record())} >= {"sent", "payload"}
    assert await program.end(signal.SIGINT) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "payload"),
    [("5", 5), ("[1]", [1]), ('"5"', "5"), ("hello", "hello"), ("", ""), ("{oops", "{oops"), ("nan", "nan")],
)
def test_a_payload_is_json_where_it_can_be(text: str, payload: object) -> None:
    assert read_payload(text) == payload


@pytest.mark.parametrize(
    ("text", "stream"),
    [("rpc", "rpc"), ("42", 42), ('"42"', "42"), ("-", "-"), ("true", "true"), ("4.5", "4.5")],
)
def test_a_stream_is_a_number_or_a_text(text: str, stream: object) -> None:
    assert read_stream(text) == stream


def test_what_json_has_no_form_for_comes_as_text() -> None:
    record = protocol.encode_record({"id": 1, "payload": {(1, 2): "x"}, "metadata": {"raw": b"\x00"}})
    assert json.loads(record) == {"id": 1, "payload": "{(1, 2): 'x'}", "metadata": {"raw": "AA=="}}


def test_a_peer_cannot_steer_the_terminal() -> None:
    hostile = "a\x1b[2J\u202e\x9b\nb"
    record = {"from": "1.2.3.4:5", "name": hostile, "type": hostile, "payload": hostile, "metadata": None}
    line = show.render({**record, "id": hostile, "streamId": hostile}).decode()
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()


def test_long_payloads_are_cut_for_people() -> None:
    record = {"from": "1.2.3.4:5", "name": "", "type": "task", "payload": "x" * 10_000, "metadata": None}
    line = show.render({**record, "id": 1, "streamId": "default"}).decode()
    assert len(line) < 2200
    assert "(10002 characters)" in line
