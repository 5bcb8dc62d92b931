"""The loop at the heart of a run: feed the pool, take what has ended, replace what has died.

The driver is the only writer. What comes from a worker is believed only if it is of that
worker's present epoch and of a sample that the worker was given: all else is counted and dropped.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthia_batch.core.console import Display
from synthia_batch.core.formatting import format_seconds
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.snapshot import ProgressSnapshot
from synthia_batch.core.types import Failed, Finished, Outcome, Record, Request
from synthia_batch.scheduler.crash_bisection import fail_quarantined
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.multi_turn import Step, record_as_it_is
from synthia_batch.scheduler.progress import LatencyWindow, Progress
from synthia_batch.scheduler.recorder import OutcomeSink
from synthia_batch.scheduler.restart_policy import RestartPolicy
from synthia_batch.scheduler.supervisor import WorkerSupervisor
from synthia_batch.workers.pools.base import (
    Pool,
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.workers.pools.startup import StartedPool

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SHOW_SECONDS = 0.1
"""Between two standings that are shown: fast engines end samples thousands of times a second."""
DRAIN_SECONDS = 10.0
"""How long samples in flight may go on once a run was asked to drain, or after its deadline."""


def _tell_nobody(records: Sequence[Record]) -> None:
    """Tell nobody of what was recorded."""


@dataclass(slots=True, kw_only=True)
class Driver:
    """Drives the pool that it is given until every sample has ended or the run is to drain.

    `made` counts the samples that ended, `dropped` those that were not believed.
    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    `advance` says what an outcome comes to, and the next turn of a conversation. `tell` gets what was
    recorded. With more failed samples than `failure_limit`, over all attempts, it drains.
    """

    recorder: OutcomeSink
    drain: DrainRequest
    display: Display
    check_canary: Callable[[WorkerReady], object]
    watchdog_seconds: float
    log_path: Callable[[int], Path]
    advance: Callable[[Outcome], Step] = record_as_it_is
    tell: Callable[[Sequence[Record]], None] = _tell_nobody
    failure_limit: float = math.inf
    load_timeout_seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    made: int = 0
    dropped: int = 0
    _progress: Progress = field(init=False)
    _latency: LatencyWindow = field(default_factory=LatencyWindow)
    _shown_at: float = -math.inf
    _pool: Pool = field(init=False)
    _supervisor: WorkerSupervisor = field(init=False)
    _policy: RestartPolicy = field(init=False)
    _dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        """Open the books: an event's `elapsed_seconds` counts from here."""
        self._progress = Progress(self.clock())

    def run(self, dispatcher: Dispatcher, take_over: Callable[[], StartedPool]) -> DrainReason | None:
        """Drive `dispatcher` to its end; return why the run drained before it, None if it did not.

        `take_over` gives the pool, which is starting: the first prompts are rendered meanwhile.

        Raises:
            PoolFailed: No worker is left, or none can start.
            DeterminismBroken: A worker's canary answered otherwise than it must.
            StorageFailed: What had ended could not be written.
        """
        self._dispatcher = dispatcher
        self._policy = RestartPolicy(self.watchdog_seconds, self.load_timeout_seconds)
        dispatcher.read_ahead()
        started = take_over()
        self._pool = started.pool
        self._supervisor = self._make_supervisor()
        self._supervisor.register()
        self._handle(started.events)
        while not self._dispatcher.is_done:
            if self.drain.reason is not None:
                self._finish_in_flight()
                break
            self._supervisor.kill_hung()
            self._supervisor.restart_due()
            # Before the poll: a worker that was ready when it was handed over has no more to say until
            # it is fed, and every run would begin with a poll to its time-out.
            self._top_up()
            self._poll()
        self._note_progress()
        self._show()
        return None if self._dispatcher.is_done else self.drain.reason

    def take_unsent(self, failed: Failed) -> None:
        """Take in a sample that failed before any worker saw it."""
        self._dispatcher.end_unsent()
        self._record([failed])

    def _make_supervisor(self) -> WorkerSupervisor:
        return WorkerSupervisor(
            pool=self._pool,
            policy=self._policy,
            dispatcher=self._dispatcher,
            recorder=self.recorder,
            check_canary=self.check_canary,
            log_path=self.log_path,
            clock=self.clock,
        )

    def _poll(self) -> None:
        self._handle(self._pool.poll(POLL_SECONDS))
        self._fail_quarantined()
        self.recorder.tick()
        now = self.clock()
        if math.isfinite(self.drain.seconds_left):
            self.drain.reserve(self._latency.longest_seconds)
        if self._progress.is_due(now):
            self._note_progress()
        if now - self._shown_at >= SHOW_SECONDS:
            self._show()

    def _handle(self, events: Sequence[PoolEvent]) -> None:
        """Take in what the pool reports, and only then send more: a later event may be a worker's death."""
        going_on: set[int] = set()
        for event in events:
            match event:
                case SamplesEnded():
                    if self._take(event):
                        going_on.add(event.worker)
                case SamplesReturned():
                    if self._policy.believes(event.worker, event.epoch):
                        self._dispatcher.take_back(event.worker, event.ordinals)
                case WorkerStepped():
                    self._note_steps(event)
                case _:
                    self._supervisor.handle(event)
        if self.drain.reason is None:
            # Before the others are topped up: the turns before are in these engines' prefix caches.
            for worker in going_on.intersection(self._policy.ready):
                self._feed(worker)

    def _take(self, event: SamplesEnded) -> bool:
        """Record what ended; return whether the worker has conversations to go on with."""
        is_known = self._policy.believes(event.worker, event.epoch)
        known = [o for o in event.outcomes if is_known and self._dispatcher.accept(event.worker, o)]
        self.dropped += len(event.outcomes) - len(known)
        if any(isinstance(outcome, Finished) for outcome in known):
            self._policy.note_made(event.worker)
        self._latency.note_ended([outcome.ordinal for outcome in known], self.clock())
        samples = [outcome for outcome in known if outcome.ordinal >= 0]
        following = self._record(samples) if samples else []
        for request in following:
            self._dispatcher.go_on(event.worker, request)
        return bool(following)

    def _record(self, outcomes: Sequence[Outcome]) -> list[Request]:
        """Record what `outcomes` come to; return the next turns of the conversations among them."""
        steps = [self.advance(outcome) for outcome in outcomes]
        records = [step.record for step in steps]
        self.recorder.record(records)
        following = [step.request for step in steps if step.request is not None]
        self.made += len(outcomes) - len(following)
        self._progress.note_ended(outcomes, going_on=len(following))
        self._progress.note_recorded(records)
        self.tell(records)
        if self.recorder.failed > self.failure_limit:
            self.drain.ask(DrainReason.FAILURES)
        return following

    def _note_steps(self, event: WorkerStepped) -> None:
        now = self.clock()
        self._policy.note_steps(event.worker, event.steps, now)
        self._progress.note_worker(
            event.worker,
            event.epoch,
            steps=event.steps,
            busy_seconds=event.busy_seconds,
            cached_prompt_tokens=event.cached_prompt_tokens,
            now=now,
        )

    def _note_progress(self) -> None:
        self.recorder.note("progress", **self._progress.describe(self.clock(), self._dispatcher.held))

    def _fail_quarantined(self) -> None:
        quarantined = [fail_quarantined(request) for request in self._dispatcher.take_quarantined()]
        if quarantined:
            self._record(quarantined)
        for failed in quarantined:
            self.recorder.note("sample_convicted", ordinal=failed.ordinal)
            _log.info(f"sample {failed.ordinal} is set aside: {failed.message}")

    def _top_up(self) -> None:
        for worker in self._policy.ready:
            self._feed(worker)
        for worker in self._dispatcher.choose_recalls():
            self._pool.recall(worker)

    def _feed(self, worker: int) -> None:
        staff = max(1, self._policy.staff - self._pool.unplaced)
        requests = self._dispatcher.top_up(worker, staff)
        if requests:
            self._latency.note_sent([request.ordinal for request in requests], self.clock())
            self._pool.feed(worker, requests)

    def _finish_in_flight(self) -> None:
        """Give samples in flight their time, then have the engines drop them."""
        began = self.clock()
        if self._dispatcher.in_flight:
            seconds = max(DRAIN_SECONDS, self._count_seconds_left())
            _log.info(
                f"draining: {self._dispatcher.in_flight} samples in flight have {format_seconds(seconds)} to "
                "finish; Ctrl-C stops at once"
            )
        while self._dispatcher.in_flight and (
            self.clock() - began < DRAIN_SECONDS or self._count_seconds_left() > 0
        ):
            self._poll()
        self._pool.abort()

    def _count_seconds_left(self) -> float:
        """Return the seconds until the deadline, 0 where something else asked to drain."""
        return self.drain.seconds_left if self.drain.reason is DrainReason.DEADLINE else 0.0

    def _show(self) -> None:
        self._shown_at = self.clock()
        self.display.show(self._take_snapshot())

    def _take_snapshot(self) -> ProgressSnapshot:
        return self._progress.take_snapshot(
            ended=self.recorder.finished + self.recorder.failed,
            failed=self.recorder.failed,
            total=self.recorder.samples,
            worker_statuses=self._policy.describe(),
            in_flight=self._dispatcher.held,
        )
