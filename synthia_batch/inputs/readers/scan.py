"""What one pass over the files of an input gathers: columns, faults, hashes and types of all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.base import PROGRESS_ROWS, Columns, FileScan, Scan, Selection
from synthia_batch.inputs.readers.json_types import KindTracker
from synthia_batch.inputs.records.columns import require_columns
from synthia_batch.inputs.records.faults import FaultList
from synthia_batch.inputs.records.row_ids import HashIndex, find_duplicates

OnProgress = Callable[[int], None]


class FileReader(Protocol):
    """One file of an input, as a pass over all of them sees it."""

    def scan_into(self, input_scan: "InputScan") -> FileScan:
        """Check the file's selected rows, add what was found to `input_scan`, and return where they are.

        Raises:
            UsageError, InputRefused: As for `Source.scan`.
        """


class InputScan:
    """The state of one pass over one file or several.

    The first file settles the columns; the others must have them. `rows` are those of all files so far.
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
        """How many rows are still to be taken; None for all there are."""
        return None if self.selection.limit is None else self.selection.limit - self.rows

    def settle(self, columns: Columns, place: Path | str) -> Columns:
        """Return the columns of the whole input: `columns` where none are settled yet."""
        if self.columns is None:
            self.columns, self._first = columns, str(place)
            self.kinds = KindTracker(columns.keep)
            # The others are optional in a JSON row, but not in all of them: that is a misspelt name.
            optional = (columns.system, columns.sampling, columns.tools, *columns.keep)
            self._unseen = {name for name in optional if name is not None}
        return self.columns

    def note_names(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        """Take note that the columns of these `names` are there in some row."""
        if self._unseen:
            self._unseen.difference_update(names)
            self._names.update(dict.fromkeys(names))

    def note_json(self) -> None:
        """Take note that some rows have kept values without types."""
        self._has_json = True

    def note_types(self, kept: tuple[KeptColumn, ...], place: Path | str) -> None:
        """Take the types that a file says of its kept columns.

        Raises:
            UsageError: An earlier file says others.
        """
        if self._typed is None:
            self._typed, self._typed_by = kept, str(place)
        for before, now in zip(self._typed, kept, strict=True):
            if before.type != now.type:
                raise UsageError(
                    f"{place}: column {now.name!r} has another type than in {self._typed_by}; "
                    "cast it in one of them, or leave it out of --keep-columns"
                )

    def count(self, rows: int) -> None:
        """Take note of so many more rows, and tell of every 10,000."""
        before, self.rows = self.rows, self.rows + rows
        if self._on_progress and before // PROGRESS_ROWS < self.rows // PROGRESS_ROWS:
            self._on_progress(self.rows)

    def finish(self, files: Sequence[FileScan]) -> Scan | None:
        """Return what the pass found, or refuse the input; None where there is no row."""
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
                        f"column {typed.name!r} has another type in {self._typed_by} than in the files "
                        "without types; make it one, or leave it out of --keep-columns"
                    )
        return self._typed


def scan_files(
    readers: Sequence[FileReader], selection: Selection, scratch: Path, on_progress: OnProgress | None
) -> Scan | None:
    """Return what one pass over all files found, None where there is no row in them.

    Raises:
        UsageError, InputRefused: As for `Source.scan`.
    """
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
    tell: Callable[[Row, Row], tuple[str, str]],
) -> None:
    """Refuse the input if two rows have one id; `tell` says of a row and an earlier one where they stand.

    Raises:
        InputRefused: There are such rows.
    """
    if scan.columns.id is None:
        return
    faults = FaultList()
    for pair in find_duplicates(scan.duplicates, lambda first, stop: read_rows(scan, first, stop)):
        place, earlier = tell(pair.second, pair.first)
        faults.add(place, f"the id {pair.second.id[:200]!r} was used before, {earlier}")
    faults.raise_if_any()


def refuse_empty(place: Path | str, what: str) -> InputRefused:
    """Return the refusal of an input without any row."""
    return InputRefused([f"{place}: there are no rows{what}"])
