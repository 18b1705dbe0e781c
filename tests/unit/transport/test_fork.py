"""After ``fork``: nothing is the same twice, and a transport stays with the process that made it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .certificates import self_signed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROGRAM = Path(__file__).with_name("forks.py")
loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
schemes = pytest.mark.parametrize("scheme", ["ws", "wss", "quic"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = self_signed(tmp_path_factory.mktemp("certificate"))
    return {"CERT": made.cert, "KEY": made.key}


def play(scenario: str, loop: str, *arguments: str, **environment: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    run = subprocess.run(
        [sys.executable, str(PROGRAM), scenario, loop, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("scenario", ["ids", "chance", "keys", "hub_and_workers"])
def test_children_make_nothing_that_another_process_makes(scenario: str) -> None:
    play(scenario, "asyncio")


@loops
@schemes
@pytest.mark.parametrize("scenario", ["refused", "dropped", "left", "loop_of_the_parent"])
def test_a_transport_in_a_child_refuses_and_disturbs_nothing(
    scenario: str, scheme: str, loop: str, certificate: dict[str, str]
) -> None:
    play(scenario, loop, scheme, **certificate if scheme == "wss" else {})


@loops
@schemes
def test_a_child_makes_one_of_its_own(scheme: str, loop: str, certificate: dict[str, str]) -> None:
    play("anew", loop, scheme, **certificate if scheme == "wss" else {})


@loops
def test_what_the_parent_closes_is_closed_though_a_child_lives(loop: str) -> None:
    play("released", loop, "ws")
