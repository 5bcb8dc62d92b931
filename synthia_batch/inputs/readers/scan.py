"""One pass over the files of an input, which collects columns, faults, hashes and types."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.inputs.base import PROGRESS_ROWS, Columns, FileScan, Scan, Selection
from synthia_batch.inputs.readers.detect import ColumnReader, Detected, detect_columns
from synthia_batch.inputs.readers.json_types import KindTracker
from synthia_batch.inputs.records.columns import TELLING, require_columns, resolve_columns, show_names
from synthia_batch.inputs.records.faults import FaultList, OtherRequest, RowFault
from synthia_batch.inputs.records.hash_index import HashIndex
from synthia_batch.inputs.records.record import RecordParser
from synthia_batch.inputs.records.row_ids import find_duplicates

OnProgress = Callable[[int], None]
_log = logging.getLogger(__name__)


class InputScan:
    """The state of one pass over one file or several. `rows` counts those of all files."""

    def __init__(
        self, selection: Selection, detected: Detected, index: HashIndex, on_progress: OnProgress | None
    ) -> None:
        self.selection = selection
        self.index = index
        self.faults = FaultList()
        self.rows = 0
        self.columns = detected.columns
        self.parser = RecordParser(self.columns)
        self.kinds = KindTracker(self.columns.keep)
        self._on_progress = on_progress
        self._resolved = detected.resolved
        self._places = dict(detected.places)
        self._shown = detected.shown
        self._late: dict[str, None] = {}
        self._bad_rows = 0
        self._first_bad = ""
        self._typed: tuple[KeptColumn, ...] | None = None
        self.typed_by: dict[str, dict[KeptColumn, str]] = {}
        self._json_by = ""

    @property
    def wanted(self) -> int | None:
        """The number of rows still to be read; None for all."""
        bounds = (self.selection.limit, self.selection.first_rows)
        return min((bound - self.rows for bound in bounds if bound is not None), default=None)

    def note_names(self, names: Mapping[str, Any], shown: Path | str, line: int | None = None) -> None:
        """Record that the row in `line` of a file, or its every row, has columns of these `names`.

        One that would have led to other columns is a fault: the row would be read otherwise than it says.
        """
        if names.keys() <= self._places.keys():
            return
        place = str(shown) if line is None else f"{shown}:{line}"
        for name in names.keys() - self._places.keys():
            self._places[name] = place
            if name in TELLING and self._resolve_again() != self._resolved:
                self.faults.add(place, self._explain_late(name))
            else:
                self._late[name] = None

    def _resolve_again(self) -> Columns:
        return resolve_columns(self.selection, tuple(self._places), self._shown)

    def _explain_late(self, name: str) -> str:
        used, first = " and ".join(map(repr, self.columns.texts)), next(iter(self._places.values()))
        return (
            f"has a column {name!r}, but the input is read by {used}, from {first} on, where there is "
            "no such column; say how to read it with --input-format, --prompt-column, --messages-column or "
            "--turns-column"
        )

    def add_fault(self, place: str, fault: RowFault) -> bool:
        """Record the fault of a row; return whether the row fails, otherwise the input is refused."""
        text = str(fault)
        if isinstance(fault, OtherRequest):
            text += f" (the first request: {self._places[self.columns.texts[0]]})"
        if self.columns.bad_rows == "refuse":
            self.faults.add(place, text)
            return False
        self._bad_rows += 1
        self._first_bad = self._first_bad or f"{place}: {text}"
        return True

    def note_json(self, place: Path | str) -> None:
        """Record that the rows of a file have kept values without types."""
        self._json_by = self._json_by or str(place)

    def note_types(self, kept: Sequence[KeptColumn], place: Path | str) -> None:
        """Record the types of a file's kept columns.

        Raises UsageError if those of an earlier file cannot be unified with them without loss.
        """
        if self._typed is None:
            self._typed = tuple(kept)
        unified = []
        for before, now in zip(self._typed, kept, strict=True):
            unified.append(self._unify(before, now, place))
            witnesses = self.typed_by.setdefault(now.name, {})
            witnesses.setdefault(now, str(place))
        self._typed = tuple(unified)

    def count(self, rows: int) -> None:
        """Count rows, and report progress every 10,000."""
        before, self.rows = self.rows, self.rows + rows
        if self._on_progress and before // PROGRESS_ROWS < self.rows // PROGRESS_ROWS:
            self._on_progress(self.rows)

    def finish(self, files: Sequence[FileScan]) -> Scan | None:
        """Return the result of the pass, None if there are no rows. Raises InputRefused for faults.

        Its kept columns have their names in the input.
        """
        self.faults.raise_if_any()
        if not self.rows:
            return None
        # Optional in a JSON row, but a name that no row has is misspelt.
        chosen = (self.columns.system, self.columns.sampling, self.selection.tools_column, *self.columns.keep)
        require_columns(sorted(name for name in chosen if name is not None), tuple(self._places), self._shown)
        self._log_findings()
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

    def _log_findings(self) -> None:
        """Log what the first rows did not show: conversations that are cut, and columns of later rows."""
        if self.parser.final_answers:
            is_continued = self.columns.final == "continue"
            _log.info(
                f"{self.parser.final_answers} of {self.rows} conversations end with an answer, which is "
                + ("continued" if is_continued else "regenerated (--final-assistant continue or refuse)")
            )
        if self._bad_rows:
            _log.info(
                f"{self._bad_rows} of {self.rows} rows cannot be asked and go to failed/ (bad_row), such as "
                f"{self._first_bad}"
            )
        if self.parser.unread_keys:
            _log.info(f"keys of messages that are not used: {show_names(sorted(self.parser.unread_keys))}")
        late = [name for name in self._late if name not in self.columns.used]
        if late:
            _log.info(f"columns of later rows that are not used: {show_names(late)}")

    def _resolve_kept(self) -> tuple[KeptColumn, ...]:
        if self._typed is None:
            return self.kinds.resolve()
        if not self._json_by:
            return self._typed
        found = self.kinds.resolve(beside_types=True)
        pairs = zip(self._typed, found, strict=True)
        # A column that is null in all of JSON has the type that it has elsewhere.
        kept = [now if self.kinds.has_values(now.name) else typed for typed, now in pairs]
        self.note_types(kept, self._json_by)
        return self._typed

    def _unify(self, before: KeptColumn, now: KeptColumn, place: Path | str) -> KeptColumn:
        """Return the column for the values of both; `now` is that of the file `place`."""
        if before == now:
            return before
        # It imports pyarrow, which JSONL alone does not need.
        from synthia_batch.inputs.readers.kept_types import unify_kept

        unified = unify_kept(before, now) if now.type != "json" else None
        changes = unified is not None and unified.type != now.type
        if unified is None or (changes and not self.kinds.is_exact(now.name)):
            raise self.refuse_types(now, place)
        return unified

    def refuse_types(self, column: KeptColumn, place: Path | str) -> UsageError:
        """Return the error for a kept column of the file `place` that has another type elsewhere."""
        from synthia_batch.inputs.readers.kept_types import describe_kept_type

        others = [(other, by) for other, by in self.typed_by[column.name].items() if other != column]
        other, by = others[-1]
        here, there = describe_kept_type(column), describe_kept_type(other)
        if here == there:
            here, there = column.feature or here, other.feature or there
        return UsageError(
            f"{place}: column {column.name!r} is {here} here and {there} in {by}, and no type holds both "
            "without loss; cast it in one of them, or leave it out of --keep-columns"
        )


class FileReader(ColumnReader, Protocol):
    """One file of an input that is scanned."""

    def scan_into(self, input_scan: InputScan) -> FileScan:
        """Check the file's selected rows, add the results to `input_scan`, and return their positions."""

    def drop_copy(self) -> None:
        """Remove the file if it is a copy that was made for this scan."""

    def check_kept(self, input_scan: InputScan, kept: Sequence[KeptColumn], rows: int) -> None:
        """Raise UsageError if a value of the first `rows` rows is not exact in the `kept` types."""


def scan_files(
    readers: Sequence[FileReader], selection: Selection, scratch: Path, on_progress: OnProgress | None
) -> Scan | None:
    """Return the result of one pass over all files, None if there are no rows."""
    detected = detect_columns(readers, selection)
    with HashIndex(scratch) as index:
        input_scan = InputScan(selection, detected, index, on_progress)
        files = []
        for reader in readers:
            is_full = input_scan.wanted is not None and input_scan.wanted <= 0
            with _drop_refused(reader, input_scan.faults):
                files.append(FileScan(rows=0, size=0) if is_full else reader.scan_into(input_scan))
        scan = input_scan.finish(files)
        if scan is not None:
            for reader, file in zip(readers, files, strict=True):
                reader.check_kept(input_scan, scan.kept, file.rows)
            named = zip(scan.columns.kept_names, scan.kept, strict=True)
            kept = tuple(dataclasses.replace(column, name=name) for name, column in named)
            scan = dataclasses.replace(scan, kept=kept)
    if scan is not None and on_progress:
        on_progress(scan.rows)
    return scan


@contextmanager
def _drop_refused(reader: FileReader, faults: FaultList) -> Iterator[None]:
    """Drop the copy of a file whose rows the block refuses."""
    before = len(faults)
    try:
        yield
    except InputRefused:
        reader.drop_copy()
        raise
    if len(faults) > before:
        reader.drop_copy()


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
