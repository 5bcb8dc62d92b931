"""A run in a store looked at from anywhere: its status, and a copy of it for whoever reads directories."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Shard
from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.job.plan import plan_shards
from synthia_batch.storage.atomic import make_directory, publish_bytes
from synthia_batch.storage.checksummed_json import decode_checksummed
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, ShardEntry
from synthia_batch.storage.lock import RunLock, WriterEpoch, read_boot_id
from synthia_batch.storage.manifest import Manifest, read_manifest
from synthia_batch.storage.plan_file import plan_digest
from synthia_batch.storage.remote.lease import LeaseRecord, read_lease
from synthia_batch.storage.remote.object_store import ObjectStore, Patience, open_object_store
from synthia_batch.storage.remote.restore import find_entry, list_begun, read_remote_plan

PATIENCE = Patience(request_seconds=120, seconds=60)
FOLDERS = ("data/", "failed/")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStatus:
    """How far a run is, as its store tells it. `owner` is who writes there, or did last.

    What is in journals on its owner's disk is not known here: samples are those of published parts.
    """

    url: str
    name: str
    is_complete: bool
    shards: int
    shards_published: int
    samples: int
    finished: int
    failed: int
    owner: LeaseRecord | None

    @property
    def state(self) -> str:
        """The state in a word."""
        if self.is_complete:
            return "complete"
        return "unfinished" if self.owner is None or self.owner.is_free else "running"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        owner = self.owner and {"pid": self.owner.pid, "host": self.owner.host, "ends_at": self.owner.ends_at}
        return {**asdict(self), "state": self.state, "owner": owner}


def read_remote_status(url: str) -> RemoteStatus:
    """Return how far the run in the store below `url` is. Only reads: a part's notes, never its rows.

    Raises:
        UsageError: There is no run.
        IntegrityError: Its plan was altered.
        StorageFailed: The store does not answer, or does not allow it.
    """
    store = open_object_store(url, PATIENCE)
    plan = _require_plan(store)
    shards = plan_shards(plan["scan"]["rows"], plan["samples_per_row"])
    keys = store.list_keys()
    names = RunDir(Path())
    digest = plan_digest(plan)
    ledger = [
        shard_entry
        for shard in list_begun(shards, keys)
        if (shard_entry := find_entry(store, shard, digest)) is not None
    ]
    return RemoteStatus(
        url=store.url,
        name=plan["name"],
        is_complete=names.manifest.as_posix() in keys,
        shards=len(shards),
        shards_published=len(ledger),
        samples=shards[-1].stop,
        finished=sum(shard_entry.data.rows for shard_entry in ledger if shard_entry.data),
        failed=sum(shard_entry.failed.rows for shard_entry in ledger if shard_entry.failed),
        owner=read_lease(store),
    )


def read_kept_job(url: str) -> dict[str, Any]:
    """Return what was said of the job whose run is in the store, as `job.json` has it.

    Raises:
        UsageError: There is no run, or it keeps no job.
        IntegrityError: It was altered.
        StorageFailed: The store does not answer, or does not allow it.
    """
    store = open_object_store(url, PATIENCE)
    key = RunDir(Path()).job.as_posix()
    found = store.read(key)
    if found is None:
        raise UsageError(f"{url}: keeps no job; type the command that made it once, with -o {url}")
    return dict(decode_checksummed(found.content, f"{store.url}/{key}")["job"])


@contextmanager
def open_copy(url: str) -> Iterator[Path]:
    """A directory for the block with all that the store has of a run, whatever it is worth.

    It takes as much room on the disk for temporary files (TMPDIR) as the dataset has bytes.

    Raises:
        UsageError: There is no run.
        IntegrityError: Its plan was altered.
        StorageFailed: The store does not answer, or does not allow it, or the disk is full.
    """
    store = open_object_store(url, PATIENCE)
    plan = _require_plan(store)
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as directory:
        run_dir = RunDir(Path(directory))
        run_dir.create()
        _copy_files(store, run_dir)
        _write_ledger(store, run_dir, plan)
        yield run_dir.root


def _require_plan(store: ObjectStore) -> dict[str, Any]:
    plan = read_remote_plan(store)
    if plan is None:
        raise UsageError(f"{store.url}: there is no run")
    return plan


def _copy_files(store: ObjectStore, run_dir: RunDir) -> None:
    records = {
        path.relative_to(run_dir.root).as_posix()
        for path in (run_dir.plan, run_dir.canary, run_dir.job, run_dir.readme, run_dir.manifest)
    }
    for key in store.list_keys():
        # A name such as data/../../x is of no run, and would lead out of the directory.
        if key in records or (key.startswith(FOLDERS) and key.count("/") == 1):
            found = store.read(key)
            if found is not None:
                make_directory((run_dir.root / key).parent)
                publish_bytes(run_dir.root / key, found.content)


def _write_ledger(store: ObjectStore, run_dir: RunDir, plan: Mapping[str, Any]) -> None:
    """Write what the parts must be: as the manifest says, or their own notes where there is none."""
    digest = plan_digest(plan)
    epoch = RunLock(run_dir, datetime.now().astimezone()).begin_epoch(after=0).epoch
    manifest = None
    with suppress(IntegrityError):  # Its reader finds that out, too, and says it.
        manifest = read_manifest(run_dir.manifest)
    with closing(
        PartLedger.open(run_dir.ledger, WriterEpoch(plan_digest=digest, epoch=epoch, boot=read_boot_id()))
    ) as ledger:
        for shard in plan_shards(plan["scan"]["rows"], plan["samples_per_row"]):
            if manifest is not None:
                ledger.append(_name_entry(manifest, shard, epoch))
            elif (shard_entry := find_entry(store, shard, digest)) is not None:
                ledger.append(shard_entry)


def _name_entry(manifest: Manifest, shard: Shard, epoch: int) -> ShardEntry:
    entries = {part.path: part.entry for part in manifest.parts}
    names = RunDir(Path())
    return ShardEntry(
        shard=shard.number,
        epoch=epoch,
        data=entries.get(names.data_part(shard).as_posix()),
        failed=entries.get(names.failed_part(shard).as_posix()),
    )
