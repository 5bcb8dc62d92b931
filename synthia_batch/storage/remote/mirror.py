"""Puts what a run publishes in its state directory into the store, in a thread of its own.

Engines never wait for the store: what is to be put is on the local disk, and the queue holds numbers of
shards. A store that does not answer is tried until the run's end, and for its patience then; what is not
there by that time is put by the next run, which finds out by asking for each part.

Every part is created where there is none. Where there is one, its notes decide: the same content is done
with, whoever put it; older content of this run is replaced, if it is still what was looked at; anything
else is refused. Before a part that the manifest in the store may speak of is replaced or removed, that
manifest is removed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.errors import IntegrityError, StorageFailed, SynthiaBatchError
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartEntry, ShardEntry
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.remote.lease import Lease
from synthia_batch.storage.remote.object_metadata import ObjectMetadata, describe_object, read_metadata
from synthia_batch.storage.remote.object_store import ObjectStore

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Between two rounds of tries to reach a store that does not answer, while the run goes on."""
CLOSE_SECONDS = 2.0
WAIT_SECONDS = 0.2
"""How often whoever waits for the thread looks up: Python hears Ctrl-C only then."""


@dataclass(slots=True, kw_only=True)
class Mirror:
    """A run's files on their way into the store. `say` is called from its thread, too.

    `submit` what is published, `settle` in the end; `check` in between tells what went wrong for good.
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
    _is_told: bool = False
    _has_manifest: bool = True
    _thread: threading.Thread | None = None
    _confirmed: dict[str, str] = field(default_factory=dict)

    def begin(self, plan_digest: str) -> None:
        """Put the run's plan, once, and begin to put what is submitted.

        Raises:
            IntegrityError: Another plan is there.
            LeaseLost, StorageFailed: As for Lease.hold.
        """
        self._plan_digest = plan_digest
        for path in (self.run_dir.plan, self.run_dir.canary):
            self._put_once(path)
        self._put_latest(self.run_dir.job)
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def submit(self, shard: Shard, shard_entry: ShardEntry) -> None:
        """Have the parts of a published shard put into the store."""
        with self._changed:
            self._waiting.append((shard, shard_entry))
            self._changed.notify_all()

    def submit_all(self, published: Iterable[tuple[Shard, ShardEntry]]) -> None:
        """Submit what earlier attempts published."""
        for shard, shard_entry in published:
            self.submit(shard, shard_entry)

    def check(self) -> None:
        """Return while nothing has gone wrong that waiting does not mend.

        Raises:
            LeaseLost: Another writes there now.
            IntegrityError: Something is there that is not of this run.
        """
        self.lease.check()
        if self._error is not None and not isinstance(self._error, StorageFailed):
            raise self._error

    def settle(self) -> None:
        """Return once all that was submitted is in the store; and the end of a run that is complete.

        Raises:
            LeaseLost, IntegrityError: As for check.
            StorageFailed: The store does not answer, or does not allow it. All is in the state directory.
        """
        self._wait()
        if self.run_dir.manifest.exists():
            self._complete()

    def close(self) -> None:
        """End the thread. A request that goes on is waited for a moment; arriving later, it harms nothing."""
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
                _log.info(f"{self.store.url}: {missing} shards are still to be put there")
            # From here on it is tried for as long as the store's patience lasts, and no longer.
            self._is_closing = True
            self._changed.notify_all()
            while (self._waiting or self._busy) and self._error is None:
                self._changed.wait(WAIT_SECONDS)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._take()) is not None:
            try:
                self._put_shard(*task)
            except StorageFailed as exc:
                if not self._is_to_be_tried_again(task, exc):
                    return
                continue
            except SynthiaBatchError as exc:
                self._end(exc)
                return
            self._release()

    def _take(self) -> tuple[Shard, ShardEntry] | None:
        with self._changed:
            while not self._waiting:
                if self._is_closing:
                    return None
                self._changed.wait(WAIT_SECONDS)
            self._busy = True
            return self._waiting.popleft()

    def _release(self) -> None:
        with self._changed:
            self._busy = self._is_told = False
            self._changed.notify_all()

    def _end(self, error: SynthiaBatchError) -> None:
        with self._changed:
            self._error = error
            self._busy = False
            self._changed.notify_all()

    def _is_to_be_tried_again(self, task: tuple[Shard, ShardEntry], error: StorageFailed) -> bool:
        """Put the task back and wait a little, unless the run has come to its end."""
        with self._changed:
            was_closing = self._is_closing
        if was_closing:
            self._end(error)
            return False
        if not self._is_told:
            _log.info(f"{error}\n  the engines go on, and what they make is kept in {self.run_dir.root}")
            self._is_told = True  # Once, until it answers again.
        with self._changed:
            self._busy = False
            self._waiting.appendleft(task)
            end = time.monotonic() + PAUSE_SECONDS
            while not self._is_closing and time.monotonic() < end:
                self._changed.wait(WAIT_SECONDS)
        return True

    def _put_shard(self, shard: Shard, shard_entry: ShardEntry) -> None:
        self._put_once(self.run_dir.canary)
        # In the order of the state directory: where the data part is, so is the other.
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
        content = _read(path)
        metadata = describe_object(content, self._plan_digest, shard_entry)
        if metadata.sha256 != entry.sha256:
            with self._changed:
                is_outdated = any(later.shard == shard_entry.shard for _, later in self._waiting)
            if is_outdated:
                return  # Published anew since: that one comes later.
            raise IntegrityError(
                f"{path} was altered: its SHA-256 is not {entry.sha256}; it was not put into {self.store.url}"
            )
        self._put(key, content, metadata, is_claimed=True)

    def _remove_part(self, key: str) -> None:
        self.lease.hold()
        found = self.store.look(key)
        if found is None:
            return
        self._require_ours(key, read_metadata(found))
        self._withdraw_manifest()
        self.lease.hold()
        self.store.remove(key)

    def _put(self, key: str, content: bytes, metadata: ObjectMetadata, *, is_claimed: bool = False) -> None:
        """Return once the object at `key` is this one. `is_claimed`: the manifest may speak of it."""
        while True:
            self.lease.hold()
            # Most often there is none: one request.
            if self.store.create(key, content, metadata.encode()) is not None:
                break
            found = self.store.look(key)
            if found is None:
                continue  # Two requests met, or it was removed this moment.
            there = read_metadata(found)
            if found.size_bytes == len(content) and metadata.describes(there):
                break
            self._require_ours(key, there)
            if is_claimed:
                self._withdraw_manifest()
            self.lease.hold()
            if self.store.replace(key, content, metadata.encode(), found.version) is not None:
                break
        self._confirmed[key] = metadata.sha256

    def _put_once(self, path: Path) -> None:
        key = self._key(path)
        if key in self._confirmed or not path.exists():
            return
        content = _read(path)
        metadata = describe_object(content, self._plan_digest)
        self.lease.hold()
        if self.store.create(key, content, metadata.encode()) is None:
            found = self.store.read(key)
            if found is None or found.content != content:
                raise IntegrityError(
                    f"{self.store.url}/{key} is there, and is not that of {self.run_dir.root}; "
                    "nothing was overwritten\n  name another prefix with -o"
                )
        self._confirmed[key] = metadata.sha256

    def _put_latest(self, path: Path) -> None:
        if path.exists():
            content = _read(path)
            self._put(self._key(path), content, describe_object(content, self._plan_digest))

    def _require_ours(self, key: str, metadata: ObjectMetadata | None) -> None:
        if metadata is None or metadata.plan_digest != self._plan_digest:
            raise IntegrityError(
                f"{self.store.url}/{key} is there, and no attempt of this run put it; it was not "
                "overwritten\n  move it away, or name another prefix with -o; what was finished is kept in "
                f"{self.run_dir.root}"
            )

    def _withdraw_manifest(self) -> None:
        """Declare the run in the store not complete any more: what it claims is about to change."""
        if self._has_manifest:
            self.lease.hold()
            self.store.remove(self._key(self.run_dir.manifest))
            self._has_manifest = False

    def _complete(self) -> None:
        """Remove what the manifest does not speak of, then put the card, and the manifest last."""
        manifest = _read(self.run_dir.manifest)
        claimed = {self._key(path) for folder in (self.run_dir.data, self.run_dir.failed)
                   for path in folder.glob("*.parquet")}  # fmt: skip
        unconfirmed = claimed - self._confirmed.keys()
        if unconfirmed:
            raise IntegrityError(
                f"{self.store.url} lacks {min(unconfirmed)}, which is in {self.run_dir.root}"
            )
        folders = _name_folders(self.run_dir)
        for key in self.store.list_keys():
            if key.startswith(folders) and key not in claimed:
                # A late request of a writer that was replaced may have put it; nobody else may have.
                self._remove_part(key)
        readme = self.run_dir.readme
        self._put(self._key(readme), _read(readme), describe_object(_read(readme), self._plan_digest))
        self._put(self._key(self.run_dir.manifest), manifest, describe_object(manifest, self._plan_digest))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.run_dir.root).as_posix()


def put_report(store: ObjectStore, run_dir: RunDir) -> None:
    """Put the report beside a complete run. No part of the dataset: where that fails, it is said."""
    if not run_dir.report.exists():
        return
    try:
        store.overwrite(run_dir.report.name, _read(run_dir.report))
    except SynthiaBatchError as exc:
        _log.info(f"the report could not be put beside the dataset, which is complete: {exc}")


def is_complete_there(store: ObjectStore, run_dir: RunDir) -> bool:
    """Return whether the store has the run that is complete in `run_dir`: its manifest, its parts, no others.

    Parts are told by name and size; `verify` reads them.

    Raises:
        IntegrityError: The manifest in `run_dir` was altered.
        StorageFailed: The store does not answer, or does not allow it.
    """
    there = store.read(run_dir.manifest.name)
    manifest = read_manifest(run_dir.manifest)
    if there is None or manifest is None or there.content != _read(run_dir.manifest):
        return False
    folders = _name_folders(run_dir)
    parts = {key: size for key, size in store.list_keys().items() if key.startswith(folders)}
    return parts == {part.path: part.bytes for part in manifest.parts}


def _name_folders(run_dir: RunDir) -> tuple[str, ...]:
    return tuple(f"{folder.name}/" for folder in (run_dir.data, run_dir.failed))


def _read(path: Path) -> bytes:
    with storage_errors("read", path):
        return path.read_bytes()
