"""A run killed with SIGKILL at every change to its directory, and again at every one of its recovery."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    SmallJob,
    WarmProcess,
    exhaustively,
    open_small_job,
    read_ended,
    replace_tree,
    start_warm_process,
)

KILLED = -9
ALL = 10**9
PAIRS = [(15, 10), exhaustively((ALL, 32), "after every kill, 32 of those in its recovery")]
"""How many first kills, and how many second ones of each."""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    with start_warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path) -> Iterator[SmallJob]:
    with open_small_job(warm, tmp_path) as job:
        yield job


def kill(job: SmallJob, at: int, when: str) -> bool:
    """Run until the change number `at`; return whether the run lived to see it."""
    ended = job.run(kill={"at": at, "when": when})
    assert ended.code in (0, KILLED), ended.stderr
    return ended.code == KILLED


def start_afresh(job: SmallJob) -> None:
    shutil.rmtree(job.run_directory, ignore_errors=True)


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_killed_at_every_change_the_next_run_ends_in_the_same_bytes(job: SmallJob, when: str) -> None:
    start_afresh(job)
    changes = list_changes(job)
    assert len(changes) > 80, "a run of two shards changes its directory more often than that"
    kills = 0
    for at, name in enumerate(changes, start=1):
        if when == "half" and name != "write":
            continue
        start_afresh(job)
        # Some calls fail on purpose, as mkdir of what is there: those have no "after".
        if kill(job, at, when):
            kills += 1
            job.check_resumed(ended_before=read_ended(job.run_directory), context=(when, at, name))
    print(f"{kills} kills, {when} the call")
    assert kills > (20 if when == "half" else len(changes) - 10)


@pytest.mark.parametrize("pairs", PAIRS, ids=["some", "many"])
def test_killed_again_inside_the_recovery(job: SmallJob, pairs: tuple[int, int]) -> None:
    first_kills, second_kills = pairs
    draw = random.Random(20261121)
    kept = job.directory / "killed-once"
    kills = 0
    start_afresh(job)
    for first in choose(draw, len(list_changes(job)), first_kills):
        start_afresh(job)
        kill(job, first, "before")
        replace_tree(job.run_directory, kept)
        ended_first = read_ended(kept)
        for second in choose(draw, len(list_changes(job)), second_kills):
            replace_tree(kept, job.run_directory)
            if not kill(job, second, draw.choice(["before", "half"])):
                continue
            kills += 1
            assert not set(job.made()) & ended_first, (first, second)
            ended = read_ended(job.run_directory)
            assert ended >= ended_first, (first, second)
            job.check_resumed(ended_before=ended, context=(first, second))
    print(f"{kills} pairs of kills")
    assert kills > 100


def list_changes(job: SmallJob) -> list[str]:
    """Run to the end and return the names of the system calls that changed the directory."""
    log = job.directory / "changes"
    log.unlink(missing_ok=True)
    ended = job.run(list={"log": str(log)})
    assert ended.code == 0, ended.stderr
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def choose(draw: random.Random, count: int, limit: int) -> list[int]:
    """Return `limit` of the numbers 1 to `count`, or all."""
    return sorted(draw.sample(range(1, count + 1), min(limit, count)))
