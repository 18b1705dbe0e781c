"""``examples/fleet.py`` on real hosts: the workers are behind a NAT, and the coordinator is outside."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openline.testing.lab.netns import LabError
from openline.testing.lab.router import Routed

from .conftest import require_lab
from .processes import Child, plain

pytestmark = pytest.mark.faults

FLEET = Path(__file__).parents[2] / "examples" / "fleet.py"
JOBS = 6
# Those below JOBS * 100,000.
PRIMES = 49_098
DONE = re.compile(r"job (\d+) done by (\w+): (\d+) primes")
# Only against hanging.
LONGEST = 60.0


@pytest.fixture
def lab() -> Iterator[Routed]:
    """A is behind a NAT."""
    require_lab("firewall")
    with Routed() as routed:
        try:
            routed.masquerade("A")
        except LabError as error:
            pytest.skip(f"no NAT here: {error}")
        yield routed


class Story:
    """What the coordinator says."""

    def __init__(self, lab: Routed, folder: Path) -> None:
        told = ("--host", lab.address["B"], "--jobs", str(JOBS), "--key", str(folder / "fleet.pem"))
        self._child = Child(lab, "B", str(FLEET), "coordinate", *told)
        self.lines: list[str] = []

    def until(self, told: Callable[[str], object] | str) -> str:
        while True:
            line = self._child.hear(LONGEST)
            self.lines.append(line)
            if told in line if isinstance(told, str) else told(line):
                return line

    def end(self) -> dict[int, str]:
        """Who did which job, when all are done: each once, and rightly."""
        with pytest.raises(EOFError):
            self.until(lambda line: False)
        assert "Traceback" not in self._child.complaints, self._child.complaints
        found = [match.groups() for line in self.lines if (match := DONE.fullmatch(line))]
        assert sorted(int(number) for number, _, _ in found) == list(range(JOBS)), self.lines
        assert sum(int(primes) for *_, primes in found) == PRIMES
        return {int(number): worker for number, worker, _ in found}


def worker(lab: Routed, name: str, address: str, pace: str = "0.2") -> Child:
    return Child(lab, "A", str(FLEET), "work", address, "--name", name, "--pace", pace)


def test_the_nat_lets_nobody_in(lab: Routed) -> None:
    listener = plain(lab, "A", "listen", "8770")
    assert listener.hear() == "listening"
    assert plain(lab, "B", "dial", lab.address["A"], "8770", "1").hear() == "lost TimeoutError"
    assert plain(lab, "A", "dial", lab.address["B"], "8770", "5").hear() == "lost ECONNREFUSED"


def test_a_worker_behind_a_nat_is_killed(lab: Routed, tmp_path: Path) -> None:
    story = Story(lab, tmp_path)
    address = story.until(" work ").split()[-1]
    worker(lab, "bee", address)
    story.until(", bee: ")
    ant = worker(lab, "ant", address, pace="1")
    taken = int(story.until(", ant: ").split(",")[0].split()[1])
    ant.kill()
    assert story.end()[taken] == "bee"
    assert any(line.startswith(f"job {taken} goes back") for line in story.lines)


def test_a_nat_that_carries_no_udp_any_more(lab: Routed, tmp_path: Path) -> None:
    """The jobs go on over another connection, which the workers dial."""
    story = Story(lab, tmp_path)
    address = story.until(" work ").split()[-1]
    for name in ("ant", "bee"):
        worker(lab, name, address)
    story.until(", bee: ")
    story.until(", ant: ")
    lab.drop_all("udp")
    assert set(story.end().values()) == {"ant", "bee"}
    for name in ("ant", "bee"):
        assert any(line.startswith(f"{name} is ") and "websocket" in line for line in story.lines)
