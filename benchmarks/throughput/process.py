"""Runs one side in a process of its own, with a clean environment, and notes when it said what."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.telemetry import PRIVACY

MARK = "BENCHMARK_SIDE"
"""Every process that a side starts inherits it, so that none outlives its side."""
ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.1
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
)
"""All that a side inherits of the caller's environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a process. `said` are the pieces of its output and when they came.

    Times are seconds since 1970; `first` is when it was seen to have its first sample.
    """

    started: float
    seconds: float
    code: int
    said: Sequence[tuple[float, str]]
    first: float | None

    def find_time(self, text: str) -> float | None:
        """Return when `text` was first printed."""
        return next((when for when, piece in self.said if text in piece), None)

    def tail(self, lines: int | None) -> str:
        """Return the last lines that it printed; all of them for None."""
        printed = "".join(piece for _, piece in self.said).replace("\r", "\n").splitlines()
        return "\n".join([line for line in printed if line.strip()][-(lines or 0) :])


def run_process(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    find_first: Callable[[], bool],
    timeout_seconds: float,
) -> Ended:
    """Run a command to its end, or to its timeout, and leave nothing of it behind."""
    mark = uuid.uuid4().hex
    said: list[tuple[float, str]] = []
    started = time.time()
    process = subprocess.Popen(
        arguments,
        env=make_environment() | dict(environment) | {MARK: mark},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    reader = threading.Thread(target=_listen, args=(process, said), daemon=True)
    reader.start()
    try:
        first = _wait(process, find_first, started + timeout_seconds)
        seconds = time.time() - started
    finally:
        end_leftovers(mark)
    reader.join(5)
    return Ended(started=started, seconds=seconds, code=process.returncode, said=said, first=first)


def make_environment() -> dict[str, str]:
    """Return the environment that every side starts from."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | PRIVACY | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def end_leftovers(mark: str) -> None:
    """Kill what carries `mark` in its environment: a side that failed may leave engines behind."""
    entry = f"{MARK}={mark}".encode()
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry in (directory / "environ").read_bytes().split(b"\0"):
                    os.kill(int(directory.name), signal.SIGKILL)


def python_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def make_empty(directory: Path) -> Path:
    """Return `directory`, new and empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _listen(process: subprocess.Popen[bytes], said: list[tuple[float, str]]) -> None:
    assert process.stdout is not None
    while chunk := os.read(process.stdout.fileno(), 65536):
        said.append((time.time(), chunk.decode(errors="replace")))


def _wait(process: subprocess.Popen[bytes], find_first: Callable[[], bool], deadline: float) -> float | None:
    """Wait for the end of `process`; return when it had its first sample."""
    first: float | None = None
    while process.poll() is None:
        if first is None and find_first():
            first = time.time()
        if time.time() > deadline:
            process.kill()
        try:
            # Once there is nothing to look for, nobody wakes up on the cores that are measured.
            process.wait(LOOK_SECONDS if first is None else max(1.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            continue
    return first
