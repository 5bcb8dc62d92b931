"""The loop at the heart of a run: feed the pool, take what has ended, replace what has died.

The driver is the only writer. What comes from a worker is believed only if it is of that
worker's present epoch and of a sample that the worker was given: all else is counted and dropped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from synthia_batch.dispatch import Dispatcher
from synthia_batch.display import Display, Standing
from synthia_batch.drain import DrainReason, DrainRequest
from synthia_batch.errors import PoolFailed
from synthia_batch.pool.base import Pool, SamplesEnded, WorkerLost, WorkerReady
from synthia_batch.rows import Failed, Finished, Outcome, Request

POLL_SECONDS = 0.2
DRAIN_SECONDS = 10.0
"""How long samples in flight may go on once a run was asked to drain."""
RESTARTS_PER_WORKER = 5
"""Deaths in a row, with no sample finished between, after which a worker is given up."""
FIRST_PAUSE_SECONDS = 1.0
"""Before the first restart; doubled with each death that follows."""
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

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Make these samples durable."""

    def tick(self) -> None:
        """Called a few times a second."""

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history."""


@dataclass(slots=True)
class _Seat:
    """What the driver knows of one worker. `epoch` is None while it is not ready."""

    epoch: int | None = None
    deaths: int = 0
    restart_at: float | None = None
    given_up: bool = False


@dataclass(slots=True, kw_only=True)
class Driver:
    """Drives one pool until every sample has ended or the run is to drain.

    `made` counts the samples that ended, `dropped` those that were not believed.
    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    """

    pool: Pool
    recorder: Recorder
    drain: DrainRequest
    display: Display
    check_canary: Callable[[WorkerReady], None]
    log_path: Callable[[int], Path]
    clock: Callable[[], float] = time.monotonic
    made: int = 0
    dropped: int = 0
    _tokens: int = 0
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _dispatcher: Dispatcher = field(init=False)

    def run(self, dispatcher: Dispatcher) -> DrainReason | None:
        """Drive `dispatcher` to its end; return why the run drained before it, None if it did not.

        Raises:
            PoolFailed: No worker is left, or none can start.
            DeterminismBroken: A worker's canary answered otherwise than it must.
            StorageFailed: What had ended could not be written.
        """
        self._dispatcher = dispatcher
        self.pool.start()
        self._seats = {worker: _Seat() for worker in range(self.pool.size)}
        while not self._dispatcher.is_done:
            if self.drain.reason is not None:
                self._finish_in_flight()
                return self.drain.reason
            self._poll()
            self._restart_due()
            self._top_up()
        return None

    def take_unsent(self, failed: Failed) -> None:
        """Take in a sample that failed before any worker saw it."""
        self._dispatcher.end_unsent()
        self._record([failed])

    def _poll(self) -> None:
        for event in self.pool.poll(POLL_SECONDS):
            match event:
                case SamplesEnded():
                    self._take(event)
                case WorkerReady():
                    self._welcome(event)
                case WorkerLost():
                    self._bury(event)
        self.recorder.tick()
        self._show()

    def _take(self, event: SamplesEnded) -> None:
        seat = self._seats[event.worker]
        known = [
            outcome
            for outcome in event.outcomes
            if event.epoch == seat.epoch and self._dispatcher.accept(event.worker, outcome.ordinal)
        ]
        self.dropped += len(event.outcomes) - len(known)
        if known:
            seat.deaths = 0
            self._record(known)

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        self.recorder.record(outcomes)
        self.made += len(outcomes)
        self._tokens += sum(o.completion_tokens for o in outcomes if isinstance(o, Finished))

    def _welcome(self, event: WorkerReady) -> None:
        self.check_canary(event)
        self._seats[event.worker].epoch = event.epoch
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

    def _bury(self, event: WorkerLost) -> None:
        seat = self._seats[event.worker]
        seat.epoch = None
        unfinished = self._dispatcher.close_desk(event.worker)
        self.recorder.note("worker_lost", worker=event.worker, epoch=event.epoch, unfinished=unfinished)
        if event.refused is not None:
            raise event.refused
        seat.deaths += 1
        pause = FIRST_PAUSE_SECONDS * 2 ** (seat.deaths - 1)
        seat.given_up = seat.deaths > RESTARTS_PER_WORKER
        seat.restart_at = None if seat.given_up else self.clock() + pause
        what = "is given up" if seat.given_up else f"starts again in {pause:.0f} s"
        self.display.say(
            f"worker {event.worker} died and {what}; {unfinished} unfinished samples go back to the queue "
            f"(log: {self.log_path(event.worker)})"
        )
        if all(other.given_up for other in self._seats.values()):
            raise PoolFailed(self._explain_failure(event))

    def _restart_due(self) -> None:
        now = self.clock()
        for worker, seat in self._seats.items():
            if seat.restart_at is not None and now >= seat.restart_at:
                seat.restart_at = None
                self.pool.restart(worker)

    def _top_up(self) -> None:
        staff = sum(not seat.given_up for seat in self._seats.values())
        for worker, seat in self._seats.items():
            if seat.epoch is not None:
                requests: list[Request] = self._dispatcher.top_up(worker, staff)
                if requests:
                    self.pool.feed(worker, requests)

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
        self.pool.abort()

    def _show(self) -> None:
        self.display.show(
            Standing(
                ended=self.recorder.finished + self.recorder.failed,
                total=self.recorder.samples,
                failed=self.recorder.failed,
                tokens=self._tokens,
                workers=sum(seat.epoch is not None for seat in self._seats.values()),
            )
        )

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
