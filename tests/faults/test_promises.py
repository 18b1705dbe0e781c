"""What openline promises, kept by real processes while real kernels fail them: all of `scenarios.py`.

Nearly all the time is waiting, so the scenarios run side by side, each in a lab of its own.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openline.testing.lab.netns import Feature, TwoHosts, availability

from .conftest import require_lab
from .scenarios import SCENARIOS, SEED, Play
from .talkers import Outcome, Scene

pytestmark = pytest.mark.faults

SIDE_BY_SIDE = 6


@pytest.mark.parametrize("name", SCENARIOS)
def test_promises_hold(name: str, runs: dict[str, Future[Outcome]]) -> None:
    require_lab(needs(name))
    print(f"{name}: {runs[name].result()}")


# Running them


def needs(name: str) -> Feature:
    """UDP is dropped, refused and readdressed by nftables."""
    return "hosts" if name.endswith("-websocket") else "firewall"


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """The scenarios that were asked for, all begun."""
    require_lab()
    asked = {item.name for item in request.session.items}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {
            name: pool.submit(run, tmp_path_factory.mktemp(name), *SCENARIOS[name])
            for name in SCENARIOS
            if f"test_promises_hold[{name}]" in asked and availability(needs(name))
        }


def run(folder: Path, play: Play, config: dict[str, Any]) -> Outcome:
    with TwoHosts() as lab:
        scene = Scene(lab, folder, **config)
        scene.note(f"{play.__name__}, OPENLINE_FAULT_SEED={SEED}")
        try:
            return play(scene)
        except BaseException as error:
            error.add_note(scene.story)
            raise
