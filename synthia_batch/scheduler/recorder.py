"""What the driver expects of the store's side of a run.

How fast engines made samples and how full they were: a recorder that looks on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from synthia_batch.core.types import Record, Turn


class OutcomeSink(Protocol):
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


SPEED_MEASURED = "speed_measured"
"""The kind of the event that has a Speed as its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What engines did between the moment the first was ready and the last sample's end.

    `startup_seconds` went before that. `occupancy` is the share of the requests that they can hold
    which they held, on average.
    """

    samples: int
    tokens: int
    seconds: float
    startup_seconds: float
    engines: int
    occupancy: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, of all engines together."""
        return self.tokens / self.seconds

    @property
    def samples_per_second(self) -> float:
        """Ended samples, of all engines together."""
        return self.samples / self.seconds


class ThroughputMeter:
    """Records in `recorder`, and measures. `started` is when the command was, by `clock`."""

    def __init__(
        self, recorder: OutcomeSink, started: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._recorder = recorder
        self._started = started
        self._clock = clock
        self._remaining = recorder.samples - recorder.finished - recorder.failed
        self._capacities: dict[int, int] = {}
        self._engines = 0
        self._all_places = 0
        self._first_ready: float | None = None
        self._looked_at = started
        self._filled = 0.0
        self._ended_at = started
        self._filled_at_end = 0.0
        self._totals: dict[str, Any] = {}

    @property
    def samples(self) -> int:
        """As the recorder."""
        return self._recorder.samples

    @property
    def finished(self) -> int:
        """As the recorder."""
        return self._recorder.finished

    @property
    def failed(self) -> int:
        """As the recorder."""
        return self._recorder.failed

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""
        self._recorder.record(records)
        self._look()
        self._ended_at, self._filled_at_end = self._looked_at, self._filled
        self._remaining -= sum(not isinstance(record, Turn) for record in records)

    def tick(self) -> None:
        """As the recorder."""
        self._recorder.tick()

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history, and take in what that says of the engines."""
        self._recorder.note(kind, **fields)
        if kind == "progress":
            self._totals = fields
        elif kind == "worker_ready":
            self._look()
            self._first_ready = self._looked_at if self._first_ready is None else self._first_ready
            self._capacities[fields["worker"]] = fields["capacity"]
            self._engines = max(self._engines, len(self._capacities))
            self._all_places = max(self._all_places, sum(self._capacities.values()))
        elif kind == "worker_lost":
            self._look()
            self._capacities.pop(fields["worker"], None)

    def measure(self) -> Speed | None:
        """Return how fast it went; None where no engine made anything."""
        if self._first_ready is None or not self._totals.get("samples"):
            return None
        seconds = self._ended_at - self._first_ready
        if seconds <= 0 or not self._filled_at_end:
            return None
        return Speed(
            samples=self._totals["samples"],
            tokens=self._totals["tokens"],
            seconds=round(seconds, 3),
            startup_seconds=round(self._first_ready - self._started, 3),
            engines=self._engines,
            occupancy=min(1.0, self._filled_at_end / (self._all_places * seconds)),
        )

    def note_speed(self) -> None:
        """Add what was measured to the run's history, for later estimates."""
        speed = self.measure()
        if speed is not None:
            self.note(SPEED_MEASURED, **asdict(speed))

    def _look(self) -> None:
        """Count the places that were filled since the last look: all, or as many as samples are left."""
        now = self._clock()
        self._filled += min(self._remaining, sum(self._capacities.values())) * (now - self._looked_at)
        self._looked_at = now
