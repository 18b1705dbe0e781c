"""Files of ``Config.tls`` that are renewed: taken when they are good, and all of them or none."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import openline
from openline.backends.certificates import LOOK_IDLE, Files, Made, ServerFiles, TlsFiles
from openline.backends.tls import certificate as shown_by

from .transport.certificates import Certificate, self_signed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Place:
    """Where a certificate and its key are read from."""

    def __init__(self, folder: Path, clock: Clock, first: Certificate) -> None:
        self.tls = openline.Tls(cert=str(folder / "live.pem"), key=str(folder / "live.key"))
        self.cert, self.key = folder / "live.pem", folder / "live.key"
        self.put(first)
        self.files = ServerFiles(self.tls, clock)
        self.made: Made[bytes] = self.files.use(lambda contents: contents[0])

    def put(self, certificate: Certificate) -> None:
        shutil.copy(certificate.cert, self.cert)
        shutil.copy(certificate.key, self.key)

    def look(self) -> bytes:
        """What is in use after the next look."""
        return self.made.current()

    def uses(self, certificate: Certificate) -> bool:
        return self.look() == Path(certificate.cert).read_bytes()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("one"), days=30)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("two"), days=60)


@pytest.fixture
def place(tmp_path: Path, clock: Clock, one: Certificate) -> Place:
    return Place(tmp_path, clock, one)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# Noticed ------------------------------------------------------------------------------------------


def test_files_that_stay_are_not_made_anew(place: Place) -> None:
    calls: list[object] = []
    place.files.use(calls.append)
    for _ in range(10):
        place.look()
    assert len(calls) == 1


def overwritten(place: Place, new: Certificate) -> None:
    place.put(new)


def renamed(place: Place, new: Certificate) -> None:
    for source, target in ((new.cert, place.cert), (new.key, place.key)):
        draft = target.with_suffix(".draft")
        shutil.copy(source, draft)
        draft.replace(target)


def with_the_old_times(place: Place, new: Certificate) -> None:
    times = [(path, os.stat(path)) for path in (place.cert, place.key)]
    place.put(new)
    for path, stat in times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def from_long_ago(place: Place, new: Certificate) -> None:
    place.put(new)
    for path in (place.cert, place.key):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("how", [overwritten, renamed, with_the_old_times, from_long_ago])
def test_new_files_are_used(place: Place, two: Certificate, how: Callable[..., None]) -> None:
    how(place, two)
    assert place.uses(two)


def test_a_link_that_is_swapped_is_followed(
    tmp_path: Path, clock: Clock, one: Certificate, two: Certificate
) -> None:
    """As Kubernetes does it: the files are links through a folder that is a link."""
    for name, certificate in (("v1", one), ("v2", two)):
        (tmp_path / name).mkdir()
        shutil.copy(certificate.cert, tmp_path / name / "live.pem")
        shutil.copy(certificate.key, tmp_path / name / "live.key")
    (tmp_path / "data").symlink_to("v1")
    for file in ("live.pem", "live.key"):
        (tmp_path / file).symlink_to(Path("data") / file)
    tls = openline.Tls(cert=str(tmp_path / "live.pem"), key=str(tmp_path / "live.key"))
    files = ServerFiles(tls, clock)
    made = files.use(lambda contents: contents[0])
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert made.current() == Path(two.cert).read_bytes()


def test_a_second_change_within_the_same_tick_of_the_clock_is_noticed(
    place: Place, one: Certificate, two: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and times are what they were."""
    stamp = place.files._stamp()
    monkeypatch.setattr(place.files, "_stamp", lambda: stamp)
    place.put(two)
    assert place.uses(two)


# Not good ------------------------------------------------------------------------------------------


def missing(place: Place, new: Certificate) -> None:
    place.cert.unlink()


def without_its_key(place: Place, new: Certificate) -> None:
    shutil.copy(new.cert, place.cert)


def half_written(place: Place, new: Certificate) -> None:
    place.put(new)
    place.cert.write_bytes(place.cert.read_bytes()[:300])


def empty(place: Place, new: Certificate) -> None:
    place.put(new)
    place.key.write_bytes(b"")


def no_pem(place: Place, new: Certificate) -> None:
    place.put(new)
    place.cert.write_bytes(b"\xff\x00\xfe" * 100)


def encrypted(place: Place, new: Certificate) -> None:
    place.put(new)
    key = load_pem_private_key(Path(new.key).read_bytes(), None)
    place.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


BAD = [missing, without_its_key, half_written, empty, no_pem, encrypted]


@pytest.mark.parametrize("spoil", BAD)
def test_bad_files_change_nothing_and_are_told_of_once(
    place: Place,
    one: Certificate,
    two: Certificate,
    spoil: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(place, two)
    for _ in range(5):
        assert place.uses(one)
    assert len(warnings(caplog)) == 1
    assert "stays in use" in warnings(caplog)[0]
    assert str(place.cert) in warnings(caplog)[0]
    place.put(two)
    assert place.uses(two)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("spoil", BAD)
def test_asked_to_reload_bad_files_it_says_why_and_changes_nothing(
    place: Place, one: Certificate, two: Certificate, spoil: Callable[..., None]
) -> None:
    spoil(place, two)
    with pytest.raises(OSError, match="stays in use") as caught:
        place.files.reload()
    assert str(place.cert) in str(caught.value)
    assert place.uses(one)
    place.put(two)
    place.files.reload()
    assert place.made.now == Path(two.cert).read_bytes()


def test_what_is_made_of_files_changes_together_or_not_at_all(
    place: Place, one: Certificate, two: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    old = Path(one.cert).read_bytes()

    def picky(contents: tuple[bytes, ...]) -> bytes:
        if contents[0] != old:
            raise ValueError("not for me")
        return contents[0]

    place.files.use(picky)
    place.put(two)
    assert place.uses(one)
    assert "not for me" in warnings(caplog)[0]


def test_files_that_change_while_they_are_read_are_read_again(place: Place, two: Certificate) -> None:
    """What OpenSSL reads by itself is what proofs are bound to."""
    puts = [two]

    def slow(contents: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        if puts and contents[0] != Path(two.cert).read_bytes():
            place.put(puts.pop())
        return contents[0], shown_by(place.tls)

    made = place.files.use(slow)
    content, der = made.now
    assert content == Path(two.cert).read_bytes()
    assert der == shown_by(two.serving())
    assert place.made.now == content  # and what had been made before


def test_a_key_beside_other_blocks_is_found(
    tmp_path: Path, clock: Clock, one: Certificate, two: Certificate
) -> None:
    """One file for both, the certificate first."""
    both = tmp_path / "both.pem"
    both.write_bytes(Path(one.cert).read_bytes() + Path(one.key).read_bytes())
    files = ServerFiles(openline.Tls(cert=str(both), key=str(both)), clock)
    both.write_bytes(Path(two.cert).read_bytes() + Path(two.key).read_bytes())
    files.reload()
    assert 59 < (files.days or 0) <= 60


# How long it is good for ---------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "level"), [(30, None), (3, "expires in 3.0"), (-2, "expired 2.0")])
def test_days_are_told_and_few_of_them_are_warned_of(
    tmp_path: Path, clock: Clock, days: int, level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = self_signed(tmp_path, days=days)
    files = TlsFiles(found.serving(), clock)
    assert files.shown.days == pytest.approx(days, abs=0.01)
    for _ in range(20):
        clock.now += LOOK_IDLE
        files.look()
    said = warnings(caplog)
    assert len(said) == (1 if level else 0)
    assert level is None or level in said[0]
    clock.now += 86400.0
    files.look()
    assert len(warnings(caplog)) == (2 if level else 0)


def test_without_files_there_is_nothing_to_tell(clock: Clock) -> None:
    for tls in (None, openline.Tls(), openline.Tls(pins=("sha256/" + "A" * 43 + "=",))):
        files = TlsFiles(tls, clock)
        assert files.shown.days is None
        files.look()
        files.shown.reload()
        files.trusted.reload()


def test_files_without_paths_are_made_once() -> None:
    made = Files().use(lambda contents: contents)
    assert made.current() == ()


def test_renewed_files_are_noticed_while_nobody_connects(
    place: Place, clock: Clock, one: Certificate, two: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    files = TlsFiles(place.tls, clock)
    files.look()
    place.put(two)
    place.cert.write_bytes(b"")
    clock.now += LOOK_IDLE
    files.look()
    assert len(warnings(caplog)) == 1
