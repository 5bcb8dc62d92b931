"""What a run costs beside its engine: the scripted engine at zero latency, one process, local pool.

    python benchmarks/journal.py 100000 1000000          # the curve
    python benchmarks/journal.py --profile 100000        # where the time goes

Each size is a process of its own: planning, the whole run with its memory over time, and the time
to the first sample of a run that is 99% done.
"""

import argparse
import cProfile
import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE_SECONDS = 0.5
"""Between two looks at the memory."""
ROW_GROUP_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="+", type=int, help="samples per run")
    parser.add_argument("--profile", action="store_true", help="run in this process, under cProfile")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for size in arguments.sizes:
            path = write_questions(Path(directory), size)
            if arguments.profile:
                profile_run(Path(directory), path)
            else:
                print(json.dumps(measure(Path(directory), path, size)), flush=True)


def write_questions(directory: Path, rows: int) -> Path:
    """Write a Parquet file of short questions."""
    path = directory / f"q{rows}.parquet"
    with pq.ParquetWriter(path, pa.schema([("question", pa.string())])) as writer:
        for start in range(0, rows, ROW_GROUP_ROWS):
            numbers = range(start, min(start + ROW_GROUP_ROWS, rows))
            writer.write_table(pa.table({"question": [f"What is {n} squared?" for n in numbers]}))
    return path


def measure(directory: Path, path: Path, size: int) -> dict[str, object]:
    output = directory / f"out{size}"
    planning = time_planning(path)
    memory, seconds = watch(make_command(path, output))
    return {
        "samples": size,
        "planning_rows_per_second": round(size / planning),
        "seconds": round(seconds, 1),
        "samples_per_second": round(size / seconds),
        "peak_memory_mb": round(max(memory)),
        # By tenths of the run: flat means that memory does not grow with the samples.
        "memory_mb_by_tenth": [
            round(max(memory[len(memory) * n // 10 : max(len(memory) * (n + 1) // 10, 1)] or [0]))
            for n in range(10)
        ],
        "resume_first_sample_seconds": round(time_resuming(directory, path, size), 1),
    }


def make_command(path: Path, output: Path, *more: str) -> list[str]:
    scripted = ("--engine", "scripted", "--pool", "local", "-s", "none", "-q")
    return [sys.executable, "-m", "synthia_batch", "run", str(path), *scripted, "-o", str(output), *more]


def time_planning(path: Path) -> float:
    """Return the seconds that one scan of the input takes, without the start of a process."""
    from synthia_batch.inputs import open_source
    from synthia_batch.inputs.base import Selection

    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        open_source(path).scan(Selection(), Path(scratch))
        return time.perf_counter() - started


def watch(command: list[str]) -> tuple[list[float], float]:
    """Run `command`; return its resident memory over time in MB and its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory = [0.0]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            memory.append(read_memory(process.pid))

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    ended.set()
    thread.join()
    if code:
        raise SystemExit(f"{command} ended with {code}")
    return memory, seconds


def read_memory(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def time_resuming(directory: Path, path: Path, size: int) -> float:
    """Kill a run when 99% is done, and return the seconds from its next start to its first sample."""
    output, log = directory / f"killed{size}", directory / f"calls{size}"
    setting = ("--set", f"engine.call_log={log}")
    victim = subprocess.Popen(make_command(path, output, *setting), stdout=subprocess.DEVNULL)
    while count_lines(log) < 0.99 * size:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    log.unlink()
    started = time.perf_counter()
    resumed = subprocess.Popen(make_command(path, output, *setting), stdout=subprocess.DEVNULL)
    while count_lines(log) == 0:
        if resumed.poll() is not None:
            raise SystemExit("the run was over before it was killed: take more samples")
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    resumed.wait()
    return seconds


def count_lines(log: Path) -> float:
    """Estimate the lines of a call log from its size: exact enough for a share of many."""
    if not log.exists():
        return 0
    size, lines, width = log.stat().st_size, 0.0, 1
    while size > 0:
        fitting = min(size / (width + 1), 9 * 10 ** (width - 1) + (width == 1))
        lines, size, width = lines + fitting, size - int(fitting * (width + 1)), width + 1
    return lines


def profile_run(directory: Path, path: Path) -> None:
    from synthia_batch import Job, run_job

    engine = {"kind": "scripted"}
    job = Job(
        input={"path": path},
        engine=engine,
        pool={"kind": "local"},
        system="none",
        output=directory / "profiled",
    )
    profile = cProfile.Profile()
    profile.runcall(run_job, job)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
