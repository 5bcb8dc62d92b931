"""Parquet, read by row group in small batches, its page checksums verified where it has any."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.base import Columns, FileScan, Scan, Selection
from synthia_batch.inputs.readers.arrow_types import (
    is_conversation,
    is_id,
    is_messages,
    is_object,
    is_objects,
    is_text,
    is_turns,
    leave_out_nulls,
    list_values,
    make_kept_column,
)
from synthia_batch.inputs.readers.file_state import ReadCursor, Watched, changed
from synthia_batch.inputs.readers.scan import InputScan, refuse_duplicates, refuse_empty, scan_files
from synthia_batch.inputs.records.columns import require_columns, resolve_columns
from synthia_batch.inputs.records.faults import FaultList, RowFault
from synthia_batch.inputs.records.record import RecordParser, Values

BATCH_ROWS = 1024
"""At most this many rows are decoded at a time."""
BATCH_BYTES = 8 * 1024 * 1024
"""Fewer than BATCH_ROWS where rows are so long that these many bytes would be passed."""
READ_BUFFER_BYTES = 1024 * 1024
_TALKS = ("a list of structs with role and content", "a list of structs with from and value")
LIBRARY_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises on damaged files, as fuzzing shows: tests/test_source_fuzz.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The Python values of some rows, by column. `first` is the index of the first of them."""

    first: int
    rows: int
    texts: list[Any]
    systems: list[Any]
    ids: list[Any]
    samplings: list[Any]
    tools: list[Any]
    kept: list[list[Any]]

    def iterate_values(self) -> Iterator[Values]:
        """Yield the values of each row but the kept ones."""
        columns = (self.texts, self.systems, self.ids, self.samplings, self.tools)
        return map(Values._make, zip(*columns, strict=True))


class ParquetSource:
    """A Parquet file. Only the columns that are used are read."""

    def __init__(self, path: Path, shown: Path | str | None = None) -> None:
        """Read `path`, and call it `shown` in messages."""
        self._path = path
        self._shown = path if shown is None else shown
        self._watched = Watched(path, self._shown)
        self._cursor = ReadCursor()

    @property
    def shown(self) -> str:
        """The file, as the user named it."""
        return str(self._shown)

    def locate(self, row: Row) -> str:
        """Return where `row` stands, as file:row."""
        return f"{self._shown}:{row.line}"

    def detect(self, selection: Selection) -> Columns:
        """Return the columns, by the file's footer; see `Source.detect`."""
        with self._refuse_damage():
            return self._resolve_columns(selection, _open(self._path).schema_arrow)

    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first records; see `Source.peek`."""
        with self._refuse_damage():
            first = next(_open(self._path).iter_batches(batch_size=count), None)
            records: list[dict[str, Any]] = [] if first is None else first.to_pylist()
        return records

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass; see `Source.scan`."""
        scan = scan_files([self], selection, scratch, on_progress)
        if scan is None:
            raise refuse_empty(self._shown, "")
        refuse_duplicates(scan, self.read_rows, lambda row, earlier: self.tell_pair(row, self, earlier))
        return scan

    def scan_into(self, input_scan: InputScan) -> FileScan:
        """Add what one pass over the file finds; see `FileReader.scan_into`."""
        size = self._watched.begin_scan()
        with self._refuse_damage():
            file = _open(self._path)
            found = input_scan.columns or self._resolve_columns(input_scan.selection, file.schema_arrow)
            columns = input_scan.settle(found, self._shown)
            kept = self._check_columns(columns, file.schema_arrow)
            input_scan.note_names(file.schema_arrow.names)
            input_scan.note_types(kept, self._shown)
            scanner = _Scanner(self._shown, columns, input_scan)
            there = file.metadata.num_rows
            wanted = there if input_scan.wanted is None else min(there, input_scan.wanted)
            for batch in _iterate_batches(file, columns, 0, wanted):
                scanner.take(batch)
            if scanner.rows != wanted:
                raise InputRefused([f"{self._shown}: holds {scanner.rows} rows, its footer says {wanted}"])
        self._watched.end_scan()
        return FileScan(rows=scanner.rows, size=size)

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded); see `Source.read_rows`."""
        self._watched.check(scan.size)
        return self._cursor.read(scan, first, min(stop, scan.rows), self._iterate_rows)

    def tell_pair(self, row: Row, other: Any, earlier: Row) -> tuple[str, str]:
        """Return where `row` stands, and where an `earlier` one of another file or this one does."""
        place = f"{self._shown}: row {row.line}"
        return place, f"in row {earlier.line}" if other is self else f"at {other.locate(earlier)}"

    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on, from the row group that it is in."""
        parser = RecordParser(scan.columns)
        following = first
        try:
            file = _open(self._path)
            for located in _iterate_batches(file, scan.columns, first, scan.rows):
                batch = _convert(located.batch, located.first, scan.columns)
                yield from _make_rows(batch, scan, parser)
                following = batch.first + batch.rows
        except (RowFault, *LIBRARY_ERRORS) as exc:
            raise changed(self._shown, _describe(exc)) from exc
        if following != scan.rows:
            raise changed(self._shown, f"{following} rows instead of {scan.rows}")

    def _resolve_columns(self, selection: Selection, schema: pa.Schema) -> Columns:
        columns = resolve_columns(selection, schema.names, self._shown)
        self._check_columns(columns, schema)
        return columns

    def _check_columns(self, columns: Columns, schema: pa.Schema) -> tuple[KeptColumn, ...]:
        """Return the kept columns of the file, whose columns must be there, once each, and fit."""
        names = schema.names
        if columns.shape == "openai-batch":
            raise UsageError(f"{self._shown}: OpenAI batch files are JSONL; write it as one")
        wanted = [name for name in (columns.text, columns.system, columns.id) if name is not None]
        require_columns([*wanted, *columns.keep], names, self._shown)
        for name in columns.used:
            if names.count(name) > 1:
                raise UsageError(f"{self._shown}: there are several columns {name!r}; rename all but one")
        faults = FaultList()
        is_talk = is_conversation if columns.shape == "sharegpt" else is_messages
        checks = (
            (columns.prompt, is_text, "a string"),
            (columns.messages, is_talk, f"{_TALKS[columns.shape == 'sharegpt']}, or JSON text"),
            (columns.turns, is_talk if columns.shape else is_turns, "a list of strings"),
            (columns.system, is_text, "a string"),
            (columns.id, is_id, "a string or an integer"),
            (columns.sampling, is_object, "a struct, a map with text as keys, or JSON text"),
            (columns.tools, is_objects, "a list of structs, or JSON text"),
        )
        for column, is_fit, wanted_type in checks:
            if column is not None and not is_fit(schema.field(column).type):
                found = schema.field(column).type
                faults.add(str(self._shown), f"column {column!r} must be {wanted_type}, not {found}")
        faults.raise_if_any()
        return self._make_kept(columns, schema)

    def _make_kept(self, columns: Columns, schema: pa.Schema) -> tuple[KeptColumn, ...]:
        kept = []
        for name in columns.keep:
            column = make_kept_column(schema.field(name))
            if column is None:
                raise UsageError(
                    f"{self._shown}: column {name!r} cannot be kept, its type {schema.field(name).type} "
                    "has no exact Python values; cast it in the input (nanoseconds to microseconds, "
                    "say), or leave it out of --keep-columns"
                )
            kept.append(column)
        return tuple(kept)

    @contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        try:
            yield
        except LIBRARY_ERRORS as exc:
            raise InputRefused(
                [f"{self._shown}: not a Parquet file that can be read, or damaged: {_describe(exc)}"]
            ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    """A record batch, and the index of its first row."""

    first: int
    batch: pa.RecordBatch


class _Scanner:
    """The state of one pass over one file."""

    def __init__(self, shown: Path | str, columns: Columns, input_scan: InputScan) -> None:
        self.rows = 0
        self._shown = shown
        self._columns = columns
        self._input_scan = input_scan
        self._parser = RecordParser(columns)

    def take(self, located: _Located) -> None:
        """Check the rows of one batch and note their hashes."""
        self._check(located.batch, located.first)
        self.rows = located.first + located.batch.num_rows
        self._input_scan.count(located.batch.num_rows)

    def _check(self, batch: pa.RecordBatch, first: int) -> None:
        try:
            values = _convert(batch, first, self._columns)
        except ValueError as exc:
            # Some value has no Python counterpart: row by row, to find which.
            if batch.num_rows == 1:
                self._add_fault(first, _describe(exc))
            else:
                for offset in range(batch.num_rows):
                    self._check(batch.slice(offset, 1), first + offset)
            return
        hash_record = self._parser.hash_record
        hashes = []
        for index, record in enumerate(values.iterate_values(), start=first):
            try:
                hashes.append(hash_record(record))
            except RowFault as fault:
                self._add_fault(index, str(fault))
        self._input_scan.index.add(b"".join(hashes))

    def _add_fault(self, index: int, text: str) -> None:
        self._input_scan.faults.add(f"{self._shown}: row {index + 1}", text)


def _open(path: Path) -> parquet.ParquetFile:
    # Without pre-buffering a column chunk is read by pages: memory stays small in huge row groups.
    file = parquet.ParquetFile(
        path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )
    groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    # The library takes whatever the footer says here, also less than nothing.
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise ValueError(f"its footer counts {file.metadata.num_rows} rows, but {sum(groups)} in its groups")
    return file


def _iterate_batches(
    file: parquet.ParquetFile, columns: Columns, first: int, stop: int
) -> Iterator[_Located]:
    """Yield the rows `first` to `stop` of the columns used, starting with the row group of `first`."""
    groups = file.metadata.num_row_groups
    group, start = 0, 0
    while group < groups and start + file.metadata.row_group(group).num_rows <= first:
        start += file.metadata.row_group(group).num_rows
        group += 1
    batches = file.iter_batches(
        batch_size=_choose_batch_rows(file.metadata),
        row_groups=range(group, groups),
        columns=_list_used(columns, file.schema_arrow.names),
        use_threads=False,
    )
    for batch in batches:
        end = start + batch.num_rows
        if end > first:
            from_, to = max(first, start), min(stop, end)
            yield _Located(first=from_, batch=batch.slice(from_ - start, to - from_))
        start = end
        if start >= stop:
            return


def _choose_batch_rows(metadata: parquet.FileMetaData) -> int:
    """Return the rows of a batch: fewer than the most where the longest row group has long rows."""
    widths: Iterator[int] = (
        metadata.row_group(group).total_byte_size // max(1, metadata.row_group(group).num_rows)
        for group in range(metadata.num_row_groups)
    )
    width = max(widths, default=1)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, width)))


def _list_used(columns: Columns, names: list[str]) -> list[str]:
    """Return the columns to read; those that a template asks about need not be there."""
    return [name for name in columns.used if name in names]


def _convert(batch: pa.RecordBatch, first: int, columns: Columns) -> Batch:
    """Return the Python values of `batch`. Raises ValueError where one has none."""

    def values(name: str | None) -> list[Any]:
        if name is None:
            return [None] * batch.num_rows
        try:
            return list_values(batch.column(batch.schema.get_field_index(name)))
        except (ValueError, OverflowError) as exc:
            raise ValueError(f"column {name!r}: {_describe(exc)}") from exc

    return Batch(
        first=first,
        rows=batch.num_rows,
        texts=_join(values, _list_read(columns, batch), batch.num_rows)
        if columns.reads
        else values(columns.text),
        systems=values(columns.system),
        ids=values(columns.id),
        samplings=values(columns.sampling),
        tools=[leave_out_nulls(value) for value in values(columns.tools)],
        kept=[values(name) for name in columns.keep],
    )


def _list_read(columns: Columns, batch: pa.RecordBatch) -> list[str]:
    return [name for name in columns.reads if name in batch.schema.names]


def _join(values: Callable[[str], list[Any]], names: list[str], rows: int) -> list[Any]:
    """Return for each row the values of several columns, by name."""
    if not names:
        return [{} for _ in range(rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*map(values, names), strict=True)]


def _make_rows(batch: Batch, scan: Scan, parser: RecordParser) -> Iterator[Row]:
    stop = batch.first + batch.rows
    names = [column.name for column in scan.kept]
    kept = zip(*batch.kept, strict=True) if names else repeat((), batch.rows)
    numbers = scan.duplicates.list_numbers(batch.first, stop)
    for index, values, occurrence, own in zip(
        range(batch.first, stop), batch.iterate_values(), numbers, kept, strict=True
    ):
        yield parser.make_row(
            values,
            index=index,
            occurrence=occurrence,
            kept=dict(zip(names, own, strict=True)) if names else {},
            line=index + 1,
        )


def _describe(exc: BaseException) -> str:
    """Return the first line of an error's text, without the library's own stack."""
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
