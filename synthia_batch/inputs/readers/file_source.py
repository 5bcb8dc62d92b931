"""The base of the readers: a source of one file, read alone or as one of several."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from synthia_batch.core.digest import FileStamp
from synthia_batch.core.types import MAX_ROW_BYTES, KeptColumn, Row
from synthia_batch.inputs.base import Columns, FileScan, Scan, Selection
from synthia_batch.inputs.readers.detect import FirstNames, detect_columns, refuse_empty
from synthia_batch.inputs.readers.file_state import ReadCursor, Watched
from synthia_batch.inputs.readers.scan import InputScan, refuse_duplicates, scan_files

CHECKED_ROWS = 16
"""Rows that are read before the file is looked at again: a look takes as long as reading a row."""


class FileSource(ABC):
    """A file of rows; implements `Source`. A reader of a format adds the six abstract methods."""

    empty_hint = ""
    """Added to the message about a file without rows."""

    def __init__(
        self,
        path: Path,
        shown: Path | str | None = None,
        *,
        stamp: FileStamp | None = None,
        content: str | None = None,
        max_row_bytes: int = MAX_ROW_BYTES,
        is_new_copy: bool = False,
    ) -> None:
        """Read `path`; `shown` is its name in messages. See `InputFile` for the others."""
        self._max_row_bytes = max_row_bytes
        self._is_new_copy = is_new_copy
        self._path = path
        self._shown = path if shown is None else shown
        self._watched = Watched(path, self._shown, stamp=stamp, content=content)
        self._cursor = ReadCursor()

    @abstractmethod
    def read_names(self, limit: int | None) -> FirstNames:
        """Return the columns of the first rows, at most `limit`. Raises as `Source.detect`."""

    @abstractmethod
    def refine(self, columns: Columns) -> Columns:
        """Return `columns`, if they fit the file, with what only its values show. Raises UsageError."""

    @abstractmethod
    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first records; see `Source.peek`."""

    @abstractmethod
    def read_column(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield the line of each record, or row, counted from 1, and its value of a column, None without one.

        Raises as `peek`, and InputRefused if the file changed since its stamp was read.
        """

    @abstractmethod
    def scan_into(self, input_scan: InputScan) -> FileScan:
        """Check the selected rows, add the results to `input_scan`, and return the rows' positions."""

    @abstractmethod
    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on."""

    def detect(self, selection: Selection) -> Columns:
        return detect_columns([self], selection).columns

    def check_kept(self, input_scan: InputScan, kept: Sequence[KeptColumn], rows: int) -> None:
        """Check kept values against the types of all files together; see `FileReader.check_kept`."""
        return  # JSON has the types that are in Arrow's plain table; the scan has checked its numbers.

    def drop_copy(self) -> None:
        """Remove the file if it is a copy that this process has made; one that others may use stays."""
        if self._is_new_copy:
            shutil.rmtree(self._path.parent, ignore_errors=True)

    @property
    def shown(self) -> str:
        """The file, as the user named it."""
        return str(self._shown)

    def locate(self, row: Row) -> str:
        return f"{self._shown}:{row.line}"

    def locate_pair(self, row: Row, other: "FileSource", earlier: Row) -> tuple[str, str]:
        """Return the places of `row` and of an `earlier` one in this or another file."""
        return self.locate(row), f"at {other.locate(earlier)}"

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass; see `Source.scan`."""
        scan = scan_files([self], selection, scratch, on_progress)
        if scan is None:
            raise refuse_empty(self._shown, self.empty_hint)
        refuse_duplicates(scan, self.read_rows, lambda row, earlier: self.locate_pair(row, self, earlier))
        return scan

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded); see `Source.read_rows`."""
        self.check(scan)
        rows = self._cursor.read(scan, first, min(stop, scan.rows), self._iterate_rows)
        while together := list(islice(rows, CHECKED_ROWS)):
            self.check(scan)  # A row read after a change must not be generated.
            yield from together

    def check(self, scan: Scan) -> None:
        """Raise IntegrityError unless the file is the one that was scanned; see `Source.check`."""
        self._watched.check(scan.size)
