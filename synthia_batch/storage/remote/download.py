"""Reads a run in a store from anywhere: its status, its saved job, and a copy as a directory."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synthia_batch.core.checksummed_json import decode_checksummed
from synthia_batch.core.errors import IntegrityError, UsageError
from synthia_batch.job.plan import read_shards
from synthia_batch.storage.atomic import make_directory, publish_bytes, read_file
from synthia_batch.storage.layout import KEYS, PART_FOLDERS, RunDir
from synthia_batch.storage.ledger import PartLedger
from synthia_batch.storage.lock import RunLock, WriterEpoch, read_boot_id
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.plan_file import plan_digest
from synthia_batch.storage.remote.lease import LeaseRecord, read_lease
from synthia_batch.storage.remote.object_store import ObjectStore, Patience, open_object_store
from synthia_batch.storage.remote.restore import find_entry, list_begun, read_remote_plan

PATIENCE = Patience(request_seconds=120, seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStatus:
    """The progress of a run in its store. `owner` is its current or last writer.

    Counts samples of published parts only: journals are on the owner's disk.
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
        if self.is_complete:
            return "complete"
        return "unfinished" if self.owner is None or self.owner.is_free else "running"

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        owner = self.owner and {"pid": self.owner.pid, "host": self.owner.host, "ends_at": self.owner.ends_at}
        return {**asdict(self), "state": self.state, "owner": owner}


def read_remote_status(url: str) -> RemoteStatus:
    """Return the progress of the run in the store below `url`. Reads metadata of parts, never their rows."""
    store = open_object_store(url, PATIENCE)
    plan = _require_plan(store)
    shards = read_shards(plan)
    keys = store.list_keys()
    digest = plan_digest(plan)
    published = [
        shard_entry
        for shard in list_begun(shards, keys)
        if (shard_entry := find_entry(store, shard, digest)) is not None
    ]
    return RemoteStatus(
        url=store.url,
        name=plan["name"],
        is_complete=KEYS.manifest.as_posix() in keys,
        shards=len(shards),
        shards_published=len(published),
        samples=shards[-1].stop,
        finished=sum(shard_entry.data.rows for shard_entry in published if shard_entry.data),
        failed=sum(shard_entry.failed.rows for shard_entry in published if shard_entry.failed),
        owner=read_lease(store),
    )


def read_remote_job(url: str) -> dict[str, Any]:
    """Return the saved job, as in `job.json`, of the run in the store below `url`.

    Raises:
        UsageError: There is no run, or it has no saved job.
    """
    store = open_object_store(url, PATIENCE)
    key = KEYS.job.as_posix()
    found = store.read(key)
    if found is None:
        raise UsageError(f"{url}: has no saved job; run the command that created it once more, with -o {url}")
    return dict(decode_checksummed(found.content, f"{store.url}/{key}")["job"])


def is_complete_remotely(store: ObjectStore, run_dir: RunDir) -> bool:
    """Return whether the store has the complete run of `run_dir`: same manifest, its parts and no others.

    Parts are compared by name and size; `verify` reads them.
    """
    there = store.read(run_dir.manifest.name)
    manifest = read_manifest(run_dir.manifest)
    if there is None or manifest is None or there.content != read_file(run_dir.manifest):
        return False
    parts = {key: size for key, size in store.list_keys().items() if key.startswith(PART_FOLDERS)}
    return parts == {part.path: part.bytes for part in manifest.parts}


@contextmanager
def open_copy(url: str) -> Iterator[Path]:
    """Yield a temporary directory with everything that the store has of a run, unverified.

    It takes as much space on the disk for temporary files (TMPDIR) as the dataset has bytes.
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
        # A name such as data/../../x is not part of a run, and would lead out of the directory.
        if key in records or (key.startswith(PART_FOLDERS) and key.count("/") == 1):
            found = store.read(key)
            if found is not None:
                make_directory((run_dir.root / key).parent)
                publish_bytes(run_dir.root / key, found.content)


def _write_ledger(store: ObjectStore, run_dir: RunDir, plan: Mapping[str, Any]) -> None:
    """Write the ledger from the manifest, or from the parts' metadata if there is no manifest."""
    digest = plan_digest(plan)
    epoch = RunLock(run_dir, datetime.now().astimezone()).begin_epoch(after=0).epoch
    manifest = None
    with suppress(IntegrityError):  # Readers of the copy find and report that themselves.
        manifest = read_manifest(run_dir.manifest)
    with closing(
        PartLedger.open(run_dir.ledger, WriterEpoch(plan_digest=digest, epoch=epoch, boot=read_boot_id()))
    ) as ledger:
        shards = read_shards(plan)
        if manifest is not None:
            found = [*manifest.list_entries(shards, epoch).values()]
        else:
            found = [entry for shard in shards if (entry := find_entry(store, shard, digest)) is not None]
        for shard_entry in found:
            ledger.append(shard_entry)
