"""An input of several files, read in order as one source."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Row
from synthia_batch.inputs.base import Columns, Scan, Selection
from synthia_batch.inputs.readers.detect import detect_columns, refuse_empty
from synthia_batch.inputs.readers.file_source import FileSource
from synthia_batch.inputs.readers.file_state import changed
from synthia_batch.inputs.readers.scan import refuse_duplicates, scan_files


class ManySource:
    """The rows of several files, in the order of the files."""

    def __init__(self, sources: Sequence[FileSource]) -> None:
        self._sources = tuple(sources)
        self._scan: Scan | None = None
        self._parts: tuple[Scan, ...] = ()
        self._starts: tuple[int, ...] = ()

    @property
    def shown(self) -> str:
        """The first file, as the user named it, and the number of others."""
        return f"{self._sources[0].shown} and {len(self._sources) - 1} more"

    def locate(self, row: Row) -> str:
        return self._sources[row.file].locate(row)

    def detect(self, selection: Selection) -> Columns:
        return detect_columns(self._sources, selection).columns

    def peek(self, count: int) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for source in self._sources:
            records += source.peek(count - len(records))
            if len(records) >= count:
                break
        return records

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass over all files; see `Source.scan`."""
        scan = scan_files(self._sources, selection, scratch, on_progress)
        if scan is None:
            raise refuse_empty(self.shown, "")
        refuse_duplicates(scan, self.read_rows, self._locate_pair)
        return scan

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded), from one file or several; see `Source.read_rows`."""
        self._split_scan(scan)
        for number, (part, start) in enumerate(zip(self._parts, self._starts, strict=True)):
            begin, end = max(first - start, 0), min(stop - start, part.rows)
            if begin < end:
                for row in self._sources[number].read_rows(part, begin, end):
                    yield dataclasses.replace(row, index=row.index + start, file=number)

    def check(self, scan: Scan) -> None:
        """Check each file that was read; see `Source.check`."""
        self._split_scan(scan)
        for source, part in zip(self._sources, self._parts, strict=True):
            if part.rows:  # Others come after a limit.
                source.check(part)

    def _split_scan(self, scan: Scan) -> None:
        """Compute the scan of each file on its own, and keep them until another `scan` is used."""
        if self._scan is scan:
            return
        if len(scan.files) != len(self._sources):
            raise changed(self.shown, f"{len(self._sources)} files instead of {len(scan.files) or 1}")
        starts = (0, *accumulate(file.rows for file in scan.files))
        self._parts = tuple(
            dataclasses.replace(
                scan,
                rows=file.rows,
                size=file.size,
                checkpoints=file.checkpoints,
                duplicates=scan.duplicates.cut(start, start + file.rows),
                files=(),
            )
            for file, start in zip(scan.files, starts, strict=False)
        )
        self._scan, self._starts = scan, starts[:-1]

    def _locate_pair(self, row: Row, earlier: Row) -> tuple[str, str]:
        return self._sources[row.file].locate_pair(row, self._sources[earlier.file], earlier)
