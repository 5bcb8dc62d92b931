"""The main loop of a run: feed the pool, record what ends, replace workers that die.

The driver is the only writer. A worker's message counts only if it comes from the worker's current
epoch and concerns a sample that the worker holds; all others are counted and dropped.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from synthia_batch.core.errors import PoolFailed
from synthia_batch.core.events import Subscriber, ignore_event
from synthia_batch.core.formatting import format_count, format_seconds
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Failed, Finished, Outcome, Record, Request
from synthia_batch.scheduler.crash_bisection import fail_quarantined
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.events import OutcomesRecorded, SampleQuarantined
from synthia_batch.scheduler.multi_turn import Step, record_as_it_is
from synthia_batch.scheduler.progress import LatencyWindow, ProgressTracker
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
SNAPSHOT_SECONDS = 0.1
"""Between two snapshots: fast engines end samples thousands of times a second."""
DRAIN_SECONDS = 10.0
"""How long samples in flight may continue once a run was asked to drain, or after its deadline."""


class OutcomeSink(Protocol):
    """Stores ended samples and turns."""

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass(slots=True, kw_only=True)
class Driver:
    """Drives a pool until every sample has ended or the run is asked to drain.

    `ended` counts the samples that ended, `dropped` the outcomes that did not count.
    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    `advance` returns the record of an outcome, and the next turn of a conversation. `publish` gets
    the run's events. `ended_before` samples ended in earlier attempts; `count_failed` returns the
    number of failed samples to show, by default those of this attempt.
    """

    sink: OutcomeSink
    drain: DrainRequest
    check_canary: Callable[[WorkerReady], object]
    watchdog_seconds: float
    log_path: Callable[[int], Path]
    publish: Subscriber = ignore_event
    advance: Callable[[Outcome], Step] = record_as_it_is
    ended_before: int = 0
    count_failed: Callable[[], int] | None = None
    load_timeout_seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    ended: int = 0
    dropped: int = 0
    _progress: ProgressTracker = field(init=False)
    _latency: LatencyWindow = field(default_factory=LatencyWindow)
    _snapshot_at: float = -math.inf
    _pool: Pool = field(init=False)
    _supervisor: WorkerSupervisor = field(init=False)
    _dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        """Start the tracker: an event's `elapsed_seconds` counts from here."""
        self._progress = ProgressTracker(self.clock())

    def run(self, dispatcher: Dispatcher, take_over: Callable[[], StartedPool]) -> DrainReason | None:
        """Drive until `dispatcher` is done; return why the run drained before, None if it did not.

        `take_over` returns the pool, which is starting: the first prompts are rendered meanwhile.
        """
        self._dispatcher = dispatcher
        dispatcher.read_ahead()
        try:
            started = take_over()
        except PoolFailed:
            if self.drain.reason is None:
                raise
            return self.drain.reason  # A signal to the whole group ends a pool that starts.
        self._pool = started.pool
        self._supervisor = WorkerSupervisor(
            pool=self._pool,
            policy=RestartPolicy(self.watchdog_seconds, self.load_timeout_seconds),
            dispatcher=dispatcher,
            publish=self.publish,
            check_canary=self.check_canary,
            log_path=self.log_path,
            clock=self.clock,
        )
        self._supervisor.register()
        self._handle(started.events)
        while not dispatcher.is_done:
            if self.drain.reason is not None:
                self._finish_in_flight()
                break
            self._supervisor.check()
            # Before the poll: a worker that was ready at the takeover sends nothing more until it
            # has requests, and every run would begin with a poll to its time-out.
            self._top_up()
            self._poll()
        self._publish_progress()
        self._publish_snapshot()
        return None if dispatcher.is_done else self.drain.reason

    def take_unsent(self, failed: Failed) -> None:
        """Record a sample that failed before it was sent to a worker."""
        self._dispatcher.end_unsent()
        self._record([failed])

    def _poll(self) -> None:
        self._handle(self._pool.poll(POLL_SECONDS))
        self._fail_quarantined()
        self.sink.tick()
        now = self.clock()
        if math.isfinite(self.drain.seconds_left):
            self.drain.reserve(self._latency.longest_seconds)
        if self._progress.is_due(now):
            self._publish_progress()
        if now - self._snapshot_at >= SNAPSHOT_SECONDS:
            self._publish_snapshot()

    def _handle(self, events: Sequence[PoolEvent]) -> None:
        """Handle all messages of the pool before sending more: a later one may be a worker's death."""
        continuing: set[int] = set()
        for event in events:
            match event:
                case SamplesEnded():
                    if self._take(event):
                        continuing.add(event.worker)
                case SamplesReturned():
                    if self._supervisor.policy.is_current(event.worker, event.epoch):
                        self._dispatcher.take_back(event.worker, event.ordinals)
                case WorkerStepped():
                    self._supervisor.policy.note_steps(event.worker, event.steps, self.clock())
                    self._progress.update_worker(event, self.clock())
                case _:
                    self._supervisor.handle(event)
        if self.drain.reason is None:
            # Before the others are topped up: these engines' prefix caches have the turns before.
            for worker in continuing.intersection(self._supervisor.policy.ready):
                self._feed(worker)

    def _take(self, event: SamplesEnded) -> bool:
        """Record what ended; return whether the worker has conversations to continue."""
        is_current = self._supervisor.policy.is_current(event.worker, event.epoch)
        known = [o for o in event.outcomes if is_current and self._dispatcher.accept(event.worker, o)]
        self.dropped += len(event.outcomes) - len(known)
        if any(isinstance(outcome, Finished) for outcome in known):
            self._supervisor.policy.clear_strikes(event.worker)
        self._latency.add_ended([outcome.ordinal for outcome in known], self.clock())
        samples = [outcome for outcome in known if outcome.ordinal >= 0]
        following = self._record(samples) if samples else []
        for request in following:
            self._dispatcher.continue_with(event.worker, request)
        return bool(following)

    def _record(self, outcomes: Sequence[Outcome]) -> list[Request]:
        """Record `outcomes`; return the next turns of the conversations among them."""
        steps = [self.advance(outcome) for outcome in outcomes]
        records = [step.record for step in steps]
        self.sink.record(records)
        following = [step.request for step in steps if step.request is not None]
        self.ended += len(outcomes) - len(following)
        self._progress.add_ended(outcomes, continued=len(following))
        self._progress.add_recorded(records)
        self.publish(OutcomesRecorded(records=records))
        return following

    def _fail_quarantined(self) -> None:
        quarantined = [fail_quarantined(request) for request in self._dispatcher.take_quarantined()]
        if quarantined:
            self._record(quarantined)
        for failed in quarantined:
            self.publish(SampleQuarantined(ordinal=failed.ordinal))
            _log.info(f"sample {failed.ordinal} is quarantined: {failed.message}")

    def _top_up(self) -> None:
        for worker in self._supervisor.policy.ready:
            self._feed(worker)
        for worker in self._dispatcher.choose_recalls():
            self._pool.recall(worker)

    def _feed(self, worker: int) -> None:
        requests = self._dispatcher.top_up(worker, self._supervisor.sharing)
        if requests:
            self._latency.add_sent([request.ordinal for request in requests], self.clock())
            self._pool.feed(worker, requests)

    def _finish_in_flight(self) -> None:
        """Give samples in flight time to finish, then have the engines drop them."""
        began = self.clock()
        if self._dispatcher.in_flight:
            seconds = max(DRAIN_SECONDS, self._count_seconds_left())
            samples, limit = format_count(self._dispatcher.in_flight, "sample"), format_seconds(seconds)
            _log.info(f"draining: {samples} in flight, with {limit} to finish; Ctrl-C stops at once")
        while self._dispatcher.in_flight and (
            self.clock() - began < DRAIN_SECONDS or self._count_seconds_left() > 0
        ):
            self._poll()
        self._pool.abort()

    def _count_seconds_left(self) -> float:
        """Return the seconds until the deadline, 0 if something else asked to drain."""
        return self.drain.seconds_left if self.drain.reason is DrainReason.DEADLINE else 0.0

    def _publish_progress(self) -> None:
        self.publish(self._progress.make_event(self.clock(), self._dispatcher.held))

    def _publish_snapshot(self) -> None:
        self._snapshot_at = self.clock()
        count_failed = self.count_failed or (lambda: self._progress.tally.failed)
        snapshot = self._progress.take_snapshot(
            ended=self.ended_before + self.ended,
            failed=count_failed(),
            total=self.ended_before + self._dispatcher.total,
            worker_statuses=self._supervisor.policy.statuses,
            in_flight=self._dispatcher.held,
        )
        self.publish(snapshot)
