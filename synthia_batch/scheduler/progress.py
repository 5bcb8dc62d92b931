"""Progress of an attempt: totals for the log and the display, and how long requests take. Pure."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from synthia_batch.core.counts import Tally, tally_records
from synthia_batch.core.snapshot import ProgressSnapshot, WorkerSnapshot
from synthia_batch.core.types import Finished, Outcome, Record
from synthia_batch.scheduler.events import Progress, WorkerProgress
from synthia_batch.scheduler.restart_policy import WorkerStatus
from synthia_batch.workers.pools.base import WorkerStepped

FIRST_INTERVAL_SECONDS = 2.0
ELAPSED_PER_INTERVAL = 3600
"""After two hours the interval is this fraction of the elapsed time: 10,100 events in 12 hours,
where every 2 s would be 21,600 and without end."""
RECENT_REQUESTS = 512
"""The longest of these is what requests in flight may take: a few batches, so that long prompts at
the start of a night no longer count in the morning."""


@dataclass(slots=True)
class _WorkerTotals:
    """One worker. `past` totals are of its earlier epochs, the others of the current one."""

    epoch: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    cached_prompt_tokens: int = 0
    heard_at: float = 0.0
    past_steps: int = 0
    past_busy_seconds: float = 0.0
    past_cached_prompt_tokens: int = 0

    @property
    def all_busy_seconds(self) -> float:
        return self.past_busy_seconds + self.busy_seconds

    def begin_epoch(self, epoch: int) -> None:
        self.past_steps += self.steps
        self.past_busy_seconds += self.busy_seconds
        self.past_cached_prompt_tokens += self.cached_prompt_tokens
        self.epoch, self.steps, self.busy_seconds, self.cached_prompt_tokens = epoch, 0, 0.0, 0


@dataclass(slots=True)
class ProgressTracker:
    """Counts what one attempt has done. Times are seconds of one monotonic clock."""

    started: float
    samples: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    tally: Tally = field(default_factory=Tally)
    _workers: dict[int, _WorkerTotals] = field(default_factory=dict)
    _due_at: float = field(init=False)

    def __post_init__(self) -> None:
        """Schedule the first event after a full interval."""
        self._due_at = self.started + FIRST_INTERVAL_SECONDS

    def add_ended(self, outcomes: Sequence[Outcome], continued: int = 0) -> None:
        """Count requests that ended; for `continued` of them only a turn ended, not the sample."""
        self.samples += len(outcomes) - continued
        for outcome in outcomes:
            if isinstance(outcome, Finished):
                self.tokens += outcome.completion_tokens
                self.prompt_tokens += outcome.prompt_tokens

    def add_recorded(self, records: Sequence[Record]) -> None:
        """Count what was recorded for requests that ended."""
        self.tally += tally_records(records)

    def update_worker(self, stepped: WorkerStepped, now: float) -> None:
        """Set a worker's totals; a late message of an earlier epoch is dropped."""
        totals = self._workers.setdefault(stepped.worker, _WorkerTotals())
        if stepped.epoch < totals.epoch:
            return
        if stepped.epoch > totals.epoch:
            totals.begin_epoch(stepped.epoch)
        totals.steps, totals.busy_seconds, totals.heard_at = stepped.steps, stepped.busy_seconds, now
        totals.cached_prompt_tokens = stepped.cached_prompt_tokens

    def is_due(self, now: float) -> bool:
        """Whether it is time for another event."""
        return now >= self._due_at

    def make_event(self, now: float, in_flight: Mapping[int, int]) -> Progress:
        """Return the event of `now` and schedule the next. `in_flight` counts samples by worker."""
        elapsed = now - self.started
        self._due_at = now + max(FIRST_INTERVAL_SECONDS, elapsed / ELAPSED_PER_INTERVAL)
        return Progress(
            elapsed_seconds=round(elapsed, 3),
            samples=self.samples,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            truncated=self.tally.truncated,
            failures=dict(self.tally.failures),
            workers=tuple(
                WorkerProgress(
                    worker=worker,
                    busy_seconds=round(totals.all_busy_seconds, 3),
                    heard_seconds=round(totals.heard_at - self.started, 3),
                    in_flight=in_flight.get(worker, 0),
                    steps=totals.past_steps + totals.steps,
                )
                for worker, totals in sorted(self._workers.items())
            ),
        )

    def take_snapshot(
        self,
        *,
        ended: int,
        failed: int,
        total: int,
        worker_statuses: Mapping[int, WorkerStatus],
        in_flight: Mapping[int, int],
    ) -> ProgressSnapshot:
        """Return the current progress: `ended` of `total` samples, `failed` of them failed."""
        nothing = _WorkerTotals()
        return ProgressSnapshot(
            ended=ended,
            failed=failed,
            total=total,
            finished=self.tally.finished,
            truncated=self.tally.truncated,
            failures=self.tally.failures,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            workers=tuple(
                WorkerSnapshot(
                    worker=worker,
                    state=status.state,
                    restarts=status.restarts,
                    busy_seconds=self._workers.get(worker, nothing).all_busy_seconds,
                    in_flight=in_flight.get(worker, 0),
                )
                for worker, status in worker_statuses.items()
            ),
        )

    @property
    def _cached_prompt_tokens(self) -> int:
        return sum(
            totals.past_cached_prompt_tokens + totals.cached_prompt_tokens
            for totals in self._workers.values()
        )


class LatencyWindow:
    """How long the latest requests took. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_REQUESTS)

    @property
    def longest_seconds(self) -> float:
        """The longest that one of the latest requests took, 0 if none has ended."""
        return max(self._recent, default=0.0)

    def add_sent(self, ordinals: Iterable[int], now: float) -> None:
        """Start the time of these requests, also of those that were sent before."""
        self._sent.update(dict.fromkeys(ordinals, now))

    def add_ended(self, ordinals: Iterable[int], now: float) -> None:
        """Stop the time of these requests."""
        self._recent.extend(now - self._sent.pop(ordinal) for ordinal in ordinals if ordinal in self._sent)
