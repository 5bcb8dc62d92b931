"""The publish protocol: how a shard's samples leave the journal and become files.

A shard has a data part, a failed part, or both, and both are one publication: one intent names
them, and the journal goes only when each is in place. Whatever interrupts this, recovery finds
either the journal, and publishes again from it, or every part as its intent says.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import make_directory, publish_bytes, remove_file, sync_directory
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartEntry, PartLedger, ShardEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """A part as it will be on the disk: the whole file, how many rows are in it, and their digest."""

    content: bytes
    rows: int
    rows_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShard:
    """Both parts of a shard. None where there are no such samples: a part is never empty."""

    shard: Shard
    data: EncodedPart | None
    failed: EncodedPart | None


def publish_shard(run_dir: RunDir, encoded: EncodedShard, journal: Journal, ledger: PartLedger) -> ShardEntry:
    """Make the parts of a shard visible, durably, and end its journal.

    Raises:
        ValueError: The parts do not hold every sample of the shard once. Nothing was written.
        StorageFailed: A system call failed. The journal, or the parts, are there for the next run.
    """
    shard = encoded.shard
    _check_rows(encoded)
    # From the intent on, the next run may rely on these samples: so they must be on the disk.
    journal.sync()
    shard_entry = ShardEntry(
        shard=shard.number,
        epoch=ledger.epoch,
        data=_describe(encoded.data),
        failed=_describe(encoded.failed),
    )
    ledger.append(shard_entry)
    # Failed samples first: where the data part of a shard is visible, the shard is complete.
    _put_part(run_dir.failed_part(shard), encoded.failed)
    _put_part(run_dir.data_part(shard), encoded.data)
    journal.close()
    # Not before the directories of the parts were synced. Its own directory need not be: if power
    # brings the journal back, recovery sees that the parts are as intended and removes it again.
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
        # An earlier publication of this shard had such samples, and a retry made them otherwise.
        remove_file(path)
        # On the disk before the journal goes: the old part must not come back beside the new.
        sync_directory(path.parent)
