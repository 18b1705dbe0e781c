"""openline.sync in whole processes: Ctrl-C at any moment, the end of the process, fork."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs.py")
# Only against hanging.
LONGEST = 60.0
TIMES = 12

pytestmark = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def start(scenario: str, loop: str) -> subprocess.Popen[str]:
    # One whose making was interrupted at its very end is dropped, and says so.
    dropped = "ignore:a transport of openline.sync was dropped:ResourceWarning"
    # Python 3.12 and later, of every program with threads that forks.
    forked = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", "default", "-W", dropped, "-W", forked, str(PROGRAMS), scenario, loop]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def end(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = program.communicate(timeout=LONGEST)
    finally:
        program.kill()
    return program.returncode, out, err


@pytest.mark.parametrize("scenario", ["interrupted_calls", "interrupted_waits", "interrupted_lives"])
def test_ctrl_c_at_any_moment(scenario: str, loop: str) -> None:
    """The pauses are what makes the moments random; nothing depends on their length."""
    chance = random.Random(f"{scenario} {loop}")
    program = start(scenario, loop)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(f"{TIMES}\n")
    program.stdin.flush()
    for number in range(TIMES):
        said = program.stdout.readline().strip()
        if said != ("ready" if number == 0 else str(number)):
            break
        time.sleep(chance.uniform(0, 0.03))
        program.send_signal(signal.SIGINT)
    assert end(program) == (0, f"{TIMES}\n", "")


def test_ctrl_c_that_nobody_catches(loop: str) -> None:
    program = start("interrupted_at_the_end", loop)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGINT)
    code, _, err = end(program)
    assert code == -signal.SIGINT
    assert err.endswith("KeyboardInterrupt\n")
    assert err.count("Traceback") == 1


@pytest.mark.parametrize(
    "scenario",
    ["ends_without_close", "ends_with_threads_that_wait", "ends_by_exit", "ends_in_the_block"],
)
def test_at_the_end_nothing_hangs_and_nothing_is_written(scenario: str, loop: str) -> None:
    code, out, err = end(start(scenario, loop))
    # What was kept connected could not be reached, which is said when it begins.
    lines = [line for line in err.splitlines() if not line.startswith("keep ")]
    assert (code, out, lines) == (0, "", [])


@pytest.mark.parametrize("scenario", ["forks", "forks_while_others_call"])
def test_a_child_has_its_own(scenario: str, loop: str) -> None:
    assert end(start(scenario, loop)) == (0, "", "")
