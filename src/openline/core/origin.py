"""Whom an address is counted as, where nothing is proven. Pure."""

from __future__ import annotations

import ipaddress

# What one subscriber has at the least (RFC 6177): who counts single addresses lets one have 2^64.
_IPV6_PREFIX = 64


def origin(ip: str) -> str:
    """The one who pays for what comes from ``ip``: an IPv4 address by itself, IPv6 by its network."""
    if ":" not in ip:
        return ip
    try:
        return str(ipaddress.IPv6Network((ip.partition("%")[0], _IPV6_PREFIX), strict=False))
    except ValueError:
        return ip
