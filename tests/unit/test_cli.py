"""The ``openline`` command as a user runs it: real processes on loopback, waited for by what they print."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import json
import os
import pty
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import openline
from openline.address import is_node_id
from openline.cli import common, main, protocol, show
from openline.cli.once import read_payload, read_stream

DEADLINE = 15.0
COMMANDS = ["demo", "listen", "send", "request", "ping", "id", "capabilities"]
# Who runs the tests may have an identity; two programs at once must not.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OPENLINE_IDENTITY"}


class Program:
    """A running ``openline`` command."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0
        self.node_id = ""

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            return (await self.process.stdout.readline()).decode()

    async def record(self) -> dict[str, Any]:
        line = await self.line()
        assert line, "it has ended"
        return dict(json.loads(line))

    def write(self, *lines: dict[str, Any] | str) -> None:
        assert self.process.stdin is not None
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line)
            self.process.stdin.write(text.encode() + b"\n")

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def end(self, signal_number: int | None = None) -> tuple[int, str, str]:
        """Its exit code, the rest of its output, and what it said on stderr."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        async with asyncio.timeout(DEADLINE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


Start = Callable[..., Awaitable[Program]]


def _obey_signals() -> None:
    """Tests may themselves run under nohup or as a background job, and what is ignored is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _ignore_as_under_nohup() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts ``openline`` with arguments; whatever still runs at the end is killed."""
    running: list[Process] = []

    async def start(*args: object, python: tuple[str, ...] = ("-m", "openline.cli"), **how: Any) -> Program:
        channels = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "preexec_fn": _obey_signals}
        channels |= {"env": ENVIRONMENT, **how}
        process = await asyncio.create_subprocess_exec(sys.executable, *python, *map(str, args), **channels)
        running.append(process)
        return Program(process)

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def listen(start: Start) -> Start:
    """Starts ``openline listen --json`` on a free port and waits until it listens."""

    async def listen(*args: object, **how: Any) -> Program:
        program = await start("listen", 0, "--host", "127.0.0.1", "--json", *args, **how)
        first = await program.record()
        program.port, program.node_id = first["listening"], first["nodeId"]
        return program

    return listen


class Here:
    """A peer in this process: as good as another one, and there at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: asyncio.Queue[tuple[openline.Peer, openline.Message]] = asyncio.Queue()

    async def next(self) -> tuple[openline.Peer, openline.Message]:
        async with asyncio.timeout(DEADLINE):
            return await self.received.get()


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    async with openline.load_transport() as t:
        listener = await t.listen(0, "127.0.0.1")
        here = Here(f"127.0.0.1:{listener.port}")
        t.on_message(lambda peer, message: here.received.put_nowait((peer, message)))
        yield here


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


RunHere = Callable[..., tuple[int, str]]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Runs a command that starts no event loop in this process: its exit code and output."""

    def run_here(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["openline", *args])
        code = main()
        return code, capsys.readouterr().out

    return run_here


# One exchange -------------------------------------------------------------------------------------


async def test_send_arrives_as_one_line_of_json(start: Start, listen: Start) -> None:
    server = await listen()
    args = ("--type", "status", "--stream", "42", "--name", "bob")
    code, out, err = await (await start("send", server.address, '{"n": [1, "ü"]}', *args)).end()
    assert (code, err) == (0, "")
    assert out.startswith("sent ")
    assert f"to {server.address} (attempts 1, outbound quic" in out
    assert "acked" in out
    assert "not acked" not in out
    record = await server.record()
    assert record.pop("from").startswith("quic://127.0.0.1:")
    assert record.pop("id") == out.split()[1]
    assert is_node_id(record.pop("nodeId"))
    assert record == {
        "name": "bob",
        "type": "status",
        "payload": {"n": [1, "ü"]},
        "metadata": None,
        "streamId": 42,
    }


async def test_send_many_from_standard_input(start: Start, here: Here) -> None:
    sender = await start("send", here.address, "-", "--count", 3, "--json")
    sender.write('["from", "stdin"]')
    sender.close_input()
    receipts = [await sender.record() for _ in range(3)]
    received = [(await here.next())[1] for _ in range(3)]
    assert [r["sent"] for r in receipts] == [message.id for message in received]
    assert all(message.payload == ["from", "stdin"] for message in received)
    assert (receipts[0]["attempts"], receipts[0]["direction"]) == (1, "outbound")


async def test_request_prints_only_the_answer(start: Start, listen: Start) -> None:
    server = await listen()
    asking = await start("request", server.address, "how are you?", "--timeout", DEADLINE, "-v")
    question = await server.record()
    assert question["payload"] == "how are you?"
    answer = {"to": question["from"], "payload": {"ok": True}, "metadata": {"replyTo": question["id"]}}
    server.write(answer)
    code, out, err = await asking.end()
    assert (code, json.loads(out)) == (0, {"ok": True})
    assert f"DEBUG {server.address} has answered over quic\n" in err
    assert (await server.record())["direction"] == "inbound"


async def test_request_without_an_answer_fails(start: Start, here: Here) -> None:
    code, out, err = await (await start("request", here.address, "1", "--timeout", 0.1)).end()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no answer" in err


async def test_ping_ends_with_a_summary(start: Start, here: Here) -> None:
    code, out, err = await (await start("ping", here.address, "-c", 3, "-i", 0.01)).end()
    assert (code, err) == (0, "")
    each = [line.partition(" rtt=")[0] for line in out.splitlines()[:3]]
    assert each == [f"seq={n} from {here.address} over quic" for n in (1, 2, 3)]
    assert "3 sent, 3 answered, 0 % lost\nrtt min/avg/max = " in out


async def test_ping_goes_on_over_failures_until_interrupted(start: Start, closed_port: str) -> None:
    pinging = await start("ping", closed_port, "-i", 0.01)
    for _ in range(3):
        assert "ECONNREFUSED" in await pinging.line()
    code, out, err = await pinging.end(signal.SIGINT)
    assert (code, err) == (1, "")
    assert "0 answered, 100 % lost" in out


# Backends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "schemes", "unavailable"),
    [
        ((), ["ws", "quic"], {}),
        (("--backend", "websocket"), ["ws"], {"quic": "not asked for"}),
        (("--backend", "quic"), ["quic"], {"websocket": "not asked for"}),
    ],
)
async def test_listen_says_what_it_listens_with(
    start: Start, options: tuple[str, ...], schemes: list[str], unavailable: dict[str, str]
) -> None:
    programs = [await start("listen", 0, "--host", "127.0.0.1", *kind, *options) for kind in ((), ["--json"])]
    for_people, record = await programs[0].line(), await programs[1].record()
    assert re.findall(r"(\w+)://127\.0\.0\.1:\d+", for_people) == schemes
    assert all(f", without {name}: {why}  (Ctrl-C" in for_people for name, why in unavailable.items())
    assert record["addresses"] == [f"{scheme}://127.0.0.1:{record['listening']}" for scheme in schemes]
    assert (record["address"], record["unavailable"]) == (record["addresses"][0], unavailable)


async def test_listen_says_why_it_is_without_quic(start: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        program = await start("listen", port, "--host", "127.0.0.1")
        why = f"without quic: udp port {port}: EADDRINUSE: Address already in use"
        assert await program.line() == f"listening on ws://127.0.0.1:{port}, {why}  (Ctrl-C ends)\n"
    code, _, err = await program.end(signal.SIGTERM)
    assert (code, "Address already in use" in err) == (0, True)


async def test_the_backend_can_be_chosen(start: Start, listen: Start) -> None:
    server = await listen()
    for options, backend in [
        (("--backend", "websocket"), "websocket"),
        (("--backend", "websocket", "--backend", "quic"), "websocket"),
        (("--backend", "quic"), "quic"),
    ]:
        code, out, err = await (await start("send", server.address, 1, *options)).end()
        assert (code, err, f"outbound {backend}, acked" in out) == (0, "", True)
    for scheme, backend in [("ws", "websocket"), ("quic", "quic")]:
        code, out, _ = await (await start("ping", f"{scheme}://{server.address}", "-c", 1)).end()
        assert (code, f"{server.address} over {backend} rtt=" in out) == (0, True)


def test_the_order_of_backends_is_the_preference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "log_to_stderr", lambda verbose: None)
    quic, websocket = common.Backend
    (tmp_path / "c.toml").write_text('backends = ["quic"]')
    make = common.make_config
    assert make().backends == ("quic", "websocket")
    assert make(backend=[websocket, quic, websocket]).backends == ("websocket", "quic")
    assert make(config=tmp_path / "c.toml").backends == ("quic",)
    assert make(config=tmp_path / "c.toml", backend=[websocket]).backends == ("websocket",)


@pytest.mark.parametrize(
    ("address", "backend", "fits"),
    [
        ("127.0.0.1:1", "quic", True),
        ("quic://127.0.0.1:1", "quic", True),
        ("wss://127.0.0.1:1", "websocket", True),
        ("quic://127.0.0.1:1", "websocket", False),
        ("ws://127.0.0.1:1", "quic", False),
    ],
)
def test_an_address_must_fit_the_backends(address: str, backend: str, fits: bool) -> None:
    config = msgspec.convert({"backends": [backend]}, openline.Config)
    if fits:
        common.check_address(config, address)
        return
    with pytest.raises(common.Failure, match=f"needs the backend .*, and only {backend} may") as caught:
        common.check_address(config, address)
    assert caught.value.code == 2


# What users get wrong, and what networks do ------------------------------------------------------


async def test_a_bad_address_is_wrong_usage(start: Start) -> None:
    wrong = [("send", "nowhere", "1"), ("ping", "[::1"), ("listen", "0", "--peer", "http://127.0.0.1:1")]
    for program in [await start(*args) for args in wrong]:
        code, out, err = await program.end()
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "for example 10.0.0.2:8770" in err


async def test_unreachable_says_why(start: Start, closed_port: str) -> None:
    for program in [await start(command, closed_port, "1") for command in ("send", "request")]:
        code, out, err = await program.end()
        assert (code, out) == (1, "")
        reasons = [f"{way} {closed_port}: ECONNREFUSED: Connection refused" for way in ("quic", "tcp")]
        assert err == f"openline: cannot reach {closed_port}: {'; '.join(reasons)}\n"


async def test_a_port_in_use_is_said_in_one_line(start: Start, here: Here) -> None:
    port = here.address.rpartition(":")[2]
    code, _, err = await (await start("listen", port, "--host", "127.0.0.1")).end()
    what = f"cannot listen on 127.0.0.1 port {port}"
    assert (code, err) == (1, f"openline: {what}: EADDRINUSE: Address already in use\n")


async def test_configuration_from_a_file_and_options_over_it(
    start: Start, here: Here, tmp_path: Path
) -> None:
    (tmp_path / "limits.json").write_text('{"name": "from the file", "max_message_size": 1000}')
    (tmp_path / "name.toml").write_text('name = "from the file"')
    (tmp_path / "wrong.json").write_text('{"nmae": "x"}')
    too_large = await start("send", here.address, "x" * 2000, "--config", tmp_path / "limits.json")
    named = await start("send", here.address, "1", "--config", tmp_path / "name.toml", "--name", "mine")
    wrong = await start("send", here.address, "1", "--config", tmp_path / "wrong.json")
    code, _, err = await too_large.end()
    assert (code, "max_message_size=1000" in err) == (1, True)
    assert (await here.next())[0].name == "mine"
    assert (await named.end())[0] == 0
    complaint = f"openline: {tmp_path / 'wrong.json'}: Object contains unknown field `nmae`\n"
    assert await wrong.end() == (2, "", complaint)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("c.json", '{"max_idle_timeout": "long"}', "Expected `float`, got `str` - at `$.max_idle_timeout`"),
        ("c.toml", "name =", "Invalid value"),
        ("c.json", "[]", "Expected `object`, got `array`"),
        ("c.json", "{", "truncated"),
    ],
)
def test_a_bad_configuration_is_wrong_usage(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(common.Failure, match=re.escape(complaint)) as caught:
        common.read_settings(file)
    assert caught.value.code == 2
    assert str(caught.value).startswith(f"{file}: ")


async def test_tls_and_pins(start: Start, listen: Start, tmp_path: Path) -> None:
    cert, key, pin = certificate(tmp_path)
    server = await listen("--cert", cert, "--key", key)
    wrong = "sha256/" + base64.b64encode(bytes(32)).decode()
    for scheme in ("wss", "quic"):
        options = [("--pin", pin), ("--pin", wrong), ("--cert", cert)]
        programs = [await start("send", f"{scheme}://{server.address}", "1", *option) for option in options]
        pinned, refused, misused = [await program.end() for program in programs]
        assert pinned[0::2] == (0, "")
        assert (await server.record())["payload"] == 1
        assert (refused[0], f"certificate is {pin}" in refused[2], refused[2].count("\n")) == (1, True, 1)
        assert (misused[0], "both cert and key" in misused[2]) == (2, True)


NODE = "abcd" * 12 + "abca"


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("a:1", "wss://a:1 or quic://a:1"),
        ("ws://a:1/x", "wss://a:1/x or quic://a:1"),
        (f"{NODE}@a:1", f"wss://{NODE}@a:1 or quic://{NODE}@a:1"),
        (NODE, f"wss://{NODE}@host:port or quic://{NODE}@host:port"),
        ("wss://a:1", None),
        ("quic://a:1", None),
    ],
)
def test_pins_need_an_address_that_they_hold_for(address: str, instead: str | None) -> None:
    config = openline.Config(tls=openline.Tls(pins=("sha256/" + base64.b64encode(bytes(32)).decode(),)))
    if instead is None:
        common.check_address(config, address)
        return
    with pytest.raises(common.Failure, match=re.escape(f"not {address}, but {instead}")) as caught:
        common.check_address(config, address)
    assert caught.value.code == 2


async def test_tls_files_that_cannot_be_used_are_wrong_usage(start: Start, tmp_path: Path) -> None:
    cert, key, _ = certificate(tmp_path)
    (tmp_path / "junk.pem").write_text("junk")
    junk = tmp_path / "junk.pem"
    wrong = [("--cert", cert, "--key", junk), ("--cert", junk, "--key", key), ("--ca", junk)]
    for program in [await start("send", "quic://127.0.0.1:1", 1, *options) for options in wrong]:
        code, out, err = await program.end()
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("openline: cannot use the TLS files: ")


def certificate(folder: Path) -> tuple[Path, Path, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    cert = builder.not_valid_after(now + datetime.timedelta(hours=1)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(cert.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    digest = hashlib.sha256(cert.public_bytes(serialization.Encoding.DER)).digest()
    return folder / "cert.pem", folder / "key.pem", "sha256/" + base64.b64encode(digest).decode()


# Identities ---------------------------------------------------------------------------------------


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


# The line protocol --------------------------------------------------------------------------------


async def test_lines_are_sent_in_order_and_answered_on_the_same_connection(listen: Start) -> None:
    alice = await listen("--name", "alice")
    bob = await listen("--name", "bob", "--peer", alice.address)
    bob.write(*({"to": alice.address, "payload": n, "id": f"m{n}"} for n in range(200)))
    assert [(await bob.record())["sent"] for _ in range(200)] == [f"m{n}" for n in range(200)]
    received = [await alice.record() for _ in range(200)]
    assert [r["payload"] for r in received] == list(range(200))
    assert {(r["name"], r["from"]) for r in received} == {("bob", bob.address)}
    alice.write({"to": bob.address, "payload": "back", "type": "status", "streamId": 7, "metadata": {"a": 1}})
    outcome = await alice.record()
    assert (outcome["attempts"], outcome["direction"]) == (1, "inbound")
    back = await bob.record()
    assert (back["type"], back["streamId"], back["metadata"]) == ("status", 7, {"a": 1})


async def test_a_line_can_ask_and_its_answer_is_told_apart(listen: Start) -> None:
    alice, bob = await listen(), await listen()
    bob.write({"to": alice.address, "payload": "?", "id": "q1", "request": True, "timeout": DEADLINE})
    question = await alice.record()
    assert question["id"] == "q1"
    alice.write({"to": question["from"], "payload": "!", "metadata": {"replyTo": "q1"}})
    answer = await bob.record()
    assert (answer["answers"], answer["from"], answer["payload"]) == ("q1", alice.address, "!")


async def test_bad_lines_are_reported_and_stop_nothing(listen: Start, closed_port: str) -> None:
    program = await listen()
    program.write(
        "hello",
        "",
        '{"payload": 1, "id": "a"}',
        {"to": closed_port, "stream": 1},
        {"to": "nowhere", "id": 5},
        '{"to": "x", "payload": ' + "[" * 5000,
    )
    errors = [await program.record() for _ in range(5)]
    assert [(e["kind"], e["line"], e.get("id")) for e in errors] == [
        ("BadLine", 1, None),
        ("BadLine", 3, "a"),
        ("BadLine", 4, None),
        ("BadLine", 5, 5),
        ("BadLine", 6, None),
    ]
    program.write({"to": closed_port, "id": "x", "request": True}, {"to": closed_port, "id": "y"})
    failed = [await program.record() for _ in range(2)]
    assert {(e["kind"], e["id"], e["to"]) for e in failed} == {
        ("Unreachable", "x", closed_port),
        ("Unreachable", "y", closed_port),
    }
    assert all("ECONNREFUSED" in e["error"] for e in failed)
    program.write({"to": program.address, "payload": "still here"})
    assert program.address in [(await program.record()).get("to") for _ in range(2)]


async def test_a_person_sees_readable_lines(start: Start, listen: Start) -> None:
    other = await listen("--name", "alice")
    program = await start("listen", 0, "--host", "127.0.0.1")
    address = (await program.line()).split()[2].removeprefix("ws://")
    other.write({"to": address, "payload": "\x1b[31m", "id": "m1"})
    line = await program.line()
    assert f' "alice" {other.node_id[:8]} {other.address} task ' in line
    assert r'"\u001b[31m"  id=m1' in line
    program.write({"to": other.address, "payload": 1, "id": "m2"}, "?")
    lines = sorted([await program.line(), await program.line()])
    assert lines[0].startswith("error: line 2: not a line such as {")
    assert lines[1].startswith(f"sent m2 to {other.address} (attempts 1, inbound")
    assert "\x1b" not in line + "".join(lines)


# Standard input and output, signals ---------------------------------------------------------------


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


# The rest -----------------------------------------------------------------------------------------


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
    assert result == (2, "", "openline: the command needs typer: run  pip install typer rich\n")


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
