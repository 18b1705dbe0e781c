"""What users get wrong, and what networks do: one line that helps, and an exit code."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import openline
from openline.cli import common

from .programs import Here, Start


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
