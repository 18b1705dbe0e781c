"""`openline demo` tells its story, here in short time, and is cleanly stopped."""

import re
import signal
import subprocess
import sys

import pytest
from conftest import require_lab

IDLE_TIMEOUT = 6.0


def start(namespaces: bool, idle_timeout: float = IDLE_TIMEOUT) -> subprocess.Popen[str]:
    call = f"run_demo({idle_timeout}, {namespaces})"
    script = f"import sys; from openline.cli.demo import run_demo; sys.exit({call})"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=subprocess.STDOUT, text=True)


def assert_story(text: str) -> None:
    assert re.search(r"delivered\W+0 of 20\W+20 of 20", text)
    assert re.search(r"connections created\W+0\W+0", text)
    assert "EHOSTUNREACH" in text
    moments = [float(seconds) for seconds in re.findall(r"^ +(\d+\.\d) s ", text, re.MULTILINE)]
    assert len(moments) == 6
    assert moments == sorted(moments)
    assert "\x1b" not in text


@pytest.mark.faults
def test_story_in_namespaces() -> None:
    require_lab()
    with start(namespaces=True) as demo:
        text, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0, text
    assert_story(text)
    assert "INJECTED" not in text


def test_story_on_loopback_says_that_its_faults_are_injected() -> None:
    with start(namespaces=False) as demo:
        text, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0, text
    assert_story(text)
    assert "INJECTED" in text


def test_ctrl_c_stops_it_without_a_traceback() -> None:
    with start(namespaces=False, idle_timeout=60) as demo:
        assert demo.stdout is not None
        told = ""
        while "the cable is cut" not in told:
            told = demo.stdout.readline()
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
    assert demo.returncode == 130
    assert "Stopped" in rest
    assert "Traceback" not in rest
