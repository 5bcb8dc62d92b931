"""Stores ended samples, and publishes full shards as parts."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from synthia_batch.core.errors import StorageFailed
from synthia_batch.core.events import Subscriber, ignore_event
from synthia_batch.core.masking import mask_known
from synthia_batch.core.types import Failed, Record, Shard, Turn
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.scheduler.events import ShardPublished
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, ShardEntry
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.manifest import ManifestPart, list_parts
from synthia_batch.storage.publish import publish_shard
from synthia_batch.storage.recovery import Published, ShardState, Unfinished


@dataclass(slots=True)
class _OpenShard:
    """A shard that lacks samples. `ended` counts those in its journal."""

    shard: Shard
    journal: Journal
    ended: int


@dataclass(slots=True, kw_only=True)
class RunStore:
    """Records samples in their shards' journals and publishes each shard as it fills.

    `states` has for every shard, in order, what earlier attempts left, and which are published
    since. Memory is bounded: nothing of a recorded sample stays here. `on_published` is called for
    every published shard; `check` raises other errors that must end the run. `publish` gets events.
    """

    run_dir: RunDir
    shards: Sequence[Shard]
    states: list[ShardState]
    writer: WriterEpoch
    ledger: PartLedger
    assembler: Assembler
    publish: Subscriber = ignore_event
    clock: Callable[[], float] = time.monotonic
    on_published: Callable[[Shard, ShardEntry], None] = lambda shard, shard_entry: None
    check: Callable[[], None] = lambda: None
    finished: int = 0
    failed: int = 0
    _open: dict[int, _OpenShard] = field(default_factory=dict)
    _place: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Count the samples that ended in earlier attempts."""
        self._place = _find_place(self.run_dir.journals)
        self.finished = sum(state.finished for state in self.states)
        self.failed = sum(state.failed for state in self.states)

    @property
    def samples(self) -> int:
        """The number of samples of the job."""
        return self.shards[-1].stop

    @property
    def unfinished(self) -> Iterator[Unfinished]:
        """The shards that lack samples or their publication, in order."""
        return (state for state in self.states if isinstance(state, Unfinished))

    def list_ended(self, shard: Shard) -> set[int]:
        """Return the ordinals of `shard` that have ended; opens its journal."""
        return set(self._open_shard(shard).journal.replayed.outcomes)

    def list_turns(self, shard: Shard) -> Mapping[int, Sequence[Turn]]:
        """Return the finished turns of `shard`'s unfinished conversations; opens its journal."""
        return self._open_shard(shard).journal.replayed.turns

    def publish_filled(self) -> None:
        """Publish the shards that earlier attempts filled but did not publish."""
        for state in self.unfinished:
            if state.finished + state.failed == state.shard.samples:
                self._publish(self._open_shard(state.shard))

    def record(self, records: Sequence[Record]) -> None:
        """Record these samples and turns: once this returns, no later attempt generates them again."""
        size = self.shards[0].samples  # All shards but the last are of one size.
        by_shard: dict[int, list[Record]] = {}
        for record in map(_hide_secrets, records):
            by_shard.setdefault(record.ordinal // size, []).append(record)
        for number, group in by_shard.items():
            current = self._open_shard(self.shards[number])
            current.journal.append(group)
            ended = sum(not isinstance(record, Turn) for record in group)
            failed = sum(isinstance(record, Failed) for record in group)
            current.ended += ended
            self.failed += failed
            self.finished += ended - failed
            current.journal.sync_if_due(self.clock())
            if current.ended == current.shard.samples:
                self._publish(current)

    def close_journals(self) -> None:
        """Sync and close the open journals. Opened again, they list what was recorded until now as ended."""
        for current in self._open.values():
            current.journal.sync()
            current.journal.close()
        self._open.clear()

    def list_parts(self) -> tuple[ManifestPart, ...]:
        """Return every part of the run, in the order of shards, data before failed.

        Raises:
            ValueError: A shard is not published: the run is not complete.
        """
        missing = [state.shard.number for state in self.unfinished]
        if missing:
            raise ValueError(f"shards {missing} are not published")
        return list_parts(self.shards, self.ledger.latest)

    def tick(self) -> None:
        """Sync journals that are due."""
        self.check()
        self._check_place()
        for current in self._open.values():
            current.journal.sync_if_due(self.clock())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Sync and close every journal and the ledger."""
        try:
            # No sync on a disk that failed: its error would hide the one that matters.
            if not isinstance(error, StorageFailed):
                for current in self._open.values():
                    current.journal.sync()
        finally:
            for current in self._open.values():
                current.journal.close()
            self._open.clear()
            self.ledger.close()

    def _open_shard(self, shard: Shard) -> _OpenShard:
        current = self._open.get(shard.number)
        if current is None:
            journal = Journal.open(self.run_dir.journal(shard), shard, self.writer)
            current = _OpenShard(shard, journal, len(journal.replayed.outcomes))
            self._open[shard.number] = current
        return current

    def _publish(self, current: _OpenShard) -> None:
        # From the journal, not from memory: a resumed run then writes its parts on the same path
        # as an undisturbed one, and memory does not grow with the shard.
        current.journal.sync()
        self._check_place()
        outcomes = replay(current.journal.path, current.shard, self.writer)
        assembled = self.assembler.encode(current.shard, outcomes)
        shard_entry = publish_shard(self.run_dir, assembled.encoded, current.journal, self.ledger)
        del self._open[current.shard.number]
        # Otherwise it would count as a shard without samples.
        self.states[current.shard.number] = Published(
            shard=current.shard, shard_entry=shard_entry, has_leftover_journal=False
        )
        self.on_published(current.shard, shard_entry)
        self.finished -= assembled.dropped
        self.failed += assembled.dropped
        tally = assembled.tally
        self.publish(
            ShardPublished(
                shard=current.shard.number,
                finished=tally.finished,
                failed=tally.failed,
                truncated=tally.truncated,
                failures=dict(tally.failures),
            )
        )

    def _check_place(self) -> None:
        """Return if the journals are where they were opened: open files go on after a move or a removal."""
        if self._place is not None and _find_place(self.run_dir.journals) != self._place:
            raise StorageFailed(
                f"{self.run_dir.root} was moved or removed while the run wrote to it; the run has stopped\n"
                "  if it was moved, move it back; then run the same command again"
            )


def _find_place(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of `path`, None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _hide_secrets(record: Record) -> Record:
    """Return `record` without the job's secrets, which a server may repeat when it refuses a request."""
    if isinstance(record, Failed) and (message := mask_known(record.message)) != record.message:
        return replace(record, message=message)
    return record
