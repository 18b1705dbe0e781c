"""The programs in ``examples/`` do what their first lines say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
# Only against hanging.
LONGEST = 60.0
ANSWERS = ["4 words: answer on the line", "4 words: that is already open", "3 words: whoever opened it"]


def run(*args: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / args[0]), *args[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout.splitlines()


def test_script_in_one_process() -> None:
    assert run("script.py") == ANSWERS


def test_script_in_two_processes() -> None:
    command = [sys.executable, "-u", str(EXAMPLES / "script.py"), "work", "0"]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        port = worker.stdout.readline().rpartition(" ")[2].strip()
        assert run("script.py", "ask", f"127.0.0.1:{port}") == ANSWERS
        worker.send_signal(signal.SIGINT)
        out, err = worker.communicate(timeout=LONGEST)
        assert (worker.returncode, out, "Traceback" in err) == (130, "", False), err
    finally:
        worker.kill()
        worker.wait()
