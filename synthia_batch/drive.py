"""The loop at the heart of a run: feed the pool, take what has ended, replace what has died.

The driver is the only writer. What comes from a worker is believed only if it is of that
worker's present epoch and of a sample that the worker was given: all else is counted and dropped.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from synthia_batch.conversations import Step, record_as_it_is
from synthia_batch.dispatch import Dispatcher
from synthia_batch.display import Display, Standing
from synthia_batch.drain import DrainReason, DrainRequest
from synthia_batch.errors import PoolFailed
from synthia_batch.pool.base import (
    Cause,
    Pool,
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.progress import Progress
from synthia_batch.rows import Failed, Finished, Outcome, Record, Request
from synthia_batch.starting import StartedPool
from synthia_batch.supervise import Supervisor
from synthia_batch.suspects import fail_convicted

POLL_SECONDS = 0.2
DRAIN_SECONDS = 10.0
"""How long samples in flight may go on once a run was asked to drain."""
LOG_TAIL_LINES = 20


class Recorder(Protocol):
    """Where ended samples go: the store's side of a run. Its counts are over all attempts."""

    @property
    def samples(self) -> int:
        """The samples of the job."""

    @property
    def finished(self) -> int:
        """The samples made so far."""

    @property
    def failed(self) -> int:
        """The samples that could not be made."""

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""

    def tick(self) -> None:
        """Called a few times a second."""

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history."""


@dataclass(slots=True, kw_only=True)
class Driver:
    """Drives the pool that it is given until every sample has ended or the run is to drain.

    `made` counts the samples that ended, `dropped` those that were not believed.
    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    `advance` says what an outcome comes to, and the next turn of a conversation.
    """

    recorder: Recorder
    drain: DrainRequest
    display: Display
    check_canary: Callable[[WorkerReady], object]
    watchdog_seconds: float
    log_path: Callable[[int], Path]
    advance: Callable[[Outcome], Step] = record_as_it_is
    load_timeout_seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    made: int = 0
    dropped: int = 0
    _progress: Progress = field(init=False)
    _pool: Pool = field(init=False)
    _supervisor: Supervisor = field(init=False)
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
        self._supervisor = Supervisor(self.watchdog_seconds, self.load_timeout_seconds)
        dispatcher.read_ahead()
        started = take_over()
        self._pool = started.pool
        for worker in range(self._pool.size):
            self._supervisor.enlist(worker)
        self._handle(started.events)
        while not self._dispatcher.is_done:
            if self.drain.reason is not None:
                self._finish_in_flight()
                self._note_progress()
                return self.drain.reason
            self._kill_hung()
            self._restart_due()
            # Before the poll: a worker that was ready when it was handed over has no more to say until
            # it is fed, and every run would begin with a poll to its time-out.
            self._top_up()
            self._poll()
        self._note_progress()
        return None

    def take_unsent(self, failed: Failed) -> None:
        """Take in a sample that failed before any worker saw it."""
        self._dispatcher.end_unsent()
        self._record([failed])

    def _poll(self) -> None:
        self._handle(self._pool.poll(POLL_SECONDS))
        self._fail_convicted()
        self.recorder.tick()
        if self._progress.is_due(self.clock()):
            self._note_progress()
        self._show()

    def _handle(self, events: Sequence[PoolEvent]) -> None:
        for event in events:
            match event:
                case SamplesEnded():
                    self._take(event)
                case SamplesReturned():
                    if self._supervisor.believes(event.worker, event.epoch):
                        self._dispatcher.take_back(event.worker, event.ordinals)
                case WorkerStepped():
                    self._note_steps(event)
                case WorkerLoading():
                    if self._supervisor.is_news(event.worker, event.epoch):
                        self._supervisor.note_loading(event.worker, event.epoch, self.clock())
                case WorkerReady():
                    self._welcome(event)
                case WorkerLost():
                    self._bury(event)
                case WorkerAdded():
                    self._supervisor.enlist(event.worker)
                    self._tell(f"worker {event.worker} joins: there is room for it", "worker_added", event)

    def _take(self, event: SamplesEnded) -> None:
        is_known = self._supervisor.believes(event.worker, event.epoch)
        known = [o for o in event.outcomes if is_known and self._dispatcher.accept(event.worker, o)]
        self.dropped += len(event.outcomes) - len(known)
        if any(isinstance(outcome, Finished) for outcome in known):
            self._supervisor.note_made(event.worker)
        if not known:
            return
        following = self._record(known)
        for request in following:
            self._dispatcher.go_on(event.worker, request)
        if following and self.drain.reason is None:
            # Before the others are topped up: the turns before are in this engine's prefix cache.
            self._feed(event.worker)

    def _record(self, outcomes: Sequence[Outcome]) -> list[Request]:
        """Record what `outcomes` come to; return the next turns of the conversations among them."""
        steps = [self.advance(outcome) for outcome in outcomes]
        self.recorder.record([step.record for step in steps])
        following = [step.request for step in steps if step.request is not None]
        self.made += len(outcomes) - len(following)
        self._progress.note_ended(outcomes, going_on=len(following))
        return following

    def _note_steps(self, event: WorkerStepped) -> None:
        now = self.clock()
        self._supervisor.note_steps(event.worker, event.steps, now)
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

    def _fail_convicted(self) -> None:
        convicted = [fail_convicted(request) for request in self._dispatcher.take_convicted()]
        if convicted:
            self._record(convicted)
        for failed in convicted:
            self.recorder.note("sample_convicted", ordinal=failed.ordinal)
            self.display.say(f"sample {failed.ordinal} is set aside: {failed.message}")

    def _welcome(self, event: WorkerReady) -> None:
        if not self._supervisor.is_news(event.worker, event.epoch):
            return
        self.check_canary(event)
        self._supervisor.welcome(event.worker, event.epoch, self.clock())
        self._dispatcher.open_desk(event.worker, event.facts.capacity)
        facts = event.facts
        self.recorder.note(
            "worker_ready",
            worker=event.worker,
            epoch=event.epoch,
            engine=f"{facts.engine} {facts.version}",
            device=facts.device,
            capacity=facts.capacity,
        )

    def _kill_hung(self) -> None:
        for worker, epoch in self._supervisor.find_hung(self._dispatcher.busy, self.clock()):
            self._kill(worker, epoch, f"its engine made no step for {self.watchdog_seconds:g} s")
        for worker, epoch in self._supervisor.find_stuck_loads(self.clock()):
            self._kill(
                worker,
                epoch,
                f"its engine did not load in {self.load_timeout_seconds:g} s (pool.load_timeout_seconds)",
            )

    def _kill(self, worker: int, epoch: int, reason: str) -> None:
        self._pool.kill(worker)
        self._bury(WorkerLost(worker=worker, epoch=epoch, reason=reason, cause=Cause.HUNG))

    def _bury(self, event: WorkerLost) -> None:
        if not self._supervisor.is_news(event.worker, event.epoch):
            return
        is_short = event.cause is Cause.OUT_OF_MEMORY
        tries_less = is_short or (event.cause is Cause.DIED and self._supervisor.fails_to_load(event.worker))
        has_less = tries_less and self._supervisor.halve(event.worker)
        is_innocent = (is_short and has_less) or event.cause is Cause.NODE_LOST
        loss = self._dispatcher.close_desk(event.worker, blames_samples=not is_innocent)
        pause = self._supervisor.bury(
            event.worker, event.epoch, is_strike=not (is_innocent or loss.narrowed), now=self.clock()
        )
        self._report_loss(event, loss.unfinished, pause, has_less)
        if event.refused is not None:
            raise event.refused
        if pause is None:
            self._dispatcher.give_up(event.worker)
        if not self._supervisor.staff:
            raise PoolFailed(self._explain_failure(event))

    def _report_loss(self, event: WorkerLost, unfinished: int, pause: float | None, has_less: bool) -> None:
        """Say who died and what comes next; the history also gets the evidence."""
        log = self.log_path(event.worker)
        what = "is given up" if pause is None else f"starts again in {pause:.1f} s"
        if has_less and pause is not None:
            what += " with less memory: half the batch, or a smaller KV cache"
        self._tell(
            f"worker {event.worker} {event.cause.value} and {what}; {unfinished} unfinished samples go "
            f"back to the queue (log: {log})",
            "worker_lost",
            event,
            unfinished=unfinished,
            cause=event.cause.name.lower(),
            epoch=event.epoch,
            reason=event.reason.strip(),
            log_tail=_read_tail(log, LOG_TAIL_LINES),
        )

    def _restart_due(self) -> None:
        for worker in self._supervisor.take_due(self.clock()):
            self._pool.restart(worker, self._supervisor.count_halvings(worker))

    def _top_up(self) -> None:
        for worker in self._supervisor.ready:
            self._feed(worker)
        for worker in self._dispatcher.choose_recalls():
            self._pool.recall(worker)

    def _feed(self, worker: int) -> None:
        staff = max(1, self._supervisor.staff - self._pool.unplaced)
        requests = self._dispatcher.top_up(worker, staff)
        if requests:
            self._pool.feed(worker, requests)

    def _finish_in_flight(self) -> None:
        """Give samples in flight a little time, then have the engines drop them."""
        if self._dispatcher.in_flight:
            self.display.say(
                f"draining: {self._dispatcher.in_flight} samples in flight have {DRAIN_SECONDS:.0f} s to "
                "finish; Ctrl-C stops at once"
            )
        until = self.clock() + DRAIN_SECONDS
        while self._dispatcher.in_flight and self.clock() < until:
            self._poll()
        self._pool.abort()

    def _show(self) -> None:
        self.display.show(
            Standing(
                ended=self.recorder.finished + self.recorder.failed,
                total=self.recorder.samples,
                failed=self.recorder.failed,
                tokens=self._progress.tokens,
                workers=len(self._supervisor.ready),
            )
        )

    def _tell(self, text: str, kind: str, event: WorkerLost | WorkerAdded, **fields: Any) -> None:
        """Say what happened to a worker, to the person and to the run's history."""
        self.recorder.note(kind, worker=event.worker, **fields)
        self.display.say(text)

    def _explain_failure(self, event: WorkerLost) -> str:
        reason = event.reason.strip()
        log = self.log_path(event.worker)
        tail = _read_tail(log, LOG_TAIL_LINES)
        parts = ["no worker is left; what was finished is kept. The last one died of:", reason]
        if tail:
            parts += [f"the last lines of {log}:", tail]
        parts.append("mend the cause, then run the same command again")
        return "\n".join(parts)


def _read_tail(path: Path, lines: int) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
