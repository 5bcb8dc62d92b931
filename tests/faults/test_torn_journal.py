"""A journal cut at every byte and flipped at every byte, and what the next run makes of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    EXHAUSTIVE,
    SHARD_ROWS,
    SmallJob,
    WarmProcess,
    list_journaled,
    make_fast_directory,
    start_warm_process,
)

from synthia_batch.rows import Shard
from synthia_batch.store.attempt import Attempt
from synthia_batch.store.frames import scan_frames
from synthia_batch.store.journal import repair_journal
from synthia_batch.store.lock import read_owner
from synthia_batch.store.plan_file import plan_digest, read_plan
from synthia_batch.store.run_dir import RunDir

INTEGRITY = 4
STRIDE = 1 if EXHAUSTIVE else 29
"""`make test` takes every 29th byte, `make test-long` all; tests/test_store_journal.py flips every bit."""
SHARD = Shard(number=1, count=2, first_row=SHARD_ROWS, stop_row=12, first=SHARD_ROWS, stop=12)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    with start_warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path) -> Iterator[SmallJob]:
    """A run that was killed just before its second shard was published."""
    directory = make_fast_directory(tmp_path)
    job = SmallJob(warm, directory)
    job.run_undisturbed()
    shutil.rmtree(job.run_directory)
    log = directory / "syncs"
    # The first shard asks the ledger once, its opening once: the third time is the second shard's.
    ended = job.run(fail={"name": "fdatasync", "code": 5, "log": str(log), "path": "intents.wal", "first": 3})
    assert ended.code == 74, ended.stderr
    shutil.copytree(job.run_directory, directory / "killed")
    yield job
    shutil.rmtree(directory)


def restore(job: SmallJob, journal: bytes) -> Path:
    shutil.rmtree(job.run_directory)
    shutil.copytree(job.directory / "killed", job.run_directory)
    path = journal_of(job)
    path.write_bytes(journal)
    return path


def journal_of(job: SmallJob) -> Path:
    return RunDir(job.run_directory).journal(SHARD)


def test_a_journal_cut_at_any_byte_is_made_again_from_there(job: SmallJob) -> None:
    whole = journal_of(job).read_bytes()
    assert list_journaled(journal_of(job)) == set(range(6, 12))
    for length in range(0, len(whole) + 1, STRIDE):
        kept = list_journaled(restore(job, whole[:length]))
        job.check_resumed(ended_before={*range(6), *kept}, context=length)
        assert sorted(job.made()) == sorted(set(range(6, 12)) - kept), length
    print(f"{len(range(0, len(whole) + 1, STRIDE))} of {len(whole) + 1} cuts")


def test_a_flip_at_any_byte_is_refused_with_its_offset_and_repaired(job: SmallJob) -> None:
    whole = journal_of(job).read_bytes()
    with journal_of(job).open("rb") as file:
        frames = list(scan_frames(file))
    run_dir = RunDir(job.run_directory)
    plan = read_plan(run_dir.plan)
    owner = read_owner(run_dir.owner)
    assert plan is not None
    assert owner is not None
    attempt = Attempt(plan_digest=plan_digest(plan), epoch=owner.epoch + 1, boot="boot")
    for position in range(0, frames[-1].offset, STRIDE):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path = restore(job, bytes(flipped))
        before = path.read_bytes()
        refused = job.run()
        offset = next(frame.offset for frame in frames if frame.offset <= position < frame.stop)
        assert refused.code == INTEGRITY, (position, refused.stderr)
        assert f"byte {offset}: " in refused.stderr, (position, refused.stderr)
        assert "--repair" in refused.stderr
        assert path.read_bytes() == before
        assert not job.made()
        # What `verify --repair` calls.
        (damage, *others) = repair_journal(path, SHARD, attempt)
        assert damage.offset == offset
        assert len(others) <= 1  # a newline that was flipped takes two frames with it
        kept = list_journaled(path)
        job.check_resumed(ended_before={*range(6), *kept}, context=position)
    print(f"{len(range(0, frames[-1].offset, STRIDE))} flips")


def test_a_flip_in_the_last_frame_is_a_torn_tail(job: SmallJob) -> None:
    whole = bytearray(journal_of(job).read_bytes())
    whole[-5] ^= 1
    kept = list_journaled(restore(job, bytes(whole)))
    job.check_resumed(ended_before={*range(6), *kept})
    assert len(job.made()) == 6 - len(kept)
