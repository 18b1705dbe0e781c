"""``openline send``, ``request`` and ``ping``: one exchange, over each backend."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import msgspec
import pytest

import openline
from openline.address import is_node_id
from openline.cli import common

from .programs import DEADLINE, Here, Start

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
