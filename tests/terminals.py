"""The command line in a real pseudo-terminal, and what a person would see on its screen."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte
from conftest import make_environment

BAR = re.compile(r"^ *\d+%\|")
CONTROLS = re.compile(r"\x1b\[[0-9;]*m")
"""Colours and the like."""


class Terminal:
    """A child in a terminal of `columns` x `lines`. `raw` is all that it wrote, `screen` what is shown."""

    def __init__(self, child: "pexpect.spawn[str]", columns: int, lines: int) -> None:
        self.child = child
        self.screen = pyte.Screen(columns, lines)
        self.raw = ""
        self._stream = pyte.Stream(self.screen)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen that are not blank."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def bars(self) -> list[str]:
        """The lines that are bars."""
        return [line for line in self.lines if BAR.match(line)]

    @property
    def draws(self) -> list[str]:
        """Every bar that was written, in order, but the last, which may not be whole yet."""
        parts = re.split(r"[\r\n]", self.raw)[:-1]
        return [part.rstrip() for part in parts if BAR.match(part)]

    @property
    def ended(self) -> int:
        """The samples that have ended, as the bar says."""
        counts = [re.search(r"\| (\d+)/\d+", line) for line in self.bars]
        return max((int(count[1]) for count in counts if count), default=0)

    def read(self, seconds: float = 0.1) -> None:
        """Take in what was written, waiting a little where nothing was."""
        try:
            written = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return
        self.raw += written
        self._stream.feed(written)

    def wait_for(self, what: str | Callable[[], bool], seconds: float = 60) -> None:
        """Read until the screen shows `what`, or `what` holds."""
        end = time.monotonic() + seconds
        while not (any(what in line for line in self.lines) if isinstance(what, str) else what()):
            assert time.monotonic() < end, f"waited in vain for {what}:\n" + "\n".join(self.lines)
            self.read()

    def wait_for_end(self) -> int:
        """Read to the end, and return the exit code."""
        try:
            while True:
                self.read(60)
        except pexpect.EOF:
            self.child.close()
        assert self.child.exitstatus is not None, f"ended by signal {self.child.signalstatus}"
        return self.child.exitstatus

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as somebody who draws at the window's corner does: the child gets SIGWINCH."""
        self.screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)


@contextmanager
def open_terminal(
    *arguments: str | Path,
    directory: Path,
    columns: int = 100,
    lines: int = 30,
    stdout: str | None = None,
    **environment: str,
) -> Iterator[Terminal]:
    """Run the command line in a terminal for the block; with `stdout`, that goes to the file of this name."""
    command = [sys.executable, "-m", "synthia_batch", *map(str, arguments)]
    if stdout is not None:
        command = ["sh", "-c", f'exec "$@" > {stdout}', "sh", *command]
    child = pexpect.spawn(
        command[0],
        command[1:],
        cwd=str(directory),
        env=make_environment(TERM="xterm", **environment),
        dimensions=(lines, columns),
        encoding="utf-8",
        use_poll=True,  # Where more than 1,024 files are open, select() cannot tell of the next.
    )
    try:
        yield Terminal(child, columns, lines)
    finally:
        if child.isalive():
            child.kill(signal.SIGKILL)
            child.wait()
