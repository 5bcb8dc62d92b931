"""One pass over the files of an input, which collects columns, faults, hashes and types."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.base import PROGRESS_ROWS, Columns, FileScan, Scan, Selection
from synthia_batch.inputs.readers.json_types import KindTracker
from synthia_batch.inputs.records.columns import require_columns
from synthia_batch.inputs.records.faults import FaultList
from synthia_batch.inputs.records.hash_index import HashIndex
from synthia_batch.inputs.records.row_ids import find_duplicates

OnProgress = Callable[[int], None]


class FileReader(Protocol):
    """One file of an input that is scanned."""

    def scan_into(self, input_scan: "InputScan") -> FileScan:
        """Check the file's selected rows, add the results to `input_scan`, and return their positions."""


class InputScan:
    """The state of one pass over one file or several.

    The first file determines the columns; the others must have them. `rows` counts those of all files.
    """

    def __init__(self, selection: Selection, index: HashIndex, on_progress: OnProgress | None) -> None:
        self.selection = selection
        self.index = index
        self.faults = FaultList()
        self.rows = 0
        self.columns: Columns | None = None
        self.kinds = KindTracker(())
        self._on_progress = on_progress
        self._names: dict[str, None] = {}
        self._first: str = ""
        self._unseen: set[str] = set()
        self._typed: tuple[KeptColumn, ...] | None = None
        self._typed_by = ""
        self._has_json = False

    @property
    def wanted(self) -> int | None:
        """The number of rows still to be read; None for all."""
        return None if self.selection.limit is None else self.selection.limit - self.rows

    def settle(self, columns: Columns, place: Path | str) -> Columns:
        """Return the columns of the input, which are `columns` if no earlier file has determined them."""
        if self.columns is None:
            self.columns, self._first = columns, str(place)
            self.kinds = KindTracker(columns.keep)
            # Optional in a JSON row, but a name that no row has is misspelt.
            optional = (columns.system, columns.sampling, columns.tools, *columns.keep)
            self._unseen = {name for name in optional if name is not None}
        return self.columns

    def note_names(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        """Record that some row has columns of these `names`."""
        if self._unseen:
            self._unseen.difference_update(names)
            self._names.update(dict.fromkeys(names))

    def note_json(self) -> None:
        """Record that some rows have kept values without types."""
        self._has_json = True

    def note_types(self, kept: tuple[KeptColumn, ...], place: Path | str) -> None:
        """Record the types of a file's kept columns. Raises UsageError if an earlier file has others."""
        if self._typed is None:
            self._typed, self._typed_by = kept, str(place)
        for before, now in zip(self._typed, kept, strict=True):
            if before.type != now.type:
                raise UsageError(
                    f"{place}: column {now.name!r} has a different type than in {self._typed_by}; "
                    "cast it in one of them, or leave it out of --keep-columns"
                )

    def count(self, rows: int) -> None:
        """Count rows, and report progress every 10,000."""
        before, self.rows = self.rows, self.rows + rows
        if self._on_progress and before // PROGRESS_ROWS < self.rows // PROGRESS_ROWS:
            self._on_progress(self.rows)

    def finish(self, files: Sequence[FileScan]) -> Scan | None:
        """Return the result of the pass, None if there are no rows. Raises InputRefused for faults."""
        self.faults.raise_if_any()
        if self.columns is None or not self.rows:
            return None
        require_columns(sorted(self._unseen), tuple(self._names), self._first)
        is_one = len(files) == 1
        return Scan(
            rows=self.rows,
            size=sum(file.size for file in files),
            columns=self.columns,
            kept=self._resolve_kept(),
            checkpoints=files[0].checkpoints if is_one else (),
            duplicates=self.index.finish(self.rows),
            files=() if is_one else tuple(files),
        )

    def _resolve_kept(self) -> tuple[KeptColumn, ...]:
        if self._typed is None:
            return self.kinds.resolve()
        if self._has_json:
            for found, typed in zip(self.kinds.resolve(), self._typed, strict=True):
                if found.type != typed.type and self.kinds.has_values(found.name):
                    raise UsageError(
                        f"column {typed.name!r} has a different type in {self._typed_by} than in the files "
                        "without types; use one type, or leave it out of --keep-columns"
                    )
        return self._typed


def scan_files(
    readers: Sequence[FileReader], selection: Selection, scratch: Path, on_progress: OnProgress | None
) -> Scan | None:
    """Return the result of one pass over all files, None if there are no rows."""
    with HashIndex(scratch) as index:
        input_scan = InputScan(selection, index, on_progress)
        files = []
        for reader in readers:
            is_full = input_scan.wanted is not None and input_scan.wanted <= 0
            files.append(FileScan(rows=0, size=0) if is_full else reader.scan_into(input_scan))
        scan = input_scan.finish(files)
    if scan is not None and on_progress:
        on_progress(scan.rows)
    return scan


def refuse_duplicates(
    scan: Scan,
    read_rows: Callable[[Scan, int, int], Iterator[Row]],
    locate_pair: Callable[[Row, Row], tuple[str, str]],
) -> None:
    """Refuse an input in which two rows share an id; `locate_pair` returns the places of both."""
    if scan.columns.id is None:
        return
    faults = FaultList()
    for pair in find_duplicates(scan.duplicates, lambda first, stop: read_rows(scan, first, stop)):
        place, earlier = locate_pair(pair.second, pair.first)
        faults.add(place, f"the id {pair.second.id[:200]!r} was used before, {earlier}")
    faults.raise_if_any()


def refuse_empty(place: Path | str, what: str) -> InputRefused:
    """Return the error for an input without rows."""
    return InputRefused([f"{place}: there are no rows{what}"])
