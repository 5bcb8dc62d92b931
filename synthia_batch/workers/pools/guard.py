"""Sees to it that a Ray of a job's own ends with the job, even where the job is killed with SIGKILL.

Ray's agents outlive their raylet by a minute and more. The guard is a process that waits for its
input to close, which the kernel does when the job ends, however it ends; then it kills every
process that carries the job's mark in its environment or writes to the Ray session's files: some
of Ray's processes write their title over the environment that they were given. What those shared in
memory goes with them: killed all at once, they have nobody left who would remove it. It runs this file
as a script, so that it imports next to nothing. Only Linux tells either: elsewhere there is no guard.
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
_PROC = Path("/proc")
_SWEEP_SECONDS = 0.3
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_NAMES = ("psm_", "sem.mp-")
"""What Python's multiprocessing calls its shared memory and its semaphores; vLLM uses both."""
_QUIET_SWEEPS = 3
"""Sweeps in a row that find nothing before the guard is content: a dying raylet may yet spawn."""


class Guard:
    """Marks the processes that are started within `marked`, and ends them when it is closed."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process. Call it before anything is started that it is to end."""
        if not (_PROC / "self" / "environ").exists():
            return
        # A session of its own, or Ctrl-C in the terminal would end the guard before its work.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, self._mark, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Mark what is started in the block."""
        os.environ[MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def watch_session(self, name: str) -> None:
        """Have the guard know the Ray session's name, which is part of the paths of its files."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(name.encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Have the process end what is left of the marked ones, and then itself; does not wait."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


def main(mark: str, job: int) -> None:
    """Wait for the end of the input, which names the session, then kill all that belongs to it.

    All but the process `job`, which may go on after its Ray and have the session's files open.
    """
    session = sys.stdin.buffer.read().decode()
    shared: set[Path] = set()
    quiet = 0
    while quiet < _QUIET_SWEEPS:
        pids = _find_processes(f"{MARK}={mark}".encode(), session) - {os.getpid(), job}
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
    """Whether a process has a file of `session` open for writing; a person may be reading its logs."""
    for link in descriptors.iterdir():
        with contextlib.suppress(OSError):
            if link.lstat().st_mode & stat.S_IWUSR and f"/{session}/" in str(link.readlink()):
                return True
    return False


def _list_shared(process: Path) -> set[Path]:
    """Return the files of shared memory that a process has mapped."""
    with contextlib.suppress(OSError):
        # The sixth field of a line is the file, and a removed one has a word behind it.
        mapped = {Path(line.split(maxsplit=5)[-1]) for line in (process / "maps").read_text().splitlines()}
        return {
            path for path in mapped if path.parent == _SHARED_MEMORY and path.name.startswith(_SHARED_NAMES)
        }
    return set()


def _remove_unused(shared: set[Path]) -> None:
    """Remove the files of `shared` that no process has mapped any more."""
    for directory in _PROC.iterdir() if shared else ():
        if directory.name.isdecimal():
            shared = shared - _list_shared(directory)
    for path in shared:
        with contextlib.suppress(OSError):
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
