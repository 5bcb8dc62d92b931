"""A run directory looked at from outside, again and again, also while the run goes on.

What is known of a published shard is kept from look to look. What seems damaged only because it was
being written is looked at again.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.core.counts import CUT_OFF, Tally
from synthia_batch.core.types import Shard
from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.job.plan import plan_shards
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import ShardEntry, read_ledger
from synthia_batch.storage.lock import WriterEpoch, find_running, read_boot_id
from synthia_batch.storage.plan_file import plan_digest, require_plan
from synthia_batch.storage.recovery import Published, ShardState, inspect_shard

LOOKS = 5
"""How often a directory that somebody writes to is looked at until it holds still, or is damaged."""
PAUSE_SECONDS = 0.1

Stamp = tuple[int, int]
"""Size in bytes and time of the last change: what tells that a file was written to."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A shard as it was when its journal had that stamp; None where it had none."""

    stamp: Stamp | None
    shard_entry: ShardEntry | None
    state: ShardState


@dataclass(slots=True, kw_only=True)
class RunLooker:
    """Looks at one run. Takes no lock and writes nothing. `plan` is that of plan.json."""

    run_dir: RunDir
    plan: Mapping[str, Any]
    attempt: WriterEpoch
    shards: Sequence[Shard]
    _latest: Mapping[int, ShardEntry] = field(default_factory=dict)
    _ledger: Stamp | None = None
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _tallies: dict[int, Tally] = field(default_factory=dict)

    def look(self) -> list[ShardState]:
        """Return what there is of each shard now, in order.

        Raises:
            IntegrityError: What the directory holds is not what was written.
            StorageFailed: A file cannot be read.
        """
        for _ in range(LOOKS):
            try:
                before = self._read_ledger()
                states = self._inspect_all()
            except IntegrityError:
                if find_running(self.run_dir) is None:
                    raise
                time.sleep(PAUSE_SECONDS)
                continue
            if _stamp(self.run_dir.ledger) == before:  # or a shard was published meanwhile
                return states
        self._read_ledger()
        return self._inspect_all()

    def tally(self, state: ShardState) -> Tally:
        """Return what the samples of a shard have come to.

        Raises:
            IntegrityError: A published part cannot be read.
        """
        if not isinstance(state, Published):
            return state.tally
        number = state.shard.number
        known = self._tallies.get(number)
        if known is None or (known.finished, known.failed) != (state.finished, state.failed):
            known = self._tallies[number] = _tally_parts(self.run_dir, state)
        return known

    def note_published(self, event: Mapping[str, Any]) -> None:
        """Take note of what a `shard_published` event says, so that the parts need not be read for it."""
        if "failures" in event:  # Earlier versions did not say it.
            self._tallies[event["shard"]] = Tally(
                finished=event["finished"], truncated=event["truncated"], failures=event["failures"]
            )

    def _read_ledger(self) -> Stamp | None:
        stamp = _stamp(self.run_dir.ledger)
        if stamp is None or stamp != self._ledger:
            self._latest = read_ledger(self.run_dir.ledger, self.attempt.plan_digest).latest
            self._ledger = stamp
        return stamp

    def _inspect_all(self) -> list[ShardState]:
        # One listing in place of three files looked for in each of a thousand shards.
        stamps = {path: _stamp(path) for path in self.run_dir.journals.glob("*.wal")}
        return [self._inspect(shard, stamps.get(self.run_dir.journal(shard))) for shard in self.shards]

    def _inspect(self, shard: Shard, stamp: Stamp | None) -> ShardState:
        shard_entry = self._latest.get(shard.number)
        seen = self._seen.get(shard.number)
        if seen is not None and (seen.stamp, seen.shard_entry) == (stamp, shard_entry):
            return seen.state
        state = inspect_shard(self.run_dir, shard, self._latest, self.attempt)
        self._seen[shard.number] = _Seen(stamp, shard_entry, state)
        return state


def open_looker(directory: Path) -> RunLooker:
    """Return what looks at the run in `directory`.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: Its plan is not what was written.
    """
    run_dir = RunDir(directory)
    if not run_dir.plan.exists() and run_dir.lock.exists():
        raise UsageError(
            f"{directory}: no run has begun here yet; where one still reads its input: look again in a moment"
        )
    plan = require_plan(run_dir)
    return RunLooker(
        run_dir=run_dir,
        plan=plan,
        attempt=WriterEpoch(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id()),
        shards=plan_shards(plan["scan"]["rows"], plan["samples_per_row"]),
    )


def _tally_parts(run_dir: RunDir, state: Published) -> Tally:
    from synthia_batch.storage.parts.columns import read_part  # pyarrow takes half a second to load

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
