"""openline.sync has all that openline has: no name, no parameter is forgotten."""

from __future__ import annotations

import inspect

import pytest

import openline
import openline.sync

PAIRS = [
    (openline.Transport, openline.sync.Transport),
    (openline.Peer, openline.sync.Peer),
    (openline.Listener, openline.sync.Listener),
]


def public(cls: type) -> set[str]:
    """Its members, and what its ``__init__`` sets."""
    found = {name for name in dir(cls) if not name.startswith("_")}
    code = cls.__init__.__code__  # type: ignore[misc]
    return found | {name for name in code.co_names if f"self.{name} =" in inspect.getsource(cls.__init__)}


def parameters(function: object) -> list[tuple[str, object, object]]:
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(each.name, each.kind, each.default) for each in found]


@pytest.mark.parametrize(("original", "mirror"), PAIRS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_no_member_is_forgotten(original: type, mirror: type) -> None:
    missing = {name for name in public(original) - public(mirror) if not name.startswith("_")}
    assert not missing, "mirror them in openline/sync, with a line each"
    assert {name for name in public(mirror) - public(original) if not name.startswith("_")} == set()


@pytest.mark.parametrize(("original", "mirror"), PAIRS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_parameters_are_the_same(original: type, mirror: type) -> None:
    for name, member in vars(original).items():
        if not name.startswith("_") and inspect.isfunction(member):
            assert parameters(getattr(mirror, name)) == parameters(member), name


def test_nothing_in_it_is_async() -> None:
    for _, mirror in PAIRS:
        for name in public(mirror):
            member = getattr(mirror, name, None)
            assert not inspect.iscoroutinefunction(member), name
            assert not inspect.isasyncgenfunction(member), name
            assert "Coroutine" not in str(getattr(member, "__annotations__", "")), name


def test_load_transport_takes_what_a_program_gives() -> None:
    assert parameters(openline.sync.load_transport)[0] == parameters(openline.load_transport)[0]
