"""Generate what an open run lacks: its pool, its requests, and the driver between them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from synthia_batch.core.console import Display
from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.errors import SampleRefused, SynthiaBatchError
from synthia_batch.core.events import Event
from synthia_batch.core.formatting import shorten
from synthia_batch.core.log import PER_SAMPLE
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.core.types import Failed, Finished, InputFile, Request
from synthia_batch.inputs import Scan, open_files
from synthia_batch.job.units import count_allowed
from synthia_batch.runner.directory.canary_record import check_canary, find_change
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.subset import PendingSamples, SampleSubset
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver
from synthia_batch.scheduler.events import EngineChanged, OutcomesRecorded
from synthia_batch.scheduler.multi_turn import MultiTurnSession, open_multi_turn
from synthia_batch.scheduler.order import choose_order
from synthia_batch.scheduler.throughput import ThroughputMeter
from synthia_batch.workers.pools.base import WorkerReady

_log = logging.getLogger(__name__)

LOGGED_OF_EACH = 3
"""So many of each kind are logged with their place in the input, then only their number: 10, 100, ..."""


def generate(session: RunSession, display: Display, subset: SampleSubset | None = None) -> DrainReason | None:
    """Generate the missing samples of `subset`, or all; return why the run drained before the end.

    The run is not completed here.
    """
    job, store, drain, events = session.job, session.store, session.drain, session.events
    pending = PendingSamples(store, subset)
    remaining = pending.total - pending.ended
    if not remaining or drain.reason is not None:
        return drain.reason if remaining else None
    limit = count_allowed(job.declared.max_failures, store.samples) if subset is None else None
    if limit is not None and store.failed > limit:  # No engine needs to load for that.
        return DrainReason.FAILURES
    session.starter.begin()
    if pending.ended and subset is None:
        _log.info(f"resuming {session.run_dir.root}: {pending.ended} of {store.samples} samples are done")
    meter = ThroughputMeter(remaining, session.started, session.clock)
    failure_log = FailureLog(open_locator(job.inputs, session.scan, job.plan.samples_per_row))
    failed_before = 0 if subset is None else store.failed
    conversations = open_multi_turn(job)

    def drain_at_limit(event: Event) -> None:
        if isinstance(event, OutcomesRecorded) and limit is not None and store.failed > limit:
            drain.ask(DrainReason.FAILURES)

    for subscriber in (meter.observe, failure_log.observe, drain_at_limit, display.observe):
        events.subscribe(subscriber)
    driver = Driver(
        sink=store,
        publish=events.publish,
        drain=drain,
        watchdog_seconds=job.pool.watchdog_seconds,
        load_timeout_seconds=job.pool.load_timeout_seconds,
        check_canary=lambda ready: _check_engine(session, ready),
        log_path=session.run_dir.worker_log,
        advance=conversations.advance,
        clock=session.clock,
        ended_before=pending.ended,
        count_failed=lambda: store.failed - failed_before,
    )
    dispatcher = Dispatcher(
        _list_requests(pending, conversations, driver.take_unsent),
        remaining,
        order=choose_order(job),
        has_generated=store.finished > 0,
    )
    try:
        drained = driver.run(dispatcher, session.starter.take_over)
        speed = meter.measure()
        if speed is not None:
            events.publish(speed)
    finally:
        display.close()
    return drained


def _check_engine(session: RunSession, ready: WorkerReady) -> None:
    """Compare a worker's engine with the one that began the run; log and record a difference."""
    check_canary(session.run_dir, ready)
    is_fast = session.job.engine.determinism == "fast"
    change = find_change(session.run_dir, ready) if is_fast else None
    if change is not None:
        session.events.publish(EngineChanged(worker=ready.worker, note=change))
        _log.info(change)


def _list_requests(
    pending: PendingSamples, conversations: MultiTurnSession, take_unsent: Callable[[Failed], None]
) -> Iterator[Request]:
    """Yield a request for every pending sample, in order, rendered only when it is needed.

    A conversation continues after the turns that earlier attempts finished.
    """
    for sample, turns in pending:
        try:
            request = conversations.begin(sample, turns)
        except SampleRefused as refused:
            take_unsent(Failed(ordinal=sample.ordinal, code=refused.code, message=str(refused)))
            continue
        yield request


class FailureLog:
    """Logs failed and cut off samples as they are recorded.

    `locate` returns where in the input the row of a sample's ordinal is, as file:line.
    """

    def __init__(self, locate: Callable[[int], str]) -> None:
        self._locate = locate
        self._counts: Counter[str] = Counter()

    def observe(self, event: Event) -> None:
        """Log the failed and cut off samples of `event`."""
        if not isinstance(event, OutcomesRecorded):
            return
        for record in event.records:
            if isinstance(record, Failed):
                self._count(record.code, record.ordinal, record.message)
            elif isinstance(record, Finished) and record.finish_reason == CUT_OFF:
                self._count(
                    "cut off", record.ordinal, f"the answer ends at {record.completion_tokens} tokens"
                )

    def _count(self, kind: str, ordinal: int, message: str) -> None:
        self._counts[kind] += 1
        count = self._counts[kind]
        if count <= LOGGED_OF_EACH:
            more = "; from here on they are counted" if count == LOGGED_OF_EACH else ""
            _log.log(PER_SAMPLE, f"{self._locate(ordinal)}: {kind}: {shorten(message)}{more}")
        elif count >= 10 and count == 10 ** (len(str(count)) - 1):
            _log.log(PER_SAMPLE, f"{kind}: {count:,} samples so far")


def open_locator(files: Sequence[InputFile], scan: Scan, samples_per_row: int) -> Callable[[int], str]:
    """Return a function from a sample's ordinal to its place, file:line, in the scanned input.

    Each call reads up to a thousand rows, so use it for few samples. If the input is gone, the place
    is its `row_index`.
    """
    source = open_files(files)

    def locate(ordinal: int) -> str:
        index = ordinal // samples_per_row
        try:
            row = next(source.read_rows(scan, index, index + 1))
        except (SynthiaBatchError, StopIteration):
            return f"{source.shown}: row_index {index}"
        return source.locate(row)

    return locate
