"""How fast engines generate samples and how full they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from synthia_batch.core.events import Event, LoggedEvent
from synthia_batch.core.types import Turn
from synthia_batch.scheduler.events import EngineLost, EngineReady, OutcomesRecorded, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed(LoggedEvent):
    """Throughput of an attempt between the moment the first engine was ready and the end of the last sample.

    `startup_seconds` went before that. `occupancy` is the average share of the engines' request
    capacity that was in use. It is logged for later estimates.
    """

    kind: ClassVar[str] = "speed_measured"
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
    """Measures the speed of an attempt from its events.

    `remaining` samples have not ended yet. `started` is when the command started, by `clock`.
    """

    def __init__(self, remaining: int, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._remaining = remaining
        self._started = started
        self._clock = clock
        self._capacities: dict[int, int] = {}
        self._most_engines = 0
        self._most_capacity = 0
        self._first_ready: float | None = None
        self._updated_at = started
        self._used = 0.0
        self._ended_at = started
        self._used_at_end = 0.0
        self._progress: Progress | None = None

    def observe(self, event: Event) -> None:
        match event:
            case OutcomesRecorded():
                self._update()
                self._ended_at, self._used_at_end = self._updated_at, self._used
                self._remaining -= sum(not isinstance(record, Turn) for record in event.records)
            case Progress():
                self._progress = event
            case EngineReady():
                self._update()
                if self._first_ready is None:
                    self._first_ready = self._updated_at
                self._capacities[event.worker] = event.capacity
                self._most_engines = max(self._most_engines, len(self._capacities))
                self._most_capacity = max(self._most_capacity, sum(self._capacities.values()))
            case EngineLost():
                self._update()
                self._capacities.pop(event.worker, None)

    def measure(self) -> Speed | None:
        """Return the speed, None if no engine generated anything."""
        progress = self._progress
        if self._first_ready is None or progress is None or not progress.samples:
            return None
        seconds = self._ended_at - self._first_ready
        if seconds <= 0 or not self._used_at_end:
            return None
        return Speed(
            samples=progress.samples,
            tokens=progress.tokens,
            seconds=round(seconds, 3),
            startup_seconds=round(self._first_ready - self._started, 3),
            engines=self._most_engines,
            occupancy=min(1.0, self._used_at_end / (self._most_capacity * seconds)),
        )

    def _update(self) -> None:
        """Add the capacity in use since the last update: all of it, or as much as samples remain."""
        now = self._clock()
        in_use = min(self._remaining, sum(self._capacities.values()))
        self._used += in_use * (now - self._updated_at)
        self._updated_at = now
