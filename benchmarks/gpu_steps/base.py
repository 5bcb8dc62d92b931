"""What the steps share: their setting, their result, and runs of the command line that they watch."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.throughput.process import KEPT, ROOT
from synthia_batch.core.hardware import name_gpus
from synthia_batch.core.telemetry import PRIVACY
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.pools.process_tree import list_descendants

MARK = "GPU_CHECK_STEP"
"""Every process that a step starts has it in its environment, with the folder of the check as its value."""
GONE_SECONDS = 5.0
"""How long after a run its processes and its GPU memory may remain."""
STOP_TOKENS = range(0, 32_000, 300)
"""With dummy weights every 300th token ends an answer, so that lengths vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the steps run, and how large they are. `small` and `large` are model directories.

    `is_dummy`: the small model has random weights, as the large one always has. `is_rehearsal`: small
    numbers, on CPUs, to find faults of the check itself; what needs a GPU is left out and said so.
    """

    device: Literal["cpu", "cuda"]
    work: str
    small: str
    large: str
    is_dummy: bool
    rows: int
    new_tokens: int
    kill_after: int
    batches: tuple[int, ...]
    batch_prompts: int
    longest_prompt: int
    large_prompts: int
    large_tokens: int

    @property
    def is_rehearsal(self) -> bool:
        """Whether no GPU takes part."""
        return self.device == "cpu"

    def allow(self, seconds: int) -> int:
        """Return the time limit for what may take so many `seconds` on a GPU: six times as much on CPUs."""
        return seconds * (6 if self.is_rehearsal else 1)

    @property
    def directory(self) -> Path:
        """A folder that the steps share, on a local disk."""
        return Path(self.work)


@dataclass(slots=True, kw_only=True)
class Result:
    """What a step found. `must` has, by description, whether it holds; `numbers` are only reported."""

    must: dict[str, bool] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended. `pids` are the engines' processes that were seen below it."""

    code: int
    seconds: float
    output: str
    pids: frozenset[int]


def write_rows(path: Path, count: int) -> Path:
    """Write `count` questions of different lengths, unless they are there."""
    if not path.exists():
        rows = [
            {"question": f"Explain {n} in {5 + n % 60} words. {'Take care. ' * (n % 40)}"}
            for n in range(count)
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def make_run(setting: Setting, out: Path, *flags: str, rows: int | None = None, model: str = "") -> list[str]:
    """Return the command that runs a strict job into `out`, unless `flags` say otherwise."""
    count = rows or setting.rows
    questions = write_rows(setting.directory / f"questions-{count}.jsonl", count)
    name = model or setting.small
    settings = [
        f"sampling.max_tokens={setting.new_tokens}",
        "report=false",
        f"engine.device={setting.device}",
    ]
    if setting.is_dummy or name == setting.large:
        settings += ["engine.load_format=dummy", f"sampling.stop_token_ids={list(STOP_TOKENS)}"]
    sets = [flag for one in settings for flag in ("--set", one)]
    command = [sys.executable, "-m", "synthia_batch", "run", str(questions), "-m", name, "-o", str(out)]
    # One engine suffices for a rehearsal: by default there is one for each core.
    workers = ["--workers", "1"] if setting.is_rehearsal and "--workers" not in flags else []
    return [*command, "-s", "none", *sets, *workers, *flags]


def make_environment() -> dict[str, str]:
    """Return a clean environment with the mark."""
    kept = {name: os.environ[name] for name in (*KEPT, "PYTHONPATH") if name in os.environ}
    return {**kept, **PRIVACY, MARK: os.environ.get(MARK, ""), "PYTHONUNBUFFERED": "1"}


def run(command: Sequence[str], log: Path, timeout_seconds: float = 300) -> Ended:
    """Run `command` and wait for it; its output goes to `log`, too. 124: it took too long."""
    began = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(command, cwd=ROOT, env=make_environment(), stdout=file, stderr=file)
        pids: set[int] = set()
        while (code := child.poll()) is None and time.monotonic() - began < timeout_seconds:
            pids |= {pid for pid in list_descendants(child.pid) if is_engine(pid)}
            time.sleep(0.3)
        if code is None:
            code = 124
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()
            child.wait()
    output = log.read_text(errors="replace")
    return Ended(code=code, seconds=time.monotonic() - began, output=output, pids=frozenset(pids))


def digest_data(out: Path) -> str:
    """Return the SHA-256 of all files of the run's data, with their names."""
    digest = hashlib.sha256()
    for path in sorted(RunDir(out).data.glob("*.parquet")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_events(out: Path) -> list[Mapping[str, Any]]:
    """Return the events of a run so far."""
    try:
        lines = RunDir(out).events.read_text().splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):  # The last line may be half written.
            events.append(json.loads(line))
    return events


def count_loads(out: Path) -> int:
    """Return how many engines began to load in the run."""
    return sum(event.get("kind") == "worker_loading" for event in read_events(out))


def list_marked() -> Iterator[int]:
    """Yield the processes with this check's mark, except this one and its parent."""
    ours = {os.getpid(), os.getppid()}
    entry = f"{MARK}={os.environ.get(MARK, '')}".encode()
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and int(directory.name) not in ours:
            with contextlib.suppress(OSError):
                if entry in (directory / "environ").read_bytes().split(b"\0"):
                    yield int(directory.name)


def wait_until_gone(seconds: float, pids: Collection[int]) -> list[int]:
    """Wait until no engine of `pids` or with the mark is left, at most so long; return those that are.

    Some of Ray's processes overwrite their environment, so the mark alone does not find them all.
    """
    until = time.monotonic() + seconds
    while left := [pid for pid in {*list_marked(), *pids} if is_running(pid) and is_engine(pid)]:
        if time.monotonic() >= until:
            break
        time.sleep(0.2)
    return left


def is_engine(pid: int) -> bool:
    """Whether `pid` is a worker with an engine, a core or a part of one, by the titles that they set."""
    name = read_name(pid)
    return any(title in name for title in ("EngineActor", "EngineCore", "VLLM::Worker"))


def read_name(pid: int) -> str:
    """Return the command line or title of a process; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether `pid` runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def read_used_memory() -> int:
    """Return the bytes used on all visible GPUs; 0 without any."""
    if not name_gpus():
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return sum(int(line) * 2**20 for line in done.stdout.split() if line.isdigit())
