"""What the driver expects of a pool, and the messages that it gets from one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from synthia_batch.core.types import Outcome, Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.canary import Canaries, CanaryAnswer
from synthia_batch.workers.engine import EngineFacts
from synthia_batch.workers.worker import Delivery

REPORTS_PER_WATCHDOG = 4
"""A worker must be heard of more often than the watchdog's patience is long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """What every worker of a pool is made from.

    `canaries` are asked at each worker's start; None in fast determinism. `log_path` gives the
    file of worker `index` on the driver's machine.
    """

    engine: EngineSpec
    canaries: Canaries | None
    log_path: Callable[[int], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoading:
    """A worker has found room and begins to load its engine."""

    worker: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker has loaded its engine. `canary` is its answer to the canaries, if asked."""

    worker: int
    epoch: int
    facts: EngineFacts
    canary: CanaryAnswer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesEnded:
    """A worker hands over samples that ended, finished or failed."""

    worker: int
    epoch: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStepped:
    """A worker is alive; its engine has made `steps` steps since its start.

    `busy_seconds` and `cached_prompt_tokens` are those of its `Delivery`. Comes before the samples
    that it is told with: once the last of them has ended, nobody listens.
    """

    worker: int
    epoch: int
    steps: int
    busy_seconds: float = 0.0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesReturned:
    """A worker gives back samples that it was recalled in time: its engine has not begun them."""

    worker: int
    epoch: int
    ordinals: tuple[int, ...]


class Cause(Enum):
    """Why a worker is gone."""

    DIED = "died"
    """Its process or its engine ended. One of its samples may be to blame."""
    HUNG = "hung"
    """Its engine made no step for too long, and it was killed."""
    OUT_OF_MEMORY = "ran out of memory"
    """It may do with a smaller batch."""
    NODE_LOST = "was on a machine that is gone"
    """Neither it nor its samples are to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone, with everything it had not handed over.

    `refused` says that its start can never succeed, as with a wrong setting or a broken canary:
    no use in starting another.
    """

    worker: int
    epoch: int
    reason: str
    cause: Cause = Cause.DIED
    refused: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAdded:
    """The pool found room for another worker and is starting it."""

    worker: int


PoolEvent = (
    WorkerLoading | WorkerReady | SamplesEnded | SamplesReturned | WorkerStepped | WorkerLost | WorkerAdded
)


def read_delivery(worker: int, epoch: int, delivery: Delivery) -> list[PoolEvent]:
    """Return what `delivery` of that start of `worker` tells, in the order in which it is to be heard.

    A WorkerLost comes last: with its error the loop has ended, and there is nothing more to collect.
    """
    events: list[PoolEvent] = [
        WorkerStepped(
            worker=worker,
            epoch=epoch,
            steps=delivery.steps,
            busy_seconds=delivery.busy_seconds,
            cached_prompt_tokens=delivery.cached_prompt_tokens,
        )
    ]
    if delivery.outcomes:
        events.append(SamplesEnded(worker=worker, epoch=epoch, outcomes=delivery.outcomes))
    if delivery.returned:
        events.append(SamplesReturned(worker=worker, epoch=epoch, ordinals=delivery.returned))
    if delivery.error is not None:
        cause = Cause.OUT_OF_MEMORY if delivery.is_out_of_memory else Cause.DIED
        events.append(WorkerLost(worker=worker, epoch=epoch, reason=delivery.error, cause=cause))
    return events


class Pool(Protocol):
    """The workers of a job. Called by one thread.

    Each start of a worker has an epoch of its own, counted up over the pool. A message of an
    epoch that was reported lost may still arrive; whoever reads it must drop it.
    """

    @property
    def size(self) -> int:
        """The number of workers that the pool starts with."""

    def start(self) -> None:
        """Begin to start every worker; each reports as WorkerReady or WorkerLost.

        Raises:
            PoolFailed: There is nothing to run workers on.
            UsageError: The settings ask for what the pool cannot give.
        """

    @property
    def unplaced(self) -> int:
        """Workers that have long waited for room: nothing is to be kept for them."""

    def restart(self, worker: int, halvings: int = 0) -> None:
        """Begin to start the lost `worker` again, under a new epoch, its memory halved so often."""

    def kill(self, worker: int) -> None:
        """End `worker` at once, whatever it is doing. No event tells of it.

        Raises:
            PoolFailed: This kind of pool cannot, and could not start another beside it.
        """

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` to a worker that is ready. Does not wait."""

    def recall(self, worker: int) -> None:
        """Ask a worker that is ready for what its engine has not begun. Does not wait."""

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what has happened, waiting up to `timeout_seconds` where nothing has."""

    def abort(self) -> None:
        """Have every worker drop what it has not ended."""

    def stop(self, at_once: bool = False) -> None:
        """End every worker and give back the devices. May be called at any time, also twice.

        `at_once` waits for no engine to come to the end of its step.
        """
