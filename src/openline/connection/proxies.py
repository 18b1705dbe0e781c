"""Proxies that end TLS between this node and its peers (``Config.tls_proxy``)."""

from __future__ import annotations

from collections.abc import Iterable

from ..address import Address, canonical_ip, parse_place
from ..backends.tls import fingerprint

_PIN = "sha256/"


class Proxies:
    """Those that may stand in between: by the certificate that they show, or by where they are."""

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._pins = {name for name in names if name.startswith(_PIN)}
        self._places = {parse_place(name) for name in names - self._pins}

    def may_stand(self, address: Address, ip: str, certificate: bytes | None) -> bool:
        """May whoever shows this certificate at ``address``, which was found at ``ip``, be one?

        Only where the address asks for that certificate, so that it has been checked as usual.
        """
        if address.scheme != "wss" or not certificate:
            return False
        port = address.port
        places = {(host, port) for host in (address.host, canonical_ip(ip) or ip)}
        places |= {(host, 0) for host, _ in places}
        return fingerprint(certificate) in self._pins or not places.isdisjoint(self._places)
