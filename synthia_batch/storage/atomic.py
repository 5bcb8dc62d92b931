"""The few system calls that durability depends on, each with its reason.

Every failure is raised as StorageFailed (except by write_all) and ends the run immediately. In particular, a
failed fsync is never retried: the kernel may have marked the lost pages clean, and a second fsync would
report success for data that is gone (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
ATC 2020).
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from synthia_batch.core.errors import StorageFailed
from synthia_batch.core.files import create_file

Buffer = bytes | memoryview
_NOTHING_LOST = "nothing finished is lost: run the same command again to resume"
_ADVICE = {
    errno.ENOSPC: f"free space on this file system; {_NOTHING_LOST}",
    errno.EDQUOT: f"free space in your quota; {_NOTHING_LOST}",
    errno.EIO: f"the disk itself reports an error: check the kernel log (dmesg) first; {_NOTHING_LOST}",
    errno.EROFS: f"the file system is mounted read-only: fix that; {_NOTHING_LOST}",
    errno.EACCES: f"allow this user to write there; {_NOTHING_LOST}",
    errno.EPERM: f"allow this user to write there; {_NOTHING_LOST}",
    errno.ELOOP: f"it is a symbolic link, which a run never makes: remove it; {_NOTHING_LOST}",
    errno.EMFILE: f"raise the limit of open files (ulimit -n); {_NOTHING_LOST}",
    errno.ENOENT: "the run directory was moved or removed while it was in use: put it back, then run again",
}


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into StorageFailed: "could not `doing` `path`".

    Raises:
        StorageFailed: With the system's reason and what to do next.
    """
    try:
        yield
    except OSError as exc:
        advice = _ADVICE.get(exc.errno or 0, f"fix the cause; {_NOTHING_LOST}")
        raise StorageFailed(f"could not {doing} {path}: {exc.strerror or exc}\n  {advice}") from exc


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data`, with as many system calls as it takes."""
    # A full disk, a quota or a signal may cut a write short without an error; the next call then
    # either continues or reports the cause.
    view = memoryview(data)  # of single bytes
    while view:
        view = view[os.write(fd, view) :]


def publish_bytes(path: Path, *chunks: Buffer) -> None:
    """Write `chunks` to `path` atomically: even after power loss it is the old file or the whole new one.

    The temporary file has a fixed name: there is one writer, and a leftover from a crash is replaced by
    the next write or removed by recovery.
    """
    temporary = temporary_path(path)
    try:
        _write_durably(temporary, chunks)
        with storage_errors("rename a finished file to", path):
            os.rename(temporary, path)
    except StorageFailed:
        # Half a file must not keep a full disk full. Best effort: recovery removes what stays.
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # Until its directory is on disk, power loss may undo the rename.
    sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    with storage_errors("read", path):
        return path.read_bytes()


def temporary_path(path: Path) -> Path:
    """Return the name under which `path` is written: hidden, so that readers skip it.

    It is in the same directory, because a rename is atomic only within one file system.
    """
    return path.with_name(f".{path.name}.tmp")


def remove_file(path: Path) -> None:
    """Remove `path` if it exists. Power loss may undo the removal."""
    with storage_errors("remove", path), suppress(FileNotFoundError):
        os.unlink(path)


def make_directory(path: Path) -> None:
    """Create `path` and its missing parents, each name durable. Does nothing if it exists."""
    if not path.parent.exists():
        make_directory(path.parent)
    with storage_errors("create the directory", path), suppress(FileExistsError):
        os.mkdir(path)
    # Even if it existed: the process that created it may have died before this line.
    sync_directory(path.parent)


def sync_file(fd: int, path: Path) -> None:
    """Return once the content and the size of the open file are on disk. Never retry it after a failure."""
    with storage_errors("fsync", path):
        os.fsync(fd)


def sync_file_data(fd: int, path: Path) -> None:
    """Like sync_file, but cheaper: skips times and other attributes that reading does not need."""
    with storage_errors("fdatasync", path):
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Return once the names in the directory (new, renamed and removed) are on disk."""
    with storage_errors("fsync the directory", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_durably(path: Path, chunks: Iterable[Buffer]) -> None:
    with storage_errors("write", path):
        fd = create_file(path)
        try:
            for chunk in chunks:
                write_all(fd, chunk)
            # Before the rename: a name must never reach the disk before its content.
            sync_file(fd, path)
        finally:
            os.close(fd)
