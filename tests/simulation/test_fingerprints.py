"""The recorder of behaviour: a run leaves the same hashes every time, and another run others."""

from __future__ import annotations

import pytest

from .fingerprints import NETS, PARTS, differences, fingerprint


@pytest.mark.parametrize("net", NETS)
def test_a_seed_has_its_hashes(net: str) -> None:
    lines: list[str] = []
    first, again, other = fingerprint(net, 4), fingerprint(net, 4, lines.append), fingerprint(net, 5)
    assert first == again
    assert set(first) == set(PARTS)
    assert all(first[part] != other[part] for part in PARTS)
    assert {line.split()[0] for line in lines} == set(PARTS)


def test_what_differs_is_named() -> None:
    same, trace, stats = ({"trace": a, "ledger": "l", "stats": b} for a, b in ("ts", "xs", "ty"))
    base = {"memory": [same, same, same], "quic": [same]}
    found = {"memory": [same, trace, stats], "quic": [{**same, "failed": "late"}, same]}
    assert differences(base, found) == (
        4,
        [("memory", 1, ["trace"]), ("memory", 2, ["stats"]), ("quic", 0, ["failed"])],
    )
