"""What a side of the comparison is: a command, and how to read what it left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.throughput.process import Ended
from benchmarks.throughput.workload import Workload


class NotRun(Exception):
    """A side cannot do this workload here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What starts a side, and the variables that it gets beside the clean environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a side."""

    prompt_tokens: int
    tokens: int
    text: str

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Answer":
        """Return the answer that a side's own script wrote down."""
        return cls(prompt_tokens=record["prompt_tokens"], tokens=record["tokens"], text=record["text"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a side did. Times are seconds since 1970; None where the side does not tell.

    `ready` is when the first engine could take a prompt, `first` and `last` are when the first and
    the last sample were finished. `answers` are in the order of the prompts that the side was given.
    """

    answers: Sequence[Answer]
    ready: float | None
    first: float | None
    last: float | None
    busy: Mapping[str, float] = field(default_factory=dict)


class Side(Protocol):
    """One way to do the job. `name` is its row in the tables."""

    @property
    def name(self) -> str:
        """The row in the tables."""

    @property
    def note(self) -> str:
        """Where it differs from the others, and why."""

    def select(self, workload: Workload) -> Workload:
        """Return what of the workload this side does: mostly all of it.

        Raises:
            NotRun: It cannot do this workload here.
        """

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """Write what the side reads into `directory` and return its command."""

    def find_first(self, directory: Path) -> bool:
        """Whether the first sample is finished; asked ten times a second until it is."""

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Return what the side did, after it has ended with exit code 0."""
