"""The events of a run. Kinds and fields are those of events.jsonl: do not rename them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from synthia_batch.core.events import Event, LoggedEvent
from synthia_batch.core.types import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(LoggedEvent):
    """A process took the run's lock and begins to write under `epoch`."""

    kind: ClassVar[str] = "attempt_started"
    epoch: int
    pid: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedReopened(LoggedEvent):
    """A retry reopened the failed samples with this code, or all of them if None."""

    kind: ClassVar[str] = "failed_reopened"
    code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTyped(LoggedEvent):
    """The command line of this attempt and the directory that it was typed in."""

    kind: ClassVar[str] = "command"
    command: Sequence[str]
    directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStarted(LoggedEvent):
    """The pool starts with this many workers."""

    kind: ClassVar[str] = "pool_started"
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(LoggedEvent):
    """The pool found room for another worker."""

    kind: ClassVar[str] = "worker_added"
    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoading(LoggedEvent):
    """A worker began to load its engine."""

    kind: ClassVar[str] = "worker_loading"
    worker: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReady(LoggedEvent):
    """A worker's engine can hold `capacity` requests from now on."""

    kind: ClassVar[str] = "worker_ready"
    worker: int
    epoch: int
    engine: str
    device: str
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChanged(LoggedEvent):
    """A worker's engine differs from those of earlier attempts, as `note` describes."""

    kind: ClassVar[str] = "engine_changed"
    worker: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost(LoggedEvent):
    """A worker was lost with `unfinished` samples. `reason` and `log_tail` are the evidence."""

    kind: ClassVar[str] = "worker_lost"
    worker: int
    unfinished: int
    cause: str
    epoch: int
    is_given_up: bool
    reason: str
    log_tail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """Totals of one worker over all its starts in this attempt.

    Its numbers are as of `heard_seconds`: between two events it was busy for the difference of
    `busy_seconds` out of that of `heard_seconds`.
    """

    worker: int
    busy_seconds: float
    heard_seconds: float
    in_flight: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(LoggedEvent):
    """Totals of this attempt so far: a lost event costs nothing, and two events give a rate."""

    kind: ClassVar[str] = "progress"
    elapsed_seconds: float
    samples: int
    tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int
    truncated: int
    failures: dict[str, int]
    workers: tuple[WorkerProgress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesRecorded(Event):
    """These samples and turns are durable. Not logged: the journal has them."""

    records: Sequence[Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleQuarantined(LoggedEvent):
    """A sample was found to crash engines and failed."""

    kind: ClassVar[str] = "sample_convicted"
    ordinal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPublished(LoggedEvent):
    """A shard's parts are in place. `failures` counts its failed samples by code."""

    kind: ClassVar[str] = "shard_published"
    shard: int
    finished: int
    failed: int
    truncated: int
    failures: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(LoggedEvent):
    """The attempt ended with `made` more samples. `drained` is the reason if it stopped early."""

    kind: ClassVar[str] = "attempt_ended"
    made: int
    drained: str | None
    exit_code: int
