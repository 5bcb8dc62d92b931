"""Full disks, failing fsyncs and short writes: a clear error, its exit code, and a run that goes on."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import open_small_disk, skip_input_lines
from harness import SmallJob, WarmProcess, open_small_job, read_ended, replace_tree

from synthia_batch.storage.journal.frames import scan_frames

STORAGE_FAILED = 74
TMPFS_KIB = 64


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path) -> Iterator[SmallJob]:
    with open_small_job(warm, tmp_path) as job:
        shutil.rmtree(job.run_directory)
        yield job


def check_failure(code: int, stderr: str, reason: str) -> None:
    assert code == STORAGE_FAILED, stderr
    assert "Traceback" not in stderr
    told = [line for line in skip_input_lines(stderr).splitlines() if not line.startswith("resuming ")]
    assert told[0].startswith("error: could not "), stderr
    assert reason in told[0], stderr
    assert "run the same command again" in stderr


FAILURES = [
    ("fsync", errno.EIO, "Input/output error"),
    ("fdatasync", errno.EIO, "Input/output error"),
    ("write", errno.ENOSPC, "No space left on device"),
    ("open", errno.EACCES, "Permission denied"),
    ("rename", errno.EROFS, "Read-only file system"),
    ("mkdir", errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize(("call", "code", "reason"), FAILURES)
def test_a_call_that_fails_anywhere_ends_the_run_and_loses_nothing(
    job: SmallJob, call: str, code: int, reason: str
) -> None:
    log = job.directory / "failed-calls"
    for first in range(1, 200):
        shutil.rmtree(job.run_directory, ignore_errors=True)
        log.unlink(missing_ok=True)
        ended = job.run(fail={"name": call, "code": code, "log": str(log), "first": first, "last": first})
        if not log.exists():
            break
        if "run.log" in log.read_text():  # A copy of what was said: no reason to end.
            assert ended.code == 0, ended.stderr
            continue
        check_failure(ended.code, ended.stderr, reason)
        job.check_resumed(ended_before=read_ended(job.run_directory), context=(call, first))
    print(f"{first - 1} times {call} failed with {reason}")
    assert first > 4


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_a_disk_that_fails_every_sync_from_some_moment_on_is_asked_once(job: SmallJob, call: str) -> None:
    log = job.directory / "failed-calls"
    for first in range(1, 200):
        shutil.rmtree(job.run_directory, ignore_errors=True)
        log.unlink(missing_ok=True)
        ended = job.run(fail={"name": call, "code": errno.EIO, "log": str(log), "first": first})
        if not log.exists():
            break
        check_failure(ended.code, ended.stderr, "Input/output error")
        assert "dmesg" in ended.stderr
        assert len(log.read_text().splitlines()) == 1, log.read_text()
    assert first > 4


def test_what_the_kernel_drops_after_a_failed_fsync_is_made_again_without_a_repair(job: SmallJob) -> None:
    log = job.directory / "failed-calls"
    lost = 0
    for first in range(1, 100):
        shutil.rmtree(job.run_directory, ignore_errors=True)
        log.unlink(missing_ok=True)
        fault = {"name": "fdatasync", "code": errno.EIO, "log": str(log), "path": ".wal", "first": first}
        ended = job.run(fail=fault)
        if not log.exists():
            break
        check_failure(ended.code, ended.stderr, "Input/output error")
        path = Path(log.read_text().split()[1])
        replace_tree(job.run_directory, job.directory / "failed")
        for start, stop in list_doubted(path):
            replace_tree(job.directory / "failed", job.run_directory)
            content = path.read_bytes()
            path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
            # What was never on the disk is no finished sample, nor what lies behind it.
            finished = read_ended(job.run_directory) - list_outcomes(path, start)
            job.check_resumed(ended_before=finished, context=(first, start))
            lost += 1
    print(f"{lost} times a page was lost to a failed fdatasync")
    assert lost > 10


def list_doubted(path: Path) -> list[tuple[int, int]]:
    """The frames that a writer failed to sync, but for the last one, with which it says so."""
    with path.open("rb") as file:
        *frames, _, word = scan_frames(file)
    assert word.value is not None
    return [(frame.offset, frame.stop) for frame in frames if frame.offset >= word.value["unsynced"]]


def list_outcomes(path: Path, start: int) -> set[int]:
    """The samples in a journal from byte `start` on; none for the ledger, which has no such frames."""
    with path.open("rb") as file:
        values = [frame.value for frame in scan_frames(file) if frame.offset >= start and frame.value]
    return {
        value[kind]
        for value in values
        for kind in ("finished", "failed")
        if "shard" not in value and kind in value
    }


@pytest.mark.parametrize("taken", [1, 7, -1])
def test_short_writes_are_continued(job: SmallJob, taken: int) -> None:
    job.check_resumed(ended_before=set(), shorten={"taken": taken})


@pytest.mark.parametrize("kib", [TMPFS_KIB, 128, 1024])
def test_a_disk_that_is_really_full_ends_the_run_and_more_room_mends_it(
    warm: WarmProcess, tmp_path: Path, kib: int
) -> None:
    room = tmp_path / "small-disk"
    with open_small_disk(room, kib):
        job = SmallJob(warm, tmp_path / "job")
        job.run_undisturbed()
        shutil.rmtree(job.run_directory)
        (room / "out").mkdir()
        job.run_directory.symlink_to(room / "out")
        ballast = room / "ballast"
        refused = 0
        # From a full disk on, a little more room each time, until the run gets through.
        for free_kib in range(0, kib + 1, 4):
            fill(room, ballast, free_kib)
            ended = job.run()
            if ended.code == 0:
                break
            check_failure(ended.code, ended.stderr, "No space left on device")
            refused += 1
        ballast.unlink(missing_ok=True)
        job.check_resumed(ended_before=read_ended(job.run_directory))
        print(f"refused {refused} times")
        assert refused >= 5


def fill(room: Path, ballast: Path, free_kib: int) -> None:
    """Leave `free_kib` on the disk."""
    ballast.unlink(missing_ok=True)
    usage = shutil.disk_usage(room)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, usage.free - free_kib * 1024)))
