"""retry_failed(): regenerate the failed samples of a run, with settings that are not part of its identity."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.errors import StorageFailed
from synthia_batch.core.events import EventBus
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.report.page import try_report
from synthia_batch.runner.directory.reopen import FailureChoice, close_again, read_ending
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.monitoring.lifecycle import follow_run
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resume import resolve_kept_job, resolve_remote_job
from synthia_batch.runner.run import open_session, report_if_complete, run_attempt
from synthia_batch.runner.subset import SampleSubset
from synthia_batch.storage.atomic import remove_file
from synthia_batch.storage.lock import find_pipeline, lock_pipeline
from synthia_batch.storage.manifest import read_manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryResult:
    """`chosen` is the number of failed samples that the choice selected.

    `run` is the result of the run; None if the run was complete and nothing was selected: then nothing
    was touched. `mended` samples are not failed any more.
    """

    directory: Path
    chosen: int
    run: RunResult | None
    mended: int = 0


def retry_failed(
    place: Path | str,
    choice: FailureChoice,
    explicit: Sequence[Layer],
    display: Display,
    *,
    force: bool = False,
    trusts: bool = False,
) -> RetryResult:
    """Regenerate the failed samples that `choice` selects, and publish their parts anew.

    `place` is the run's directory, or the URL of its output in an object store. `explicit` overrides the
    job as it was run. Of an interrupted run, only they are generated. A complete run stays complete, as it
    was, if no sample ends: if the engines do not load, or fail the canary check. `force`: see `run_job`.
    Unless the caller `trusts` the run, addresses, keys, notifications and code that its saved job names are
    not used.
    """
    if isinstance(place, str) and "://" in place:
        job = resolve_remote_job(place, explicit, trusts=trusts)
    else:
        job = resolve_kept_job(Path(place), "retry", explicit, trusts=trusts)
    events = EventBus()
    with lock_pipeline(job.output), follow_run(job, events) as report_end:
        result = _reopen_and_run(job, choice, display, events, force=force)
        if result.run is not None:
            report_end(result.run.ending)
        return result


def _reopen_and_run(
    job: ResolvedJob, choice: FailureChoice, display: Display, events: EventBus, *, force: bool
) -> RetryResult:
    with open_session(job, display, events, force=force) as session:
        failed = sum(state.failed for state in session.states)
        ordinals = session.reopener.list_chosen(session.states, choice)
        chosen = len(ordinals)
        is_complete = read_manifest(session.run_dir.manifest) is not None
        # Without a manifest this may be a retry that was killed after it reopened its samples.
        if not chosen and is_complete:
            session.complete_mirror()  # That retry may not have come so far.
            return RetryResult(directory=job.output, chosen=0, run=None)
        with _renew_pipeline_report(job.output), _rollback(session):
            # Of an interrupted run the failed samples alone: the others are for the run to generate. In a run
            # of which all was published before, others are missing after a killed retry: this completes it.
            is_interrupted = not is_complete and not session.was_published
            subset = SampleSubset(ordinals) if chosen and is_interrupted else None
            result = run_attempt(session, display, subset=subset, reopen=choice)
    report_if_complete(job)
    return RetryResult(directory=job.output, chosen=chosen, run=result, mended=failed - result.failed)


@contextmanager
def _renew_pipeline_report(run: Path) -> Iterator[None]:
    """Remove the report of the pipeline of which `run` is a stage, and write it anew after the block.

    A retry that is killed leaves none, rather than one of the state before.
    """
    pipeline = find_pipeline(run)
    had_report = pipeline is not None and pipeline.report.exists()
    if pipeline is not None and had_report:
        remove_file(pipeline.report)
    try:
        yield
    finally:
        if pipeline is not None and had_report:
            try_report(pipeline.root)


@contextmanager
def _rollback(session: RunSession) -> Iterator[None]:
    """Restore a complete run if the block ends before any reopened sample does."""
    ending = read_ending(session.run_dir)
    try:
        yield
    except StorageFailed:
        ending = None  # A disk that failed is not used again: the next run completes what is there.
        raise
    finally:
        if ending is not None and session.made == 0 and not session.run_dir.manifest.exists():
            close_again(session.run_dir, session.shards, ending)
            _log.info(f"{session.run_dir.root}: no sample was regenerated; the run is complete as it was")
