"""A journal cut and flipped at its bytes, and what the next run makes of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    SmallJob,
    WarmProcess,
    exhaustively,
    list_journaled,
    open_small_job,
    replace_tree,
)

from synthia_batch.core.types import Shard
from synthia_batch.job import plan
from synthia_batch.results.verify.repair import repair_run
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.layout import RunDir

INTEGRITY = 4
ROWS = 4
"""Few, so that there is time for every byte; tests/storage/test_journal.py flips every bit."""
FAIL_EVERY = 3
SHARD = Shard(number=1, count=2, first_row=2, stop_row=4, first=2, stop=4)
PUBLISHED = {0, 1}
"""The samples of the first shard."""
STRIDES = [7, exhaustively(1, "a journal cut and flipped at every byte, not at every seventh")]
HEAD_BYTES = 14
"""CRC and length of a frame, and the first byte of its text."""


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallJob]:
    """A run that was killed just before its second shard was published."""
    with open_small_job(warm, tmp_path, rows=ROWS, fail_every=FAIL_EVERY) as job:
        shutil.rmtree(job.run_directory)
        log = job.directory / "syncs"
        # The first shard asks the ledger once, its opening once: the third time is the second shard's.
        third = {"name": "fdatasync", "code": 5, "log": str(log), "path": "intents.wal", "first": 3}
        ended = job.run(fail=third)
        assert ended.code == 74, ended.stderr
        shutil.copytree(job.run_directory, job.directory / "killed")
        # A repair in this process has to know the same plan.
        monkeypatch.setattr(plan, "ROWS_STEP", ROWS // 2)
        yield job


def restore(job: SmallJob, journal: bytes) -> Path:
    replace_tree(job.directory / "killed", job.run_directory)
    path = journal_of(job)
    path.write_bytes(journal)
    return path


def journal_of(job: SmallJob) -> Path:
    return RunDir(job.run_directory).journal(SHARD)


def list_frame_bounds(job: SmallJob) -> list[tuple[int, int]]:
    with journal_of(job).open("rb") as file:
        return [(frame.offset, frame.stop) for frame in scan_frames(file)]


def list_positions(job: SmallJob, stride: int, stop: int) -> list[int]:
    """Return every `stride`-th byte up to `stop`, and all where a frame ends and the next has its head."""
    inside = {
        at
        for start, end in list_frame_bounds(job)
        for at in (*range(start, start + HEAD_BYTES), end - 2, end - 1)
    }
    return sorted(at for at in {*range(0, stop, stride), *inside} if at < stop)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_journal_cut_at_any_byte_is_made_again_from_there(job: SmallJob, stride: int) -> None:
    whole = journal_of(job).read_bytes()
    unpublished = list_journaled(journal_of(job))
    assert unpublished == {2, 3}
    lengths = [*list_positions(job, stride, len(whole)), len(whole)]
    for length in lengths:
        kept = list_journaled(restore(job, whole[:length]))
        job.check_resumed(ended_before=PUBLISHED | kept, context=length)
        assert sorted(job.made()) == sorted(unpublished - kept), length
    print(f"{len(lengths)} cuts")


@pytest.mark.parametrize("stride", STRIDES)
def test_a_flip_at_any_byte_is_refused_with_its_offset_and_repaired(job: SmallJob, stride: int) -> None:
    whole = journal_of(job).read_bytes()
    *bounds, (last, _) = list_frame_bounds(job)
    positions = list_positions(job, stride, last - 1)
    for position in positions:
        path = restore(job, flip(whole, position))
        before = path.read_bytes()
        refused = job.run()
        offset = next(start for start, stop in bounds if start <= position < stop)
        assert refused.code == INTEGRITY, (position, refused.stderr)
        assert f"byte {offset}: " in refused.stderr, (position, refused.stderr)
        assert "--repair" in refused.stderr
        assert path.read_bytes() == before
        assert not job.made()
        repaired = repair_run(job.run_directory, lambda done, total: None)
        assert not repaired.remaining
        dropped = [line for line in repaired.done if "bytes dropped" in line]
        assert f"byte {offset}: " in dropped[0], (position, dropped)
        assert len(dropped) <= 2  # a newline that was flipped takes two frames with it
        job.check_resumed(ended_before=PUBLISHED | list_journaled(path), context=position)
    print(f"{len(positions)} flips")


def test_a_flip_at_every_byte_of_the_last_frame_is_a_torn_tail(job: SmallJob) -> None:
    whole = journal_of(job).read_bytes()
    last, stop = list_frame_bounds(job)[-1]
    # From the newline before it on: without that the last two frames are one.
    for position in range(last - 1, stop):
        kept = list_journaled(restore(job, flip(whole, position)))
        job.check_resumed(ended_before=PUBLISHED | kept, context=position)
        assert len(job.made()) == 2 - len(kept) == (1 if position >= last else 2)
    print(f"{stop - last + 1} flips")


def flip(content: bytes, position: int) -> bytes:
    flipped = bytearray(content)
    flipped[position] ^= 1 << position % 8
    return bytes(flipped)
