"""What a run came to, and how that is told."""

from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.shutdown import DrainReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended. `state` is a few words, `exit_code` what its command exits with."""

    state: str
    exit_code: int
    counts: str
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to. `made` counts the samples that this attempt made, `max_failures` those that
    may fail.

    `drained` says why it stopped before the end, None where the dataset is complete. `directory` is on
    this machine; `remote` is the object store that has the output as well, None where there is none.
    """

    directory: Path
    samples: int
    finished: int
    failed: int
    made: int
    seconds: float
    max_failures: int | None
    drained: DrainReason | None
    remote: str | None = None

    @property
    def place(self) -> str:
        """Where the output is, as it is named to people."""
        return self.remote or str(self.directory)

    @property
    def is_complete(self) -> bool:
        """Whether every sample has ended and the dataset is whole."""
        return self.drained is None and self.finished + self.failed == self.samples

    @property
    def has_too_many_failures(self) -> bool:
        """Whether more samples failed than the job allows, or every one of them."""
        if self.failed and not self.finished:
            return True
        return self.max_failures is not None and self.failed > self.max_failures

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        if self.drained is not None:
            return self.drained.exit_code
        if self.finished + self.failed < self.samples:
            return 0  # It was to make some of them only.
        return DrainReason.FAILURES.exit_code if self.has_too_many_failures else 0

    @property
    def ending(self) -> Ending:
        """How the run ended, for whom it is told."""
        state = "complete" if self.drained is None else f"stopped on {self.drained.label}"
        return Ending(
            state=f"{state}, with too many failures" if self.drained is None and self.exit_code else state,
            exit_code=self.exit_code,
            counts=f"{self.finished} of {self.samples} samples finished, {self.failed} failed",
            is_complete=self.drained is None,
        )
