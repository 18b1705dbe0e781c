"""The memory of ports: bounded, and what strangers do pushes out nothing else (rule 3.10)."""

from __future__ import annotations

from typing import Any

import pytest

from openline.address import Address
from openline.core import port_memory as places
from openline.core.endpoints import Endpoint
from openline.core.handshake import Hello
from openline.core.port_memory import LATELY, Kind, PortMemory
from openline.routing.known_nodes import KnownNodes

HOST, EVIL = "10.0.0.2", "10.6.6.6"
ALICE, BOB = "a" * 52, "b" * 51 + "a"
MUCH = 3 * places.STRANGERS_BYTES // places.NOTE_BYTES


def hello(node: str, *ports: int, instance: str = "one") -> Hello:
    return Hello(node, "n" * 22, ports, instance=instance)


def client(port: int, said: Hello | None = None, ip: str = HOST, backend: str = "websocket") -> Endpoint:
    return Endpoint("inbound", ip, port, hello=said, backend=backend)


def dialed(target: str, said: Hello | None = None, ip: str = HOST, **more: Any) -> Endpoint:
    address = Address.parse(target)
    return Endpoint("outbound", ip, address.port, target=address, hello=said, **more)


def who(found: PortMemory, target: str, now: float = 0.0, *ips: str) -> list[tuple[str, bool]]:
    return [(note.who, recent) for note, _, recent in found.dialed(Address.parse(target), ips, now)]


def test_who_was_dialed_is_known_by_name_and_by_ip_and_first_lately_then_formerly() -> None:
    found = PortMemory()
    found.reached(dialed("alice.example:8770", hello(ALICE)), 0.0)
    for place in ("alice.example:8770", f"{HOST}:8770"):
        assert who(found, place, LATELY - 1) == [(ALICE, True)]
        assert who(found, place, LATELY) == [(ALICE, False)]
    assert who(found, "other.example:8770", 0.0, HOST) == [(ALICE, True)]
    assert who(found, "other.example:8770") == who(found, f"{HOST}:8771") == []


def test_it_was_there_until_its_connection_ended() -> None:
    found, end = PortMemory(), dialed(f"{HOST}:8770")
    found.reached(end, 0.0)
    found.gone(end, 5000.0, known=True)
    assert who(found, f"{HOST}:8770", 5000.0 + LATELY - 1) == [("", True)]


def test_not_if_somebody_else_has_answered_there_since() -> None:
    found, old = PortMemory(), dialed(f"{HOST}:8770", hello(ALICE))
    found.reached(old, 0.0)
    found.reached(dialed(f"{HOST}:8770", hello(BOB)), 1.0)
    found.gone(old, 2.0, known=True)
    assert who(found, f"{HOST}:8770", 3.0) == [(BOB, True)]
    assert not found.shared(Address.parse(f"{HOST}:8770"), 3.0)


@pytest.mark.parametrize("backend", ["websocket", "quic"])
def test_a_clients_port_is_known_with_its_protocol(backend: str) -> None:
    found = PortMemory()
    found.gone(client(50001, hello(ALICE), backend=backend), 0.0, known=True)
    seen = {p: found.lately(Kind.REMOTE, p, HOST, 50001, LATELY - 1) for p in ("tcp", "udp")}
    protocol = "udp" if backend == "quic" else "tcp"
    assert seen == {"tcp": set(), "udp": set(), protocol: {ALICE}}
    assert found.lately(Kind.REMOTE, protocol, HOST, 50001, LATELY) == set()


def test_two_processes_that_answer_in_turn_share_a_place() -> None:
    found, where = PortMemory(), Address.parse(f"{HOST}:8770")
    for now, node in enumerate([ALICE, BOB, BOB, ALICE]):
        assert not found.shared(where, float(now))
        found.reached(dialed(f"{HOST}:8770", hello(node)), float(now))
    assert found.shared(where, 4.0)
    assert not found.shared(where, 3.0 + LATELY)


def test_one_that_was_restarted_and_restarted_does_not() -> None:
    found, where = PortMemory(), Address.parse(f"{HOST}:8770")
    for now, instance in enumerate(["one", "two", "three"]):
        found.reached(dialed(f"{HOST}:8770", hello(ALICE, instance=instance)), float(now))
    assert not found.shared(where, 3.0)


# Bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", [EVIL, HOST], ids=["from elsewhere", "from behind the same IP"])
def test_strangers_push_out_nothing_that_this_program_has_to_do_with(ip: str) -> None:
    found = PortMemory()
    found.reached(dialed(f"{HOST}:8770", hello(ALICE)), 0.0)
    found.gone(client(50001), 0.0, known=True)
    for number in range(MUCH):
        found.gone(client(number, hello(BOB, number), ip=ip), 1.0, known=False)
    assert who(found, f"{HOST}:8770", 2.0) == [(ALICE, True)]
    assert "" in found.lately(Kind.REMOTE, "tcp", HOST, 50001, 2.0)


def test_of_strangers_the_one_who_causes_most_pays() -> None:
    found = PortMemory()
    found.gone(client(50001), 0.0, known=False)
    for number in range(MUCH):
        found.gone(client(number, ip=EVIL), 1.0, known=False)
    assert found.lately(Kind.REMOTE, "tcp", HOST, 50001, 2.0) == {""}
    assert found.lately(Kind.REMOTE, "tcp", EVIL, 0, 2.0) == set()
    assert found.lately(Kind.REMOTE, "tcp", EVIL, MUCH - 1, 2.0) == {""}


def test_a_stranger_does_not_write_over_what_is_known() -> None:
    found = PortMemory()
    found.gone(client(50001, hello(ALICE)), 0.0, known=True)
    found.gone(client(50001, hello(BOB)), 1.0, known=False)
    assert found.lately(Kind.REMOTE, "tcp", HOST, 50001, 2.0) == {ALICE, BOB}


def test_what_this_program_has_to_do_with_is_bounded_too() -> None:
    found = PortMemory()
    for number in range(places.MAX_PLACES + 1):
        found.reached(dialed(f"{HOST}:{number + 1}"), 0.0)
    assert who(found, f"{HOST}:1") == []
    assert who(found, f"{HOST}:2") == [("", True)]


# The book of nodes -----------------------------------------------------------------------------------


class Clock:
    def time(self) -> float:
        return 0.0


def node(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(letters[number // 26**n % 26] for n in range(4)).ljust(51, "b") + "a"


def places_of(book: KnownNodes, node_id: str) -> list[str]:
    return [f"{address.host}:{address.port}" for address in book.of(node_id)]


def test_strangers_push_no_known_node_out_of_the_book() -> None:
    book = KnownNodes(Clock())  # type: ignore[arg-type]
    book.note(dialed("alice.example:8770", hello(ALICE)), known=False)
    book.note(client(50001, hello(BOB, 8771)), known=True)
    for number in range(5000):
        book.note(client(50002, hello(node(number), 9), ip=EVIL), known=False)
    assert places_of(book, ALICE) == ["alice.example:8770"]
    assert places_of(book, BOB) == [f"{HOST}:8771"]
    assert places_of(book, node(0)) == []
    assert places_of(book, node(4999)) == [f"{EVIL}:9"]


def test_who_has_been_asked_for_is_no_stranger_any_more() -> None:
    book = KnownNodes(Clock())  # type: ignore[arg-type]
    book.note(client(50001, hello(BOB, 8771), ip=EVIL), known=False)
    assert places_of(book, BOB) == [f"{EVIL}:8771"]
    book.note(client(50001, hello(BOB, 8772), ip=EVIL), known=False)
    for number in range(5000):
        book.note(client(50002, hello(node(number), 9), ip=EVIL), known=False)
    assert places_of(book, BOB) == [f"{EVIL}:8772", f"{EVIL}:8771"]


def test_whom_a_replaced_connection_reached_was_there_until_that_which_replaced_it_ended() -> None:
    found, end = PortMemory(), client(40000, hello(ALICE, 8770))
    found.reached(old := dialed("alice.example:8770", hello(ALICE)), 0.0)
    found.gone(old, 1.0, known=True)
    end.aliases = (Address.parse("alice.example:8770"), Address.parse("10.0.0.3:8770"))
    found.gone(end, 5000.0, known=True)
    for place in ("alice.example:8770", f"{HOST}:8770", "10.0.0.3:8770"):
        assert who(found, place, 5000.0 + LATELY - 1) == [(ALICE, True)]


def test_who_claimed_a_port_is_remembered_beside_the_next_one_who_does() -> None:
    found = PortMemory()
    for node in (ALICE, BOB, BOB):
        found.gone(client(40000, hello(node, 8770)), 0.0, known=True)
    found.gone(client(40000, hello("c" * 51 + "a", 8770)), 0.0, known=False)
    assert found.claimed(HOST, 8770, LATELY - 1) == {ALICE, BOB}
    assert found.claimed(HOST, 8770, LATELY) == found.claimed(HOST, 8771, 0.0) == set()
