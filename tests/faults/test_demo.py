"""`openline demo` tells its story, here in short time, and is cleanly stopped."""

import re
import signal
import subprocess
import sys

import pytest

from openline import Capabilities
from openline.cli.demo import run as demo
from openline.cli.demo.screen import Screen

from .conftest import require_lab

IDLE_TIMEOUT = 6.0
BACKENDS = ("websocket", "quic")


def start(namespaces: bool, idle_timeout: float = IDLE_TIMEOUT) -> subprocess.Popen[str]:
    call = f"run_demo({idle_timeout}, {namespaces})"
    script = f"import sys; from openline.cli.demo.run import run_demo; sys.exit({call})"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_obey_ctrl_c,
    )


def _obey_ctrl_c() -> None:
    """Tests may themselves run under nohup or as a background job, and what is ignored is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_story(text: str) -> None:
    assert re.search(r"delivered" + r"\W+0 of 20\W+20 of 20" * 2, text)
    assert re.search(r"connections\W+0\W+0\W+0\W+0\W", text)
    for plain in ("TCP", "UDP"):
        assert re.search(rf"plain {plain} connect from B to \S+: EHOSTUNREACH", text)
    assert len(moments(text)) == 2 + 4 * len(BACKENDS)
    for backend in BACKENDS:
        seconds = moments(text, without=next(other for other in BACKENDS if other != backend))
        assert len(seconds) == 2 + 4
        assert seconds == sorted(seconds)
        # Each hello, and the message after it has recovered.
        assert text.count(f"delivered, over the {backend} line A opened") == 3
    assert "\x1b" not in text


def moments(text: str, without: str = "nothing") -> list[float]:
    """What the step of the silent cable has told: when."""
    told = re.findall(r"^ +(\d+\.\d) s  (.*)", text, re.MULTILINE)
    return [float(seconds) for seconds, what in told if f"{without} line" not in what]


@pytest.mark.faults
def test_story_in_namespaces() -> None:
    require_lab()
    with start(namespaces=True) as program:
        text, _ = program.communicate(timeout=30)
    assert program.returncode == 0, text
    assert_story(text)
    assert "INJECTED" not in text


def test_story_on_loopback_says_that_its_faults_are_injected() -> None:
    with start(namespaces=False) as program:
        text, _ = program.communicate(timeout=30)
    assert program.returncode == 0, text
    assert_story(text)
    assert "INJECTED" in text


def test_without_quic_it_is_told_over_websocket_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Capabilities(("websocket",), "websocket", {"quic": "qh3 cannot be loaded"}, False)
    monkeypatch.setattr(demo, "capabilities", lambda: found)
    stage = demo.choose_stage(Screen(), IDLE_TIMEOUT, namespaces=False)
    assert [pair.backend for pair in stage.pairs] == ["websocket"]
    assert "Not over quic: qh3 cannot be loaded." in capsys.readouterr().out


@pytest.mark.parametrize("namespaces", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_ctrl_c_stops_it_without_a_traceback(namespaces: bool) -> None:
    if namespaces:
        require_lab()
    with start(namespaces, idle_timeout=60) as program:
        assert program.stdout is not None
        told = ""
        while "the cable is cut" not in told:
            told = program.stdout.readline()
        program.send_signal(signal.SIGINT)
        rest = program.stdout.read()
    assert program.returncode == 130
    assert "Stopped" in rest
    assert "Traceback" not in rest
