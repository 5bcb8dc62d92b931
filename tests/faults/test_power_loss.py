"""Power loss at every moment of a run, on a disk that loses any part of what was not synced."""

import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import read_bytes_of_data
from disk import KEPT, LOST, TORN, Choose, Disk, Step, read_steps, replay
from harness import (
    SmallJob,
    WarmProcess,
    exhaustively,
    list_journaled,
    open_small_job,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LOSSES = [150, exhaustively(3000, "3,000 power losses at random")]
DOUBLE_LOSSES = [50, exhaustively(600, "600 power losses in the recovery from another")]
FATES: dict[str, Choose] = {
    "nothing": lambda count: LOST,
    "everything": lambda count: KEPT,
    # Of two fates a directory has, of three a file.
    "names without content": lambda count: KEPT if count == 2 else LOST,
    "content without names": lambda count: LOST if count == 2 else KEPT,
    "names and zeros": lambda count: KEPT if count == 2 else TORN if count == 3 else count - 1,
}


@dataclass(slots=True, repr=False)
class Recorded:
    """A run that was watched: what it did to the disk, and where."""

    job: SmallJob
    steps: list[Step]
    seen: set[str]
    boots: int = 0

    def check(self, steps: Sequence[Step], choose: Choose, context: object) -> bool:
        """Lose the power after `steps`, look at what is left, and go on from it."""
        self.restore(steps, choose)
        state = digest_tree(self.job.run_directory)
        if state in self.seen:
            return False
        self.seen.add(state)
        check_visible(self.job, context)
        self.resume(list_promised(self.job.run_directory, steps), context)
        return True

    def restore(self, steps: Sequence[Step], choose: Choose) -> None:
        """Put what power loss after `steps` leaves into the run directory."""
        shutil.rmtree(self.job.run_directory, ignore_errors=True)
        replay(self.job.run_directory, steps).lose_power(choose, self.job.run_directory)

    def resume(self, promised: set[int], context: object) -> None:
        self.boots += 1
        self.job.check_resumed(ended_before=promised, context=context, boot=f"boot {self.boots}")

    def record_resumption(self, log: Path) -> list[Step]:
        """Resume and return what that did, as the continuation of what is on the disk."""
        self.boots += 1
        root = str(self.job.run_directory)
        ended = self.job.run(boot=f"boot {self.boots}", record={"log": str(log), "root": root})
        assert ended.code == 0, ended.stderr
        return read_steps(log)


@pytest.fixture(scope="module")
def recorded(warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    temporary = tmp_path_factory.mktemp("power")
    with open_small_job(warm, temporary) as job:
        shutil.rmtree(job.run_directory)
        recorded = Recorded(job=job, steps=[], seen=set())
        recorded.steps = recorded.record_resumption(job.directory / "steps")
        yield recorded


def check_visible(job: SmallJob, context: object) -> None:
    """Whatever has a reader's name is whole, and a manifest comes with all that it names."""
    visible = read_bytes_of_data(job.run_directory)
    parts = {name: content for name, content in visible.items() if not Path(name).name.startswith(".")}
    for name, content in parts.items():
        assert content == job.expected[name], (context, name, "is torn")
    if "manifest.json" in parts:
        assert parts.keys() == job.expected.keys(), (context, "a manifest without its parts")


def list_promised(root: Path, steps: Sequence[Step]) -> set[int]:
    """The samples that were in a journal when it was synced, at any moment of `steps`.

    Not those of a journal that was only found there: behind what a first power loss damaged, frames
    may be whole that nobody ever synced, and they may be made again.
    """
    promised: set[int] = set()
    disk = Disk(str(root))
    scratch = root.parent / "synced.wal"
    for step in steps:
        disk.apply(step)
        content = disk.read_synced_journal(step["file"]) if step["op"] == "sync" else None
        if content is not None:
            scratch.write_bytes(content)
            promised |= list_journaled(scratch)
    return promised


def digest_tree(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(f"{path.relative_to(root)}\0{path.is_dir()}\0".encode())
        if path.is_file():
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_record_of_a_run_gives_its_directory(recorded: Recorded) -> None:
    shutil.rmtree(recorded.job.run_directory, ignore_errors=True)
    steps = recorded.record_resumption(recorded.job.directory / "steps")
    before = digest_tree(recorded.job.run_directory)
    recorded.restore(steps, FATES["everything"])
    assert digest_tree(recorded.job.run_directory) == before
    assert len(list_promised(recorded.job.run_directory, steps)) == 12


@pytest.mark.parametrize("fate", FATES)
def test_power_loss_after_every_step(recorded: Recorded, fate: str) -> None:
    states = sum(
        recorded.check(recorded.steps[:stop], FATES[fate], (fate, stop))
        for stop in range(len(recorded.steps) + 1)
    )
    print(f"{states} different disks with {fate} of the unsynced")


@pytest.mark.parametrize("losses", LOSSES)
def test_power_loss_that_keeps_any_part_of_the_unsynced(recorded: Recorded, losses: int) -> None:
    @settings(
        max_examples=losses,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(data=st.data())
    def lose_power(data: st.DataObject) -> None:
        stop = data.draw(st.integers(0, len(recorded.steps)), label="steps")
        recorded.check(recorded.steps[:stop], lambda count: data.draw(st.integers(0, count - 1)), stop)

    before = len(recorded.seen)
    lose_power()
    print(f"{losses} power losses, {len(recorded.seen) - before} disks not seen before")


@pytest.mark.parametrize("losses", DOUBLE_LOSSES)
def test_power_loss_again_while_recovering_from_one(recorded: Recorded, losses: int) -> None:
    # Not by hypothesis: a recovery, whose samples come in batches, is not the same step by step.
    for seed in range(losses):
        draw = random.Random(seed)
        first = draw.randint(0, len(recorded.steps))
        recorded.restore(recorded.steps[:first], draw.randrange)
        promised = list_promised(recorded.job.run_directory, recorded.steps[:first])
        recovery = recorded.record_resumption(recorded.job.directory / "recovery")
        assert not set(recorded.job.made()) & promised, (seed, first)
        known = sum(step["op"].startswith("have") for step in recovery)
        second = draw.randint(known, len(recovery))
        recorded.restore(recovery[:second], draw.randrange)
        check_visible(recorded.job, (seed, first, second))
        promised |= list_promised(recorded.job.run_directory, recovery[:second])
        recorded.resume(promised, (seed, first, second))
