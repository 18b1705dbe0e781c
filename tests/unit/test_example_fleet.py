"""``examples/fleet.py``: all jobs are done, and each is counted once, whichever workers die."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .programs import Program

Start = Callable[..., Program]

JOBS = 6
# Those below JOBS * 100,000.
PRIMES = 49_098
DONE = re.compile(r"job (\d+) done by (\w+): (\d+) primes")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *told: stack.enter_context(Program(tmp_path, "fleet.py", *told))


def coordinator(start: Start, port: str = "0", *told: str) -> tuple[Program, str]:
    """One that listens, and what workers are to dial."""
    program = start("coordinate", "--port", port, "--jobs", str(JOBS), *told)
    return program, program.until(" work ").split()[-1]


def done(program: Program) -> dict[int, tuple[str, int]]:
    """By whom each job was done, and how many primes it has."""
    found = [match.groups() for line in program.lines if (match := DONE.fullmatch(line))]
    jobs = {int(number): (worker, int(primes)) for number, worker, primes in found}
    assert len(jobs) == len(found), found
    return jobs


def check(program: Program, jobs: dict[int, tuple[str, int]]) -> None:
    assert "Traceback" not in program.complaints, program.complaints
    assert sorted(jobs) == list(range(JOBS))
    assert sum(primes for _, primes in jobs.values()) == PRIMES


def test_a_killed_workers_job_is_done_by_another(start: Start) -> None:
    boss, address = coordinator(start)
    bee = start("work", address, "--name", "bee", "--pace", "0.1")
    boss.until(", bee: ")
    ant = start("work", address, "--name", "ant", "--pace", "1")
    taken = int(boss.until(", ant: ").split(",")[0].split()[1])
    ant.kill()
    boss.until("ant is gone")
    assert boss.end() == 0
    jobs = done(boss)
    check(boss, jobs)
    assert jobs[taken][0] == "bee"
    assert f"job {taken} goes back" in "\n".join(boss.lines)
    assert bee.interrupt() == 130
    assert "Traceback" not in bee.complaints


def test_the_job_of_a_worker_that_stood_still_is_taken_back(start: Start) -> None:
    boss, address = coordinator(start)
    ant = start("work", address, "--name", "ant", "--pace", "2")
    taken = int(boss.until(", ant: ").split(",")[0].split()[1])
    ant.process.send_signal(signal.SIGSTOP)
    boss.until(f"job {taken} goes back")
    bee = start("work", address, "--name", "bee", "--pace", "0")
    boss.until("bee is connected")
    ant.process.send_signal(signal.SIGCONT)
    ant.until(f"job {taken} is taken back")
    assert boss.end() == 0
    check(boss, done(boss))
    for worker in (ant, bee):
        assert worker.interrupt() == 130
        assert "Traceback" not in worker.complaints, worker.complaints


def test_a_worker_that_starts_anew_does_its_job_again(start: Start) -> None:
    boss, address = coordinator(start)
    told = ("work", address, "--name", "ant", "--key", "ant.pem", "--pace")
    first = start(*told, "1")
    taken = int(boss.until(", ant: ").split(",")[0].split()[1])
    first.kill()
    start(*told, "0.1")
    boss.until(f"job {taken} goes back")
    assert boss.end() == 0
    jobs = done(boss)
    check(boss, jobs)
    assert {worker for worker, _ in jobs.values()} == {"ant"}


def test_a_coordinator_that_starts_anew_is_known_again(start: Start) -> None:
    boss, address = coordinator(start)
    ant = start("work", address, "--name", "ant", "--pace", "0.1")
    boss.until(", ant: ")
    assert boss.interrupt() == 130
    assert "Traceback" not in boss.complaints
    assert ant.process.poll() is None
    again, same = coordinator(start, address.rpartition(":")[2])
    assert same == address
    assert again.end() == 0
    jobs = done(again)
    check(again, jobs)
    assert {worker for worker, _ in jobs.values()} == {"ant"}
    assert ant.interrupt() == 130
    assert "Traceback" not in ant.complaints


def test_jobs_for_some_nodes_only(start: Start) -> None:
    """A worker has its node id from its key, before there is a coordinator."""
    first = start("work", "127.0.0.1:1", "--name", "ant", "--key", "ant.pem")
    node_id = first.until("ant is node").split()[-1]
    assert first.interrupt() == 130
    boss, address = coordinator(start, "0", "--allow", node_id)
    mallory = start("work", address, "--name", "mallory", "--pace", "0")
    mallory.until("mallory is node")
    start("work", address, "--name", "ant", "--key", "ant.pem", "--pace", "0")
    assert boss.end() == 0
    check(boss, done(boss))
    assert "mallory" not in "\n".join(boss.lines)
    assert mallory.interrupt() == 130


def test_help_says_how_to_begin(start: Start) -> None:
    program = start("--help")
    assert program.end() == 0
    assert "python examples/fleet.py work NODEID@" in "\n".join(program.lines)
    for role in ("coordinate", "work"):
        assert start(role, "--help").end() == 0


def test_what_is_no_address_is_told_in_a_line(start: Start) -> None:
    program = start("work", "nobody@nowhere")
    assert program.end() == 1
    assert program.complaints.startswith("fleet.py: ")
    assert "Traceback" not in program.complaints
