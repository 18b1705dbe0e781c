"""The text of a file of known peers: a line for each address, as OpenSSH's ``known_hosts`` has for each host.

    10.0.0.5:8770 NODEID first=2026-11-27T13:42:22Z last=2026-11-27T13:42:22Z name=bob

Blank lines and those that begin with ``#`` are kept, and so is what a later version may add to a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote, unquote

import msgspec

from ..address import Address
from ..errors import InvalidAddress, InvalidIdentity
from ..identity import public_key_of

# A host name or an IPv4 address, with its port: there is no other way to write that.
_AS_IS = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*:[1-9][0-9]{0,4}")
# What datetime can show.
_YEAR_9999 = 253_370_764_800


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered where. Times are seconds since the epoch, None where a line that was written by hand
    has none; ``name`` is what the node called itself, a claim; ``more`` are fields of later versions."""

    place: str
    node_id: str
    first: int | None = None
    last: int | None = None
    name: str = ""
    more: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        name = quote(self.name, safe="", errors="replace")
        fields = {"first": _stamp(self.first), "last": _stamp(self.last), "name": name}
        written = [f"{key}={value}" for key, value in fields.items() if value]
        return " ".join((self.place, self.node_id, *written, *self.more))

    @property
    def since(self) -> str:
        """When it was first seen, for people; nothing where that is not known."""
        return "" if self.first is None else f"{datetime.fromtimestamp(self.first, UTC):%Y-%m-%d %H:%M} UTC"


class Broken(Exception):
    """A line that cannot be used: its number, and why."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.number = number
        self.why = why


def place_of(address: Address) -> str:
    """What an address is remembered by: ``host:port`` as it is written, whatever the scheme.

    With its path where it has one: a proxy may tell by it which node is meant.
    """
    return address.netloc + ("" if address.path == "/" or address.scheme == "quic" else address.path)


def read_place(text: str) -> str:
    """The same of what a line begins with. Raises ``InvalidAddress``, also where the port is missing."""
    if Address.parse(text.partition("/")[0]).node_id is not None:
        raise InvalidAddress(f"{text[:80]!r} has a node id where host:port should be")
    return place_of(Address.parse(f"ws://{text}"))


class Document:
    """All lines, in their order. Of two lines for one address neither counts.

    Only what is asked for is understood: reading has to be quick, and a line that is broken costs its own
    address alone.
    """

    def __init__(self, text: str = "") -> None:
        self._lines = text.splitlines()
        self._index()

    def _index(self) -> None:
        self._at: dict[str, int] = {}
        self._twice: dict[str, int] = {}
        # Lines for no address, by number.
        self._strays: dict[int, str] = {}
        self._found: dict[str, Entry] = {}
        for at, line in enumerate(self._lines):
            word = line.split(None, 1)[0] if line.strip() else "#"
            if word.startswith("#"):
                continue
            place = _place(word)
            if place is None:
                self._strays[at + 1] = f"{word[:80]!r} is not host:port"
            elif place in self._at:
                self._twice[place] = at + 1
            else:
                self._at[place] = at

    def __len__(self) -> int:
        return len(self._at)

    def get(self, place: str) -> Entry | None:
        """Who is known there. Raises ``Broken`` where its line cannot be used."""
        at = self._at.get(place)
        if at is None:
            return None
        if place in self._twice:
            raise Broken(self._twice[place], "a second line for that address")
        if place not in self._found:
            try:
                self._found[place] = _entry(place, self._lines[at].split()[1:])
            except ValueError as error:
                raise Broken(at + 1, str(error)) from None
        return self._found[place]

    @property
    def entries(self) -> dict[str, Entry]:
        """All that can be used. Understands every line: some 200 ms for 4,096."""
        return {place: entry for place, entry in self._all() if isinstance(entry, Entry)}

    @property
    def complaints(self) -> list[str]:
        """What is wrong with it, line by line. As slow as ``entries``."""
        broken = {entry.number: entry.why for _, entry in self._all() if isinstance(entry, Broken)}
        return [f"line {number}: {why}" for number, why in sorted({**self._strays, **broken}.items())]

    @property
    def strays(self) -> list[str]:
        """Of these, the lines for no address: nobody else hears of them."""
        return [f"line {number}: {why}" for number, why in self._strays.items()]

    def _all(self) -> Iterator[tuple[str, Entry | Broken | None]]:
        for place in self._at:
            try:
                yield place, self.get(place)
            except Broken as broken:
                yield place, broken

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def put(self, entry: Entry) -> None:
        """In place of what was there for that address, or at the end."""
        place = entry.place
        if place in self._twice:
            self._drop({place})
        at = self._at.setdefault(place, len(self._lines))
        self._lines[at : at + 1] = [entry.line]
        self._found[place] = entry

    def remove(self, what: str) -> list[str]:
        """All lines of an address, or of a node id; the addresses that they were for."""
        gone = [place for place in self._at if place == what]
        gone += [place for place, line in self._whole() if what in line.split()[1:2]]
        self._drop(set(gone))
        return list(dict.fromkeys(gone))

    def shrink(self, most: int) -> list[Entry]:
        """Drop those that were seen longest ago until ``most`` are left; what was dropped."""
        excess = len(self._at) - most
        if excess <= 0:
            return []
        by_age = sorted(self.entries.values(), key=lambda entry: entry.last or entry.first or 0)
        oldest = by_age[:excess]
        self._drop({entry.place for entry in oldest})
        return oldest

    def _whole(self) -> list[tuple[str, str]]:
        """Each line that is for an address, with that."""
        words = [(line.split(None, 1)[0] if line.strip() else "#", line) for line in self._lines]
        found = [(None if word.startswith("#") else _place(word), line) for word, line in words]
        return [(place, line) for place, line in found if place is not None]

    def _drop(self, places: set[str]) -> None:
        if places:
            gone = {id(line) for place, line in self._whole() if place in places}
            self._lines = [line for line in self._lines if id(line) not in gone]
            self._index()


def _place(word: str) -> str | None:
    # Most are written as they are compared; to take the others apart takes fifty times as long.
    if _AS_IS.fullmatch(word):
        return word
    try:
        return read_place(word)
    except InvalidAddress:
        return None


def _entry(place: str, words: list[str]) -> Entry:
    """Raises ``ValueError``."""
    if not words:
        raise InvalidIdentity("there is no node id")
    public_key_of(words[0])
    known, more = {"first": "", "last": "", "name": ""}, []
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word[:80]!r} is not key=value")
        if key in known:
            known[key] = value
        else:
            more.append(word)
    first, last = _seconds(known["first"]), _seconds(known["last"])
    name = unquote(known["name"])
    return Entry(place=place, node_id=words[0], first=first, last=last, name=name, more=tuple(more))


def _stamp(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _seconds(stamp: str) -> int | None:
    if not stamp:
        return None
    when = datetime.fromisoformat(stamp)
    seconds = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    if not 0 <= seconds < _YEAR_9999:
        raise ValueError(f"{stamp!r} is before 1970 or after 9999")
    return seconds
