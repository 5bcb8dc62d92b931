"""Whether an input file is still the one that was scanned."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.errors import InputRefused, IntegrityError, UsageError


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
