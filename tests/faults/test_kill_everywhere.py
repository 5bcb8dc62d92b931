"""A run killed with SIGKILL at every change to its directory, and again at every one of its recovery."""

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import (
    SmallJob,
    WarmProcess,
    digest_state,
    exhaustively,
    open_small_job,
    read_ended,
    replace_tree,
)

KILLED = -9
ALL = 10**9
PAIRS = [(15, 10), exhaustively((ALL, ALL), "after every kill, every kill in its recovery")]
"""From how many different directories the recovery is killed, and how often each."""
Point = tuple[int, str]
"""Which change to the directory, counted from 1, and whether before it or half-way through."""


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


@pytest.mark.parametrize("limits", PAIRS, ids=["some", "all"])
def test_killed_again_inside_the_recovery(job: SmallJob, limits: tuple[int, int]) -> None:
    """Kill, kill the recovery, and go on.

    Many kills leave the same directory: an fsync changes no byte of it. What a run makes of a directory
    depends on nothing else, so of equal ones, as `digest_state` tells them, one is gone on from: of
    first kills, whose recoveries are equal kill for kill, and of second ones, which end alike. What
    may differ in the repetition is only how samples fall into appends, as between any two runs.
    """
    first_limit, second_limit = limits
    draw = random.Random(20261121)
    again = Again(job, job.directory / "killed-once")
    firsts = set()
    start_afresh(job)
    points = list_kills(list_changes(job))
    for first in draw.sample(points, len(points)):
        if len(firsts) == first_limit:
            break
        start_afresh(job)
        state = digest_state(job.run_directory) if kill(job, *first) else None
        if state is None or state in firsts:
            continue
        firsts.add(state)
        again.kill_recovery(first, draw, second_limit)
    print(
        f"first kills left {len(firsts)} different directories; {again.kills} kills in their recoveries "
        f"left {len(again.seen)}, each of them gone on from"
    )
    assert again.kills > 100


@dataclass(slots=True)
class Again:
    """Second kills of a job, and the directories that they left: those `seen` were gone on from."""

    job: SmallJob
    kept: Path
    kills: int = 0
    seen: set[str] = field(default_factory=set)

    def kill_recovery(self, first: Point, draw: random.Random, limit: int) -> None:
        """Kill the recovery from what is in the run directory at `limit` points of it, or at all."""
        replace_tree(self.job.run_directory, self.kept)
        ended_first = read_ended(self.kept)
        points = list_kills(list_changes(self.job))
        for second in sorted(draw.sample(points, min(limit, len(points)))):
            replace_tree(self.kept, self.job.run_directory)
            if not kill(self.job, *second):
                continue
            self.kills += 1
            assert not set(self.job.made()) & ended_first, (first, second)
            ended = read_ended(self.job.run_directory)
            assert ended >= ended_first, (first, second)
            self.go_on(ended, (first, second))

    def go_on(self, ended: set[int], context: object) -> None:
        """Run to the end, unless that was done from the same bytes before."""
        state = digest_state(self.job.run_directory)
        if state not in self.seen:
            self.seen.add(state)
            self.job.check_resumed(ended_before=ended, context=context)


def list_changes(job: SmallJob) -> list[str]:
    """Run to the end and return the names of the system calls that changed the directory."""
    log = job.directory / "changes"
    log.unlink(missing_ok=True)
    ended = job.run(list={"log": str(log)})
    assert ended.code == 0, ended.stderr
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def list_kills(changes: Sequence[str]) -> list[Point]:
    """Return the ways to die in a run that makes these calls: before each, and half-way through writes."""
    return [
        (at, when)
        for at, name in enumerate(changes, start=1)
        for when in ("before", "half")
        if when == "before" or name == "write"
    ]
