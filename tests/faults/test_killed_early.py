"""Previews and probes killed at every change to the run's directory: the run goes on from what they made."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Ended,
    SmallJob,
    WarmProcess,
    exhaustively,
    open_fast_directory,
    read_ended,
)

KILLED = -9
PREVIEW = ("preview", "-n", "4", "--answers", "-q")
PROBE = ("plan", "--probe", "7")
EVERYTHING = ("plan", "--probe", "100")
"""It publishes the shards and completes the run, too."""
COMMANDS = [PREVIEW, PROBE, exhaustively(EVERYTHING, "kills in a probe that completes the run")]


class EarlyJob(SmallJob):
    """The small job, of which commands other than run make samples first."""

    def begin(self, command: tuple[str, ...], **faults: Any) -> Ended:
        """Make one attempt with `command`, with a call log of its own."""
        self.call_log.unlink(missing_ok=True)
        self.attempts += 1
        name, *flags = command
        shared = [argument for argument in self.arguments[1:] if argument != "-q"]
        ended = self.warm.run(self.directory, name, *shared, *flags, patch=self.patch, **faults)
        assert ended.code in (0, KILLED), ended.stderr
        return ended

    def start_afresh(self) -> None:
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def list_changes(self, command: tuple[str, ...]) -> list[str]:
        """Return the names of the system calls with which `command` changes the directory."""
        log = self.directory / "changes"
        log.unlink(missing_ok=True)
        assert self.begin(command, list={"log": str(log)}).code == 0
        return [line.split()[0] for line in log.read_text().splitlines()]


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path) -> Iterator[EarlyJob]:
    with open_fast_directory(tmp_path) as directory:
        job = EarlyJob(warm, directory)
        job.run_undisturbed()
        job.start_afresh()
        yield job


@pytest.mark.parametrize("command", COMMANDS, ids=["preview", "probe", "everything"])
@pytest.mark.parametrize("when", ["before", "half"])
def test_killed_at_every_change_the_run_ends_in_the_same_bytes(
    job: EarlyJob, command: tuple[str, ...], when: str
) -> None:
    changes = job.list_changes(command)
    assert len(changes) > 30
    kills = some = 0
    for at, name in enumerate(changes, start=1):
        if when == "half" and name != "write":
            continue
        job.start_afresh()
        if job.begin(command, kill={"at": at, "when": when}).code == KILLED:
            kills += 1
            ended = read_ended(job.run_directory)
            some += len(ended) > 0
            job.check_resumed(ended_before=ended, context=(command, when, at, name))
    print(f"{kills} kills, {when} the call, {some} of them with samples made")
    assert kills > (10 if when == "half" else len(changes) - 10)
    # How many records one write takes along is a matter of time.
    assert 0 < some < kills


def test_one_killed_after_another_makes_nothing_twice(job: EarlyJob) -> None:
    draw = random.Random(20261121)
    last = {command: len(job.list_changes(command)) for command in (PREVIEW, PROBE)}
    kills = 0
    for _ in range(40):
        job.start_afresh()
        ended: set[int] = set()
        for command in draw.sample([PREVIEW, PREVIEW, PROBE, PROBE], 3):
            died = job.begin(command, kill={"at": draw.randint(10, last[command]), "when": "before"})
            kills += died.code == KILLED
            assert not set(job.made()) & ended, "made again"
            assert read_ended(job.run_directory) >= ended, "lost"
            ended = read_ended(job.run_directory)
        if draw.random() < 0.5:
            assert job.begin(PROBE).code == 0
            assert not set(job.made()) & ended
            ended = read_ended(job.run_directory)
            assert len(ended) >= 7
        job.check_resumed(ended_before=ended)
    print(f"{kills} kills")
    assert kills > 40
