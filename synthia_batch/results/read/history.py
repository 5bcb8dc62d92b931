"""What a run's events tell of its speed and of its attempts. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One `progress` event: `elapsed` seconds into the attempt, so much was made so far.

    `busy` are the seconds that each worker's engine has spent in its steps, as of `heard` seconds
    into the attempt, when the worker said so.
    """

    attempt: int
    elapsed: float
    time: str
    samples: int
    tokens: int
    busy: Mapping[int, float]
    heard: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What was measured between two events. Seconds count from the first event of the run."""

    start: float
    end: float
    tokens_per_second: float
    busy_engines: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run over time. `attempts` holds the stretches of each attempt; marks are in seconds."""

    attempts: Sequence[Sequence[Stretch]]
    losses: Sequence[float]
    resumes: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFacts:
    """One start of a run. `end` is what it came to, `made` the samples that ended in it.

    `seconds` are those from its start to its last event, `generating_seconds` those from its first
    engine on. Times are as the events have them.
    """

    number: int
    began: str
    host: str
    engines: tuple[str, ...]
    losses: int
    made: int
    tokens: int
    seconds: float
    generating_seconds: float
    end: str


def read_progress(events: Iterable[Mapping[str, Any]]) -> list[Progress]:
    """Return the progress events of a run's history. All that is known of their fields is here."""
    found, attempt = [], 0
    for event in events:
        if event["kind"] == "attempt_started":
            attempt += 1
        if event["kind"] == "progress":
            workers = event["workers"]
            found.append(
                Progress(
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


def list_shares(start: Progress, end: Progress) -> dict[int, float]:
    """Return the share of the time between two events that each worker was busy.

    A worker that was restarted in between may count from 0 again; one that began since is counted over
    all of the time.
    """
    shares = {}
    for worker, busy in end.busy.items():
        is_new = worker not in start.heard
        seconds = end.elapsed - start.elapsed if is_new else end.heard[worker] - start.heard[worker]
        known = start.busy.get(worker, 0.0)
        if seconds > 0:
            shares[worker] = (busy - known if busy >= known else busy) / seconds
    return shares


def read_history(events: Sequence[Mapping[str, Any]], *, cuts_pauses: bool = False) -> History:
    """Return what the events of a run tell about its speed.

    With `cuts_pauses` the time between two attempts is left out: a night's job that was gone on with
    in the evening is then no straight line.
    """
    if not events:
        return History(attempts=[], losses=[], resumes=[])
    begins = _find_begins(events, cuts_pauses)
    progress = read_progress(events)
    numbers = dict.fromkeys(one.attempt for one in progress)
    stretches = [
        _list_stretches([one for one in progress if one.attempt == number], begins[max(0, number - 1)])
        for number in numbers
    ]
    return History(
        attempts=stretches,
        losses=_list_times(events, "worker_lost", begins),
        resumes=_list_times(events, "attempt_started", begins)[1:],
    )


def coarsen(stretches: Sequence[Stretch], seconds: float) -> list[Stretch]:
    """Return the same time in stretches of at least `seconds`, each the mean of those that it stands for."""
    coarse: list[Stretch] = []
    waiting: list[Stretch] = []
    for stretch in stretches:
        waiting.append(stretch)
        if stretch.end - waiting[0].start >= seconds:
            coarse.append(_join(waiting))
            waiting = []
    if waiting:  # The rest is too short to stand alone.
        coarse[-1:] = [_join([*coarse[-1:], *waiting])]
    return coarse


def list_attempts(events: Iterable[Mapping[str, Any]], *, is_running: bool) -> list[AttemptFacts]:
    """Return the attempts of a run, in order; `is_running` says it of the last one."""
    groups: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["kind"] == "attempt_started":
            groups.append([])
        if groups:
            groups[-1].append(event)
    return [
        _describe(number, group, is_running=is_running and number == len(groups))
        for number, group in enumerate(groups, 1)
    ]


def _describe(number: int, events: Sequence[Mapping[str, Any]], *, is_running: bool) -> AttemptFacts:
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
    return AttemptFacts(
        number=number,
        began=events[0]["time"],
        host=str(events[0].get("host", "")),
        engines=tuple(engines),
        losses=sum(event["kind"] == "worker_lost" for event in events),
        made=made,
        tokens=progress.get("tokens", 0),
        seconds=stop - begin,
        generating_seconds=max(0.0, stamp(progress["time"]) - stamp(ready["time"]))
        if ready and progress
        else 0.0,
        end=end,
    )


def _find_begins(events: Sequence[Mapping[str, Any]], cuts_pauses: bool) -> list[float]:
    """Return for each attempt which second of the clock is 0 in it."""
    begins = [stamp(events[0]["time"])]
    for before, event in pairwise(events):
        if event["kind"] == "attempt_started":
            pause = max(0.0, stamp(event["time"]) - stamp(before["time"])) if cuts_pauses else 0.0
            begins.append(begins[-1] + pause)
    return begins


def _list_stretches(progress: Iterable[Progress], begin: float) -> list[Stretch]:
    return [
        Stretch(
            start=stamp(before.time) - begin,
            end=stamp(after.time) - begin,
            tokens_per_second=max(0, after.tokens - before.tokens) / seconds,
            busy_engines=sum(list_shares(before, after).values()),
        )
        for before, after in pairwise(progress)
        if (seconds := after.elapsed - before.elapsed) > 0
    ]


def _join(stretches: Sequence[Stretch]) -> Stretch:
    seconds = sum(one.end - one.start for one in stretches) or 1.0
    return Stretch(
        start=stretches[0].start,
        end=stretches[-1].end,
        tokens_per_second=sum(one.tokens_per_second * (one.end - one.start) for one in stretches) / seconds,
        busy_engines=sum(one.busy_engines * (one.end - one.start) for one in stretches) / seconds,
    )


def _list_times(events: Iterable[Mapping[str, Any]], kind: str, begins: Sequence[float]) -> list[float]:
    times, attempt = [], 0
    for place, event in enumerate(events):
        attempt += event["kind"] == "attempt_started" and place > 0
        if event["kind"] == kind:
            times.append(stamp(event["time"]) - begins[min(attempt, len(begins) - 1)])
    return times


def stamp(time: str) -> float:
    """Return an event's time in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()
