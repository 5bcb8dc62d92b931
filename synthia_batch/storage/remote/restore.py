"""Restores a lost state directory from the objects that its run has put into the store.

It restores everything that was published: the plan, and every shard whose parts match their ledger entry.
Samples that were only in journals are lost with the machine, and are regenerated.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from synthia_batch.core.checksummed_json import decode_checksummed
from synthia_batch.core.errors import IntegrityError, UsageError
from synthia_batch.core.types import Shard
from synthia_batch.job.identity import refuse_differences
from synthia_batch.job.plan import read_shards
from synthia_batch.storage.atomic import make_directory, publish_bytes, remove_file
from synthia_batch.storage.layout import KEYS, RunDir
from synthia_batch.storage.ledger import PartLedger, ShardEntry
from synthia_batch.storage.lock import WriterEpoch, read_boot_id
from synthia_batch.storage.plan_file import plan_digest
from synthia_batch.storage.remote.lease import KEY as LEASE_KEY
from synthia_batch.storage.remote.object_metadata import ObjectMetadata, read_metadata
from synthia_batch.storage.remote.object_store import ObjectStore

_log = logging.getLogger(__name__)


def read_remote_plan(store: ObjectStore) -> dict[str, Any] | None:
    """Return the plan of the run in the store, or None if no run has begun."""
    key = KEYS.plan.as_posix()
    found = store.read(key)
    return None if found is None else decode_checksummed(found.content, f"{store.url}/{key}")


def refuse_other_objects(store: ObjectStore) -> None:
    """Return if the lease is the only object below the prefix.

    Raises:
        UsageError: There are other objects, and no run.
    """
    others = sorted(store.list_keys().keys() - {LEASE_KEY})
    if others:
        raise UsageError(
            f"{store.url}: holds objects but no run, such as {others[0]}; use another prefix with -o"
        )


def refuse_other_remote_identity(
    store: ObjectStore, plan: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Return if the run in the store is the job with this identity. Raises IdentityMismatch."""
    refuse_differences(
        store.url, plan["identity"], identity, "use another prefix with -o, or the job as it was"
    )


def restore_run(store: ObjectStore, run_dir: RunDir, plan: Mapping[str, Any], epoch: int) -> None:
    """Restore the state directory of the run in the store, under that directory's lock. Repeatable."""
    run_dir.create()
    remove_file(run_dir.ledger)
    shards = read_shards(plan)
    writer = WriterEpoch(plan_digest=plan_digest(plan), epoch=epoch, boot=read_boot_id())
    ledger = PartLedger.open(run_dir.ledger, writer)
    try:
        restored = sum(
            _restore_shard(store, run_dir, shard, ledger, writer)
            for shard in list_begun(shards, store.list_keys())
        )
    finally:
        ledger.close()
    for path in (run_dir.canary, run_dir.plan):  # The plan last: it turns the directory into a run.
        found = store.read(path.relative_to(run_dir.root).as_posix())
        if found is not None:
            publish_bytes(path, found.content)
    _log.info(f"{store.url}: restored {restored} of {len(shards)} shards from there")


def find_entry(store: ObjectStore, shard: Shard, digest: str) -> ShardEntry | None:
    """Return the ledger entry in the metadata of the shard's parts, or None unless all of them match it."""
    found: dict[str, ObjectMetadata] = {}
    sizes: dict[str, int] = {}
    for kind, path in (("data", KEYS.data_part(shard)), ("failed", KEYS.failed_part(shard))):
        there = store.head(path.as_posix())
        metadata = None if there is None else read_metadata(there)
        if there is not None and metadata is not None and metadata.plan_digest == digest:
            found[kind], sizes[kind] = metadata, there.size_bytes
    entries = [metadata.shard_entry for metadata in found.values() if metadata.shard_entry is not None]
    if not entries:
        return None
    first = entries[0]
    expected = {kind: entry for kind, entry in (("data", first.data), ("failed", first.failed)) if entry}
    is_whole = found.keys() == expected.keys() and all(
        (found[kind].sha256, sizes[kind]) == (entry.sha256, entry.bytes) for kind, entry in expected.items()
    )
    # Two publications may each have left one part there: then neither counts.
    is_one = all((other.data, other.failed) == (first.data, first.failed) for other in entries)
    return first if is_whole and is_one and first.shard == shard.number else None


def list_begun(shards: Iterable[Shard], keys: Collection[str]) -> list[Shard]:
    """Return the shards that have a part among `keys`."""
    return [
        shard
        for shard in shards
        if KEYS.data_part(shard).as_posix() in keys or KEYS.failed_part(shard).as_posix() in keys
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
                f"{store.url}/{key} was altered: its SHA-256 is not {entry.sha256}, as put there\n"
                "  remove that object; the next run regenerates its samples"
            )
        make_directory(path.parent)
        publish_bytes(path, found.content)
    ledger.append(
        ShardEntry(shard=shard.number, epoch=writer.epoch, data=shard_entry.data, failed=shard_entry.failed)
    )
    return True
