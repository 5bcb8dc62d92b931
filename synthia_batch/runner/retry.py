"""retry_failed(): the failed samples of a run made again, with settings that are not its identity."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from synthia_batch.core.console import Display
from synthia_batch.errors import StorageFailed
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.reopen import FailureChoice, close_again, read_ending
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.runner.directory.session import (
    LockedRun,
    begin_attempt,
    complete_mirror,
    inspect_run,
    lock_run,
)
from synthia_batch.runner.generate import RunContext, start_pool
from synthia_batch.runner.monitoring.lifecycle import follow_run, open_drain
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resume import resolve_kept_job, resolve_remote_job
from synthia_batch.runner.run import make_missing, note_command, report_on
from synthia_batch.storage.manifest import read_manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryResult:
    """What a retry came to: `chosen` samples were to be made again.

    `run` is what the run came to with them, None where there were none in a complete run and nothing
    was touched.
    """

    directory: Path
    chosen: int
    run: RunResult | None


def retry_failed(
    place: Path | str, choice: FailureChoice, said: Sequence[Layer], display: Display
) -> RetryResult:
    """Make the failed samples that `choice` takes again, and publish their parts anew.

    `place` is the run's directory, or the URL of its output in a store.

    `said` goes before the job as it was run. A run that is not complete is completed as well. A
    complete one stays complete, as it was, where no sample comes to its end: where the engines do not
    load, or answer the canary prompts otherwise.

    Raises:
        UsageError: `place` is no run, or keeps no job.
        IdentityMismatch: `said`, or the input or model as it is now, makes it another job.
        SynthiaBatchError: As for run_job.
    """
    started = time.monotonic()
    if isinstance(place, str) and "://" in place:
        job = resolve_remote_job(place, said)
    else:
        job = resolve_kept_job(Path(place), "retry", said)
    with follow_run(job, display) as report_end:
        result = _reopen_and_make(job, choice, display, started)
        if result.run is not None:
            report_end(result.run.ending)
        return result


def _reopen_and_make(
    job: ResolvedJob, choice: FailureChoice, display: Display, started: float
) -> RetryResult:
    drain = open_drain(job.declared)
    with drain.listen(), lock_run(job, claims_remote=True) as held, start_pool(job, display) as starter:
        locked = inspect_run(job, held, on_check=display.show_check)
        context = RunContext(locked=locked, drain=drain, starter=starter, started=started)
        chosen = locked.reopener.count_chosen(locked.states, choice)
        # Without its manifest it may be a retry that was killed once its samples were reopened.
        if not chosen and read_manifest(locked.run_dir.manifest) is not None:
            complete_mirror(locked)  # Which that retry may not have come to.
            return RetryResult(directory=job.output, chosen=0, run=None)
        with _Undoing(locked, display) as undoing, begin_attempt(job, locked, choice) as run:
            undoing.watch(run.store)
            note_command(run)
            result = make_missing(job, run, display, context)
    report_on(job, display)
    return RetryResult(directory=job.output, chosen=chosen, run=result)


class _Undoing:
    """Makes a complete run what it was where the block ends before any reopened sample does."""

    def __init__(self, locked: LockedRun, display: Display) -> None:
        self._locked = locked
        self._display = display
        self._ending = read_ending(locked.run_dir)
        self._store: RunStore | None = None
        self._ended_before = 0

    def watch(self, store: RunStore) -> None:
        """Tell by `store` whether a sample ends."""
        self._store = store
        self._ended_before = store.finished + store.failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run_dir, store = self._locked.run_dir, self._store
        has_ended = store is not None and store.finished + store.failed > self._ended_before
        # A disk that failed is not asked again: the next run completes what is there.
        if self._ending is None or has_ended or isinstance(error, StorageFailed):
            return
        if not run_dir.manifest.exists():
            close_again(run_dir, self._locked.shards, self._ending)
            _log.info(f"{run_dir.root}: no sample was made again; the run is complete as it was")
