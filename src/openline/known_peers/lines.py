"""The text of a file of known peers: a line for each address, as OpenSSH's ``known_hosts`` has for each host.

    10.0.0.5:8770 NODEID first=2026-11-27T13:42:22Z last=2026-11-27T13:42:22Z name=bob

Blank lines and those that begin with ``#`` are kept, and so is what a later version may add to a line.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, unquote

import msgspec

from ..address import Address
from ..errors import InvalidAddress, InvalidIdentity
from ..identity import public_key_of

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
        fields = {
            "first": _stamp(self.first),
            "last": _stamp(self.last),
            "name": name,
        }
        written = [f"{key}={value}" for key, value in fields.items() if value]
        return " ".join((self.place, self.node_id, *written, *self.more))

    @property
    def since(self) -> str:
        """When it was first seen, for people; nothing where that is not known."""
        return "" if self.first is None else f"{datetime.fromtimestamp(self.first, UTC):%Y-%m-%d %H:%M} UTC"


class Line(msgspec.Struct, frozen=True):
    """``wrong`` says why it cannot be used; ``place`` may be known all the same."""

    text: str
    place: str | None = None
    entry: Entry | None = None
    wrong: str = ""


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
    """All lines, in their order. Of two lines for one address neither counts."""

    def __init__(self, text: str = "") -> None:
        self._lines = [_parse(line) for line in text.splitlines()]
        self._index()

    def _index(self) -> None:
        self.entries: dict[str, Entry] = {}
        # Addresses whose line cannot be used: its number, and why.
        self.broken: dict[str, tuple[int, str]] = {}
        self._at: dict[str, int] = {}
        for at, line in enumerate(self._lines):
            if line.place is None:
                continue
            twice = line.place in self._at
            self._at[line.place] = at
            if line.entry is not None and not twice:
                self.entries[line.place] = line.entry
            else:
                self.entries.pop(line.place, None)
                self.broken[line.place] = at + 1, line.wrong or "a second line for that address"

    @property
    def complaints(self) -> list[str]:
        """What is wrong with it, line by line."""
        wrong = [(at, line.wrong) for at, line in enumerate(self._lines, 1) if line.wrong and not line.place]
        return [f"line {number}: {why}" for number, why in sorted([*wrong, *self.broken.values()])]

    @property
    def text(self) -> str:
        return "".join(f"{line.text}\n" for line in self._lines)

    def put(self, entry: Entry) -> None:
        """In place of what was there for that address, or at the end."""
        place = entry.place
        if place in self.broken:
            self.remove(place)
        at = self._at.setdefault(place, len(self._lines))
        self._lines[at : at + 1] = [Line(entry.line, place, entry)]
        self.entries[place] = entry

    def remove(self, what: str) -> list[str]:
        """All lines of an address, or of a node id; the addresses that they were for."""
        gone = [line for line in self._lines if what in (line.place, line.entry and line.entry.node_id)]
        places = list(dict.fromkeys(line.place for line in gone if line.place is not None))
        self._drop(places)
        return places

    def shrink(self, most: int) -> list[Entry]:
        """Drop those that were seen longest ago until ``most`` are left; what was dropped."""
        excess = max(len(self.entries) - most, 0)
        oldest = sorted(self.entries.values(), key=lambda entry: entry.last or entry.first or 0)[:excess]
        self._drop([entry.place for entry in oldest])
        return oldest

    def _drop(self, places: list[str]) -> None:
        if places:
            gone = set(places)
            self._lines = [line for line in self._lines if line.place not in gone]
            self._index()


def _parse(text: str) -> Line:
    words = text.split()
    if not words or words[0].startswith("#"):
        return Line(text)
    try:
        place = read_place(words[0])
    except InvalidAddress:
        return Line(text, wrong=f"{words[0][:80]!r} is not host:port")
    try:
        return Line(text, place, _entry(place, words[1:]))
    except ValueError as error:
        return Line(text, place, wrong=str(error))


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
