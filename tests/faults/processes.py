"""Real processes on the hosts of the lab, talked to in lines, every wait with a deadline."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from openline.testing.lab.netns import HostName, TwoHosts

HERE = Path(__file__).parent
PATIENCE = 10.0


class Child:
    """One process on a host, and the lines it prints."""

    def __init__(self, lab: TwoHosts, host: HostName, script: str, *arguments: str) -> None:
        argv = [sys.executable, str(HERE / script), *arguments]
        pipe = subprocess.PIPE
        self.host = host
        self.process = lab.popen(host, argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._complaints: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, timeout: float = PATIENCE) -> str:
        """The next line it prints."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nothing from {self.host} within {timeout} s\n{self.complaints}") from None
        if line is None:
            raise EOFError(f"{self.host} ended\n{self.complaints}")
        return line

    def is_silent(self, seconds: float) -> bool:
        try:
            return self._lines.get(timeout=seconds) is None
        except queue.Empty:
            return True

    @property
    def complaints(self) -> str:
        return "".join(self._complaints)

    def kill(self) -> None:
        self.process.kill()
        self._await_end()

    def end(self) -> int:
        """Close its standard input, and wait until it has ended by itself; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._await_end()

    def _await_end(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join()
        return code

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_complaints(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self._complaints.extend(lines)


def plain(lab: TwoHosts, host: HostName, *arguments: str) -> Child:
    return Child(lab, host, "plain.py", *arguments)


def wait_until(condition: Callable[[], bool], patience: float = 5) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
