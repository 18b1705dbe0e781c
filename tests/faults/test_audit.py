"""The audit finds what it is there to find."""

import json
from pathlib import Path
from typing import Any

import pytest

from .audit import Account, violations

Lines = list[dict[str, Any]]


def born(name: str) -> dict[str, Any]:
    return {"did": "born", "node": f"node {name}"}


def sent(number: int) -> dict[str, Any]:
    return {"did": "sent", "id": f"A>B/'s'/{number}"}


def acked(number: int, acked: bool = True) -> dict[str, Any]:
    return {"did": "acked", "id": f"A>B/'s'/{number}", "acked": acked}


def got(number: int, node: str = "node A", stream: str = "s") -> dict[str, Any]:
    return {"did": "got", "id": f"A>B/'s'/{number}", "node": node, "stream": stream}


def found(folder: Path, a: Lines, b: Lines, killed_at: float | None = None) -> list[str]:
    """What the audit says. The n-th line of A is written at n, that of B half a second later."""
    accounts = []
    for name, lines, start in (("A", a, 0.0), ("B", b, 0.5)):
        path = folder / name
        timed = [json.dumps({**line, "at": start + at}) for at, line in enumerate([born(name), *lines])]
        path.write_text("\n".join(timed))
        accounts.append(Account.read(name, path))
    deaths = {} if killed_at is None else {"B": [killed_at]}
    return violations(accounts, deaths, {}, identities=True)


def test_all_is_well(tmp_path: Path) -> None:
    assert found(tmp_path, [sent(0), sent(1), acked(0), acked(1)], [got(0), got(1)]) == []


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ([sent(0), acked(0)], [], "A>B/'s'/0 never came"),
        ([], [got(0)], "A>B/'s'/0 came, and nobody sent it"),
        ([sent(0)], [got(0)], "A>B/'s'/0 was sent, and no send of it ended well"),
        ([sent(0), acked(0)], [got(0), got(0)], "A>B/'s'/0 came 2 times, after 1 tries and 0 breaks"),
        (
            [sent(0), sent(1), acked(0), acked(1)],
            [got(1), got(0)],
            "A>B/'s'/0 was sent before A>B/'s'/1, and came after it",
        ),
        ([sent(0), acked(0)], [got(0, node="node C")], "B got A>B/'s'/0, from node C"),
        ([sent(0), acked(0)], [got(0, stream="t")], "B got A>B/'s'/0 on stream 't'"),
        ([sent(0), acked(0, False)], [got(0)], "A has a receipt without acknowledgement for A>B/'s'/0"),
        (
            [sent(0), {"did": "answered", "id": "A>B/'s'/0", "answers": "x"}],
            [got(0)],
            "A asked A>B/'s'/0, and the answer is to x",
        ),
        (
            [sent(0), acked(0), {"did": "undelivered", "id": "x", "why": "y"}],
            [got(0)],
            "A was told that x is undelivered: y",
        ),
        ([sent(0), acked(0), {"did": "born", "node": "new"}], [got(0)], "A has had the node ids"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, a: Lines, b: Lines, text: str) -> None:
    assert any(line.startswith(text) for line in found(tmp_path, a, b))


def test_a_death_excuses_what_was_not_confirmed_before_it(tmp_path: Path) -> None:
    late = [sent(0), {"did": "other"}, acked(0)]
    assert found(tmp_path, late, [got(0), got(0)], killed_at=2.0) == []
    early = [sent(0), acked(0)]
    assert found(tmp_path, early, [got(0), got(0)], killed_at=3.0) != []
    assert found(tmp_path, late, [got(0), got(0), got(0)], killed_at=2.0) != []


def test_sent_again_after_others_it_comes_after_them(tmp_path: Path) -> None:
    again = [sent(0), {"did": "failed", "id": "A>B/'s'/0", "error": "Unreachable()"}, sent(1), sent(0)]
    ends = [acked(0), acked(1)]
    assert found(tmp_path, again + ends, [got(1), got(0)]) == []
    assert found(tmp_path, again + ends, [got(0), got(1)]) != []
    assert found(tmp_path, again + ends, [got(1), got(0), got(0)]) != []
