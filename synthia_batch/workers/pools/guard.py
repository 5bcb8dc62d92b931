"""Ends the processes of another together with it, even if that is killed with SIGKILL: those of a job's
own Ray with the job, and those of an engine with its worker.

Ray's agents outlive their raylet by a minute or more, and an engine's core keeps its GPU if its worker is
gone. The guard is a process that waits until its input closes, which the kernel does however the other
ends. It then kills every process that has the mark in its environment or writes to files of the Ray session
(some of Ray's processes overwrite their environment with their title), and removes their shared memory, which
none of them is left to remove. It runs this file as a script to import as little as possible. It needs Linux:
elsewhere there is no guard.
"""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "SYNTHIA_BATCH_RAY"
ENGINE_MARK = "SYNTHIA_ENGINE_MARK"
"""The variables that hold the mark of a job, and of a worker."""
_PROC = Path("/proc")
_SWEEP_SECONDS = 0.3
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_NAMES = ("psm_", "sem.mp-")
"""Name prefixes of shared memory and semaphores of Python's multiprocessing; vLLM uses both."""
_QUIET_SWEEPS = 3
"""Consecutive sweeps without a process before the guard ends: a dying raylet may still spawn one."""


class Guard:
    """Marks the processes started within `marked` by the variable `name`, and ends them when closed."""

    def __init__(self, name: str = MARK) -> None:
        self._name = name
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the guard process, before any process that it must end."""
        if not (_PROC / "self" / "environ").exists():
            return
        # In its own session, so that Ctrl-C in the terminal does not end it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, f"{self._name}={self._mark}", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Mark the processes started in the block."""
        os.environ[self._name] = self._mark
        try:
            yield
        finally:
            del os.environ[self._name]

    def watch_session(self, name: str) -> None:
        """Send the guard the name of the Ray session, which is part of its files' paths."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(name.encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Make the guard end the remaining marked processes, then itself. Does not wait."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


def main(mark: str, job: int) -> None:
    """Wait for the end of the input, which names the session, then kill its processes and the marked ones.

    `mark` is NAME=VALUE. Spares the process `job`, which may continue without Ray and keep the session's
    files open.
    """
    session = sys.stdin.buffer.read().decode()
    shared: set[Path] = set()
    quiet = 0
    while quiet < _QUIET_SWEEPS:
        pids = _find_processes(mark.encode(), session) - {os.getpid(), job}
        for pid in pids:
            shared |= _list_shared(_PROC / str(pid))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if pids else quiet + 1
        time.sleep(_SWEEP_SECONDS)
    _remove_unused(shared)


def _find_processes(entry: bytes, session: str) -> set[int]:
    found = set()
    for directory in _PROC.iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                is_marked = entry in (directory / "environ").read_bytes().split(b"\0")
                if is_marked or (session and _writes_to(directory / "fd", session)):
                    found.add(int(directory.name))
    return found


def _writes_to(descriptors: Path, session: str) -> bool:
    """Whether a process has a file of `session` open for writing; a user may be reading its logs."""
    for link in descriptors.iterdir():
        with contextlib.suppress(OSError):
            if link.lstat().st_mode & stat.S_IWUSR and f"/{session}/" in str(link.readlink()):
                return True
    return False


def _list_shared(process: Path) -> set[Path]:
    """Return the shared-memory files that a process has mapped."""
    with contextlib.suppress(OSError):
        # The sixth field of a line is the path; a removed file has a suffix.
        mapped = {Path(line.split(maxsplit=5)[-1]) for line in (process / "maps").read_text().splitlines()}
        return {
            path for path in mapped if path.parent == _SHARED_MEMORY and path.name.startswith(_SHARED_NAMES)
        }
    return set()


def _remove_unused(shared: set[Path]) -> None:
    """Remove the files of `shared` that no process still has mapped."""
    for directory in _PROC.iterdir() if shared else ():
        if directory.name.isdecimal():
            shared = shared - _list_shared(directory)
    for path in shared:
        with contextlib.suppress(OSError):
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
