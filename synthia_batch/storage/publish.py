"""The publish protocol: how a shard's samples move from the journal into files.

A shard has a data part, a failed part, or both, and they are published together: one ledger entry names
them, and the journal is removed only when all are in place. Whatever interrupts this, recovery finds
either the journal, and publishes again from it, or every part as its ledger entry says.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import Buffer, make_directory, publish_bytes, remove_file, sync_directory
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartEntry, PartLedger, ShardEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """A part as it will be on disk: the whole file, its number of rows, and their digest."""

    content: Buffer
    rows: int
    rows_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShard:
    """Both parts of a shard. None if there are no such samples: a part is never empty."""

    shard: Shard
    data: EncodedPart | None
    failed: EncodedPart | None


def publish_shard(run_dir: RunDir, encoded: EncodedShard, journal: Journal, ledger: PartLedger) -> ShardEntry:
    """Make the parts of a shard visible, durably, and remove its journal."""
    shard = encoded.shard
    _check_rows(encoded)
    # Once the ledger has the entry, the next run relies on these samples: they must be on disk.
    journal.sync()
    shard_entry = ShardEntry(
        shard=shard.number, epoch=ledger.epoch, data=_describe(encoded.data), failed=_describe(encoded.failed)
    )
    ledger.append(shard_entry)
    # Failed samples first: once the data part of a shard is visible, the shard is complete.
    _put_part(run_dir.failed_part(shard), encoded.failed)
    _put_part(run_dir.data_part(shard), encoded.data)
    journal.close()
    # Only after the directories of the parts are synced. The journal's own need not be: if power loss
    # restores the journal, recovery finds the parts as expected and removes it again.
    remove_file(journal.path)
    return shard_entry


def _check_rows(encoded: EncodedShard) -> None:
    parts = [part for part in (encoded.data, encoded.failed) if part is not None]
    rows = sum(part.rows for part in parts)
    if rows != encoded.shard.samples or any(part.rows == 0 for part in parts):
        raise ValueError(
            f"shard {encoded.shard.number} has {encoded.shard.samples} samples, its parts have {rows}"
        )


def _describe(part: EncodedPart | None) -> PartEntry | None:
    if part is None:
        return None
    return PartEntry(
        sha256=hashlib.sha256(part.content).hexdigest(),
        bytes=len(part.content),
        rows=part.rows,
        rows_digest=part.rows_digest,
    )


def _put_part(path: Path, part: EncodedPart | None) -> None:
    if part is not None:
        make_directory(path.parent)
        publish_bytes(path, part.content)
    elif path.exists():
        # An earlier publication had such samples, and a retry changed that.
        remove_file(path)
        # Durable before the journal is removed: the old part must not reappear beside the new.
        sync_directory(path.parent)
