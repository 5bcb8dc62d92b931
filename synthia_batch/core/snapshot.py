"""Progress of an attempt and state of its workers at one moment, for the display and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthia_batch.core.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker. `state` is starting, loading, ready, restarting or given up.

    It was restarted `restarts` times, its engine had requests for `busy_seconds`, and it holds
    `in_flight` samples.
    """

    worker: int
    state: str
    restarts: int = 0
    busy_seconds: float = 0.0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot(Event):
    """`ended`, of which `failed`, and `total` are samples over all attempts; the rest is of this one.

    `truncated` of the `finished` samples were cut off at max_tokens; `failures` counts the failed
    ones by code. Tokens are of requests that ended.
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
