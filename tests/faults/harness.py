"""What the fault tests share: a small job, processes to run it in, and what must be true afterwards."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_environment, read_bytes_of_data, read_call_log, write_jsonl

from synthia_batch.storage.journal.frames import scan_frames

ROWS = 12
SHARD_ROWS = 6
FAIL_EVERY = 5
"""Samples 0, 5 and 10 fail: both shards have both kinds of parts."""
MEMORY = Path("/dev/shm")
ROOM_MIB = 32
"""Several times what the small job's directories and records take: containers often have 64 there."""
PATIENCE_SECONDS = 60
PATCH = {
    "synthia_batch.job.plan.ROWS_STEP": SHARD_ROWS,
    # Small journals get marks, too.
    "synthia_batch.storage.journal.writer.SYNC_SAMPLES": 2,
    "synthia_batch.storage.journal.writer.SYNC_PAUSE_SECONDS": 0.0,
}


def exhaustively(value: object, what: str) -> Any:
    """Return a parameter for `make test-long` only; `what` is printed where it is left out."""
    return pytest.param(value, marks=[pytest.mark.exhaustive(what), pytest.mark.timeout(3600)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: `code` is its exit code, negative for a signal."""

    code: int
    stdout: str
    stderr: str


class WarmProcess:
    """See warm.py. One run at a time. `modules` are imported as well."""

    def __init__(self, scratch: Path, *modules: str) -> None:
        self._scratch = scratch
        self._requests = 0
        environment = make_environment(
            PYTHONPATH=os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
            TMPDIR=str(scratch),
            XDG_CACHE_HOME=str(scratch),
            OPENBLAS_NUM_THREADS="1",
            OMP_NUM_THREADS="1",
        )
        command = [sys.executable, str(Path(__file__).parent / "warm.py"), *modules]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._read_line() != "ready":
            raise RuntimeError("the warm process did not start; its stderr says why")

    def run(
        self,
        directory: Path,
        *arguments: str,
        root: str = "out",
        boot: str | None = None,
        patch: Mapping[str, Any] = PATCH,
        **faults: Mapping[str, Any],
    ) -> Ended:
        """Run `synthia-batch ARGUMENTS` in `directory`, with faults under the run directory `root`."""
        spoilt = {"root": str(directory / root), "faults": faults, "patch": dict(patch), "boot": boot}
        return self._ask(directory, arguments, PATIENCE_SECONDS, environment=None, **spoilt)

    def run_as_user(
        self, directory: Path, arguments: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> Ended:
        """Run `synthia-batch ARGUMENTS` as it is; SIGALRM ends it after `seconds`."""
        return self._ask(directory, arguments, math.ceil(seconds), environment=dict(environment))

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def _ask(self, directory: Path, arguments: Sequence[str], seconds: int, **more: Any) -> Ended:
        files = {name: str(self._scratch / name) for name in ("stdout", "stderr")}
        self._requests += 1
        request = {
            "number": self._requests,
            "directory": str(directory),
            "arguments": arguments,
            "seconds": seconds,
            **files,
            **more,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        # A test that ran out of time did not wait for the answer to its last request.
        number = 0
        while number != self._requests:
            number, code = json.loads(self._read_line())
        return Ended(code=code, **{name: Path(path).read_text() for name, path in files.items()})

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def start_warm_process(scratch: Path, *modules: str) -> Iterator[WarmProcess]:
    warm = WarmProcess(scratch, *modules)
    try:
        yield warm
    finally:
        warm.close()


@dataclass(slots=True)
class SmallJob:
    """A job of 2 shards that lives in `directory`; in both of them some samples fail."""

    warm: WarmProcess
    directory: Path
    rows: int = ROWS
    fail_every: int = FAIL_EVERY
    attempts: int = 0
    expected: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_jsonl(
            self.directory / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(self.rows)]
        )

    @property
    def patch(self) -> dict[str, Any]:
        return {**PATCH, "synthia_batch.job.plan.ROWS_STEP": self.rows // 2}

    @property
    def run_directory(self) -> Path:
        return self.directory / "out"

    @property
    def arguments(self) -> tuple[str, ...]:
        settings = {
            "fail_every": self.fail_every,
            "max_num_seqs": 1,
            "latency_ms": 1,
            "call_log": self.call_log,
        }
        flags = [flag for name, value in settings.items() for flag in ("--set", f"engine.{name}={value}")]
        return ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q", *flags, "-o", "out")

    @property
    def call_log(self) -> Path:
        return self.directory / f"calls-{self.attempts}"

    def run(self, **faults: Any) -> Ended:
        """Make one attempt, with a call log of its own."""
        # Thousands of attempts would fill a small /dev/shm with the logs of those before.
        self.call_log.unlink(missing_ok=True)
        self.attempts += 1
        return self.warm.run(self.directory, *self.arguments, patch=self.patch, **faults)

    def made(self) -> list[int]:
        """The samples that the last attempt had the engine make."""
        return read_call_log(self.call_log)

    def run_undisturbed(self) -> None:
        """Set what every other history must end in."""
        ended = self.run()
        assert ended.code == 0, ended.stderr
        assert sorted(self.made()) == list(range(self.rows))
        self.expected = read_bytes_of_data(self.run_directory)
        assert len(self.expected) == 6

    def check_resumed(self, *, ended_before: set[int], context: object = None, **options: Any) -> None:
        """Run again, and require the same bytes and that nothing finished was made again."""
        ended = self.run(**options)
        assert ended.code == 0, (context, ended.stderr)
        assert read_bytes_of_data(self.run_directory) == self.expected, context
        made = self.made()
        assert not set(made) & ended_before, (context, "made again", made, ended_before)
        assert len(made) == len(set(made)), (context, "made twice", made)
        assert not list_leftovers(self.run_directory), context


@contextmanager
def open_small_job(warm: WarmProcess, fallback: Path, **shape: int) -> Iterator[SmallJob]:
    """A job that ran undisturbed, and knows what it gave, in memory where files can live there."""
    with open_fast_directory(fallback) as directory:
        job = SmallJob(warm, directory, **shape)
        job.run_undisturbed()
        yield job


@contextmanager
def open_fast_directory(fallback: Path) -> Iterator[Path]:
    """A new directory in memory, or in `fallback` where files have no room there, which is then said.

    What a process does to its files, and what a kill or a failed call leaves of them, is the same on
    any file system; only waiting for a disk is not. What is lost with the power, disk.py says.
    """
    reason = find_fault_of(MEMORY)
    if reason is not None:
        warnings.warn(f"these tests wait for a disk: {MEMORY} {reason}", stacklevel=2)
    # A name of its own: another session of the same tests may run at the same time.
    directory = Path(tempfile.mkdtemp(prefix="synthia-batch-", dir=fallback if reason else MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def find_fault_of(memory: Path) -> str | None:
    """Return why run directories cannot be in `memory`, or None."""
    if not memory.is_dir():
        return "is not there"
    if not os.access(memory, os.W_OK):
        return "cannot be written"
    free_mib = shutil.disk_usage(memory).free >> 20
    return None if free_mib >= ROOM_MIB else f"has {free_mib} MiB free, and {ROOM_MIB} are needed"


def read_ended(run_directory: Path) -> set[int]:
    """Return the samples that are in a journal or in a part, read without the code under test."""
    ended = {
        row
        for kind in ("data", "failed")
        for part in (run_directory / kind).glob("*.parquet")
        for row in pq.ParquetFile(part).read(["row_index"]).column(0).to_pylist()
    }
    for journal in (run_directory / ".synthia" / "journal").glob("*.wal"):
        ended |= list_journaled(journal)
    return ended


def list_journaled(journal: Path) -> set[int]:
    with journal.open("rb") as file:
        values = [frame.value for frame in scan_frames(file) if frame.value is not None]
    return {value[kind] for value in values for kind in ("finished", "failed") if kind in value}


def list_leftovers(run_directory: Path) -> list[str]:
    """What must not be there once a run is complete."""
    return [str(path) for pattern in ("**/.*.tmp", "**/*.wal") for path in run_directory.glob(pattern)
            if path.name != "intents.wal"]  # fmt: skip


def digest_state(run_directory: Path) -> str:
    """Return a digest of everything in the directory that the next run's doings depend on.

    That is every name and every byte, but for what only people read and what differs in any two runs:
    the times in the history, of which a run reads whether the last line is torn; the owner's pid and
    time, of which it reads the epoch; the job as last said, which names the attempt's own call log and
    is written anew whatever is there; and files without their names yet, which are never read.
    """
    digest = hashlib.sha256()
    for path in sorted(run_directory.rglob("*")):
        digest.update(f"{path.relative_to(run_directory)}\0{path.is_dir()}\0".encode())
        if path.is_file():
            digest.update(_read_state(path) + b"\0")
    return digest.hexdigest()


def _read_state(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".tmp" or path.name == "job.json":
        return b""
    if path.name == "events.jsonl":
        return content[-1:]
    return b"%d" % json.loads(content)["epoch"] if path.name == "owner.json" else content


def replace_tree(source: Path, target: Path) -> None:
    """Have at `target` what is at `source`, which may be nothing."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)
