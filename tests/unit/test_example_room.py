"""``examples/room.py``: in real processes all hear all, once, and say who has gone and who is back."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

import pytest

from .programs import Program

Enter = Callable[..., Program]

LINES = 50


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Enter]:
    """Somebody comes in."""
    with ExitStack() as stack:
        yield lambda *told: stack.enter_context(Program(tmp_path, "room.py", *told))


def port_of(program: Program) -> str:
    """As it says once it has joined."""
    line = next((line for line in program.lines if " is node " in line), "")
    return (line or program.until(" is node ")).split()[-1]


@pytest.fixture
def three(enter: Enter) -> dict[str, Program]:
    """Bob and Carol join Alice at the same time; ``three`` has all of them when they know each other."""
    alice = enter("alice")
    place = f"127.0.0.1:{port_of(alice)}"
    room = {"alice": alice, **{name: enter(name, "--join", place) for name in ("bob", "carol")}}
    for name in ("bob", "carol"):
        port_of(room[name])
    meet(room)
    return room


def meet(room: dict[str, Program]) -> None:
    for here, other in permutations(room, 2):
        room[here].told(f"{other} is here")


def heard(program: Program) -> Counter[str]:
    return Counter(line for line in program.lines if ": " in line)


def leave(room: dict[str, Program]) -> None:
    for program in room.values():
        assert program.hang_up() == 0
        assert "Traceback" not in program.complaints, program.complaints


def test_all_hear_all_once(three: dict[str, Program]) -> None:
    for number in range(LINES):
        for program in three.values():
            program.say(f"line {number}")
    for here, other in permutations(three, 2):
        three[here].told(f"{other}: line {LINES - 1}")
    leave(three)
    for here, program in three.items():
        said = [f"{other}: line {n}" for other in three if other != here for n in range(LINES)]
        assert heard(program) == Counter(said)
        for other in three.keys() - {here}:
            theirs = [line for line in program.lines if line.startswith(f"{other}: ")]
            assert theirs == [line for line in said if line.startswith(f"{other}: ")]


@pytest.mark.parametrize("how", ["--join", "--port"])
def test_who_is_killed_has_gone_and_comes_back(three: dict[str, Program], enter: Enter, how: str) -> None:
    """By joining somebody else, or by being where the others dial it."""
    killed = three.pop("carol")
    killed.kill()
    for program in three.values():
        program.until("carol has gone")
    three["alice"].say("is carol away?")
    three["bob"].until("alice: is carol away?")
    told = f"127.0.0.1:{port_of(three['bob'])}" if how == "--join" else port_of(killed)
    carol = enter("carol", how, told)
    for program in three.values():
        program.until("carol is here")
    three["carol"] = carol
    meet(three)
    for name, program in three.items():
        program.say(f"{name} again")
    for here, other in permutations(three, 2):
        three[here].told(f"{other}: {other} again")
    leave(three)
    assert heard(carol) == Counter(["alice: alice again", "bob: bob again"])
    assert heard(three["bob"]) == Counter(
        ["alice: is carol away?", "alice: alice again", "carol: carol again"]
    )


def test_the_room_goes_on_without_who_began_it(three: dict[str, Program]) -> None:
    alice = three.pop("alice")
    assert alice.interrupt() == 130
    assert "Traceback" not in alice.complaints, alice.complaints
    for program in three.values():
        program.until("alice has gone")
    three["bob"].say("only we two")
    three["carol"].until("bob: only we two")
    leave(three)


def test_who_stands_still_does_not_answer(three: dict[str, Program]) -> None:
    three["bob"].process.send_signal(signal.SIGSTOP)
    for name in ("alice", "carol"):
        three[name].until("bob does not answer")
    three["alice"].say("bob?")
    three["carol"].until("alice: bob?")
    three["bob"].process.send_signal(signal.SIGCONT)
    for name in ("alice", "carol"):
        # He has gone meanwhile where this machine was slow.
        three[name].until(lambda line: line in ("bob answers again", "bob is here"))
    three["bob"].say("here")
    three["bob"].until("alice: bob?")
    for name in ("alice", "carol"):
        three[name].until("bob: here")
    leave(three)
    assert heard(three["bob"]) == Counter(["alice: bob?"])


def test_a_script_says_its_lines_and_leaves(three: dict[str, Program], enter: Enter) -> None:
    dave = enter("dave", "--join", f"127.0.0.1:{port_of(three['carol'])}")
    dave.say("in passing")
    dave.say("\x1b[2Jgood bye")
    assert dave.hang_up() == 0
    for program in three.values():
        program.until("dave: in passing")
        assert program.until("good bye") == "dave: [2Jgood bye"
        program.until("dave has gone")
    leave(three)


def test_nobody_there_is_told_in_a_line(enter: Enter) -> None:
    program = enter("bob", "--join", "127.0.0.1:1")
    assert program.end() == 1
    assert program.complaints.startswith("room.py: ")
    assert "Traceback" not in program.complaints


def test_help_says_how_to_begin(enter: Enter) -> None:
    program = enter("--help")
    assert program.end() == 0
    assert "python examples/room.py bob --join HOST:8770" in "\n".join(program.lines)
