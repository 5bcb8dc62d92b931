"""Snapshots of a run directory, read from outside, even during the run.

Results for unchanged shards are cached between reads. Apparent damage in a directory that is being
written is read again.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.core.counts import CUT_OFF, Tally
from synthia_batch.core.errors import IntegrityError, UsageError
from synthia_batch.core.types import Shard
from synthia_batch.job.plan import read_shards
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import ShardEntry, read_ledger
from synthia_batch.storage.lock import WriterEpoch, find_running, read_boot_id
from synthia_batch.storage.pipeline_file import list_trials
from synthia_batch.storage.plan_file import plan_digest, require_plan
from synthia_batch.storage.recovery import Published, ShardState, inspect_shard

MAX_READS = 5
"""Reads of a directory under concurrent writes until the result is consistent, or an error."""
PAUSE_SECONDS = 0.1

Stamp = tuple[int, int]
"""Size in bytes and modification time of a file: they show whether it has changed."""


@dataclass(frozen=True, slots=True)
class _CachedState:
    """State of a shard for this stamp of its journal, None if it had no journal."""

    stamp: Stamp | None
    shard_entry: ShardEntry | None
    state: ShardState


@dataclass(slots=True, kw_only=True)
class SnapshotReader:
    """Reads snapshots of one run. Takes no lock, writes nothing. `plan` is the content of plan.json."""

    run_dir: RunDir
    plan: Mapping[str, Any]
    writer: WriterEpoch
    shards: Sequence[Shard]
    _latest: Mapping[int, ShardEntry] = field(default_factory=dict)
    _ledger: Stamp | None = None
    _states: dict[int, _CachedState] = field(default_factory=dict)
    _counts: dict[int, Tally] = field(default_factory=dict)

    def read(self) -> list[ShardState]:
        """Return the current state of each shard, in order."""
        for _ in range(MAX_READS):
            try:
                before = self._read_ledger()
                states = self._inspect_all()
            except IntegrityError:
                if find_running(self.run_dir) is None:
                    raise
                time.sleep(PAUSE_SECONDS)
                continue
            if _stamp(self.run_dir.ledger) == before:  # no shard was published in between
                return states
        self._read_ledger()
        return self._inspect_all()

    def count(self, state: ShardState) -> Tally:
        """Return the counts of a shard's samples."""
        if not isinstance(state, Published):
            return state.tally
        number = state.shard.number
        known = self._counts.get(number)
        if known is None or (known.finished, known.failed) != (state.finished, state.failed):
            known = self._counts[number] = _count_parts(self.run_dir, state)
        return known

    def record_published(self, event: Mapping[str, Any]) -> None:
        """Cache the counts of a `shard_published` event, so that its parts need not be read."""
        if "failures" in event:  # absent in events of earlier versions
            self._counts[event["shard"]] = Tally(
                finished=event["finished"], truncated=event["truncated"], failures=event["failures"]
            )

    def _read_ledger(self) -> Stamp | None:
        stamp = _stamp(self.run_dir.ledger)
        if stamp is None or stamp != self._ledger:
            self._latest = read_ledger(self.run_dir.ledger, self.writer.plan_digest).latest
            self._ledger = stamp
        return stamp

    def _inspect_all(self) -> list[ShardState]:
        # One directory listing instead of three stat calls for each of a thousand shards.
        stamps = {path: _stamp(path) for path in self.run_dir.journals.glob("*.wal")}
        return [self._inspect(shard, stamps.get(self.run_dir.journal(shard))) for shard in self.shards]

    def _inspect(self, shard: Shard, stamp: Stamp | None) -> ShardState:
        shard_entry = self._latest.get(shard.number)
        cached = self._states.get(shard.number)
        if cached is not None and (cached.stamp, cached.shard_entry) == (stamp, shard_entry):
            return cached.state
        state = inspect_shard(self.run_dir, shard, self._latest, self.writer)
        self._states[shard.number] = _CachedState(stamp, shard_entry, state)
        return state


def open_snapshots(directory: Path) -> SnapshotReader:
    """Return a reader of snapshots of the run in `directory`.

    Raises:
        UsageError: `directory` is not a run directory.
    """
    run_dir = RunDir(directory)
    if not run_dir.plan.exists() and run_dir.lock.exists() and not list_trials(directory):
        raise UsageError(
            f"{directory}: no run has started here yet; if one is reading its input, try again in a moment"
        )
    plan = require_plan(run_dir)
    return SnapshotReader(
        run_dir=run_dir,
        plan=plan,
        writer=WriterEpoch(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id()),
        shards=read_shards(plan),
    )


def _count_parts(run_dir: RunDir, state: Published) -> Tally:
    from synthia_batch.storage.parts.columns import read_part  # loading pyarrow takes 0.5 s

    failures: Counter[str] = Counter()
    truncated = 0
    if state.shard_entry.data:
        reasons = read_part(run_dir.data_part(state.shard), ["finish_reason"])["finish_reason"].to_pylist()
        truncated = reasons.count(CUT_OFF)
    if state.shard_entry.failed:
        failures.update(read_part(run_dir.failed_part(state.shard), ["code"])["code"].to_pylist())
    return Tally(finished=state.finished, truncated=truncated, failures=failures)


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns
