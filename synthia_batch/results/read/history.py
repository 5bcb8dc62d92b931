"""Speed over time and attempts of a run, from its events. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

SPEED_INTERVALS = 60
SPEED_SECONDS = 10.0
"""Tokens are counted when their sample ends: over shorter intervals, speed is mostly noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """One `progress` event: totals after `elapsed` seconds of the attempt.

    `busy` holds each worker's seconds in engine steps, as of its report `heard` seconds into the attempt.
    """

    attempt: int
    elapsed: float
    time: str
    samples: int
    tokens: int
    busy: Mapping[int, float]
    heard: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Speed between two events. Seconds count from the first event of the run."""

    start: float
    end: float
    tokens_per_second: float
    busy_engines: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """The time of an attempt before its first engine was ready, in seconds as in Interval."""

    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """A run over time: the intervals of each attempt; `losses` and `resumes` are in seconds.

    There is a loading for each attempt, up to its last event if no engine was ever ready.
    """

    attempts: Sequence[Sequence[Interval]] = ()
    losses: Sequence[float] = ()
    resumes: Sequence[float] = ()
    loadings: Sequence[Loading] = ()

    @property
    def end(self) -> float:
        """The end of the last interval or loading, in seconds; 0 if there is none."""
        intervals = (one.end for attempt in self.attempts for one in attempt)
        return max((*intervals, *(one.end for one in self.loadings)), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSummary:
    """One attempt of a run. `end` describes its end; `made` samples ended in it.

    `seconds` run from its start to its last event, `generating_seconds` from its first ready engine to its
    last progress event. `began` is the timestamp of its first event. `cached_share` is the share of the
    prompt tokens that a prefix cache served.
    """

    number: int
    began: str
    host: str
    engines: tuple[str, ...]
    workers_lost: int
    made: int
    tokens: int
    seconds: float
    generating_seconds: float
    end: str
    cached_share: float = 0.0


def read_progress(events: Iterable[Mapping[str, Any]]) -> list[ProgressEvent]:
    """Return the progress events of a run. The only place that knows their fields."""
    found, attempt = [], 0
    for event in events:
        if event["kind"] == "attempt_started":
            attempt += 1
        if event["kind"] == "progress":
            workers = event["workers"]
            found.append(
                ProgressEvent(
                    attempt=attempt,
                    elapsed=event["elapsed_seconds"],
                    time=event["time"],
                    samples=event["samples"],
                    tokens=event["tokens"],
                    busy={worker["worker"]: worker["busy_seconds"] for worker in workers},
                    heard={w["worker"]: w.get("heard_seconds", event["elapsed_seconds"]) for w in workers},
                )
            )
    return found


def measure_busy_shares(start: ProgressEvent, end: ProgressEvent) -> dict[int, float]:
    """Return the share of the time between two events that each worker was busy.

    A restarted worker may count from 0 again; a worker added in between is counted over the whole time.
    """
    shares = {}
    for worker, busy in end.busy.items():
        is_new = worker not in start.heard
        seconds = end.elapsed - start.elapsed if is_new else end.heard[worker] - start.heard[worker]
        known = start.busy.get(worker, 0.0)
        if seconds > 0:
            shares[worker] = (busy - known if busy >= known else busy) / seconds
    return shares


def read_history(events: Sequence[Mapping[str, Any]], *, cuts_pauses: bool = False) -> RunHistory:
    """Return the speed of a run over time.

    `cuts_pauses` leaves out the time between attempts, so that a long pause does not dominate the plot.
    """
    if not events:
        return RunHistory()
    begins = _find_begins(events, cuts_pauses)
    progress = read_progress(events)
    numbers = dict.fromkeys(one.attempt for one in progress)
    intervals = [
        _list_intervals([one for one in progress if one.attempt == number], begins[max(0, number - 1)])
        for number in numbers
    ]
    return RunHistory(
        attempts=intervals,
        losses=_list_times(events, "worker_lost", begins),
        resumes=_list_times(events, "attempt_started", begins)[1:],
        loadings=[_measure_loading(*pair) for pair in zip(_split_attempts(events), begins, strict=False)],
    )


def smooth_speed(history: RunHistory) -> list[list[Interval]]:
    """Return the intervals of each attempt in steps over which speed says something, without its loading.

    An attempt in which no engine generated for as long as an interval is left out.
    """
    seconds = max(SPEED_SECONDS, history.end / SPEED_INTERVALS)
    generating = [[one for one in attempt if not _is_loading(one, history)] for attempt in history.attempts]
    return [coarsen(attempt, seconds) for attempt in generating if attempt]


def _is_loading(interval: Interval, history: RunHistory) -> bool:
    """Whether the engines were loading in the middle of the interval."""
    middle = (interval.start + interval.end) / 2
    return any(one.start <= middle < one.end for one in history.loadings)


def coarsen(intervals: Sequence[Interval], seconds: float) -> list[Interval]:
    """Merge `intervals` into intervals of at least `seconds`, each with their mean."""
    coarse: list[Interval] = []
    pending: list[Interval] = []
    for interval in intervals:
        pending.append(interval)
        if interval.end - pending[0].start >= seconds:
            coarse.append(_join(pending))
            pending = []
    if pending:  # too short: merged into the last interval
        coarse[-1:] = [_join([*coarse[-1:], *pending])]
    return coarse


def list_attempts(events: Iterable[Mapping[str, Any]], *, is_running: bool) -> list[AttemptSummary]:
    """Return the attempts of a run, in order; `is_running` applies to the last one."""
    groups = _split_attempts(events)
    return [
        _describe(number, group, is_running=is_running and number == len(groups))
        for number, group in enumerate(groups, 1)
    ]


def _split_attempts(events: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the events of each attempt, which begin with its start."""
    groups: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["kind"] == "attempt_started":
            groups.append([])
        if groups:
            groups[-1].append(event)
    return groups


def _measure_loading(events: Sequence[Mapping[str, Any]], begin: float) -> Loading:
    ready = next((event for event in events if event["kind"] == "worker_ready"), events[-1])
    return Loading(start=stamp(events[0]["time"]) - begin, end=stamp(ready["time"]) - begin)


def _describe(number: int, events: Sequence[Mapping[str, Any]], *, is_running: bool) -> AttemptSummary:
    last = {event["kind"]: event for event in events}
    ready = next((event for event in events if event["kind"] == "worker_ready"), None)
    progress, ended = last.get("progress", {}), last.get("attempt_ended")
    begin, stop = stamp(events[0]["time"]), stamp(events[-1]["time"])
    made = ended["made"] if ended else progress.get("samples", 0)
    if ended is None:
        end = "still running" if is_running else "killed, or ended by an error"
    else:
        end = f"drained on {ended['drained']}" if ended.get("drained") else "done"
    engines = dict.fromkeys(
        f"{event.get('engine', '')}, {event.get('device', '')}"
        for event in events
        if event["kind"] == "worker_ready"
    )
    return AttemptSummary(
        number=number,
        began=events[0]["time"],
        host=str(events[0].get("host", "")),
        engines=tuple(engines),
        workers_lost=sum(event["kind"] == "worker_lost" for event in events),
        made=made,
        tokens=progress.get("tokens", 0),
        seconds=stop - begin,
        generating_seconds=max(0.0, stamp(progress["time"]) - stamp(ready["time"]))
        if ready and progress
        else 0.0,
        end=end,
        cached_share=progress.get("cached_prompt_tokens", 0) / max(1, progress.get("prompt_tokens", 0)),
    )


def _find_begins(events: Sequence[Mapping[str, Any]], cuts_pauses: bool) -> list[float]:
    """Return the timestamp that counts as second 0 of each attempt."""
    begins = [stamp(events[0]["time"])]
    for before, event in pairwise(events):
        if event["kind"] == "attempt_started":
            pause = max(0.0, stamp(event["time"]) - stamp(before["time"])) if cuts_pauses else 0.0
            begins.append(begins[-1] + pause)
    return begins


def _list_intervals(progress: Iterable[ProgressEvent], begin: float) -> list[Interval]:
    return [
        Interval(
            start=stamp(before.time) - begin,
            end=stamp(after.time) - begin,
            tokens_per_second=max(0, after.tokens - before.tokens) / seconds,
            busy_engines=sum(measure_busy_shares(before, after).values()),
        )
        for before, after in pairwise(progress)
        if (seconds := after.elapsed - before.elapsed) > 0
    ]


def _join(intervals: Sequence[Interval]) -> Interval:
    seconds = sum(one.end - one.start for one in intervals) or 1.0
    return Interval(
        start=intervals[0].start,
        end=intervals[-1].end,
        tokens_per_second=sum(one.tokens_per_second * (one.end - one.start) for one in intervals) / seconds,
        busy_engines=sum(one.busy_engines * (one.end - one.start) for one in intervals) / seconds,
    )


def _list_times(events: Iterable[Mapping[str, Any]], kind: str, begins: Sequence[float]) -> list[float]:
    times, attempt = [], 0
    for index, event in enumerate(events):
        attempt += event["kind"] == "attempt_started" and index > 0
        if event["kind"] == kind:
            times.append(stamp(event["time"]) - begins[min(attempt, len(begins) - 1)])
    return times


def stamp(time: str) -> float:
    """Return an event's time in seconds since 1970-01-01 UTC."""
    return datetime.fromisoformat(time).timestamp()
