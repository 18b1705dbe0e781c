"""Who answered where (``Config.known_peers``): the text, the file, and what a transport does with it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.address import Address
from openline.errors import Refused
from openline.identity import Identity
from openline.known_peers import file as files
from openline.known_peers import memory
from openline.known_peers.file import KnownFile, Unusable
from openline.known_peers.lines import Broken, Document, Entry, place_of
from openline.known_peers.memory import UNREADABLE, KnownPeers
from openline.known_peers.place import default_file

ALICE, BOB = (Identity().node_id for _ in range(2))
THERE = Address.parse("10.0.0.5:8770")
NOW = 1_790_000_000


def entry(place: str = "10.0.0.5:8770", node_id: str = ALICE, at: int = NOW, name: str = "") -> Entry:
    return Entry(place=place, node_id=node_id, first=at, last=at, name=name)


@pytest.fixture
def file(tmp_path: Path) -> KnownFile:
    return KnownFile(tmp_path / "state" / "known_peers")


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


# The text -------------------------------------------------------------------------------------------


def test_a_line_is_written_for_people() -> None:
    document = Document()
    document.put(entry(name="Bob's box"))
    stamp = "2026-09-21T14:13:20Z"
    assert document.text == f"10.0.0.5:8770 {ALICE} first={stamp} last={stamp} name=Bob%27s%20box\n"


@given(
    st.lists(
        st.builds(
            Entry,
            place=st.sampled_from(
                ["10.0.0.5:1", "[fe80::1%eth0]:8770", "a.example:443/x#y", "localhost:65535"]
            ),
            node_id=st.sampled_from([ALICE, BOB]),
            first=st.none() | st.integers(0, 2**37),
            last=st.none() | st.integers(0, 2**37),
            name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            more=st.just(()) | st.just(("later=1", "also=a=b")),
        ),
        unique_by=lambda entry: entry.place,
    )
)
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    document = Document()
    for each in entries:
        document.put(each)
    read = Document(document.text)
    assert list(read.entries.values()) == entries
    assert (read.complaints, read.text) == ([], document.text)


@given(st.text())
def test_no_text_makes_it_fail_and_what_is_not_understood_is_kept(text: str) -> None:
    document = Document(text)
    before = document.text.splitlines()
    document.put(entry())
    kept = [line for line in before if line.split()[:1] != ["10.0.0.5:8770"]]
    assert document.text.splitlines() == [*kept, entry().line]
    assert Document(document.text).entries["10.0.0.5:8770"] == entry()


def test_comments_order_and_fields_of_later_versions_are_kept() -> None:
    text = f"# ours\n\n10.0.0.5:8770 {ALICE} trust=full first=2026-01-01T00:00:00Z\nb.example:1 {BOB}\n"
    document = Document(text)
    assert document.text == text
    known = document.entries["10.0.0.5:8770"]
    document.put(msgspec.structs.replace(known, last=known.first))
    assert document.text.splitlines() == [
        "# ours",
        "",
        f"10.0.0.5:8770 {ALICE} first=2026-01-01T00:00:00Z last=2026-01-01T00:00:00Z trust=full",
        f"b.example:1 {BOB}",
    ]


def test_a_line_by_hand_needs_an_address_and_a_node_id_only() -> None:
    assert Document(f"  Bob.Example:08770   {BOB}\n").entries == {
        "bob.example:8770": Entry(place="bob.example:8770", node_id=BOB)
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("10.0.0.5:8770", "there is no node id"),
        ("10.0.0.5:8770 bob", "'bob' is not a node id"),
        (f"10.0.0.5:8770 {'a' * 52}", "no safe Ed25519 key"),
        (f"10.0.0.5:8770 {ALICE} first=yesterday", "yesterday"),
        (f"10.0.0.5:8770 {ALICE} first=1969-12-31T00:00:00Z", "before 1970"),
        (f"10.0.0.5:8770 {ALICE} first=9999-12-31T23:59:59-12:00", "after 9999"),
        (f"10.0.0.5:8770 {ALICE} revoked", "'revoked' is not key=value"),
        (f"10.0.0.5:8770 {ALICE}\n10.0.0.5:8770 {BOB}", "a second line for that address"),
        (f"10.0.0.5:8770 {ALICE}\n10.0.0.5:8770 {ALICE}", "a second line for that address"),
    ],
    ids=["no node id", "no such", "unsafe", "no time", "too early", "too late", "unknown", "twice", "alike"],
)
def test_a_broken_line_costs_its_address_and_no_other(line: str, why: str) -> None:
    document = Document(f"{line}\nb.example:1 {BOB}\n")
    assert list(document.entries) == ["b.example:1"]
    with pytest.raises(Broken) as broken:
        document.get("10.0.0.5:8770")
    assert why in broken.value.why
    assert document.complaints == [f"line {broken.value.number}: {broken.value.why}"]
    document.put(entry())
    assert (document.get("10.0.0.5:8770"), document.complaints) == (entry(), [])
    assert len(document.text.splitlines()) == 2


def test_a_line_without_an_address_is_told() -> None:
    words = ["nonsense", "10.0.0.5", "[::1", BOB, f"{BOB}@b:1", "ws://b:1", "b:1:2"]
    document = Document("".join(f"{word} {ALICE}\n# fine\n" for word in words))
    assert document.entries == {}
    wrong = [f"line {2 * at + 1}: {word!r} is not host:port" for at, word in enumerate(words)]
    assert document.complaints == wrong


@pytest.mark.parametrize("scheme", ["", "ws://", "wss://", "quic://"])
def test_the_scheme_is_no_part_of_the_place(scheme: str) -> None:
    assert place_of(Address.parse(f"{scheme}10.0.0.5:8770")) == "10.0.0.5:8770"


def test_port_path_and_name_are_part_of_the_place() -> None:
    texts = ["10.0.0.5:1", "10.0.0.5:2", "b:1", "wss://b:1/x", "wss://b:1/y", "[::1]:1", "[fe80::1%a]:1"]
    assert len({place_of(Address.parse(text)) for text in texts}) == len(texts)
    assert place_of(Address.parse("wss://b/x")) == "b:443/x"
    assert place_of(Address.parse("quic://b:1/x")) == "b:1"  # a path means nothing there


def test_an_address_or_a_node_can_be_removed() -> None:
    document = Document(f"a:1 {ALICE}\nb:1 {BOB}\nc:1 {ALICE}\nd:1 {ALICE}\nd:1 {BOB}\ne:1 ?\n")
    assert document.remove("b:1") == ["b:1"]
    assert document.remove("e:1") == ["e:1"]
    assert document.remove("nowhere:1") == []
    assert document.remove(ALICE) == ["a:1", "c:1", "d:1"]
    assert document.text == ""


# The file -------------------------------------------------------------------------------------------


def test_it_is_made_for_the_owner_alone(file: KnownFile) -> None:
    assert (file.read().entries, file.signature()) == ({}, None)
    file.merge([entry()])
    assert file.read().entries == {"10.0.0.5:8770": entry()}
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(file.path.parent)) == ["known_peers", "known_peers.lock"]


def test_what_has_not_changed_is_not_written(file: KnownFile) -> None:
    file.merge([entry()])
    before = file.signature()
    file.merge([entry()])
    file.update(lambda document: None)
    assert file.signature() == before


def test_a_link_stays_one(file: KnownFile, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "dotfiles" / "known")
    KnownFile(link).merge([entry()])
    assert link.is_symlink()
    assert KnownFile(tmp_path / "dotfiles" / "known").read().entries


def test_another_process_that_was_first_stays_right(file: KnownFile) -> None:
    file.merge([entry(node_id=ALICE)])
    merged = file.merge([entry(node_id=BOB), entry("b:1", BOB)])
    assert [each.place for each in merged.refused] == ["10.0.0.5:8770"]
    assert {each.node_id for each in file.read().entries.values()} == {ALICE, BOB}
    assert file.read().entries["10.0.0.5:8770"].node_id == ALICE


def test_seen_again_is_brought_up_to_date_unless_it_was_forgotten(file: KnownFile) -> None:
    again = Entry(place="10.0.0.5:8770", node_id=ALICE, first=NOW, last=NOW + 5, name="new")
    file.merge([again])
    assert file.read().entries == {}
    file.merge([entry(name="old")])
    file.merge([again])
    assert file.read().entries == {"10.0.0.5:8770": again}


def test_those_not_seen_for_longest_go_first(file: KnownFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_PLACES", 3)
    file.merge([entry(f"a:{port}", at=NOW - port) for port in (1, 2, 3)])
    merged = file.merge([entry("b:1")])
    assert [each.place for each in merged.dropped] == ["a:3"]
    assert list(file.read().entries) == ["a:1", "a:2", "b:1"]


@pytest.mark.parametrize("mode", [0o622, 0o660, 0o602])
def test_what_others_may_write_to_is_not_believed(file: KnownFile, mode: int) -> None:
    file.merge([entry()])
    file.path.chmod(mode)
    with pytest.raises(Unusable, match=f"others may write.*mode {mode:03o}.*chmod 600"):
        file.read()
    with pytest.raises(Unusable):
        file.merge([entry("b:1")])
    file.path.chmod(0o644)
    assert file.read().entries


def test_what_is_no_such_file_is_said(
    file: KnownFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unusable, match="is not a file"):
        KnownFile(tmp_path).read()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Unusable, match="is not a file"):
        KnownFile(tmp_path / "fifo").read()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Unusable, match=r"cannot be read.*correct it or remove it"):
        KnownFile(tmp_path / "binary").read()
    with pytest.raises(Unusable, match="cannot be written"):
        KnownFile(tmp_path / "binary" / "known").merge([entry()])
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    (tmp_path / "large").write_text(entry().line)
    (tmp_path / "large").chmod(0o600)
    with pytest.raises(Unusable, match="more than 10 bytes"):
        KnownFile(tmp_path / "large").read()


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    file: KnownFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.merge([entry()])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unusable, match="No space left"):
            file.merge([entry("b:1")])
    assert list(file.read().entries) == ["10.0.0.5:8770"]
    assert sorted(os.listdir(file.path.parent)) == ["known_peers", "known_peers.lock"]
    file.merge([entry("b:1")])
    assert len(file.read().entries) == 2


@contextlib.contextmanager
def held(file: KnownFile) -> Iterator[None]:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file.path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_the_wait_for_others_is_bounded(file: KnownFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT", 0.05)
    with held(file), pytest.raises(Unusable, match=r"another process has held .*known_peers.lock"):
        file.merge([entry()])
    file.merge([entry()])


EACH = 40


def _remember(path: str, host: str, ready: object) -> None:
    ready.wait()  # type: ignore[attr-defined]
    file = KnownFile(path)
    for port in range(1, EACH + 1):
        file.merge([entry(f"{host}:{port}")])


def test_processes_that_write_at_once_lose_nothing(file: KnownFile) -> None:
    spawn = multiprocessing.get_context("spawn")
    names = ["a", "b", "c"]
    ready = spawn.Barrier(len(names))
    processes = [spawn.Process(target=_remember, args=(str(file.path), name, ready)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    document = file.read()
    assert sorted(document.entries) == sorted(f"{name}:{n}" for name in names for n in range(1, EACH + 1))
    assert document.complaints == []


# A transport's --------------------------------------------------------------------------------------


async def test_who_answered_is_known_at_once_and_after_a_restart(file: KnownFile) -> None:
    known = KnownPeers(file.path, Clock())
    known.check(THERE, ALICE)
    assert known.node_at(THERE) is None
    known.saw(THERE, ALICE, "alice")
    assert known.node_at(THERE) == ALICE
    known.check(THERE, ALICE)
    with pytest.raises(Refused):
        known.check(THERE, BOB)
    await known.close()
    assert KnownPeers(file.path, Clock()).node_at(THERE) == ALICE
    assert file.read().entries["10.0.0.5:8770"].name == "alice"


async def test_the_refusal_names_both_when_and_the_command(file: KnownFile) -> None:
    file.merge([entry()])
    known = KnownPeers(file.path, Clock())
    with pytest.raises(Refused) as other:
        known.check(THERE, BOB)
    for part in (ALICE, BOB, "10.0.0.5:8770: ", "first seen 2026-09-21 14:13 UTC", "nothing was sent"):
        assert part in str(other.value)
    assert str(other.value).endswith(f"openline known accept 10.0.0.5:8770 {BOB} --known-peers {file.path}")
    with pytest.raises(Refused) as plain:
        known.check(THERE, None)
    assert "proves no node id" in str(plain.value)
    assert ALICE in str(plain.value)
    assert str(plain.value).endswith(f"openline known forget 10.0.0.5:8770 --known-peers {file.path}")


def test_the_command_is_short_where_the_file_is_the_commands_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = default_file()
    assert path == tmp_path / "openline" / "known_peers"
    KnownFile(path).merge([entry("[fe80::1%eth0]:1")])
    with pytest.raises(Refused) as refused:
        KnownPeers(path, Clock()).check(Address.parse("[fe80::1%eth0]:1"), BOB)
    assert str(refused.value).endswith(f"openline known accept '[fe80::1%eth0]:1' {BOB}")


async def test_an_address_with_a_node_id_is_the_users_word(file: KnownFile) -> None:
    file.merge([entry()])
    before = file.path.read_text()
    known = KnownPeers(file.path, Clock())
    pinned = Address.parse(f"{BOB}@10.0.0.5:8770")
    known.check(pinned, BOB)
    known.saw(pinned, BOB, "")
    known.saw(Address.parse(f"{BOB}@elsewhere:1"), BOB, "")
    assert known.node_at(pinned) is None
    await known.close()
    assert file.path.read_text() == before


async def test_without_a_file_nothing_is_known() -> None:
    known = KnownPeers(None, Clock())
    known.saw(THERE, ALICE, "")
    known.check(THERE, BOB)
    known.refresh()
    assert known.node_at(THERE) is None
    await known.close()


async def test_last_seen_changes_once_a_day(file: KnownFile) -> None:
    clock = Clock()
    known = KnownPeers(file.path, clock)
    known.saw(THERE, ALICE, "")
    await known.close()
    for passed, last in ((memory.REFRESH - 1, NOW), (1, NOW + memory.REFRESH)):
        clock.now += passed
        known.saw(THERE, ALICE, "")
        await known.close()
        assert (file.read().entries["10.0.0.5:8770"].first, last) == (NOW, last)
        assert file.read().entries["10.0.0.5:8770"].last == last


async def test_what_others_write_is_seen_at_the_next_dial(file: KnownFile) -> None:
    changes: list[str] = []
    known = KnownPeers(file.path, Clock(), lambda: changes.append("changed"))
    assert known.node_at(THERE) is None
    file.merge([entry()])
    known.refresh()
    known.refresh()
    assert (known.node_at(THERE), changes) == (ALICE, ["changed"])
    file.update(lambda document: document.put(entry(node_id=BOB)))
    known.check(THERE, BOB)
    file.path.unlink()
    known.check(THERE, ALICE)
    assert known.node_at(THERE) is None


async def test_a_broken_file_refuses_everything_until_it_is_right(file: KnownFile) -> None:
    file.merge([entry()])
    known = KnownPeers(file.path, Clock())
    file.path.chmod(0o666)
    with pytest.raises(Refused, match=r"others may write .*; nothing was sent"):
        known.check(Address.parse("new.example:1"), BOB)
    assert known.node_at(Address.parse("new.example:1")) == UNREADABLE
    known.check(Address.parse(f"{BOB}@new.example:1"), BOB)
    file.path.chmod(0o600)
    known.check(THERE, ALICE)
    assert known.node_at(THERE) == ALICE


async def test_a_broken_line_refuses_its_address(file: KnownFile) -> None:
    file.merge([entry("b:1", BOB)])
    file.path.write_text(f"{file.path.read_text()}10.0.0.5:8770 {ALICE[:-3]}\n")
    known = KnownPeers(file.path, Clock())
    assert known.node_at(THERE) == UNREADABLE
    with pytest.raises(Refused, match=r"line 2 of .* cannot be used .*openline known forget 10.0.0.5:8770"):
        known.check(THERE, ALICE)
    known.check(Address.parse("b:1"), BOB)


def read_only(self: KnownFile, text: str) -> None:
    raise OSError(30, "Read-only file system")


async def test_a_line_for_no_address_is_warned_of_once(
    file: KnownFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.merge([entry()])
    file.path.write_text(f"{file.path.read_text()}nonsense\n")
    known = KnownPeers(file.path, Clock())
    file.merge([entry("c:1")])
    known.check(Address.parse("c:1"), ALICE)
    assert caplog.text.count("line 2: 'nonsense' is not host:port") == 1


async def test_what_cannot_be_written_is_kept_in_memory_and_said_once(
    file: KnownFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownPeers(file.path, Clock())
    with monkeypatch.context() as patch:
        patch.setattr(KnownFile, "_write", read_only)
        for port in (1, 2):
            known.saw(Address.parse(f"a:{port}"), ALICE, "")
            await known.close()
        assert caplog.text.count("kept in memory only") == 1
        with pytest.raises(Refused, match=r"first seen .* answered there before"):
            known.check(Address.parse("a:1"), BOB)
    await known.close()
    assert len(file.read().entries) == 2


async def test_what_is_kept_in_memory_is_bounded(
    file: KnownFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "MAX_PLACES", 3)
    monkeypatch.setattr(KnownFile, "_write", read_only)
    known = KnownPeers(file.path, Clock())
    for port in range(1, 6):
        known.saw(Address.parse(f"a:{port}"), ALICE, "")
    await known.close()
    assert [known.node_at(Address.parse(f"a:{port}")) for port in range(1, 6)] == [None, None] + 3 * [ALICE]
    assert "a:2 is forgotten, as it could not be written" in caplog.text


async def test_many_at_once_are_written_together(file: KnownFile, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    write = KnownFile._write
    monkeypatch.setattr(KnownFile, "_write", lambda self, text: (writes.append(text), write(self, text)))
    known = KnownPeers(file.path, Clock())
    for port in range(1, 501):
        known.saw(Address.parse(f"a:{port}"), ALICE, "")
    await known.close()
    assert len(file.read().entries) == 500
    assert len(writes) == 1


async def test_another_process_that_met_somebody_else_first_is_right(
    file: KnownFile, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownPeers(file.path, Clock())
    known.saw(THERE, BOB, "")
    file.merge([entry()])
    await known.close()
    assert (known.node_at(THERE), file.read().entries["10.0.0.5:8770"].node_id) == (ALICE, ALICE)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_the_loop_does_not_wait_for_the_lock(file: KnownFile, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownPeers(file.path, Clock())
    with held(file):
        known.saw(THERE, ALICE, "")
        closing = asyncio.ensure_future(known.close())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done()
        known.check(THERE, ALICE)
    await closing
    assert file.read().entries
