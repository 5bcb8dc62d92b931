"""The latest attempt of a run, from its events: workers, speed, and start command."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

RECENT_SECONDS = 60.0
"""Window of the current rate, or the time between the last two events if that is longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressPoint:
    """Samples and tokens that an attempt had generated at `time`."""

    time: datetime
    samples: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Generation speed over part of an attempt."""

    samples_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerActivity:
    """One worker of the latest attempt. `state` is starting, loading, ready, restarting or given up.

    `busy_share` is the share of time with requests since the first engine was ready. Before the worker's
    first report, `busy_share` is None and `in_flight` is 0.
    """

    worker: int
    state: str
    restarts: int
    in_flight: int
    busy_share: float | None


@dataclass(slots=True)
class _Worker:
    state: str = "starting"
    restarts: int = 0


@dataclass(slots=True)
class AttemptHistory:
    """Applies the events of a run in order. All fields but `last` belong to the latest attempt."""

    last: Mapping[str, Any] | None = None
    started: Mapping[str, Any] | None = None
    command: Mapping[str, Any] | None = None
    ready: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None
    restarts: int = 0
    _points: deque[ProgressPoint] = field(default_factory=deque)
    _workers: dict[int, _Worker] = field(default_factory=dict)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply the next event."""
        self.last = event
        match event.get("kind"):
            case "attempt_started":
                self._begin(event)
            case "command":
                self.command = event
            case "pool_started":
                self._workers = {worker: _Worker() for worker in range(event["workers"])}
            case "worker_added" | "worker_loading" | "worker_ready" | "worker_lost":
                self._apply_worker(event["kind"], event)
            case "progress":
                self._apply_progress(event)
            case "attempt_ended":
                self.ended = event

    def measure_average(self) -> Rate | None:
        """Return the rate since the first engine of the attempt was ready; None if nothing was generated."""
        begin = self._begin_point()
        return _measure(begin, self._points[-1]) if begin and self._points else None

    def measure_recent(self) -> Rate | None:
        """Return the rate of the last minute; None if nothing was generated in it, or nothing is known."""
        begin = self._begin_point()
        if begin is None or not self._points:
            return None
        return _measure(max(begin, self._points[0], key=lambda point: point.time), self._points[-1])

    def measure_shares(self) -> tuple[float | None, float | None]:
        """Return the share of prompt tokens served by prefix caches, and the engines' mean busy share."""
        progress, seconds = self.progress, self._count_seconds()
        if progress is None or seconds is None or not progress["samples"]:
            return None, None
        workers = progress["workers"]
        busy = sum(worker["busy_seconds"] for worker in workers) / (len(workers) * seconds)
        cached = progress["cached_prompt_tokens"] / max(1, progress["prompt_tokens"])
        return round(cached, 3), round(min(1.0, busy), 3)

    def list_workers(self) -> tuple[WorkerActivity, ...]:
        """Return the workers of the attempt as last reported."""
        seconds = self._count_seconds()
        reported = {entry["worker"]: entry for entry in self.progress["workers"]} if self.progress else {}
        return tuple(
            WorkerActivity(
                worker=number,
                state=worker.state,
                restarts=worker.restarts,
                in_flight=reported.get(number, {}).get("in_flight", 0),
                busy_share=round(min(1.0, reported[number]["busy_seconds"] / seconds), 3)
                if seconds and number in reported
                else None,
            )
            for number, worker in sorted(self._workers.items())
        )

    def _begin_point(self) -> ProgressPoint | None:
        # Excludes the time in which engines load.
        return ProgressPoint(time=_read_time(self.ready), samples=0, tokens=0) if self.ready else None

    def _begin(self, event: Mapping[str, Any]) -> None:
        self.started, self.ready, self.progress, self.ended = event, None, None, None
        self.restarts = 0
        self._points.clear()
        self._workers.clear()

    def _apply_worker(self, kind: str, event: Mapping[str, Any]) -> None:
        worker = self._workers.setdefault(event["worker"], _Worker())
        if kind == "worker_ready" and self.ready is None:
            self.ready = event
        if kind == "worker_lost":
            will_restart = not event.get("is_given_up", False)
            worker.restarts += will_restart
            self.restarts += will_restart
            worker.state = "restarting" if will_restart else "given up"
        else:
            worker.state = {"worker_loading": "loading", "worker_ready": "ready"}.get(kind, "starting")

    def _apply_progress(self, event: Mapping[str, Any]) -> None:
        self.progress = event
        now = _read_time(event)
        self._points.append(ProgressPoint(time=now, samples=event["samples"], tokens=event["tokens"]))
        while len(self._points) > 2 and (now - self._points[1].time).total_seconds() >= RECENT_SECONDS:
            self._points.popleft()

    def _count_seconds(self) -> float | None:
        """Return the seconds from the first ready engine to the latest progress event."""
        if self.ready is None or self.progress is None or not self.progress["workers"]:
            return None
        # Both are wall-clock times: no result if the clock was set back in between.
        seconds = (_read_time(self.progress) - _read_time(self.ready)).total_seconds()
        return seconds if seconds > 0 else None


def _measure(begin: ProgressPoint, end: ProgressPoint) -> Rate | None:
    seconds = (end.time - begin.time).total_seconds()
    if seconds <= 0 or end.samples == begin.samples:
        return None
    return Rate(
        samples_per_second=round((end.samples - begin.samples) / seconds, 3),
        tokens_per_second=round((end.tokens - begin.tokens) / seconds, 1),
    )


def _read_time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])
