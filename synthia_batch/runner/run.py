"""run_job(): the whole flow of a run, top to bottom."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from synthia_batch.core.console import Display
from synthia_batch.core.log import show_log
from synthia_batch.job.loading.command_line import read_command, turn_into_run
from synthia_batch.job.loading.merge import Layer, read_ray_address
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.job.units import count_allowed
from synthia_batch.results.report.page import try_report
from synthia_batch.runner.directory.dataset_card import make_card
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.runner.directory.session import (
    OpenRun,
    begin_attempt,
    complete_mirror,
    inspect_run,
    lock_run,
    refuse_other_identity,
    tidy_complete_run,
)
from synthia_batch.runner.generate import GenerationResult, RunContext, generate, start_pool
from synthia_batch.runner.monitoring.lifecycle import follow_run, open_drain
from synthia_batch.runner.monitoring.result import RunResult
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.subset import SampleSubset
from synthia_batch.storage.atomic import make_directory, sync_directory
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import Manifest, read_manifest, write_manifest
from synthia_batch.storage.recovery import check_complete
from synthia_batch.storage.remote.claim import open_remote
from synthia_batch.storage.remote.mirror import is_complete_there, put_report

_log = logging.getLogger(__name__)

LARGE_SAMPLES = 50_000
"""From here on a report takes long enough for somebody to wonder."""


def run_job(job: Job, *, progress: bool = False, display: Display | None = None) -> RunResult:
    """Make every sample of `job` that is not made yet, and return what the run came to.

    The same job again resumes its run. `progress` shows on stderr how far it is; what a person should
    know of, such as an engine that is lost, is said there in any case, or to `display`. In the main thread
    Ctrl-C and SIGTERM drain the run as they do its command's, and the result says so: nothing is raised.

    Raises:
        SynthiaBatchError: See `errors`; each says what to do next. What was finished is kept.
    """
    display = display or Display(quiet=not progress)
    with show_log(display.stream, quiet=not progress):
        explicit = Layer(origin="argument", values=job.model_dump(exclude_unset=True))
        return run_resolved_job(resolve_job([explicit, read_ray_address(os.environ)]), display)


def run_resolved_job(job: ResolvedJob, display: Display) -> RunResult:
    """Make every sample of `job` that is not made yet: its run directory says which those are.

    Raises:
        SynthiaBatchError: As for run_job.
    """
    started = time.monotonic()
    run_dir = RunDir(job.output)
    refuse_other_identity(job, run_dir)
    manifest = read_manifest(run_dir.manifest)
    # Without its plan, which a repair may have removed, it is opened, and the plan made again.
    if manifest is not None and run_dir.plan.exists():
        # Nobody is told that it is complete on the word of the manifest alone.
        check_complete(run_dir, manifest, display.show_check)
        tidy_complete_run(job)
        _complete_remote(job, display)
        return _tell(job, manifest, GenerationResult(samples=0, drained=None), started)
    with follow_run(job, display) as report_end:
        result = _begin_and_make(job, display, started)
        report_end(result.ending)
        return result


def _begin_and_make(job: ResolvedJob, display: Display, started: float) -> RunResult:
    with prepare_run(job, display, started) as context, begin_attempt(job, context.locked) as run:
        note_command(run)
        result = make_missing(job, run, display, context)
    report_on(job, display)
    return result


@contextmanager
def prepare_run(job: ResolvedJob, display: Display, started: float) -> Iterator[RunContext]:
    """Lock the job's run directory for the block and look at what is there; a pool waits to be started.

    Raises:
        SynthiaBatchError: As for run_job.
    """
    run_dir = RunDir(job.output)
    drain = open_drain(job.declared)
    with drain.listen(), lock_run(job, claims_remote=True) as held, start_pool(job, display) as starter:
        is_new = not run_dir.plan.exists()

        def on_rows(rows: int) -> None:
            display.show_scan(rows)
            if not is_new:  # It may yet be refused, and then not even a log may have changed.
                return
            if not run_dir.logs.exists():
                make_directory(run_dir.logs)
            starter.note_scan()

        locked = inspect_run(job, held, on_rows, display.show_check)
        yield RunContext(locked=locked, drain=drain, starter=starter, started=started)


def report_on(job: ResolvedJob, display: Display) -> None:
    """Write the report of a run if it is complete. Call it once the engines are gone: it needs none.

    A report that cannot be made is said to be missing, and nothing else: the dataset is there.
    """
    manifest = read_manifest(RunDir(job.output).manifest) if job.declared.report else None
    if manifest is not None:
        if manifest.samples >= LARGE_SAMPLES:
            _log.info("writing the report")
        try_report(job.output)
        if job.remote is not None:
            put_report(open_remote(job.remote), RunDir(job.output))


def _complete_remote(job: ResolvedJob, display: Display) -> None:
    """Put a run that is complete in its state directory into its object store, where it is not there yet."""
    if job.remote is None:
        return
    if is_complete_there(open_remote(job.remote), RunDir(job.output)):
        return
    with lock_run(job, claims_remote=True) as held:
        complete_mirror(inspect_run(job, held, on_check=display.show_check))
    report_on(job, display)


def note_command(run: OpenRun) -> None:
    """Keep what was typed, for `status` to say it, where somebody typed it.

    Of a preview or a probe, the run that it began.
    """
    command = read_command()
    if command is not None:
        command = turn_into_run(command) if command[1:2] in (["plan"], ["preview"]) else command
        run.store.note("command", command=command, directory=os.getcwd())


def make_missing(
    job: ResolvedJob, run: OpenRun, display: Display, context: RunContext, subset: SampleSubset | None = None
) -> RunResult:
    """Make every sample of an open run that is not made yet, and complete it unless it drains.

    With `subset`, make those alone: the run is completed where they were all that was missing.

    Raises:
        SynthiaBatchError: As for run_job.
    """
    run.store.publish_filled()
    made = generate(job, run, display, context, subset)
    if made.drained is None and (subset is None or next(run.store.unfinished, None) is None):
        _finish(job, run)
    result = _tell(job, run.store, made, context.started)
    drained = made.drained and made.drained.label
    run.store.note("attempt_ended", made=made.samples, drained=drained, exit_code=result.exit_code)
    return result


def _tell(job: ResolvedJob, counts: Manifest | RunStore, made: GenerationResult, started: float) -> RunResult:
    return RunResult(
        directory=job.output,
        samples=counts.samples,
        finished=counts.finished,
        failed=counts.failed,
        made=made.samples,
        seconds=time.monotonic() - started,
        max_failures=count_allowed(job.declared.max_failures, counts.samples),
        drained=made.drained,
        remote=job.remote.url if job.remote else None,
    )


def _finish(job: ResolvedJob, run: OpenRun) -> None:
    """Write the dataset card, then the manifest: from then on the run is complete."""
    parts = run.store.list_parts()
    manifest = Manifest(
        plan_digest=run.plan_digest,
        fingerprint=job.fingerprint,
        rows=run.scan.rows,
        samples=run.store.samples,
        finished=run.store.finished,
        failed=run.store.failed,
        parts=parts,
    )
    make_card(job, run, manifest)
    # Nobody looks for leftovers in a complete run, so power must not bring a journal back to it.
    sync_directory(run.run_dir.journals)
    write_manifest(run.run_dir.manifest, manifest)
