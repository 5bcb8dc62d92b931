"""run_job(): a whole run, top to bottom."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.events import EventBus
from synthia_batch.core.log import show_log
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.job.loading.command_line import read_command, turn_into_run
from synthia_batch.job.loading.errors import naming_fields
from synthia_batch.job.loading.merge import Layer, read_ray_address
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.job.units import count_allowed
from synthia_batch.results.report.page import try_report
from synthia_batch.runner.directory.dataset_card import make_card
from synthia_batch.runner.directory.plan import refuse_other_identity
from synthia_batch.runner.directory.reopen import FailureChoice
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.runner.directory.session import RunSession, lock_run, tidy_complete_run
from synthia_batch.runner.engines import KeptEngines, start_pool
from synthia_batch.runner.generate import generate
from synthia_batch.runner.memory_fit import refuse_without_room
from synthia_batch.runner.monitoring.lifecycle import follow_run, open_drain
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.resolve.engine_spec import describe_job_cost
from synthia_batch.runner.subset import SampleSubset
from synthia_batch.runner.take_over import take_over
from synthia_batch.scheduler.events import AttemptEnded, CommandTyped
from synthia_batch.storage.atomic import make_directory, sync_directory
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest, read_manifest, write_manifest
from synthia_batch.storage.recovery import check_complete
from synthia_batch.storage.remote.claim import open_remote
from synthia_batch.storage.remote.download import is_complete_remotely
from synthia_batch.storage.remote.mirror import put_report

_log = logging.getLogger(__name__)

LARGE_SAMPLES = 50_000
"""From this many samples on, writing the report takes seconds, and is announced."""


def run_job(
    job: Job, *, progress: bool = False, display: Display | None = None, force: bool = False
) -> RunResult:
    """Generate every missing sample of `job`, and return the result of the run.

    The same job again resumes its run. `progress` shows progress on stderr; messages such as a lost engine
    are written there in any case, or to the stream of `display`. In the main thread Ctrl-C and SIGTERM drain
    the run as they do for the command, and the result says so: nothing is raised. `force` starts the engines
    even if this machine has too little memory, or too few cores or GPUs, for them.

    Raises:
        SynthiaBatchError: See `errors`; each message says what to do next. Finished samples are kept.
    """
    display = display or Display(quiet=not progress)
    with show_log(display.stream, quiet=not progress), naming_fields():
        explicit = Layer(origin="argument", values=job.model_dump(exclude_unset=True))
        resolved = resolve_job([explicit, read_ray_address(os.environ)])
        return run_resolved_job(resolved, display, force=force)


def run_resolved_job(
    job: ResolvedJob,
    display: Display,
    *,
    force: bool = False,
    engines: KeptEngines | None = None,
    earlier: Path | None = None,
) -> RunResult:
    """Generate every sample of `job` that its run directory does not have yet, with `engines` if given.

    Those that the complete run in `earlier` has are taken over from there.
    """
    started = time.monotonic()
    if (cost := describe_job_cost(job.engine)) is not None:
        _log.info(cost)
    run_dir = RunDir(job.output)
    refuse_other_identity(job, run_dir)
    manifest = read_manifest(run_dir.manifest)
    # Without a plan, which a repair may have removed, the run is opened and the plan written anew.
    if manifest is not None and run_dir.plan.exists():
        # The manifest alone is no proof that the run is complete.
        check_complete(run_dir, manifest, display.show_check)
        tidy_complete_run(job)
        _complete_remote(job, display)
        return _make_result(job, manifest, started, made=0, drained=None)
    events = EventBus()
    with follow_run(job, events) as report_end:
        with open_session(job, display, events, force=force, engines=engines) as session:
            result = run_attempt(session, display, earlier=earlier)
        report_if_complete(job)
        report_end(result.ending)
        return result


@contextmanager
def open_session(
    job: ResolvedJob,
    display: Display,
    events: EventBus | None = None,
    *,
    force: bool = False,
    engines: KeptEngines | None = None,
) -> Iterator[RunSession]:
    """Lock and inspect the job's run directory during the block, with a pool that is ready to be started.

    Run, retry and partial runs all begin here. Subscribers of `events` get the run's events. `engines` may
    be loaded already, and outlive the block.

    Raises:
        UsageError: This machine is too small for the engines, and not `force`.
    """
    if not force:
        refuse_without_room(job)
    drain = open_drain(job.declared)
    with (
        drain.listen(),
        lock_run(job, claims_remote=True, drain=drain) as session,
        engines.lend(job) if engines is not None else start_pool(job) as starter,
    ):
        session.starter = starter
        session.events = events or session.events
        run_dir = session.run_dir
        is_new = not run_dir.plan.exists()

        def on_rows(rows: int) -> None:
            display.show_scan(rows)
            if not is_new:  # The job may still be refused, and then not even a log may have changed.
                return
            if not run_dir.logs.exists():
                make_directory(run_dir.logs)
            starter.note_scan()

        session.inspect(on_rows, display.show_check)
        yield session


def run_attempt(
    session: RunSession,
    display: Display,
    *,
    subset: SampleSubset | None = None,
    reopen: FailureChoice | None = None,
    earlier: Path | None = None,
) -> RunResult:
    """Open an inspected run and generate the missing samples; complete the run unless it drains.

    With `subset`, generate only those: the run is completed if nothing else was missing. With
    `reopen`, the failed samples that it selects count as missing; with `earlier`, those that the complete run
    there has are not.
    """
    with session.begin(reopen) as store:
        _record_command(session.events)
        store.publish_filled()
        if earlier is not None:
            take_over(session, earlier)
        drained = generate(session, display, subset)
        if drained is None and (subset is None or next(store.unfinished, None) is None):
            _finish(session)
        result = _make_result(session.job, store, session.started, made=session.made, drained=drained)
        label = drained and drained.label
        session.events.publish(AttemptEnded(made=result.made, drained=label, exit_code=result.exit_code))
    return result


def report_if_complete(job: ResolvedJob) -> None:
    """Write the report of a run if it is complete. Call it when the engines have ended: it needs none.

    If the report cannot be written, that is logged: the dataset is complete all the same.
    """
    manifest = read_manifest(RunDir(job.output).manifest) if job.declared.report else None
    if manifest is not None:
        if manifest.samples >= LARGE_SAMPLES:
            _log.info("writing the report")
        try_report(job.output)
        if job.remote is not None:
            put_report(open_remote(job.remote), RunDir(job.output))


def _complete_remote(job: ResolvedJob, display: Display) -> None:
    """Upload a run that is complete in its state directory to its object store, unless it is there."""
    if job.remote is None:
        return
    if is_complete_remotely(open_remote(job.remote), RunDir(job.output)):
        return
    with lock_run(job, claims_remote=True) as session:
        session.inspect(on_check=display.show_check)
        session.complete_mirror()
    report_if_complete(job)


def _record_command(events: EventBus) -> None:
    """Record the command line, if there is one, for `status` to show.

    For a preview or a probe, record the `run` command of the same job.
    """
    command = read_command()
    if command is not None:
        command = turn_into_run(command) if command[1:2] in (["plan"], ["preview"]) else command
        events.publish(CommandTyped(command=command, directory=os.getcwd()))


def _make_result(
    job: ResolvedJob, counts: Manifest | RunStore, started: float, *, made: int, drained: DrainReason | None
) -> RunResult:
    return RunResult(
        directory=job.output,
        samples=counts.samples,
        finished=counts.finished,
        failed=counts.failed,
        made=made,
        seconds=time.monotonic() - started,
        max_failures=count_allowed(job.declared.max_failures, counts.samples),
        drained=drained,
        remote=job.remote.url if job.remote else None,
    )


def _finish(session: RunSession) -> None:
    """Write the dataset card, then the manifest: from then on the run is complete."""
    store = session.store
    session.assembler.source.check(session.scan)
    manifest = Manifest(
        plan_digest=session.writer.plan_digest,
        fingerprint=session.job.fingerprint,
        rows=session.scan.rows,
        samples=store.samples,
        finished=store.finished,
        failed=store.failed,
        parts=store.list_parts(),
    )
    make_card(session, manifest)
    # A complete run is not searched for leftovers, so a power failure must not bring a journal back.
    sync_directory(session.run_dir.journals)
    write_manifest(session.run_dir.manifest, manifest)
