"""How fast a run goes and how busy its engines are, as events for the report and the plots. Pure.

Every number is a total of this attempt, so an event that is lost costs nothing, and a rate over
any stretch is the difference of two events.

How long requests take from being sent to their end: what a deadline must leave them. Pure.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthia_batch.core.counts import Tally, tally_records
from synthia_batch.core.snapshot import ProgressSnapshot, WorkerSnapshot
from synthia_batch.core.types import Finished, Outcome, Record
from synthia_batch.scheduler.restart_policy import WorkerStatus

FIRST_INTERVAL_SECONDS = 2.0
ELAPSED_PER_INTERVAL = 3600
"""After two hours the interval is this part of the time that has passed: 10,100 events in 12 hours,
where every 2 s would be 21,600 and without end."""


@dataclass(slots=True)
class _Log:
    """One worker. `past` are the totals of its earlier starts, the others count since this one."""

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
class Progress:
    """Keeps the books of one attempt. Times are seconds of one monotonic clock."""

    started: float
    samples: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    tally: Tally = field(default_factory=Tally)
    _logs: dict[int, _Log] = field(default_factory=dict)
    _due_at: float = field(init=False)

    def __post_init__(self) -> None:
        """Have the first event wait as long as the second."""
        self._due_at = self.started + FIRST_INTERVAL_SECONDS

    def note_ended(self, outcomes: Sequence[Outcome], going_on: int = 0) -> None:
        """Take note of requests that ended; with `going_on` of them no sample did, but a turn."""
        self.samples += len(outcomes) - going_on
        for outcome in outcomes:
            if isinstance(outcome, Finished):
                self.tokens += outcome.completion_tokens
                self.prompt_tokens += outcome.prompt_tokens

    def note_recorded(self, records: Sequence[Record]) -> None:
        """Take note of what requests that ended have come to as samples."""
        self.tally += tally_records(records)

    def note_worker(
        self,
        worker: int,
        epoch: int,
        *,
        steps: int,
        busy_seconds: float,
        cached_prompt_tokens: int,
        now: float,
    ) -> None:
        """Take note of what an engine has done since its start.

        A late word of an earlier start is dropped.
        """
        log = self._logs.setdefault(worker, _Log())
        if epoch < log.epoch:
            return
        if epoch > log.epoch:
            log.begin_epoch(epoch)
        log.steps, log.busy_seconds, log.heard_at = steps, busy_seconds, now
        log.cached_prompt_tokens = cached_prompt_tokens

    def is_due(self, now: float) -> bool:
        """Whether it is time for another event."""
        return now >= self._due_at

    def describe(self, now: float, in_flight: Mapping[int, int]) -> dict[str, Any]:
        """Return the fields of the event of `now`, and put the next one off.

        `in_flight` counts the samples that each worker holds. A worker's `heard_seconds` is when
        its numbers were its own: between two events it was busy for the difference of
        `busy_seconds` out of that of `heard_seconds`.
        """
        elapsed = now - self.started
        self._due_at = now + max(FIRST_INTERVAL_SECONDS, elapsed / ELAPSED_PER_INTERVAL)
        return {
            "elapsed_seconds": round(elapsed, 3),
            "samples": self.samples,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self._cached_prompt_tokens,
            "truncated": self.tally.truncated,
            "failures": self.tally.failures,
            "workers": [
                {
                    "worker": worker,
                    "busy_seconds": round(log.all_busy_seconds, 3),
                    "heard_seconds": round(log.heard_at - self.started, 3),
                    "in_flight": in_flight.get(worker, 0),
                    "steps": log.past_steps + log.steps,
                }
                for worker, log in sorted(self._logs.items())
            ],
        }

    def take_snapshot(
        self,
        *,
        ended: int,
        failed: int,
        total: int,
        worker_statuses: Mapping[int, WorkerStatus],
        in_flight: Mapping[int, int],
    ) -> ProgressSnapshot:
        """Return how far the run is: `ended`, of which `failed`, of `total` samples over all attempts."""
        nothing = _Log()
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
                    busy_seconds=self._logs.get(worker, nothing).all_busy_seconds,
                    in_flight=in_flight.get(worker, 0),
                )
                for worker, status in worker_statuses.items()
            ),
        )

    @property
    def _cached_prompt_tokens(self) -> int:
        return sum(log.past_cached_prompt_tokens + log.cached_prompt_tokens for log in self._logs.values())


RECENT_REQUESTS = 512
"""The longest of so many is what those in flight may take: a few batches, so that a night that begins
with long prompts is not judged by them in the morning."""


class LatencyWindow:
    """Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_REQUESTS)

    @property
    def longest_seconds(self) -> float:
        """The longest that one of the latest requests took, 0 where none has ended."""
        return max(self._recent, default=0.0)

    def note_sent(self, ordinals: Iterable[int], now: float) -> None:
        """Take note that these requests go to an engine; what was sent before counts from now."""
        self._sent.update(dict.fromkeys(ordinals, now))

    def note_ended(self, ordinals: Iterable[int], now: float) -> None:
        """Take note that these requests have ended."""
        self._recent.extend(now - self._sent.pop(ordinal) for ordinal in ordinals if ordinal in self._sent)
