"""Standard streams that may be closed, full or gone, as after `2>&-` or when the `tee` behind a pipe dies."""

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from synthia_batch.core.errors import StorageFailed


class OutputClosed(Exception):
    """The reader of stdout has closed it, as `head` does."""


def guard_streams() -> None:
    """Make stderr drop what cannot be written, and stdout raise one error that says so.

    A closed descriptor is opened on the null device: otherwise the next file that is opened would get its
    number, and the messages of C libraries. Streams that a caller has replaced are left alone.
    """
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _wrap(_RequiredFile(1, "w", closefd=False), sys.stdout, line_buffering=None)
    sys.stderr = _wrap(_OptionalFile(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _wrap(raw: io.FileIO, before: TextIO | None, *, line_buffering: bool | None) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=before.errors if before else "backslashreplace",
        line_buffering=raw.isatty() if line_buffering is None else line_buffering,
    )


class _RequiredFile(io.FileIO):
    """A descriptor whose failed write is an error, and which is the null device after it."""

    def write(self, data: Any) -> int:
        """Write all of `data`; return its size in bytes.

        Raises:
            OutputClosed: The reader is gone.
            StorageFailed: It cannot be written for another reason.
        """
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # Another process has made the terminal non-blocking.
                    select.select([], [self.fileno()], [])
                left = left[written or 0 :]
        except OSError as exc:
            self._discard()
            return self._report(exc, size)
        return size

    def _report(self, error: OSError, size: int) -> int:
        if isinstance(error, BrokenPipeError):
            raise OutputClosed("stdout was closed") from error
        raise StorageFailed(f"stdout cannot be written: {error.strerror}") from error

    def _discard(self) -> None:
        # Otherwise flushing the buffer would fail again when the interpreter exits.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


class _OptionalFile(_RequiredFile):
    """A descriptor that becomes the null device once it cannot be written."""

    def _report(self, error: OSError, size: int) -> int:
        return size
