"""The state of each shard after a crash, and its recovery.

Everything is inspected before anything is changed, so a refusal leaves the directory as it was; only then
are leftovers removed. With ledger entry (L), journal (J) and parts (P):

    no L, no J, no P            not begun
    no L, J, no P               unfinished: resume from the journal
    L, J, P or not              killed while publishing: publish again from the journal
    L, J, P as expected         killed before the unlink: published; the journal is left over, unless a
                                retry opened it after the publication
    L, no J, P as expected      published
    L, no J, P otherwise        refused: a published file was altered or removed
    no L, P                     refused: no part is written before its ledger entry
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.counts import Tally, tally_records
from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import remove_file, storage_errors, temporary_path
from synthia_batch.storage.journal.reader import read_journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartEntry, ShardEntry
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.manifest import Manifest

HASH_THREADS = 4
"""hashlib releases the GIL; beyond a few threads the disk is the limit."""
_CHUNK_BYTES = 1 << 20

OnProgress = Callable[[int, int], None]
"""Called with the bytes of parts read so far, and the total to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The shard's parts are in place. `has_leftover_journal`: so is a journal, which can be removed."""

    shard: Shard
    shard_entry: ShardEntry
    has_leftover_journal: bool

    @property
    def finished(self) -> int:
        """Number of rows in its data part."""
        return self.shard_entry.data.rows if self.shard_entry.data else 0

    @property
    def failed(self) -> int:
        """Number of rows in its failed part."""
        return self.shard_entry.failed.rows if self.shard_entry.failed else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """The shard is not published yet.

    `tally` counts the samples in its journal, possibly all of them. `dropped_bytes` is the length of the
    journal's torn tail.
    """

    shard: Shard
    tally: Tally
    dropped_bytes: int

    @property
    def finished(self) -> int:
        """Number of finished samples in its journal."""
        return self.tally.finished

    @property
    def failed(self) -> int:
        """Number of failed samples in its journal."""
        return self.tally.failed


ShardState = Published | Unfinished


def inspect_shard(
    run_dir: RunDir, shard: Shard, ledger: Mapping[int, ShardEntry], writer: WriterEpoch
) -> ShardState:
    """Return the state of `shard`. Changes nothing; compares parts by size, see check_parts."""
    shard_entry = ledger.get(shard.number)
    if shard_entry is None:
        for path in (run_dir.failed_part(shard), run_dir.data_part(shard)):
            _check_size(path, None)
    if not run_dir.journal(shard).exists():
        if shard_entry is None:
            return Unfinished(shard=shard, tally=Tally(), dropped_bytes=0)
        for path, entry in _expected_parts(run_dir, shard, shard_entry):
            _check_size(path, entry)
        return Published(shard=shard, shard_entry=shard_entry, has_leftover_journal=False)
    return _inspect_journal(run_dir, shard, shard_entry, writer)


def check_parts(run_dir: RunDir, states: Iterable[ShardState], on_progress: OnProgress) -> None:
    """Read every published part and compare it with its ledger entry. Changes nothing.

    `on_progress` is called in the caller's thread.
    """
    parts = [
        pair
        for state in states
        if isinstance(state, Published)
        for pair in _expected_parts(run_dir, state.shard, state.shard_entry)
    ]
    _check_files(parts, on_progress)


def check_complete(run_dir: RunDir, manifest: Manifest, on_progress: OnProgress) -> None:
    """Compare every part that the manifest names. Otherwise as check_parts.

    A part is read only if it was modified after the manifest, which is written last, so this is fast for
    a finished run of any size. `verify` finds damage that leaves no such trace.
    """
    entries = [(run_dir.root / part.path, part.entry) for part in manifest.parts]
    for path, entry in entries:
        _check_size(path, entry)
    with storage_errors("look at", run_dir.manifest):
        completed_ns = run_dir.manifest.stat().st_mtime_ns
        touched = [pair for pair in entries if pair[0].stat().st_mtime_ns > completed_ns]
    _check_files(touched, on_progress)


def _check_files(parts: Sequence[tuple[Path, PartEntry | None]], on_progress: OnProgress) -> None:
    total = sum(entry.bytes for _, entry in parts if entry)
    done = 0
    with ThreadPoolExecutor(HASH_THREADS) as threads:
        futures = [threads.submit(check_part, path, entry) for path, entry in parts]
        try:
            for future in as_completed(futures):
                done += future.result()
                on_progress(done, total)
        finally:
            # After a refusal, do not read the rest.
            threads.shutdown(wait=False, cancel_futures=True)


def check_part(path: Path, entry: PartEntry | None) -> int:
    """Return the size in bytes of the part at `path` after comparing it with `entry`.

    Raises:
        IntegrityError: It is missing, was altered, or exists although `entry` is None.
    """
    _check_size(path, entry)
    if entry is None:
        return 0
    if _hash_file(path) != entry.sha256:
        raise _refuse(path, f"was altered: its SHA-256 is not {entry.sha256}, as published")
    return entry.bytes


def remove_leftovers(run_dir: RunDir, states: Iterable[ShardState]) -> None:
    """Remove the leftovers of a crash: temporary files, and journals of published shards.

    Call it after every shard was inspected. If power loss restores them, the next run removes them again.
    """
    for temporary in list_temporary_files(run_dir):
        remove_file(temporary)
    for state in states:
        if isinstance(state, Published) and state.has_leftover_journal:
            remove_file(run_dir.journal(state.shard))


def remove_unbegun(run_dir: RunDir, created: Sequence[Path]) -> None:
    """Remove the directories `created` for a run that never began, innermost first.

    They hold only our lock, and perhaps logs of engines that began to load. Nothing is synced: if power
    loss restores them, the next run uses them.
    """
    for log in run_dir.logs.glob("*"):
        remove_file(log)
    remove_file(run_dir.state_name)
    remove_file(run_dir.lock)
    with suppress(OSError):  # Files of somebody else stay.
        if run_dir.logs.exists():
            run_dir.logs.rmdir()
        for directory in created:
            directory.rmdir()


def list_temporary_files(run_dir: RunDir) -> list[Path]:
    """Return the files that a crash left under their temporary names."""
    root = (run_dir.readme, run_dir.report, run_dir.manifest)
    found = [path for path in map(temporary_path, root) if path.exists()]
    for directory in (run_dir.data, run_dir.failed, run_dir.hidden, run_dir.journals):
        found += sorted(directory.glob(temporary_path(Path("*")).name))
    return found


def _inspect_journal(
    run_dir: RunDir, shard: Shard, shard_entry: ShardEntry | None, writer: WriterEpoch
) -> ShardState:
    replayed = read_journal(run_dir.journal(shard), shard, writer)
    # A journal that was opened after the publication holds newer samples than the parts.
    is_older = shard_entry is not None and (replayed.epoch is None or replayed.epoch <= shard_entry.epoch)
    if shard_entry is not None and is_older and _is_published(run_dir, shard, shard_entry):
        return Published(shard=shard, shard_entry=shard_entry, has_leftover_journal=True)
    return Unfinished(
        shard=shard, tally=tally_records(replayed.outcomes.values()), dropped_bytes=replayed.dropped_bytes
    )


def _is_published(run_dir: RunDir, shard: Shard, shard_entry: ShardEntry) -> bool:
    # By checksum, not by size: if this is true, the only other copy of these samples is removed.
    try:
        for path, entry in _expected_parts(run_dir, shard, shard_entry):
            check_part(path, entry)
    except IntegrityError:
        return False
    return True


def _expected_parts(
    run_dir: RunDir, shard: Shard, shard_entry: ShardEntry
) -> tuple[tuple[Path, PartEntry | None], ...]:
    return ((run_dir.failed_part(shard), shard_entry.failed), (run_dir.data_part(shard), shard_entry.data))


def _check_size(path: Path, entry: PartEntry | None) -> None:
    with storage_errors("look at", path):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = None
    if entry is None and size is not None:
        raise _refuse(path, "is not of this run: it was never published")
    if entry is not None and size is None:
        raise _refuse(path, "was published and is missing")
    if entry is not None and size != entry.bytes:
        raise _refuse(path, f"was altered: expected {entry.bytes} bytes as published, got {size}")


def _hash_file(path: Path) -> str:
    with storage_errors("read", path), path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()


def _refuse(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what}; nothing was touched\n"
        "  restore the file, or run `synthia-batch verify DIR --repair`: it drops the file, and the next run "
        "regenerates it",
        reason=what,
    )
