"""Progress of an attempt and its workers at one moment, for the progress bar and the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthia_batch.core.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker. `state` is starting, loading, ready, restarting or given up.

    It was restarted `restarts` times. `busy_seconds` is the time during which its engine had requests,
    `in_flight` the number of samples that it holds.
    """

    worker: int
    state: str
    restarts: int = 0
    busy_seconds: float = 0.0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot(Event):
    """`ended` (including `failed`) and `total` count samples over all attempts; the rest, this one's.

    `truncated` of the `finished` were cut off at max_tokens; `failures` counts failed samples by code.
    Tokens are those of completed requests.
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
