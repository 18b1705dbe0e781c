"""The programs in ``examples/`` as real processes, talked to in lines."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

EXAMPLES = Path(__file__).parents[2] / "examples"
# Only against hanging.
LONGEST = 60.0


class Program:
    """One process, what it has printed so far, and a pipe to its standard input."""

    def __init__(self, folder: Path, script: str, *arguments: str) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, str(EXAMPLES / script), *arguments]
        self.process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.lines: list[str] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        self._complaints: list[str] = []
        self._readers = [threading.Thread(target=read) for read in (self._read, self._read_complaints)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self._ended()
        if error is not None:
            error.add_note(f"{self.process.args!r}\n{''.join(self.lines)}\n{self.complaints}")

    @property
    def complaints(self) -> str:
        return "".join(self._complaints)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def until(self, told: str | Callable[[str], object]) -> str:
        """The next line that has this in it, or of which it is true; those before are in ``lines`` too."""
        while (line := self._next()) is not None:
            if told in line if isinstance(told, str) else told(line):
                return line
        raise EOFError(f"it ended without {told!r}:\n{self.complaints}")

    def told(self, line: str) -> None:
        """Wait for that line, unless it has come before."""
        if line not in self.lines:
            self.until(lambda each: each == line)

    def end(self) -> int:
        """Its exit code, when it has ended by itself; all that it has printed is in ``lines`` then."""
        while self._next() is not None:
            pass
        return self._ended()

    def interrupt(self) -> int:
        """The same after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def hang_up(self) -> int:
        """The same after the end of its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.end()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def _next(self) -> str | None:
        line = self._coming.get(timeout=LONGEST)
        if line is None:
            self._coming.put(None)
        else:
            self.lines.append(line)
        return line

    def _ended(self) -> int:
        code = self.process.wait(LONGEST)
        for reader in self._readers:
            reader.join(LONGEST)
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    def _read_complaints(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self._complaints.extend(lines)
