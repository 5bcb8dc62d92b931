"""The contract of pools, and the events that they report."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from synthia_batch.core.types import Outcome, Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.canary import Canaries, CanaryAnswer
from synthia_batch.workers.engine import NO_REDUCTION, EngineFacts, Reduction
from synthia_batch.workers.worker import Delivery

_log = logging.getLogger(__name__)

REPORTS_PER_WATCHDOG = 4
"""A worker reports this many times within the watchdog's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What every worker of a pool is started with.

    `canaries` run at each worker's start; None in fast determinism. `log_path` returns the log file of
    worker `index` on the driver's machine.
    """

    engine: EngineSpec
    canaries: Canaries | None
    log_path: Callable[[int], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoading:
    """A worker is placed and starts loading its engine."""

    worker: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker has loaded its engine. `canary` is its answer to the canaries, if they were run."""

    worker: int
    epoch: int
    facts: EngineFacts
    canary: CanaryAnswer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesEnded:
    """Samples of a worker ended, finished or failed."""

    worker: int
    epoch: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStepped:
    """A worker is alive; its engine has run `steps` steps since its start.

    `busy_seconds` and `cached_prompt_tokens` are those of its `Delivery`. Precedes the samples of the same
    delivery, since nothing is read after a job's last sample.
    """

    worker: int
    epoch: int
    steps: int
    busy_seconds: float = 0.0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesReturned:
    """A worker returns recalled samples that its engine has not started."""

    worker: int
    epoch: int
    ordinals: tuple[int, ...]


class Cause(Enum):
    """Why a worker is gone."""

    DIED = "died"
    """Its process or its engine ended. One of its samples may be the cause."""
    HUNG = "hung"
    """Its engine ran no step for too long, and it was killed."""
    OUT_OF_MEMORY = "ran out of memory"
    """A smaller batch may help."""
    NODE_LOST = "was on a machine that is gone"
    """Neither it nor its samples are the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone, with everything it had not delivered.

    `refused` is set if its start can never succeed, for instance due to a wrong setting or a failed canary:
    then no other is started.
    """

    worker: int
    epoch: int
    reason: str
    cause: Cause = Cause.DIED
    refused: Exception | None = None


def log_refusal(lost: WorkerLost, log: Path | None) -> None:
    """Log which worker's refusal to start ends the run; the error itself says why. `log` is the worker's."""
    where = f" (log: {log})" if log is not None and log.exists() else ""
    _log.info(f"worker {lost.worker} could not load its engine, and no other could{where}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAdded:
    """The pool found resources for another worker and is starting it."""

    worker: int


PoolEvent = (
    WorkerLoading | WorkerReady | SamplesEnded | SamplesReturned | WorkerStepped | WorkerLost | WorkerAdded
)


def read_delivery(worker: int, epoch: int, delivery: Delivery) -> list[PoolEvent]:
    """Return the events of `delivery`, in the order in which they must be handled.

    A WorkerLost is last: its error ended the loop, so there is nothing more to collect.
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

    Each start of a worker has its own epoch, counted over the whole pool. An event of an epoch that was
    reported lost may still arrive and must be ignored.
    """

    @property
    def size(self) -> int:
        """The number of workers that the pool starts with."""

    def start(self) -> None:
        """Start every worker without waiting; each reports as WorkerReady or WorkerLost.

        Raises:
            PoolFailed: There are no resources to run workers.
            UsageError: The pool does not support the settings.
        """

    @property
    def unplaced(self) -> int:
        """Number of workers that have waited long for resources; no samples are kept for them."""

    def renew(self, worker_spec: WorkerSpec) -> Sequence[PoolEvent]:
        """Use the engines for `worker_spec`, which they load like, without waiting; restart the lost ones.

        Each worker begins an epoch. Call it when no sample is in flight; returns the first events.
        """

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        """Start the lost `worker` again without waiting, under a new epoch and with less memory."""

    def kill(self, worker: int) -> None:
        """End `worker` at once, whatever it is doing. No event reports it.

        Raises:
            PoolFailed: This kind of pool cannot, and could not start another worker.
        """

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` to a worker that is ready. Does not wait."""

    def recall(self, worker: int) -> None:
        """Recall what the engine of a ready worker has not started. Does not wait."""

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return new events, waiting up to `timeout_seconds` for the first."""

    def abort(self) -> None:
        """Make every worker drop its unfinished samples."""

    def stop(self, at_once: bool = False) -> None:
        """End every worker and free the devices. May be called at any time, also twice.

        `at_once`: do not wait for the engines to finish their steps.
        """
