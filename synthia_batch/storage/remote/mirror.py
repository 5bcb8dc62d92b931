"""Puts a run's published files into the store, in a thread of its own.

Engines never wait for the store: the files are on the local disk, and the queue only names shards. A store
that does not answer is tried until the end of the run, and then for its configured patience. The next run
checks each part and puts what is missing.

A part that is not in the store is created. If one is there, its metadata decides: the same content is left
alone, whoever put it; older content of this run is replaced, if its version is still the one seen; anything
else is refused. Before a part that the manifest in the store may list is replaced or removed, that manifest
is removed.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from synthia_batch.core.errors import IntegrityError, StorageFailed, StoreUnreachable, SynthiaBatchError
from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import read_file
from synthia_batch.storage.layout import PART_FOLDERS, RunDir
from synthia_batch.storage.ledger import PartEntry, ShardEntry
from synthia_batch.storage.remote.lease import Lease
from synthia_batch.storage.remote.object_metadata import ObjectMetadata, describe_object, read_metadata
from synthia_batch.storage.remote.object_store import ObjectStore

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Between two rounds of tries to reach a store that does not answer, during the run."""
CLOSE_SECONDS = 2.0
WAIT_SECONDS = 0.2
"""How often a wait for the thread wakes up: Python handles Ctrl-C only then."""


@dataclass(slots=True, kw_only=True)
class Mirror:
    """Copies a run's files into the store.

    Call `submit` for each published shard and `settle` at the end; `check` in between raises an error that
    waiting cannot fix.
    """

    store: ObjectStore
    lease: Lease
    run_dir: RunDir
    _plan_digest: str = ""
    _waiting: deque[tuple[Shard, ShardEntry]] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _busy: bool = False
    _is_closing: bool = False
    _error: SynthiaBatchError | None = None
    _is_reported: bool = False
    _has_manifest: bool = True
    _thread: threading.Thread | None = None
    _confirmed: set[str] = field(default_factory=set)

    def begin(self, plan_digest: str) -> None:
        """Put the run's plan, once, and start the thread."""
        self._plan_digest = plan_digest
        for path in (self.run_dir.plan, self.run_dir.canary):
            self._put_once(path)
        if self.run_dir.job.exists():
            self._put_file(self.run_dir.job)
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def submit(self, shard: Shard, shard_entry: ShardEntry) -> None:
        """Queue the parts of a published shard."""
        with self._changed:
            self._waiting.append((shard, shard_entry))
            self._changed.notify_all()

    def check(self) -> None:
        """Return unless there is an error that waiting cannot fix.

        Raises:
            LeaseLost: Another process writes there now.
            IntegrityError: An object is there that does not belong to this run.
        """
        self.lease.check()
        if self._error is not None and not isinstance(self._error, StorageFailed):
            raise self._error

    def settle(self) -> None:
        """Return once every submitted part is in the store, and also the manifest if the run is complete."""
        self._wait()
        if self.run_dir.manifest.exists():
            self._complete()

    def close(self) -> None:
        """End the thread. Waits briefly for a request in flight; one that arrives later does no harm."""
        with self._changed:
            self._is_closing = True
            self._waiting.clear()
            self._changed.notify_all()
        self.store.stop_waiting()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _wait(self) -> None:
        with self._changed:
            missing = len(self._waiting) + self._busy
            if missing:
                _log.info(f"{self.store.url}: {missing} shards still to be put there")
            # From here on a request is tried only for as long as the store's patience lasts.
            self._is_closing = True
            self._changed.notify_all()
            while (self._waiting or self._busy) and self._error is None:
                self._changed.wait(WAIT_SECONDS)
                if self.store.is_given_up:
                    raise StoreUnreachable(
                        f"{self.store.url} does not answer, and the run was asked to stop\n"
                        f"  nothing finished is lost: {self.run_dir.root} has it; run the same command again"
                    )
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._take_task()) is not None:
            try:
                self._put_shard(*task)
            except StorageFailed as exc:
                if not self._retry_later(task, exc):
                    return
                continue
            except SynthiaBatchError as exc:
                self._fail(exc)
                return
            self._finish_task()

    def _take_task(self) -> tuple[Shard, ShardEntry] | None:
        with self._changed:
            while not self._waiting:
                if self._is_closing:
                    return None
                self._changed.wait(WAIT_SECONDS)
            self._busy = True
            return self._waiting.popleft()

    def _finish_task(self) -> None:
        with self._changed:
            self._busy = self._is_reported = False
            self._changed.notify_all()

    def _fail(self, error: SynthiaBatchError) -> None:
        with self._changed:
            self._error = error
            self._busy = False
            self._changed.notify_all()

    def _retry_later(self, task: tuple[Shard, ShardEntry], error: StorageFailed) -> bool:
        """Requeue the task, wait a little and return True; at the end of the run, fail and return False."""
        with self._changed:
            was_closing = self._is_closing
        if was_closing:
            self._fail(error)
            return False
        if not self._is_reported:
            _log.info(f"{error}\n  the engines continue, and {self.run_dir.root} keeps their samples")
            self._is_reported = True  # Once, until the store answers again.
        with self._changed:
            self._busy = False
            self._waiting.appendleft(task)
            end = time.monotonic() + PAUSE_SECONDS
            while not self._is_closing and time.monotonic() < end:
                self._changed.wait(WAIT_SECONDS)
        return True

    def _put_shard(self, shard: Shard, shard_entry: ShardEntry) -> None:
        self._put_once(self.run_dir.canary)
        # In the order of the state directory: once the data part is there, so is the failed part.
        for path, entry in (
            (self.run_dir.failed_part(shard), shard_entry.failed),
            (self.run_dir.data_part(shard), shard_entry.data),
        ):
            self._put_part(path, entry, shard_entry)

    def _put_part(self, path: Path, entry: PartEntry | None, shard_entry: ShardEntry) -> None:
        key = self._key(path)
        if entry is None:
            self._remove_part(key)
            return
        content = read_file(path)
        metadata = describe_object(content, self._plan_digest, shard_entry)
        if metadata.sha256 != entry.sha256:
            with self._changed:
                is_outdated = any(later.shard == shard_entry.shard for _, later in self._waiting)
            if is_outdated:
                return  # Published again since; that task comes later.
            raise IntegrityError(
                f"{path} was altered: its SHA-256 is not {entry.sha256}; it was not put into {self.store.url}"
            )
        self._put(key, content, metadata, is_part=True)

    def _remove_part(self, key: str) -> None:
        self.lease.ensure()
        found = self.store.head(key)
        if found is None:
            return
        self._require_ours(key, read_metadata(found))
        self._withdraw_manifest()
        self.lease.ensure()
        self.store.remove(key)

    def _put(self, key: str, content: bytes, metadata: ObjectMetadata, *, is_part: bool = False) -> None:
        """Return once the store has this object at `key`. `is_part`: the manifest may list it."""
        while True:
            self.lease.ensure()
            # Usually the key is free: one request.
            if self.store.create(key, content, metadata.encode()) is not None:
                break
            found = self.store.head(key)
            if found is None:
                continue  # Two requests collided, or it was just removed.
            there = read_metadata(found)
            if found.size_bytes == len(content) and metadata.describes(there):
                break
            self._require_ours(key, there)
            if is_part:
                self._withdraw_manifest()
            self.lease.ensure()
            if self.store.replace(key, content, metadata.encode(), found.version) is not None:
                break
        self._confirmed.add(key)

    def _put_once(self, path: Path) -> None:
        key = self._key(path)
        if key in self._confirmed or not path.exists():
            return
        content = read_file(path)
        self.lease.ensure()
        if self.store.create(key, content, describe_object(content, self._plan_digest).encode()) is None:
            found = self.store.read(key)
            if found is None or found.content != content:
                raise IntegrityError(
                    f"{self.store.url}/{key} differs from that of {self.run_dir.root}; nothing was "
                    "overwritten\n  use another prefix with -o"
                )
        self._confirmed.add(key)

    def _put_file(self, path: Path) -> None:
        content = read_file(path)
        self._put(self._key(path), content, describe_object(content, self._plan_digest))

    def _require_ours(self, key: str, metadata: ObjectMetadata | None) -> None:
        if metadata is None or metadata.plan_digest != self._plan_digest:
            raise IntegrityError(
                f"{self.store.url}/{key} was not put there by this run; it was not overwritten\n"
                f"  move it away, or use another prefix with -o; {self.run_dir.root} keeps finished samples"
            )

    def _withdraw_manifest(self) -> None:
        """Mark the run in the store as incomplete, before a part that the manifest lists changes."""
        if self._has_manifest:
            self.lease.ensure()
            self.store.remove(self._key(self.run_dir.manifest))
            self._has_manifest = False

    def _complete(self) -> None:
        """Remove parts that are not in the state directory, then put the card, and the manifest last."""
        manifest = read_file(self.run_dir.manifest)
        folders = (self.run_dir.data, self.run_dir.failed)
        parts = {self._key(path) for folder in folders for path in folder.glob("*.parquet")}
        unconfirmed = parts - self._confirmed
        if unconfirmed:
            raise IntegrityError(
                f"{self.store.url} lacks {min(unconfirmed)}, which is in {self.run_dir.root}"
            )
        for key in self.store.list_keys():
            if key.startswith(PART_FOLDERS) and key not in parts:
                # Allowed only from a late request of a writer of this run that was replaced.
                self._remove_part(key)
        self._put_file(self.run_dir.readme)
        self._put(self._key(self.run_dir.manifest), manifest, describe_object(manifest, self._plan_digest))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.run_dir.root).as_posix()


def put_report(store: ObjectStore, run_dir: RunDir) -> None:
    """Put the report next to a complete run. It is not part of the dataset, so a failure is only logged."""
    if not run_dir.report.exists():
        return
    try:
        store.overwrite(run_dir.report.name, read_file(run_dir.report))
    except SynthiaBatchError as exc:
        _log.info(f"could not put the report next to the dataset, which is complete: {exc}")
