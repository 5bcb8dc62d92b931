"""Detects changes of input files, and continues reading where an earlier read stopped."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from synthia_batch.core.digest import FileStamp, digest_file, is_touched
from synthia_batch.core.errors import InputRefused, IntegrityError, UsageError
from synthia_batch.core.types import Row
from synthia_batch.inputs.base import Scan
from synthia_batch.inputs.fetch.stamps import read_stamps, refuse_changed


class Watched:
    """Detects changes of the file during this process. Between processes, content digests are compared.

    `stamp` and `content` are the file's stamp and digest when its job was resolved, None if unknown.
    """

    def __init__(
        self,
        path: Path,
        shown: Path | str | None = None,
        *,
        stamp: FileStamp | None = None,
        content: str | None = None,
    ) -> None:
        self._path = path
        self._text_path = os.fspath(path)
        self._shown = path if shown is None else shown
        self._stamp = stamp
        self._content = content

    def begin_scan(self) -> int:
        """Return the file's size in bytes. Raises InputRefused if it changed before, or UsageError."""
        stamp = self._read_stamp()
        if not self._accept(stamp):
            raise InputRefused([f"{self._shown}: changed since the job was resolved; run again"])
        return stamp.size

    def end_scan(self) -> None:
        """Refuse the input if it changed since `begin_scan`. Raises InputRefused."""
        if not self._accept(self._read_stamp()):
            raise refuse_changed(self._shown)

    def check(self, size: int) -> None:
        """Raise IntegrityError unless the file has `size` bytes and the content of the last check."""
        if self._is_as_before(size):
            return
        try:
            stamp = self._read_stamp()
            if stamp.size != size:
                raise changed(self._shown, f"expected {size} bytes, got {stamp.size}")
            if not self._accept(stamp):
                raise changed(self._shown, "written to or replaced")
        except UsageError as exc:
            raise changed(self._shown, "it no longer exists") from exc

    def _is_as_before(self, size: int) -> bool:
        """Return whether the file has `size` bytes and the same stamp. Called for every few rows."""
        stamp = self._stamp
        if stamp is None:
            return False
        try:
            now = os.stat(self._text_path)
        except OSError:
            return False
        return (
            now.st_ctime_ns == stamp.ctime_ns
            and now.st_mtime_ns == stamp.mtime_ns
            and now.st_size == stamp.size == size
            and now.st_ino == stamp.inode
            and now.st_dev == stamp.device
        )

    def _accept(self, stamp: FileStamp) -> bool:
        """Return whether the file with `stamp` has the same content as before, and keep the stamp if so."""
        before = self._stamp
        if before is not None and stamp != before:
            is_same = (
                self._content is not None
                and is_touched(before, stamp)
                and digest_file(self._path) == self._content
            )
            if not is_same:
                return False
        self._stamp = stamp
        return True

    def _read_stamp(self) -> FileStamp:
        return read_stamps([self._path], self._shown)[self._path]


@contextmanager
def report_unreadable(path: Path | str) -> Iterator[None]:
    """Raise UsageError for errors of reading `path` in the block."""
    try:
        yield
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; run again once it can") from exc


def changed(path: Path | str, what: str) -> IntegrityError:
    """Return the error for an input that is not the one of the plan."""
    return IntegrityError(
        f"{path}: the input changed since the run began ({what}); "
        "restore the old file and run again, or start a new run"
    )


MAX_PARKED = 4
"""Iterators kept open, each with a batch of rows in memory. A job uses two: feeding and encoding."""


class ReadCursor:
    """Keeps iterators open at the ends of the last ranges read, for ranges that continue there.

    Shards are read in order: otherwise each would start at the checkpoint or row group before it, and
    a large row group would be decoded once for each of its shards.
    """

    def __init__(self) -> None:
        self._scan: Scan | None = None
        self._parked: dict[int, Iterator[Row]] = {}

    def read(
        self, scan: Scan, first: int, stop: int, iterate: Callable[[Scan, int], Iterator[Row]]
    ) -> Iterator[Row]:
        """Yield the rows `first` to `stop`, from an open iterator or a new `iterate(scan, first)`."""
        if first >= stop:
            return
        if self._scan is not scan:
            self._scan, self._parked = scan, {}
        # Removed while in use: a range that is abandoned half-way leaves no iterator behind.
        rows = self._parked.pop(first, None) or iterate(scan, first)
        yield from islice(rows, stop - first)
        if stop < scan.rows and self._scan is scan:
            self._parked[stop] = rows
            if len(self._parked) > MAX_PARKED:
                self._parked.pop(next(iter(self._parked)))
