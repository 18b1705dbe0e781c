"""Identities: node ids, signatures, and the file that holds the key."""

from __future__ import annotations

import base64
import errno
import logging
import multiprocessing
import os
import pickle
import re
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

import openline
from openline import Identity, InvalidIdentity, node_id_of, public_key_of
from openline.identity import verify

PEM, PKCS8, PLAIN = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()

# RFC 8032, section 7.1: secret key, public key, message, signature.
RFC_8032 = {
    "test 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "test 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "test 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "test sha(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}

vectors = pytest.mark.parametrize("vector", RFC_8032.values(), ids=list(RFC_8032))


def from_seed(seed: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)))


# Signatures --------------------------------------------------------------------------------------


@vectors
def test_signatures_of_rfc_8032(vector: tuple[str, str, str, str]) -> None:
    seed, public, message, signature = vector
    identity = from_seed(seed)
    assert identity.public_key == bytes.fromhex(public)
    assert identity.node_id == node_id_of(bytes.fromhex(public))
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    assert verify(identity.node_id, bytes.fromhex(signature), bytes.fromhex(message))


@vectors
def test_every_changed_bit_of_a_signature_is_noticed(vector: tuple[str, str, str, str]) -> None:
    _, public, message, text = vector
    node_id, data, signature = node_id_of(bytes.fromhex(public)), bytes.fromhex(message), bytes.fromhex(text)
    flips = (int.from_bytes(signature, "little") ^ 1 << bit for bit in range(512))
    assert not any(verify(node_id, changed.to_bytes(64, "little"), data) for changed in flips)
    assert not verify(node_id, signature, data + b"\0")


def test_a_signature_has_one_form() -> None:
    # S plus the group's order is the same scalar; RFC 8032 has it refused.
    _, public, message, text = RFC_8032["test 2"]
    signature = bytes.fromhex(text)
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    other = signature[:32] + s.to_bytes(32, "little")
    assert not verify(node_id_of(bytes.fromhex(public)), other, bytes.fromhex(message))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), bytes(10_000)])
def test_what_is_no_signature_verifies_nothing(signature: bytes) -> None:
    assert not verify(Identity().node_id, signature, b"data")


def test_another_identity_has_not_signed() -> None:
    assert not verify(Identity().node_id, Identity().sign(b"data"), b"data")


# Node ids ----------------------------------------------------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def as_id(y: int, sign: int = 0) -> str:
    return node_id_of((y | sign << 255).to_bytes(32, "little"))


def times_8_is_neutral(y: int) -> bool:
    """Doubling on the curve -x²+y²=1+dx²y², by x² and y² alone, until y = 1 (or y = -1, before the last)."""
    for _ in range(3):
        x2, y2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P, y * y % P
        y = (y2 + x2) * pow(2 - y2 + x2, -1, P) % P
    return y == 1


ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL = [0, 1, P - 1, ORDER_8, P - ORDER_8]


@pytest.mark.parametrize("y", SMALL)
def test_the_points_of_small_order_are_those(y: int) -> None:
    assert times_8_is_neutral(y)


def test_an_honest_key_is_not_of_small_order() -> None:
    y = int.from_bytes(Identity().public_key, "little") % 2**255
    assert not times_8_is_neutral(y)


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", [*SMALL, P, P + 1, P + 18, 2**255 - 1])
def test_a_key_under_which_anybody_can_sign_is_no_node_id(y: int, sign: int) -> None:
    # S = 0 and R = the neutral point "sign" every message under a key of order 1, many under the others.
    forged = (1).to_bytes(32, "little") + bytes(32)
    assert not any(verify(as_id(y, sign), forged, bytes([n])) for n in range(16))
    with pytest.raises(InvalidIdentity, match="no safe Ed25519 key"):
        public_key_of(as_id(y, sign))


def test_a_key_that_is_no_point_of_the_curve_verifies_nothing() -> None:
    x2 = 3 * pow(4 * D + 1, -1, P) % P
    assert pow(x2, P // 2, P) == P - 1, "x² is no square where y = 2"
    assert not verify(as_id(2), Identity().sign(b""), b"")
    assert not verify(as_id(2), (1).to_bytes(32, "little") + bytes(32), b"")


@given(st.binary(min_size=32, max_size=32))
def test_a_node_id_is_the_public_key(key: bytes) -> None:
    node_id = node_id_of(key)
    assert re.fullmatch("[a-z2-7]{51}[aq]", node_id)
    if int.from_bytes(key, "little") % 2**255 not in {*SMALL, *range(P, 2**255)}:
        assert public_key_of(node_id) == key


GOOD = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena"


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a",
        GOOD[:-1],
        GOOD + "a",
        GOOD.upper(),
        GOOD[:2] + GOOD[2:].capitalize(),
        GOOD + "====",
        " " + GOOD[1:],
        GOOD[:-1] + "\n",
        "0" + GOOD[1:],
        "ſ" + GOOD[1:],
        "\ud800" + GOOD[1:],
        "a" * 1_000_000,
        *(GOOD[:-1] + last for last in "bcdehip23467"),
    ],
)
def test_a_node_id_has_one_form(wrong: str) -> None:
    with pytest.raises(InvalidIdentity, match="is not a node id") as caught:
        public_key_of(wrong)
    assert len(str(caught.value)) < 200
    assert not verify(wrong, from_seed(RFC_8032["test 1"][0]).sign(b""), b"")


def test_the_right_form_of_the_same_verifies() -> None:
    assert from_seed(RFC_8032["test 1"][0]).node_id == GOOD
    assert verify(GOOD, bytes.fromhex(RFC_8032["test 1"][3]), b"")


@given(st.text(max_size=60), st.binary(max_size=70), st.binary(max_size=10))
def test_verify_only_ever_says_no_to_noise(node_id: str, signature: bytes, data: bytes) -> None:
    assert verify(node_id, signature, data) is False


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_public_key_has_32_bytes(size: int) -> None:
    with pytest.raises(InvalidIdentity, match="32 bytes"):
        node_id_of(bytes(size))


# The object --------------------------------------------------------------------------------------


def test_identities_are_equal_by_node_id() -> None:
    seed = RFC_8032["test 1"][0]
    same = {from_seed(seed), from_seed(seed)}
    assert len(same) == 1
    assert Identity() not in same
    assert from_seed(seed) != GOOD


@pytest.mark.parametrize("show", [repr, str, lambda i: f"{i}", lambda i: repr(openline.Config(identity=i))])
def test_no_text_form_shows_the_key(show: object) -> None:
    seed = RFC_8032["test 1"][0]
    text = show(from_seed(seed))  # type: ignore[operator]
    assert f"Identity({GOOD})" in text
    key = bytes.fromhex(seed)
    assert not any(form in text for form in (seed, repr(key), base64.b64encode(key).decode()))


def test_an_identity_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Identity())


# The file ----------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_save_and_load(tmp_path: Path) -> None:
    identity, file = Identity(), tmp_path / "identity.pem"
    identity.save(file)
    loaded = Identity.load(str(file))
    assert (loaded, loaded.public_key) == (identity, identity.public_key)
    assert verify(identity.node_id, loaded.sign(b"data"), b"data")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Identity().save(tmp_path / "a" / "b" / "identity.pem")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "b" / "identity.pem") == 0o600
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700, 0o700]


def test_folders_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Identity().save(tmp_path / "identity.pem")
    assert mode(tmp_path) == 0o755


def test_save_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    file.write_text("precious")
    with pytest.raises(FileExistsError):
        Identity().save(file)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_save_follows_no_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "link.pem").symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(FileExistsError):
        Identity().save(tmp_path / "link.pem")
    assert not (tmp_path / "elsewhere.pem").exists()
    with pytest.raises(InvalidIdentity, match="symbolic link to a file that does not exist"):
        Identity.load_or_create(tmp_path / "link.pem")


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_where_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    identity, file = Identity(), tmp_path / "identity.pem"
    identity.save(file)
    assert (Identity.load(file), mode(file)) == (identity, 0o600)
    with pytest.raises(FileExistsError):
        Identity().save(file)
    assert (Identity.load(file), list(tmp_path.iterdir())) == (identity, [file])


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Identity().save(tmp_path / "identity.pem")
    assert list(tmp_path.iterdir()) == []


def encoded(key: object, encryption: KeySerializationEncryption = PLAIN) -> bytes:
    return key.private_bytes(PEM, PKCS8, encryption)  # type: ignore[attr-defined, no-any-return]


ED25519 = Ed25519PrivateKey.generate()
WRONG_FILES = {
    "encrypted": (encoded(ED25519, BestAvailableEncryption(b"secret")), "is encrypted"),
    "x25519": (encoded(x25519.X25519PrivateKey.generate()), "is not an Ed25519 key"),
    "p-256": (encoded(ec.generate_private_key(ec.SECP256R1())), "is not an Ed25519 key"),
    "rsa": (encoded(rsa.generate_private_key(65537, 2048)), "is not an Ed25519 key"),
    "der": (ED25519.private_bytes(Encoding.DER, PKCS8, PLAIN), "is not a private key in PEM form"),
    "raw": (ED25519.private_bytes_raw(), "is not a private key in PEM form"),
    "public": (
        ED25519.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo),
        "is not a private key in PEM form",
    ),
    "cut": (encoded(ED25519)[:60], "is not a private key in PEM form"),
    "empty": (b"", "is not a private key in PEM form"),
    "text": (b"not a key", "is not a private key in PEM form"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
@pytest.mark.parametrize("load", [Identity.load, Identity.load_or_create])
def test_a_file_that_holds_something_else(tmp_path: Path, name: str, load: type[Identity]) -> None:
    content, reason = WRONG_FILES[name]
    file = tmp_path / "identity.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(InvalidIdentity, match=reason) as caught:
        load(file)  # type: ignore[arg-type]
    assert str(file) in str(caught.value)
    assert file.read_bytes() == content


def test_a_missing_file_says_how_to_create_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidIdentity, match="openline id --identity") as caught:
        Identity.load(tmp_path / "my key.pem")
    assert str(caught.value).endswith(f"openline id --identity '{tmp_path}/my key.pem'")
    assert isinstance(caught.value, openline.Error)
    assert isinstance(caught.value, ValueError)


def test_a_folder_is_no_identity(tmp_path: Path) -> None:
    with pytest.raises(InvalidIdentity, match="cannot be read: Is a directory"):
        Identity.load(tmp_path)


def test_a_file_without_permission_is_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Root may read everything.
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InvalidIdentity, match="cannot be read: Permission denied"):
        Identity.load(tmp_path / "identity.pem")


@pytest.mark.parametrize(("bits", "warned"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o660, 1)])
def test_a_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, warned: int
) -> None:
    file = tmp_path / "identity.pem"
    Identity().save(file)
    file.chmod(bits)
    with caplog.at_level(logging.WARNING, "openline"):
        Identity.load(file)
    assert [record.name for record in caplog.records] == ["openline"] * warned
    assert all(f"{bits:03o}" in record.getMessage() for record in caplog.records)


def test_load_or_create_makes_one_and_then_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "identity.pem"
    first = Identity.load_or_create(file)
    assert (Identity.load_or_create(file), mode(file)) == (first, 0o600)


def test_where_it_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Identity.load_or_create(tmp_path / "file" / "identity.pem")


def test_many_threads_at_once_get_the_same_identity(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}" / "identity.pem" for n in range(50) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(Identity.load_or_create, files))
    assert [len(set(found[n : n + 8])) for n in range(0, len(found), 8)] == [1] * 50
    assert sorted(tmp_path.rglob("*.pem")) == sorted(set(files))
    assert list(tmp_path.rglob(".identity-*")) == []


def node_id_in(file: Path) -> str:
    return Identity.load_or_create(file).node_id


def test_many_processes_at_once_get_the_same_identity(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.pem" for n in range(25) for _ in range(4)]
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(node_id_in, files))
    assert [len(set(found[n : n + 4])) for n in range(0, len(found), 4)] == [1] * 25


def test_a_process_that_is_slow_to_write_is_not_read_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, winner = tmp_path / "identity.pem", Identity()
    fsync = os.fsync

    def overtaken(handle: int) -> None:
        fsync(handle)
        monkeypatch.undo()
        winner.save(file)

    monkeypatch.setattr(os, "fsync", overtaken)
    assert Identity.load_or_create(file) == winner
    assert list(tmp_path.iterdir()) == [file]


def test_openssl_reads_and_writes_the_same_form(tmp_path: Path) -> None:
    def openssl(*args: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *args], cwd=tmp_path, capture_output=True, check=True)

    try:
        openssl("genpkey", "-algorithm", "ed25519", "-out", "theirs.pem")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no openssl command that knows Ed25519")
    Identity.load(tmp_path / "theirs.pem")
    mine = Identity()
    mine.save(tmp_path / "mine.pem")
    der = openssl("pkey", "-in", "mine.pem", "-pubout", "-outform", "DER").stdout
    assert der[-32:] == mine.public_key


def test_a_warning_reaches_a_program_that_has_set_up_no_logging(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    Identity().save(file)
    file.chmod(0o644)
    code = "import sys, openline; openline.Identity.load(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert "open to other users (mode 644)" in run.stderr
