"""A state directory that is lost, made again from what its run has put into the store.

What comes back is all that was published: the plan and every shard whose parts are there as the ledger
had them. What was only in journals is gone with the machine, and is made again.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Shard
from synthia_batch.errors import IdentityMismatch, IntegrityError, UsageError
from synthia_batch.job.identity import compare_identities
from synthia_batch.job.plan import plan_shards
from synthia_batch.storage.atomic import make_directory, publish_bytes, remove_file
from synthia_batch.storage.checksummed_json import decode_checksummed
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, ShardEntry
from synthia_batch.storage.lock import WriterEpoch, read_boot_id
from synthia_batch.storage.plan_file import plan_digest
from synthia_batch.storage.remote.lease import KEY as LEASE_KEY
from synthia_batch.storage.remote.object_metadata import ObjectMetadata, read_metadata
from synthia_batch.storage.remote.object_store import ObjectStore

_ROOT = Path()
"""Paths below it are keys below the prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRun:
    """How many of the run's shards came back from the store."""

    shards: int
    total: int


def read_remote_plan(store: ObjectStore) -> dict[str, Any] | None:
    """Return the plan of the run in the store, or None where no run has begun.

    Raises:
        IntegrityError: It was altered.
        StorageFailed: The store does not answer, or does not allow it.
    """
    key = RunDir(_ROOT).plan.as_posix()
    found = store.read(key)
    return None if found is None else decode_checksummed(found.content, f"{store.url}/{key}")


def refuse_other_objects(store: ObjectStore) -> None:
    """Return if there is nothing below the prefix but its lease.

    Raises:
        UsageError: There are other objects, and no run.
        StorageFailed: The store does not answer, or does not allow it.
    """
    others = sorted(store.list_keys().keys() - {LEASE_KEY})
    if others:
        raise UsageError(
            f"{store.url}: holds objects that are no run, such as {others[0]}; name another prefix with -o"
        )


def refuse_other_remote_identity(
    store: ObjectStore, plan: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Return if the run in the store is the job with this identity.

    Raises:
        IdentityMismatch: It is another job; every field that differs is named.
    """
    differences = compare_identities(plan["identity"], identity)
    if differences:
        lines = [f"{store.url} belongs to another job; nothing was touched. What differs:"]
        lines += [f"  {difference}" for difference in differences]
        lines.append("name another prefix with -o, or say the job as it was")
        raise IdentityMismatch("\n".join(lines))


def restore_run(store: ObjectStore, run_dir: RunDir, plan: Mapping[str, Any], epoch: int) -> RestoredRun:
    """Make the state directory of the run in the store, under the lock of that directory. Repeatable.

    Raises:
        IntegrityError: A part is not what its notes say.
        StorageFailed: Something cannot be read or written.
    """
    run_dir.create()
    remove_file(run_dir.ledger)
    shards = plan_shards(plan["scan"]["rows"], plan["samples_per_row"])
    writer = WriterEpoch(plan_digest=plan_digest(plan), epoch=epoch, boot=read_boot_id())
    ledger = PartLedger.open(run_dir.ledger, writer)
    try:
        restored = sum(
            _restore_shard(store, run_dir, shard, ledger, writer)
            for shard in list_begun(shards, store.list_keys())
        )
    finally:
        ledger.close()
    for path in (run_dir.canary, run_dir.plan):  # The plan last: with it, the directory is one of a run.
        found = store.read(path.relative_to(run_dir.root).as_posix())
        if found is not None:
            publish_bytes(path, found.content)
    return RestoredRun(shards=restored, total=len(shards))


def find_entry(store: ObjectStore, shard: Shard, digest: str) -> ShardEntry | None:
    """Return what the store says that the shard's parts are, or None where they are not all there, as said.

    Raises:
        StorageFailed: The store does not answer, or does not allow it.
    """
    names = RunDir(_ROOT)
    found: dict[str, ObjectMetadata] = {}
    sizes: dict[str, int] = {}
    for kind, path in (("data", names.data_part(shard)), ("failed", names.failed_part(shard))):
        there = store.look(path.as_posix())
        metadata = None if there is None else read_metadata(there)
        if there is not None and metadata is not None and metadata.plan_digest == digest:
            found[kind], sizes[kind] = metadata, there.size_bytes
    ledger = [metadata.shard_entry for metadata in found.values() if metadata.shard_entry is not None]
    if not ledger:
        return None
    first = ledger[0]
    said = {kind: entry for kind, entry in (("data", first.data), ("failed", first.failed)) if entry}
    is_whole = found.keys() == said.keys() and all(
        (found[kind].sha256, sizes[kind]) == (entry.sha256, entry.bytes) for kind, entry in said.items()
    )
    # Of two publications, half of each may be there: then neither is.
    is_one = all(
        (shard_entry.data, shard_entry.failed) == (first.data, first.failed) for shard_entry in ledger
    )
    return first if is_whole and is_one and first.shard == shard.number else None


def list_begun(shards: Iterable[Shard], keys: Collection[str]) -> list[Shard]:
    """Return the shards that have a part among `keys`."""
    names = RunDir(_ROOT)
    return [
        shard
        for shard in shards
        if names.data_part(shard).as_posix() in keys or names.failed_part(shard).as_posix() in keys
    ]


def _restore_shard(
    store: ObjectStore, run_dir: RunDir, shard: Shard, ledger: PartLedger, writer: WriterEpoch
) -> bool:
    shard_entry = find_entry(store, shard, writer.plan_digest)
    if shard_entry is None:
        return False
    for path, entry in (
        (run_dir.failed_part(shard), shard_entry.failed),
        (run_dir.data_part(shard), shard_entry.data),
    ):
        if entry is None:
            continue
        key = path.relative_to(run_dir.root).as_posix()
        found = store.read(key)
        if found is None or hashlib.sha256(found.content).hexdigest() != entry.sha256:
            raise IntegrityError(
                f"{store.url}/{key} was altered: its SHA-256 is not {entry.sha256}, with which it was put\n"
                "  remove that object; its samples are then made again"
            )
        make_directory(path.parent)
        publish_bytes(path, found.content)
    ledger.append(
        ShardEntry(shard=shard.number, epoch=writer.epoch, data=shard_entry.data, failed=shard_entry.failed)
    )
    return True
