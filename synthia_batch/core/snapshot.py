"""How far an attempt is and what its workers do, at one moment: for the bar and for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthia_batch.core.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker. `state` is starting, loading, ready, restarting or given up.

    `restarts` counts the times that it was lost and began again, `busy_seconds` those in which its
    engine had requests, `in_flight` the samples that it holds.
    """

    worker: int
    state: str
    restarts: int = 0
    busy_seconds: float = 0.0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot(Event):
    """`ended`, of which `failed`, and `total` are samples over all attempts; the rest is of this one.

    `finished` samples were made, of which `truncated` were cut off at max_tokens; `failures` counts
    those that could not be made, by code. Tokens are of requests that ended.
    """

    ended: int
    total: int
    failed: int
    finished: int = 0
    truncated: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    workers: Sequence[WorkerSnapshot] = ()

    def count_workers(self, *states: str) -> int:
        """Return how many workers are in one of `states`."""
        return sum(worker.state in states for worker in self.workers)
