"""Two nodes at one IP and port cannot both be there: what is done where it looks like that."""

from __future__ import annotations

from ..address import Address
from ..backends.base import End
from ..core.lifecycle import State
from .remote import RemoteConnection
from .table import Table


def poke_rivals(table: Table, connection: RemoteConnection) -> None:
    """Another node at that IP says that it listens on the same port: one of them may be gone."""
    ports = set(connection.endpoint.hello.ports) if connection.endpoint.hello else set()
    for other in table.at_ip(connection.endpoint.ip) if ports else ():
        hello = other.endpoint.hello
        if hello is not None and other.remote is not connection.remote and ports & set(hello.ports):
            other.poke()


def bury_predecessors(table: Table, address: Address, connection: RemoteConnection) -> None:
    """Somebody else answers there now, and what was dialed there before, or said that it listens
    there, does not: that is gone."""
    claims = [c for c in table.at_ip(connection.endpoint.ip) if c.endpoint.claims(address.port)]
    for other in {*table.dialed_to(address), *claims}:
        if other.state is State.SUSPECT and other.remote is not connection.remote:
            other.link.abort()
            other.on_closed(End.lost("somebody else answers where it was dialed"))
