"""How far a run is, read from its directory while it goes on or afterwards."""

import os
import shlex
import shutil
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.counts import Tally
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.results.read.attempt import History, WorkerState
from synthia_batch.results.read.snapshot import open_looker
from synthia_batch.storage.events import EventReader
from synthia_batch.storage.lock import Owner, find_running, read_owner
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.recovery import Published, ShardState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands. `state` is complete, running, interrupted, or unknown for another host's.

    `owner` is who writes to it now, `pid@host`. `failures` counts the failed samples by code, the
    commonest first; `truncated` of the finished were cut off at max_tokens. `determinism` is its
    class, and what that promises. `attempts` counts the times that it was started; `last_event` is
    the newest of its history, `ended` why the latest attempt stopped before the end, if it did.

    Of the latest attempt, and None where it has told nothing yet: tokens and samples per second
    since its first engine was ready, the same over the last minute, the share of prompt tokens that
    came from a prefix cache, and the share of the time that an engine had requests, on average.
    `left_seconds` is what is missing at the rate of now; `restarts` counts workers that began again.
    `published_bytes` are those of its parts, `free_bytes` what its disk has left.
    """

    directory: str
    name: str
    fingerprint: str
    state: str
    owner: str | None
    samples: int
    finished: int
    failed: int
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
    workers: tuple[WorkerState, ...]
    published_bytes: int
    free_bytes: int
    next: str

    @property
    def is_going_on(self) -> bool:
        """Whether somebody writes to it, here or on a host that cannot be asked."""
        return self.owner is not None and self.state != "complete"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


class StatusReader:
    """Reads the status of one run again and again: only what has changed. Needs no lock."""

    def __init__(self, directory: Path) -> None:
        """Look for the run in `directory`.

        Raises:
            UsageError: It is no run directory.
            IntegrityError: Its plan is not what was written.
        """
        self._directory = directory
        self._looker = open_looker(directory)
        self._events = EventReader(self._looker.run_dir.events)
        self._history = History()

    def read(self) -> RunStatus:
        """Return where the run stands now.

        Raises:
            IntegrityError: What the directory holds is not what was written.
        """
        looker, run_dir, history = self._looker, self._looker.run_dir, self._history
        # Before the counts: an owner that ends meanwhile leaves numbers that are at least as new.
        running = find_running(run_dir)
        is_complete = read_manifest(run_dir.manifest) is not None
        self._take_events()
        states = looker.look()
        tally = sum((looker.tally(state) for state in states), Tally())
        owner = read_owner(run_dir.owner)
        state = "complete" if is_complete else _describe_state(running)
        return RunStatus(
            directory=str(self._directory),
            name=looker.plan["name"],
            fingerprint=looker.plan["fingerprint"],
            state=state,
            owner=f"{running.pid}@{running.host}" if running and not is_complete else None,
            samples=looker.shards[-1].stop,
            finished=tally.finished,
            failed=tally.failed,
            failures=dict(Counter(tally.failures).most_common()),
            truncated=tally.truncated,
            truncated_share=round(tally.truncated / max(1, tally.finished), 4),
            shards=len(looker.shards),
            shards_published=sum(isinstance(state, Published) for state in states),
            determinism=_describe_determinism(looker.plan["identity"]),
            attempts=owner.epoch if owner else 0,
            last_event=f"{history.last['kind']} at {history.last['time']}" if history.last else "none",
            ended=history.ended.get("drained") if history.ended else None,
            **_measure_speed(history, looker.shards[-1].stop - tally.finished - tally.failed),
            restarts=history.restarts,
            workers=history.list_workers(),
            published_bytes=_count_bytes(states),
            free_bytes=shutil.disk_usage(run_dir.root).free,
            next=_choose_next(self._directory, state, tally, history),
        )

    def _take_events(self) -> None:
        for event in self._events.read():
            self._history.take(event)
            if event.get("kind") == "shard_published":
                self._looker.note_published(event)


def read_status(directory: Path) -> RunStatus:
    """Return where the run in `directory` stands. Only reads, and needs no lock.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: What it holds is not what was written.
    """
    return StatusReader(directory).read()


def _describe_determinism(identity: Mapping[str, Any]) -> str:
    """Return the class of a run and what it promises; docs/determinism.md says which setting is in which."""
    if identity["determinism"] == "fast":
        return "fast: the same samples in the same files; texts may differ between batches"
    engine = identity["engine"]
    where = " on ".join(str(engine[key]) for key in ("version", "hardware") if key in engine)
    return f"strict: the same bytes for any workers and kills, with {engine['kind']} {where}"


def _describe_state(owner: Owner | None) -> str:
    if owner is None:
        return "interrupted"
    return "running" if owner.host == socket.gethostname() else f"unknown: started on {owner.host}"


def _measure_speed(history: History, missing: int) -> dict[str, float | None]:
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
    ledger = (state.shard_entry for state in states if isinstance(state, Published))
    return sum(
        part.bytes for shard_entry in ledger for part in (shard_entry.data, shard_entry.failed) if part
    )


def _choose_next(directory: Path, state: str, tally: Tally, history: History) -> str:
    """Return the command to type next."""
    here = shlex.quote(str(directory))
    if state == "complete":
        return f"synthia-batch failed {here}" if tally.failed else f"synthia-batch report {here}"
    if state != "interrupted":
        return f"synthia-batch status {here} --watch"
    # To be begun again as it was is no use.
    if history.ended is not None and history.ended.get("exit_code") == DrainReason.FAILURES.exit_code:
        return f"synthia-batch failed {here}"
    if history.command is None:
        return "the command that began it, once more"
    command = shlex.join(history.command["command"])
    place = history.command["directory"]
    return command if place == os.getcwd() else f"cd {shlex.quote(place)} && {command}"
