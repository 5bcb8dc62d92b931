"""Failed samples and cut off answers are told as they come: the first few of each kind, then their number.

Where in the input a sample comes from.

Making what is missing of an open run: its pool, its requests, and the driver between them.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from synthia_batch.core.console import Display
from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.formatting import shorten
from synthia_batch.core.log import PER_SAMPLE
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Failed, Finished, InputFile, Record, Request
from synthia_batch.errors import SampleRefused, SynthiaBatchError
from synthia_batch.inputs import Scan, open_files
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.units import count_allowed
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.runner.directory.canary_record import check_canary, find_change, make_canaries
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.subset import PendingSamples, SampleSubset
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn
from synthia_batch.scheduler.recorder import ThroughputMeter
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.pools import open_pool
from synthia_batch.workers.pools.base import Pool, WorkerReady, WorkerSpec
from synthia_batch.workers.pools.startup import PoolStarter

_log = logging.getLogger(__name__)

LOGGED_OF_EACH = 3
"""So many of each kind are named with their place in the input; then its 10th, 100th, 1,000th is told."""

Locate = Callable[[int], str]
"""Where in the input the row of a sample's ordinal is: file:line."""


class FailureLog:
    """Tells of samples as they are recorded."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._counts: Counter[str] = Counter()

    def log(self, records: Sequence[Record]) -> None:
        """Log the failed and cut off samples among `records`."""
        for record in records:
            if isinstance(record, Failed):
                self._count(record.code, record.ordinal, record.message)
            elif isinstance(record, Finished) and record.finish_reason == CUT_OFF:
                self._count(
                    "cut off", record.ordinal, f"the answer ends at {record.completion_tokens} tokens"
                )

    def _count(self, what: str, ordinal: int, message: str) -> None:
        self._counts[what] += 1
        count = self._counts[what]
        if count <= LOGGED_OF_EACH:
            more = "; from here on they are counted" if count == LOGGED_OF_EACH else ""
            _log.log(PER_SAMPLE, f"{self._locate(ordinal)}: {what}: {shorten(message)}{more}")
        elif count >= 10 and count == 10 ** (len(str(count)) - 1):
            _log.log(PER_SAMPLE, f"{what}: {count:,} samples so far")


def open_locator(files: Sequence[InputFile], scan: Scan, samples_per_row: int) -> Callable[[int], str]:
    """Return what says file:line for the ordinal of a sample, in the input that was scanned.

    It reads the file beside whoever else does, a thousand rows at most for each answer: for a few of
    them. An input that has gone is named with the row, counted from 0.
    """
    source = open_files(files)

    def locate(ordinal: int) -> str:
        index = ordinal // samples_per_row
        try:
            row = next(source.read_rows(scan, index, index + 1))
        except (SynthiaBatchError, StopIteration):
            return f"{source.shown}: row {index}"
        return source.locate(row)

    return locate


def start_pool(job: ResolvedJob) -> PoolStarter:
    """Return a starter of the job's pool, which begins on request and stops the pool in the end."""

    def make_pool() -> Pool:
        is_strict = job.declared.determinism == "strict"
        renderer = open_renderer(job.prompt)
        run_dir = RunDir(job.output)
        worker_spec = WorkerSpec(
            engine=job.engine,
            canaries=make_canaries(renderer, job.engine.max_model_len) if is_strict else None,
            log_path=run_dir.worker_log,
        )
        return open_pool(job.pool, worker_spec)

    return PoolStarter(make_pool)


def generate(session: RunSession, display: Display, subset: SampleSubset | None = None) -> DrainReason | None:
    """Generate the missing samples of `subset`, or all; return why the run drained before the end.

    The run is not completed here.

    Raises:
        PoolFailed: No worker is left, or none can start.
        DeterminismBroken: A worker's canary answered otherwise than it must.
        StorageFailed: What had ended could not be written.
    """
    job, store, drain = session.job, session.store, session.drain
    portion = PendingSamples(store, subset)
    ended = portion.finished + portion.failed
    if ended == portion.samples or drain.reason is not None:
        return None if ended == portion.samples else drain.reason
    limit = count_allowed(job.declared.max_failures, store.samples) if subset is None else None
    if limit is not None and store.failed > limit:  # No engine needs to load for that.
        return DrainReason.FAILURES
    session.starter.begin()
    if ended and subset is None:
        _log.info(f"resuming {session.run_dir.root}: {ended} of {store.samples} samples are done")
    meter = ThroughputMeter(portion, session.started)
    conversations = open_multi_turn(job)
    driver = Driver(
        recorder=meter,
        drain=drain,
        display=display,
        watchdog_seconds=job.pool.watchdog_seconds,
        load_timeout_seconds=job.pool.load_timeout_seconds,
        check_canary=lambda worker: _check_engine(session, worker),
        log_path=session.run_dir.worker_log,
        advance=conversations.advance,
        tell=_open_failure_log(session).log,
        failure_limit=math.inf if limit is None else limit,
    )
    requests = _list_requests(portion, conversations, driver.take_unsent)
    with ExitStack() as stack:
        stack.callback(display.close)
        dispatcher = Dispatcher(
            requests,
            portion.samples - ended,
            groups_prefixes=job.engine.caches_prefixes,
            has_made=store.finished > 0,
        )
        drained = driver.run(dispatcher, session.starter.take_over)
        meter.note_speed()
        return drained


def _check_engine(session: RunSession, worker: WorkerReady) -> None:
    """Compare a worker's engine with the one that began the run; log and record a difference."""
    check_canary(session.run_dir, worker)
    is_fast = session.job.engine.determinism == "fast"
    change = find_change(session.run_dir, worker) if is_fast else None
    if change is not None:
        session.store.note("engine_changed", worker=worker.worker, note=change)
        _log.info(change)


def _open_failure_log(session: RunSession) -> FailureLog:
    job = session.job
    return FailureLog(open_locator(job.inputs, session.scan, job.plan.samples_per_row))


def _list_requests(
    portion: PendingSamples, conversations: MultiTurnSession, take_unsent: Callable[[Failed], None]
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
