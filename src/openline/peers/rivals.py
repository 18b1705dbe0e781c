"""Two nodes at one IP and port cannot both be there: what is done where it looks like that."""

from __future__ import annotations

from ..address import Address
from ..backends.base import End
from ..connection.connection import Connection, State
from .table import PeerTable


def poke_rivals(table: PeerTable, connection: Connection) -> None:
    """Another node at that IP says that it listens on the same port: one of them may be gone."""
    ports = set(connection.endpoint.hello.ports) if connection.endpoint.hello else set()
    for other in table.at_ip(connection.endpoint.ip) if ports else ():
        hello = other.endpoint.hello
        if hello is not None and other.peer is not connection.peer and ports & set(hello.ports):
            other.poke()


def bury_predecessors(table: PeerTable, address: Address, connection: Connection) -> None:
    """Somebody else answers there now, and what was dialed there before, or said that it listens
    there, does not: that is gone."""
    claims = [c for c in table.at_ip(connection.endpoint.ip) if c.endpoint.claims(address.port)]
    for other in {*table.dialed_to(address), *claims}:
        if other.state is State.SUSPECT and other.peer is not connection.peer:
            other.link.abort()
            other.on_closed(End.lost("somebody else answers where it was dialed"))
