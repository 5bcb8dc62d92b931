"""run_job(): the whole flow of a run, top to bottom."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.accompany import Ending, accompany
from synthia_batch.canary_record import check_canary, make_canaries
from synthia_batch.carding import make_card
from synthia_batch.command_line import read_command, turn_into_run
from synthia_batch.conversations import Conversations, open_conversations
from synthia_batch.deadline import open_drain
from synthia_batch.dispatch import Dispatcher
from synthia_batch.display import Display
from synthia_batch.drain import DrainReason, DrainRequest
from synthia_batch.drive import Driver
from synthia_batch.errors import SampleRefused
from synthia_batch.job.declared import Job
from synthia_batch.job.human import count_allowed
from synthia_batch.job.layers import Layer, read_ray_address
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.keeper import Keeper
from synthia_batch.meter import Meter
from synthia_batch.opening import (
    LockedRun,
    OpenRun,
    begin_attempt,
    inspect_run,
    lock_run,
    refuse_other_identity,
    tidy_complete_run,
)
from synthia_batch.picks import Picks
from synthia_batch.places import open_places
from synthia_batch.pool import open_pool
from synthia_batch.pool.base import Pool, Staffing, WorkerReady
from synthia_batch.portion import Portion
from synthia_batch.report.making import try_report
from synthia_batch.resolve import open_renderer, resolve_job
from synthia_batch.rows import Failed, Request
from synthia_batch.starting import PoolStarter
from synthia_batch.store.atomic import make_directory, sync_directory
from synthia_batch.store.manifest import Manifest, read_manifest, write_manifest
from synthia_batch.store.recovery import check_complete
from synthia_batch.store.run_dir import RunDir
from synthia_batch.telling import FailureTeller

EXIT_TOO_MANY_FAILURES = 3

LARGE_SAMPLES = 50_000
"""From here on a report takes long enough for somebody to wonder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to. `made` counts the samples that this attempt made, `max_failures` those that
    may fail.

    `drained` says why it stopped before the end, None where the dataset is complete.
    """

    directory: Path
    samples: int
    finished: int
    failed: int
    made: int
    seconds: float
    max_failures: int | None
    drained: DrainReason | None

    @property
    def has_too_many_failures(self) -> bool:
        """Whether more samples failed than the job allows, or every one of them."""
        if self.failed and not self.finished:
            return True
        return self.max_failures is not None and self.failed > self.max_failures

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        if self.drained is not None:
            return self.drained.exit_code
        if self.finished + self.failed < self.samples:
            return 0  # It was to make some of them only.
        return EXIT_TOO_MANY_FAILURES if self.has_too_many_failures else 0

    @property
    def ending(self) -> Ending:
        """How the run ended, for whom it is told."""
        state = "complete" if self.drained is None else f"stopped on {self.drained.label}"
        return Ending(
            state=f"{state}, with too many failures" if self.drained is None and self.exit_code else state,
            exit_code=self.exit_code,
            counts=f"{self.finished} of {self.samples} samples finished, {self.failed} failed",
            is_complete=self.drained is None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A run directory that is locked and looked at, and what else it takes to go on with it.

    `started` is when the command was, on the monotonic clock.
    """

    locked: LockedRun
    drain: DrainRequest
    starter: PoolStarter
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drive:
    """What driving the pool came to: `drained` says why not all that it was to make is made."""

    made: int
    drained: DrainReason | None


def run_job(job: Job, *, display: Display | None = None) -> RunResult:
    """Make every sample of `job` that is not made yet, and return what the run came to.

    Raises:
        SynthiaBatchError: See `errors`; each says what to do next. What was finished is kept.
    """
    display = display or Display(quiet=True)
    said = Layer(origin="argument", values=job.model_dump(exclude_unset=True))
    layers = [said, read_ray_address(os.environ)]
    return run_resolved_job(resolve_job(layers, display.say), display)


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
        return _tell(job, manifest, _Drive(made=0, drained=None), started)
    with accompany(job, display) as tell_end:
        result = _begin_and_make(job, display, started)
        tell_end(result.ending)
        return result


def _begin_and_make(job: ResolvedJob, display: Display, started: float) -> RunResult:
    with prepare_run(job, display, started) as ready, begin_attempt(job, ready.locked) as run:
        note_command(run)
        result = make_missing(job, run, display, ready)
    report_on(job, display)
    return result


@contextmanager
def prepare_run(job: ResolvedJob, display: Display, started: float) -> Iterator[Ready]:
    """Lock the job's run directory for the block and look at what is there; a pool waits to be started.

    Raises:
        SynthiaBatchError: As for run_job.
    """
    run_dir = RunDir(job.output)
    drain = open_drain(job.declared, display.say)
    with drain.listen(), lock_run(job) as lock, start_pool(job, display) as starter:
        is_new = not run_dir.plan.exists()

        def on_rows(rows: int) -> None:
            display.show_scan(rows)
            if not is_new:  # It may yet be refused, and then not even a log may have changed.
                return
            if not run_dir.logs.exists():
                make_directory(run_dir.logs)
            starter.note_scan()

        locked = inspect_run(job, lock, on_rows, display.show_check)
        yield Ready(locked=locked, drain=drain, starter=starter, started=started)


def report_on(job: ResolvedJob, display: Display) -> None:
    """Write the report of a run if it is complete. Call it once the engines are gone: it needs none.

    A report that cannot be made is said to be missing, and nothing else: the dataset is there.
    """
    manifest = read_manifest(RunDir(job.output).manifest) if job.declared.report else None
    if manifest is not None:
        if manifest.samples >= LARGE_SAMPLES:
            display.say("writing the report")
        try_report(job.output, display.say)


def start_pool(job: ResolvedJob, display: Display) -> PoolStarter:
    """Return what starts the job's pool once that is wanted, and stops it in the end."""

    def make_pool() -> Pool:
        is_strict = job.declared.determinism == "strict"
        renderer = open_renderer(job.prompt)
        run_dir = RunDir(job.output)
        staffing = Staffing(
            engine=job.engine,
            canaries=make_canaries(renderer, job.engine.max_model_len) if is_strict else None,
            log_path=run_dir.worker_log,
        )
        return open_pool(job.pool, staffing, display.say)

    return PoolStarter(make_pool)


def note_command(run: OpenRun) -> None:
    """Keep what was typed, for `status` to say it, where somebody typed it.

    Of a preview or a probe, the run that it began.
    """
    command = read_command()
    if command is not None:
        command = turn_into_run(command) if command[1:2] in (["plan"], ["preview"]) else command
        run.keeper.note("command", command=command, directory=os.getcwd())


def make_missing(
    job: ResolvedJob, run: OpenRun, display: Display, ready: Ready, picks: Picks | None = None
) -> RunResult:
    """Make every sample of an open run that is not made yet, and complete it unless it drains.

    With `picks`, make those alone: the run is completed where they were all that was missing.

    Raises:
        SynthiaBatchError: As for run_job.
    """
    run.keeper.publish_filled()
    drive = _drive(job, run, display, ready, picks)
    if drive.drained is None and (picks is None or next(run.keeper.unfinished, None) is None):
        _finish(job, run)
    result = _tell(job, run.keeper, drive, ready.started)
    drained = drive.drained and drive.drained.label
    run.keeper.note("attempt_ended", made=drive.made, drained=drained, exit_code=result.exit_code)
    return result


def _tell(job: ResolvedJob, counts: Manifest | Keeper, drive: _Drive, started: float) -> RunResult:
    return RunResult(
        directory=job.output,
        samples=counts.samples,
        finished=counts.finished,
        failed=counts.failed,
        made=drive.made,
        seconds=time.monotonic() - started,
        max_failures=count_allowed(job.declared.max_failures, counts.samples),
        drained=drive.drained,
    )


def _drive(job: ResolvedJob, run: OpenRun, display: Display, ready: Ready, picks: Picks | None) -> _Drive:
    """Have the pool make what is missing."""
    keeper, drain, starter = run.keeper, ready.drain, ready.starter
    portion = Portion(keeper, picks)
    ended = portion.finished + portion.failed
    if ended == portion.samples or drain.reason is not None:
        return _Drive(made=0, drained=None if ended == portion.samples else drain.reason)
    limit = count_allowed(job.declared.max_failures, keeper.samples) if picks is None else None
    if limit is not None and keeper.failed > limit:  # No engine needs to load for that.
        return _Drive(made=0, drained=DrainReason.FAILURES)
    starter.begin()
    if ended and picks is None:
        display.say(f"resuming {run.run_dir.root}: {ended} of {keeper.samples} samples are done")
    meter = Meter(portion, ready.started)
    conversations = open_conversations(job)

    def check(ready: WorkerReady) -> None:
        note = check_canary(run.run_dir, ready)
        if note is not None:
            keeper.note("canary_inexact", worker=ready.worker, note=note)
            display.say(note)

    driver = Driver(
        recorder=meter,
        drain=drain,
        display=display,
        watchdog_seconds=job.pool.watchdog_seconds,
        load_timeout_seconds=job.pool.load_timeout_seconds,
        check_canary=check,
        log_path=run.run_dir.worker_log,
        advance=conversations.advance,
        tell=_open_teller(job, run, display).tell,
        failure_limit=math.inf if limit is None else limit,
    )
    requests = _list_requests(portion, conversations, driver.take_unsent)
    with ExitStack() as stack:
        stack.callback(display.close)
        dispatcher = Dispatcher(requests, portion.samples - ended, groups_prefixes=job.engine.caches_prefixes)
        drained = driver.run(dispatcher, starter.take_over)
        meter.note_speed()
        return _Drive(made=driver.made, drained=drained)


def _open_teller(job: ResolvedJob, run: OpenRun, display: Display) -> FailureTeller:
    locate = open_places(job.input_path, run.scan, job.plan.samples_per_row)
    return FailureTeller(display.remark, locate)


def _list_requests(
    portion: Portion, conversations: Conversations, take_unsent: Callable[[Failed], None]
) -> Iterator[Request]:
    """Yield a request for every sample that has not ended, in order, rendered as it is asked for.

    A conversation of which earlier attempts finished turns goes on behind them.
    """
    for sample, turns in portion.list_missing():
        try:
            request = conversations.begin(sample, turns)
        except SampleRefused as refused:
            take_unsent(Failed(ordinal=sample.ordinal, code=refused.code, message=str(refused)))
            continue
        yield request


def _finish(job: ResolvedJob, run: OpenRun) -> None:
    """Write the dataset card, then the manifest: from then on the run is complete."""
    parts = run.keeper.list_parts()
    manifest = Manifest(
        plan_digest=run.plan_digest,
        fingerprint=job.fingerprint,
        rows=run.scan.rows,
        samples=run.keeper.samples,
        finished=run.keeper.finished,
        failed=run.keeper.failed,
        parts=parts,
    )
    make_card(job, run, manifest)
    # Nobody looks for leftovers in a complete run, so power must not bring a journal back to it.
    sync_directory(run.run_dir.journals)
    write_manifest(run.run_dir.manifest, manifest)
