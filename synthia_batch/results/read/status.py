"""The status of a run, read from its directory during or after the run."""

import os
import shlex
import shutil
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthia_batch.core.counts import Tally
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.job.select import NOT_SELECTED
from synthia_batch.results.read.attempt import AttemptHistory, WorkerActivity
from synthia_batch.results.read.snapshot import open_snapshots
from synthia_batch.storage.events import EventReader
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import Owner, find_running, is_visible, read_owner
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.pipeline_file import list_trials
from synthia_batch.storage.recovery import Published, ShardState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Status of a run. `state` is complete, running, interrupted, or unknown if it cannot be seen.

    `owner` is the current writer as `pid@host`. `failures` counts failed samples by code, most common
    first; `not_selected` are those of a selection that no step keeps, which did not fail;
    `truncated` finished samples were cut off at max_tokens. `determinism` is the class and its promise.
    `attempts` counts starts; `ended` is the reason if the latest attempt stopped early.

    Of the latest attempt, None if not yet reported: tokens and samples per second since its first engine
    was ready, the same over the last minute (`_now`), the share of prompt tokens from prefix caches, and
    the engines' mean share of time with requests. `left_seconds` estimates the remaining time at the
    current rate; `restarts` counts worker restarts. `published_bytes` is the size of all parts,
    `free_bytes` the free disk space.
    """

    directory: str
    name: str
    fingerprint: str
    state: str
    owner: str | None
    samples: int
    finished: int
    failed: int
    not_selected: int
    failures: Mapping[str, int]
    truncated: int
    truncated_share: float
    shards: int
    shards_published: int
    determinism: str
    attempts: int
    last_event: str
    ended: str | None
    tokens_per_second: float | None
    samples_per_second: float | None
    tokens_per_second_now: float | None
    samples_per_second_now: float | None
    left_seconds: float | None
    cached_prompt_share: float | None
    busy_share: float | None
    restarts: int
    workers: tuple[WorkerActivity, ...]
    published_bytes: int
    free_bytes: int
    next: str

    @property
    def samples_ended(self) -> int:
        """How many samples are finished, failed or not selected."""
        return self.finished + self.failed + self.not_selected

    @property
    def is_going_on(self) -> bool:
        """Whether a process is writing to the run, here or on a host that cannot be checked."""
        return self.owner is not None and self.state != "complete"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class StatusReader:
    """Reads the status of one run repeatedly; each read covers only changes. Needs no lock."""

    def __init__(self, directory: Path) -> None:
        """Open the run in `directory`."""
        self._directory = directory
        self._snapshots = open_snapshots(directory)
        self._events = EventReader(self._snapshots.run_dir.events)
        self._history = AttemptHistory()

    def read(self) -> RunStatus:
        """Return the current status."""
        snapshots, run_dir, history = self._snapshots, self._snapshots.run_dir, self._history
        # Before the counts: if the owner exits in between, the counts are newer, never older.
        running = find_running(run_dir)
        is_complete = read_manifest(run_dir.manifest) is not None
        self._apply_events()
        states = snapshots.read()
        counts = sum((snapshots.count(state) for state in states), Tally())
        failures = Counter({code: n for code, n in counts.failures.items() if code != NOT_SELECTED})
        owner, workers = read_owner(run_dir.owner), history.list_workers()
        state = "complete" if is_complete else describe_state(running, run_dir)
        return RunStatus(
            directory=str(self._directory),
            name=snapshots.plan["name"],
            fingerprint=snapshots.plan["fingerprint"],
            state=state,
            owner=f"{running.pid}@{running.host}" if running and not is_complete else None,
            samples=snapshots.shards[-1].stop,
            finished=counts.finished,
            failed=failures.total(),
            not_selected=counts.failed - failures.total(),
            failures=dict(failures.most_common()),
            truncated=counts.truncated,
            truncated_share=round(counts.truncated / max(1, counts.finished), 4),
            shards=len(snapshots.shards),
            shards_published=sum(isinstance(state, Published) for state in states),
            determinism=_describe_determinism(snapshots.plan["identity"]),
            attempts=owner.epoch if owner else 0,
            last_event=f"{history.last['kind']} at {history.last['time']}" if history.last else "none",
            ended=history.ended.get("drained") if history.ended else None,
            **_measure_speed(history, snapshots.shards[-1].stop - counts.finished - counts.failed),
            restarts=history.restarts,
            workers=workers if running and not is_complete else _end_workers(workers),
            published_bytes=_count_bytes(states),
            free_bytes=shutil.disk_usage(run_dir.root).free,
            next=_choose_next(self._directory, state, history, has_failed=bool(failures)),
        )

    def _apply_events(self) -> None:
        for event in self._events.read():
            self._history.apply(event)
            if event.get("kind") == "shard_published":
                self._snapshots.record_published(event)


def read_status(directory: Path) -> RunStatus:
    """Return the status of the run in `directory`. Only reads, needs no lock."""
    return StatusReader(directory).read()


def _describe_determinism(identity: Mapping[str, Any]) -> str:
    """Return the determinism class of a run and its promise; see docs/explanation/determinism.md."""
    if identity["determinism"] == "fast":
        return "fast: the same samples in the same files; texts may differ between batches"
    engine = identity["engine"]
    where = " on ".join(str(engine[key]) for key in ("version", "hardware") if key in engine)
    return f"strict: the same bytes for any workers and kills, with {engine['kind']} {where}"


def describe_state(owner: Owner | None, run_dir: RunDir) -> str:
    """Return the state of a run that is not complete; `owner` writes to it now."""
    if owner is None:
        return "interrupted"
    if is_visible(owner, run_dir):
        return "running"
    if owner.host != socket.gethostname():
        return f"unknown: started on {owner.host}"
    return "unknown: its lock is held by a process that is not visible here"


def _end_workers(workers: tuple[WorkerActivity, ...]) -> tuple[WorkerActivity, ...]:
    """Return the workers of a run that has ended: none of them is still coming."""
    coming = ("starting", "loading", "restarting")
    return tuple(replace(one, state="ended") if one.state in coming else one for one in workers)


def _measure_speed(history: AttemptHistory, missing: int) -> dict[str, float | None]:
    average, now = history.measure_average(), history.measure_recent()
    rate = now or average
    cached, busy = history.measure_shares()
    return {
        "tokens_per_second": average.tokens_per_second if average else None,
        "samples_per_second": average.samples_per_second if average else None,
        "tokens_per_second_now": now.tokens_per_second if now else None,
        "samples_per_second_now": now.samples_per_second if now else None,
        "left_seconds": round(missing / rate.samples_per_second, 1) if rate and missing else None,
        "cached_prompt_share": cached,
        "busy_share": busy,
    }


def _count_bytes(states: Sequence[ShardState]) -> int:
    published = (state for state in states if isinstance(state, Published))
    return sum(part.bytes for state in published for part in state.shard_entry.parts)


def _choose_next(directory: Path, state: str, history: AttemptHistory, *, has_failed: bool) -> str:
    """Return the command to run next."""
    here = shlex.quote(str(directory))
    if state == "complete":
        return f"synthia-batch failed {here}" if has_failed else f"synthia-batch report {here}"
    if state != "interrupted":
        return f"synthia-batch status {here} --watch"
    # Starting again without a change would fail again.
    if history.ended is not None and history.ended.get("exit_code") == DrainReason.FAILURES.exit_code:
        return f"synthia-batch failed {here}"
    if history.command is None:
        return "run the original command again"
    command = shlex.join(history.command["command"])
    place = history.command["directory"]
    return command if place == os.getcwd() else f"cd {shlex.quote(place)} && {command}"


def list_runs(parent: Path) -> list[Path]:
    """Return the directories of runs and pipelines in `parent`, the one that was written to last first.

    Also those of pipelines of which only some rows were tried.
    """
    paths = parent.iterdir() if parent.is_dir() else ()
    found = [
        path
        for path in paths
        if RunDir(path).plan.exists() or RunDir(path).pipeline.exists() or list_trials(path)
    ]
    return sorted(found, key=lambda path: (-_find_last_write(RunDir(path)), path))


def _find_last_write(run_dir: RunDir) -> float:
    stages = [RunDir(path) for path in run_dir.stages.iterdir()] if run_dir.stages.is_dir() else []
    written = [path for one in (run_dir, *stages) for path in (one.events, one.plan, one.pipeline)]
    return max((path.stat().st_mtime for path in written if path.exists()), default=0.0)
