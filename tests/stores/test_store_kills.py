"""A run with its output in a store, killed at every request that it sends, before and after it lands."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import read_bytes_of_data
from harness import Ended, WarmProcess, open_fast_directory, read_ended, start_warm_process
from s3 import S3, Fault, Seen, StoreJob, read_lease, serve_s3

KILLED = -9
LEASE = {"store.lease": "1s"}
LEAST_REQUESTS = 15
"""Of a run, however quick."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def warm(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        with start_warm_process(tmp_path_factory.mktemp("warm")) as process:
            yield process


@pytest.fixture
def job(s3: S3, warm: WarmProcess, tmp_path: Path) -> Iterator[StoreJob]:
    """The small job that ran undisturbed, with the store emptied after it."""
    s3.empty()
    with open_fast_directory(tmp_path) as directory:
        job = StoreJob(warm, directory)
        job.run_undisturbed()
        assert s3.read_dataset() == job.expected
        yield job
        s3.empty()


def start_afresh(s3: S3, job: StoreJob) -> None:
    s3.empty()
    shutil.rmtree(job.run_directory, ignore_errors=True)


def count_requests(s3: S3, job: StoreJob) -> int:
    start_afresh(s3, job)
    assert job.run().code == 0
    return len(s3.proxy.seen)


def kill_at(s3: S3, job: StoreJob, number: int, *, landed: bool) -> set[int] | None:
    """Have the run killed at its request `number`; return the samples that had ended.

    None: it had fewer requests. A slow machine renews a short lease more often in one run than in the next.
    """

    def hits(seen: Seen) -> bool:
        return seen.number == number

    # Where the request has landed, the process is gone before it could hear the answer.
    fault = Fault(hits, after="reset", call_after=job.kill)
    s3.proxy.faults.append(fault if landed else Fault(hits, before="reset", call=job.kill))
    ended = job.run()
    if ended.code == 0 and number > LEAST_REQUESTS:
        return None
    assert ended.code == KILLED, (number, ended.stderr)
    return read_ended(job.run_directory)


@pytest.mark.long
@pytest.mark.parametrize("landed", [False, True], ids=["before it lands", "after it landed"])
def test_a_run_killed_at_any_request_goes_on_from_its_state_directory(
    s3: S3, job: StoreJob, landed: bool
) -> None:
    requests = count_requests(s3, job)
    assert requests > LEAST_REQUESTS
    for number in range(1, requests + 1):
        start_afresh(s3, job)
        ended_before = kill_at(s3, job, number, landed=landed)
        if ended_before is None:
            break
        assert "manifest.json" not in s3.list() or s3.read_dataset() == job.expected, number
        job.check_resumed(ended_before=ended_before, context=number)
        assert s3.read_dataset() == job.expected, number


@pytest.mark.long
def test_a_run_killed_at_any_request_is_adopted_where_its_state_directory_is_lost(
    s3: S3, job: StoreJob
) -> None:
    job.settings |= LEASE
    for number in range(1, count_requests(s3, job) + 1):
        start_afresh(s3, job)
        if kill_at(s3, job, number, landed=True) is None:
            break
        there = {key for key in s3.list() if key.endswith(".parquet")}
        shutil.rmtree(job.run_directory)
        wait_for_lease(s3)
        ended = job.run()
        assert ended.code == 0, (number, ended.stderr)
        assert s3.read_dataset() == job.expected == read_bytes_of_data(job.run_directory), number
        # A shard whose parts were both there is not made again.
        whole = [shard for shard in (0, 1) if sum(f"-{shard:05d}-of-" in key for key in there) == 2]
        again = {ordinal // 6 for ordinal in job.made()}
        assert not again & set(whole), (number, there, again)


def wait_for_lease(s3: S3) -> None:
    """Return once the dead owner's lease has ended."""
    while ".synthia/lease.json" in s3.list() and read_lease(s3)["ends_at"] > time.time():
        time.sleep(0.05)


@pytest.mark.long
def test_a_retry_killed_at_any_request_ends_in_the_same_objects(s3: S3, job: StoreJob) -> None:
    mended = job.directory / "mended"
    job.settings |= {"engine.fail_while_missing": mended}
    complete(s3, job, mended)
    before = s3.read_dataset()
    assert [key for key in before if key.startswith("failed/")]
    assert retry(job).code == 0
    after, requests = s3.read_dataset(), len(s3.proxy.seen)
    assert after == read_bytes_of_data(job.run_directory)
    assert not [key for key in after if key.startswith("failed/")]
    for number in range(1, requests + 1):
        complete(s3, job, mended)
        s3.proxy.faults.append(
            Fault(lambda seen, at=number: seen.number == at, before="reset", call=job.kill)
        )
        assert retry(job).code == KILLED, number
        # Where there is a manifest, there is all that it claims.
        assert "manifest.json" not in s3.list() or s3.read_dataset() in (before, after), number
        ended = retry(job)
        assert ended.code == 0, (number, ended.stderr)
        assert s3.read_dataset() == after, number


def complete(s3: S3, job: StoreJob, mended: Path) -> None:
    """Have a complete run with failed samples, whose retry would succeed, and no request seen since."""
    mended.unlink(missing_ok=True)
    start_afresh(s3, job)
    ended = job.run()
    assert ended.code == 0, ended.stderr
    mended.touch()
    s3.proxy.reset()


def retry(job: StoreJob) -> Ended:
    return job.warm.run(job.directory, "retry", job.state, "--trust", "-q", patch=job.patch)
