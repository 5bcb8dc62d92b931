"""Reopens the shards of failed samples for a retry; all their other samples are kept.

A journal of the kept samples, of an epoch after the publication, takes precedence over the parts: once it
exists the shard is unfinished, and the next run generates the missing samples and replaces the parts. A
crash before that moment changes nothing. Until the first sample ends, the old parts are all there, and the
shards can be closed as they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.counts import tally_records
from synthia_batch.core.types import Failed, Outcome, Shard, Turn
from synthia_batch.storage.atomic import publish_bytes, remove_file, storage_errors, sync_directory
from synthia_batch.storage.journal.reader import read_journal, replay
from synthia_batch.storage.journal.writer import write_journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.parts.reader import SampleGrid, read_failed, read_made
from synthia_batch.storage.recovery import Published, ShardState, Unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureChoice:
    """Selects failed samples for a retry: those with `code`, or all if it is None."""

    code: str | None

    def takes(self, outcome: Outcome) -> bool:
        """Return whether the sample is selected."""
        return isinstance(outcome, Failed) and self.code in (None, outcome.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopener:
    """Reads the samples of a run back. `writer` has epoch 0 if it only reads."""

    run_dir: RunDir
    grid: SampleGrid
    writer: WriterEpoch

    def list_chosen(self, states: Sequence[ShardState], choice: FailureChoice) -> list[int]:
        """Return the ordinals of the samples that `choice` selects, in order. Changes nothing."""
        return [
            ordinal
            for state in states
            if state.failed
            for ordinal in sorted(
                n for n, outcome in self.read_outcomes(state).items() if choice.takes(outcome)
            )
        ]

    def reopen(self, states: Sequence[ShardState], choice: FailureChoice) -> list[ShardState]:
        """Drop the samples that `choice` selects from their shards; return the new states.

        The manifest must be withdrawn before.
        """
        return [self._reopen(state, choice) if state.failed else state for state in states]

    def read_outcomes(self, state: ShardState) -> Mapping[int, Outcome]:
        """Return every sample of the shard that has ended, exactly as it was journaled."""
        if isinstance(state, Unfinished):
            return replay(self.run_dir.journal(state.shard), state.shard, self.writer)
        return self._read_parts(state)

    def _read_parts(self, state: Published) -> dict[int, Outcome]:
        shard, shard_entry = state.shard, state.shard_entry
        made = read_made(self.run_dir.data_part(shard), shard, self.grid) if shard_entry.data else {}
        failed = (
            read_failed(self.run_dir.failed_part(shard), shard, self.grid, made) if shard_entry.failed else {}
        )
        return {**made, **failed}

    def _reopen(self, state: ShardState, choice: FailureChoice) -> ShardState:
        outcomes = self.read_outcomes(state)
        kept = [outcome for outcome in outcomes.values() if not choice.takes(outcome)]
        if len(kept) == len(outcomes):
            return state
        turns = self._read_turns(state)
        write_journal(self.run_dir.journal(state.shard), state.shard, self.writer, [*kept, *turns])
        return Unfinished(shard=state.shard, tally=tally_records(kept), dropped_bytes=0)

    def _read_turns(self, state: ShardState) -> list[Turn]:
        """Return the turns of unfinished conversations."""
        if isinstance(state, Published):
            return []
        replayed = read_journal(self.run_dir.journal(state.shard), state.shard, self.writer)
        return [turn for conversation in replayed.turns.values() for turn in conversation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The files of a complete run that a retry removes or rewrites, as they were before."""

    manifest: bytes
    readme: bytes | None
    job: bytes | None


def read_ending(run_dir: RunDir) -> Ending | None:
    """Return the files that mark the run as complete, or None if it is not."""
    manifest = _read(run_dir.manifest)
    if manifest is None:
        return None
    return Ending(manifest=manifest, readme=_read(run_dir.readme), job=_read(run_dir.job))


def close_again(run_dir: RunDir, shards: Sequence[Shard], ending: Ending) -> None:
    """Restore a complete run after its failed samples were reopened and none of them has ended.

    A crash at any moment leaves a run that the next one completes. Call this under the run's lock.
    """
    for shard in shards:
        remove_file(run_dir.journal(shard))
    # A complete run is not searched for journals, so their removal is made durable first.
    sync_directory(run_dir.journals)
    # The manifest last, as always.
    for path, content in (
        (run_dir.job, ending.job),
        (run_dir.readme, ending.readme),
        (run_dir.manifest, ending.manifest),
    ):
        if content is not None:
            publish_bytes(path, content)


def _read(path: Path) -> bytes | None:
    with storage_errors("read", path):
        return path.read_bytes() if path.exists() else None
