"""Thirty SIGKILLs under the Ray pool, of drivers and of workers, at random moments."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from harness import exhaustively, read_ended

ROWS = 1500
WORKERS = (1, 2, 1, 2)
"""Of each attempt that is killed; the one that may end has one again."""
WORKER_KILLS = (6, 7, 6, 7)
"""In each of those attempts: with the drivers' own, 30."""
IN_FLIGHT = 2 * 2 * 4
"""Samples that two workers hold at most: what one kill may have made for nothing."""
SEEDS = [0, *(exhaustively(seed, "thirty other random kills") for seed in (1, 2, 3))]
GONE_SECONDS = 20.0


def list_descendants(pid: int) -> dict[int, str]:
    """Return the processes below `pid`, by pid, with their titles."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)], titles[int(entry.name)] = int(fields[1]), title
    below, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in below} - below
        below |= more
        grown = bool(more)
    return {child: titles[child] for child in below - {pid}}


def find_actors(pid: int) -> list[int]:
    return [child for child, title in list_descendants(pid).items() if title.startswith("ray::EngineActor")]


def wait_until_gone(pids: Sequence[int]) -> list[int]:
    """Wait until none of `pids` runs; return those that still do after a while."""
    until = time.monotonic() + GONE_SECONDS
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])


def flags(log: Path, workers: int) -> tuple[str, ...]:
    settings = {"latency_ms": 60, "max_num_seqs": 4, "call_log": log, "fail_every": 50}
    return (
        *("run", "q.jsonl", "--engine", "scripted", "--pool", "ray", "-q", "--workers", str(workers)),
        *(flag for name, value in settings.items() for flag in ("--set", f"engine.{name}={value}")),
        *("-o", "killed"),
    )


def wait_for_samples(log: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until `count` more samples are made."""
    wanted = len(read_call_log(log)) + count
    until = time.monotonic() + 60
    while len(read_call_log(log)) < wanted:
        assert driver.poll() is None, "the run ended before it could be killed: take more rows"
        assert time.monotonic() < until, "no sample for a minute"
        time.sleep(0.02)


def kill_attempt(tmp_path: Path, log: Path, workers: int, worker_kills: int, draw: random.Random) -> int:
    """Run, kill workers, then the driver; return the number of kills."""
    kills = 0
    with (tmp_path / "stderr").open("ab") as errors:
        driver = subprocess.Popen(
            command_of(*flags(log, workers)),
            cwd=tmp_path,
            env=make_environment(),
            stdout=errors,
            stderr=errors,
        )
    below: dict[int, str] = {}
    try:
        for _ in range(worker_kills):
            # So that a worker that is up has finished something: deaths in a row end a worker's career.
            wait_for_samples(log, draw.randint(1, 30), driver)
            if actors := find_actors(driver.pid):
                os.kill(draw.choice(actors), signal.SIGKILL)
                kills += 1
        wait_for_samples(log, draw.randint(1, 30), driver)
    finally:
        below = list_descendants(driver.pid)
        driver.kill()
        driver.wait()
    left = wait_until_gone(list(below))
    assert not left, f"these outlive their driver: {[below[pid] for pid in left]}"
    return kills + 1


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_thirty_kills_lose_nothing_and_leave_the_same_bytes(
    synthia: Command, tmp_path: Path, source: Path, seed: int
) -> None:
    draw = random.Random(seed)
    local = [word if word != "ray" else "local" for word in flags(tmp_path / "undisturbed", 1)]
    quick = [*local[:-1], "whole", "--set", "engine.latency_ms=0", "--set", "engine.max_num_seqs=64"]
    whole = synthia(*quick)
    assert whole.returncode == 0, whole.stderr
    kills = 0
    before: set[int] = set()
    made: Counter[int] = Counter()
    for number, (workers, worker_kills) in enumerate(zip(WORKERS, WORKER_KILLS, strict=True)):
        log = tmp_path / f"calls-{number}"
        kills += kill_attempt(tmp_path, log, workers, worker_kills, draw)
        calls = read_call_log(log)
        assert not set(calls) & before, "a finished sample was made again"
        made.update(calls)
        ended = read_ended(tmp_path / "killed")
        assert ended >= before, "a finished sample was lost"
        before = ended
    log = tmp_path / "calls-last"
    last = synthia(*flags(log, 1), "--set", "engine.latency_ms=0", timeout=200)
    assert last.returncode == 0, last.stderr
    assert not set(read_call_log(log)) & before
    made.update(read_call_log(log))
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "whole")
    assert set(made) == set(range(ROWS))
    again = made.total() - ROWS
    print(f"{kills} kills; {again} samples were in flight in them and made again")
    assert kills == 30
    assert again <= kills * IN_FLIGHT
