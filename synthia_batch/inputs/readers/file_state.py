"""Whether an input file is still the one that was scanned.

Going on with a file where an earlier reading of it stopped.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from synthia_batch.core.types import Row
from synthia_batch.errors import InputRefused, IntegrityError, UsageError
from synthia_batch.inputs.base import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStamp:
    """What changes when a file is written to or replaced."""

    inode: int
    size: int
    mtime_ns: int


class Watched:
    """Notices when the file changes between one look and the next, within this process.

    Across processes the caller compares content digests; this guards the hours in between.
    """

    def __init__(self, path: Path, shown: Path | str | None = None) -> None:
        self._path = path
        self._shown = path if shown is None else shown
        self._stamp: InputStamp | None = None

    def begin_scan(self) -> int:
        """Take the stamp anew and return the file's size in bytes. Raises UsageError."""
        self._stamp = self._read_stamp()
        return self._stamp.size

    def end_scan(self) -> None:
        """Refuse the input if it changed since `begin_scan`. Raises InputRefused."""
        if self._read_stamp() != self._stamp:
            raise InputRefused([f"{self._shown}: changed while it was read; is it complete?"])

    def check(self, size: int) -> None:
        """Make sure that the file has `size` bytes and is the one of the last look.

        Raises:
            IntegrityError: It is not.
        """
        try:
            stamp = self._read_stamp()
        except UsageError as exc:
            raise changed(self._shown, "it cannot be found any more") from exc
        if stamp.size != size:
            raise changed(self._shown, f"{stamp.size} bytes instead of {size}")
        if self._stamp is not None and stamp != self._stamp:
            raise changed(self._shown, "written to or replaced")
        self._stamp = stamp

    def _read_stamp(self) -> InputStamp:
        try:
            status = os.stat(self._path)
        except OSError as exc:
            raise UsageError(f"{self._shown}: cannot be read: {exc.strerror}") from exc
        return InputStamp(inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns)


@contextmanager
def report_unreadable(path: Path | str) -> Iterator[None]:
    """Turn the system's refusal to read `path` into a UsageError."""
    try:
        yield
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; run again once it can") from exc


def changed(path: Path | str, what: str) -> IntegrityError:
    """Return the error that the input is not what the plan was made from."""
    return IntegrityError(
        f"{path}: the input changed since the run began ({what}); "
        "put the old file back and run again, or start a new run"
    )


MAX_PARKED = 4
"""Iterators kept open, each with a batch of rows in memory. A job has two: feeding and encoding."""


class ReadCursor:
    """Keeps the iterators behind the last ranges read, open, for ranges that follow them.

    Shards are read one after the other: without this each would start at the checkpoint or row
    group before it, and one large row group would be decoded once per shard in it.
    """

    def __init__(self) -> None:
        self._scan: Scan | None = None
        self._parked: dict[int, Iterator[Row]] = {}

    def read(
        self, scan: Scan, first: int, stop: int, iterate: Callable[[Scan, int], Iterator[Row]]
    ) -> Iterator[Row]:
        """Yield the rows `first` to `stop`, going on if possible, else with `iterate(scan, first)`."""
        if first >= stop:
            return
        if self._scan is not scan:
            self._scan, self._parked = scan, {}
        # Taken out while it is in use: a range that is given up half-way leaves nothing behind.
        rows = self._parked.pop(first, None) or iterate(scan, first)
        yield from islice(rows, stop - first)
        if stop < scan.rows and self._scan is scan:
            self._parked[stop] = rows
            if len(self._parked) > MAX_PARKED:
                self._parked.pop(next(iter(self._parked)))
