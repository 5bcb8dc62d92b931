"""The few system calls that durability is made of, each with its reason.

Every failure becomes StorageFailed and ends the run where it stands. A failed fsync in particular
is never tried again: after it the kernel may mark the lost pages clean, and a second fsync would
report success for data that is gone (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020).
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from synthia_batch.errors import StorageFailed

Buffer = bytes | memoryview
_NOTHING_LOST = "nothing finished is lost: run the same command again to go on"
_ADVICE = {
    errno.ENOSPC: f"free space on this file system; {_NOTHING_LOST}",
    errno.EDQUOT: f"free space in your quota; {_NOTHING_LOST}",
    errno.EIO: f"the disk itself reports an error: look at the kernel log (dmesg) first; {_NOTHING_LOST}",
    errno.EROFS: f"the file system is mounted read-only: mend that; {_NOTHING_LOST}",
    errno.EACCES: f"allow this user to write there; {_NOTHING_LOST}",
    errno.EPERM: f"allow this user to write there; {_NOTHING_LOST}",
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
        advice = _ADVICE.get(exc.errno or 0, f"see to the cause; {_NOTHING_LOST}")
        raise StorageFailed(f"could not {doing} {path}: {exc.strerror or exc}\n  {advice}") from exc


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data`, however many calls the system takes for it.

    Raises:
        OSError: As from os.write. What was written before it stays written.
    """
    # A full disk, a quota or a signal may cut a write short without an error; the next call then
    # either goes on or says what is wrong.
    view = memoryview(data)  # of single bytes
    while view:
        view = view[os.write(fd, view) :]


def publish_bytes(path: Path, *chunks: Buffer) -> None:
    """Put `chunks` at `path`: at every moment, also after power loss, the old file or the whole new one.

    The name of the temporary file is fixed: there is one writer, and what a crash left behind is
    overwritten by the next attempt or swept up by recovery.

    Raises:
        StorageFailed: A system call failed.
    """
    temporary = temporary_path(path)
    try:
        _write_durably(temporary, chunks)
        with storage_errors("rename a finished file to", path):
            os.rename(temporary, path)
    except StorageFailed:
        # Half a file must not keep a full disk full. Best effort: recovery sweeps what stays.
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # Until its directory is on the disk the new name may vanish with the power.
    sync_directory(path.parent)


def temporary_path(path: Path) -> Path:
    """Return where `path` is written before it has its name: hidden, so that readers pass it over.

    It lies in the same directory, because a rename is atomic only within one file system.
    """
    return path.with_name(f".{path.name}.tmp")


def remove_file(path: Path) -> None:
    """Remove `path` if it is there. The removal itself may be undone by power loss.

    Raises:
        StorageFailed: It is there and cannot be removed.
    """
    with storage_errors("remove", path), suppress(FileNotFoundError):
        os.unlink(path)


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, each name durable. Does nothing where it is there.

    Raises:
        StorageFailed: It cannot be made.
    """
    if not path.parent.exists():
        make_directory(path.parent)
    with storage_errors("make the directory", path), suppress(FileExistsError):
        os.mkdir(path)
    # Also where it was there: the attempt that made it may have died before this line.
    sync_directory(path.parent)


def sync_file(fd: int, path: Path) -> None:
    """Return once the content and the size of the open file are on the disk.

    Raises:
        StorageFailed: They may not be. Never call it again for this file.
    """
    with storage_errors("fsync", path):
        os.fsync(fd)


def sync_file_data(fd: int, path: Path) -> None:
    """Like sync_file, without times and other attributes that reading does not need: cheaper.

    Raises:
        StorageFailed: As for sync_file.
    """
    with storage_errors("fdatasync", path):
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Return once the names in the directory, new, renamed and removed, are on the disk.

    Raises:
        StorageFailed: They may not be.
    """
    with storage_errors("fsync the directory", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_durably(path: Path, chunks: Iterable[Buffer]) -> None:
    with storage_errors("write", path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for chunk in chunks:
                write_all(fd, chunk)
            # Before the rename: a name must never reach the disk ahead of the bytes it stands for.
            sync_file(fd, path)
        finally:
            os.close(fd)
