"""What the driver expects of the store's side of a run."""

from collections.abc import Sequence
from typing import Any, Protocol

from synthia_batch.core.types import Record


class Recorder(Protocol):
    """Where ended samples go. Its counts are over all attempts."""

    @property
    def samples(self) -> int:
        """The samples of the job."""

    @property
    def finished(self) -> int:
        """The samples made so far."""

    @property
    def failed(self) -> int:
        """The samples that could not be made."""

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""

    def tick(self) -> None:
        """Called a few times a second."""

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history."""
