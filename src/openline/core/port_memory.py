"""What was so lately at a host and port: who was dialed there, who came from there, who claims it. Pure.

A connection that is open speaks for itself; this is for those that are gone. What strangers cause
is kept in a share of their own (rule 3.10), by the IP that they came from: so they push out one
another, the largest first, and never what this program's own dials and sends have shown.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from ..address import Address
from .endpoints import Endpoint
from .share import Share

# By then the number may have another use.
LATELY = 600.0
# Places that this program has to do with; the one noted longest ago is forgotten. About 1 MB.
MAX_PLACES = 4096
# All that strangers make us remember of ports, in bytes: some 2,000 of them.
STRANGERS_BYTES = 512 * 1024
NOTE_BYTES = 240


class Kind(Enum):
    DIALED = "a dial reached somebody"
    REMOTE = "somebody came from there"
    CLAIMED = "a node said that it listens there"
    HINT = "a plain peer stood for it by its IP alone, and called itself something"
    BY_IP = "a plain peer was taken for it by its IP alone"


# Kind, protocol, host or IP, port.
Key = tuple[Kind, str, str, int]


class Note:
    """``who`` is a node id, empty for a plain peer; of a hint it is what the peer called itself.

    Of a dial also the process, and who had answered there before, in case that one comes back.
    """

    __slots__ = ("at", "before", "process", "shared_at", "who")

    def __init__(self, who: str, at: float, process: str = "") -> None:
        self.who = who
        self.at = at
        self.process = process
        self.before: Note | None = None
        # When two processes were last seen to answer there in turn, both alive.
        self.shared_at = float("-inf")

    def same(self, other: Note) -> bool:
        """The same process."""
        return (self.who, self.process) == (other.who, other.process)


def _dialed_keys(end: Endpoint, target: Address) -> list[Key]:
    ip = end.ip if target is end.target or not target.is_ip else target.host
    hosts = [ip] if target.is_ip else [ip, target.host]
    return [(Kind.DIALED, end.protocol, host, target.port) for host in hosts]


class PortMemory:
    """Bounded; times are the caller's."""

    def __init__(self) -> None:
        self._notes: OrderedDict[Key, Note] = OrderedDict()
        self._strangers: OrderedDict[str, OrderedDict[Key, Note]] = OrderedDict()
        self._share: Share[str] = Share(STRANGERS_BYTES)

    # What has happened ---------------------------------------------------------------------------

    def reached(self, end: Endpoint, now: float) -> None:
        """A dial has reached ``end``."""
        assert end.target is not None
        for key in _dialed_keys(end, end.target):
            note = Note(end.owner, now, end.hello.process if end.hello else "")
            last = self._notes.get(key)
            if last is not None and last.same(note):
                note.before, note.shared_at = last.before, last.shared_at
            elif last is not None:
                first, last.before = last.before, None
                note.before, note.shared_at = last, last.shared_at
                if first is not None and first.same(note) and note.process and now < first.at + LATELY:
                    note.shared_at = now
            self._keep(key, note)

    def gone(self, end: Endpoint, now: float, known: bool) -> None:
        """A connection has ended. ``known``: has this program a reason to know its peer?"""
        for target in (*end.aliases, *((end.target,) if end.target is not None else ())):
            self._was_there(end, target, now)
        if end.target is None:
            self._add((Kind.REMOTE, end.protocol, end.ip, end.port), Note(end.owner, now), known)
        for port in end.hello.ports if end.hello else ():
            key, note = (Kind.CLAIMED, "", end.ip, port), Note(end.owner, now)
            last = self._notes.get(key)
            if known and last is not None:
                note.before, last.before = last.before if last.who == note.who else last, None
            self._add(key, note, known)
        if end.bound_port is not None and end.hint:
            self._keep((Kind.HINT, "", end.ip, end.bound_port), Note(end.hint, now))  # a send has bound it

    def _was_there(self, end: Endpoint, target: Address, now: float) -> None:
        """Until now, if nobody else has answered there since it was dialed."""
        for key in _dialed_keys(end, target):
            note = self._notes.get(key)
            if note is None or note.who == end.owner:
                note = note or Note(end.owner, now, end.hello.process if end.hello else "")
                note.at = now
                self._keep(key, note)

    def is_first_by_ip(self, ip: str, port: int, now: float) -> bool:
        """A send goes to a plain peer there by its IP alone: for the first time lately?"""
        first = not self.lately(Kind.BY_IP, "", ip, port, now)
        if first:
            self._keep((Kind.BY_IP, "", ip, port), Note("", now))
        return first

    def _add(self, key: Key, note: Note, known: bool) -> None:
        if known:
            self._keep(key, note)
        else:
            self._keep_for_stranger(key, note)

    def _keep(self, key: Key, note: Note) -> None:
        self._notes[key] = note
        self._notes.move_to_end(key)
        if len(self._notes) > MAX_PLACES:
            self._notes.popitem(last=False)

    def _keep_for_stranger(self, key: Key, note: Note) -> None:
        ip = key[2]
        of_ip = self._strangers.setdefault(ip, OrderedDict())
        of_ip[key] = note
        of_ip.move_to_end(key)
        self._share.set(ip, len(of_ip) * NOTE_BYTES)
        while (payer := self._share.excess()) is not None:
            theirs = self._strangers[payer]
            theirs.popitem(last=False)
            self._share.set(payer, len(theirs) * NOTE_BYTES)
            if not theirs:
                del self._strangers[payer]

    # What is known -------------------------------------------------------------------------------

    def dialed(self, address: Address, ips: tuple[str, ...], now: float) -> list[tuple[Note, str, bool]]:
        """Who answered when that place was dialed: by what host or IP, and was it lately?"""
        hosts = dict.fromkeys((address.host, *ips))
        keys = [(Kind.DIALED, p, host, address.port) for host in hosts for p in ("tcp", "udp")]
        return [
            (note, key[2], now < note.at + LATELY)
            for key in keys
            if (note := self._notes.get(key)) is not None
        ]

    def shared(self, address: Address, now: float) -> bool:
        """Do several live processes answer at that place in turn, as behind a load balancer?"""
        keys = [(Kind.DIALED, p, address.host, address.port) for p in ("tcp", "udp")]
        return any(key in self._notes and now < self._notes[key].shared_at + LATELY for key in keys)

    def claimed(self, ip: str, port: int, now: float) -> set[str]:
        """Nodes that this program has to do with and that said so lately, while they were here."""
        last = self._notes.get((Kind.CLAIMED, "", ip, port))
        notes = (last, last.before) if last is not None else ()
        return {note.who for note in notes if note is not None and now < note.at + LATELY}

    def lately(self, kind: Kind, protocol: str, ip: str, port: int, now: float) -> set[str]:
        """Who it was of whom that was so lately."""
        key = kind, protocol, ip, port
        strangers = self._strangers.get(ip)
        found = [self._notes.get(key), strangers.get(key) if strangers is not None else None]
        return {note.who for note in found if note is not None and now < note.at + LATELY}
