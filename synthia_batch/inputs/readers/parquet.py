"""Parquet, read by row group in small batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.inputs.base import DETECT_ROWS, Columns, FileScan, Scan
from synthia_batch.inputs.readers.arrow_types import (
    is_id,
    is_messages,
    is_object,
    is_objects,
    is_text,
    is_turns,
    list_decoded,
)
from synthia_batch.inputs.readers.detect import FirstNames
from synthia_batch.inputs.readers.file_source import FileSource
from synthia_batch.inputs.readers.file_state import changed
from synthia_batch.inputs.readers.kept_types import can_cast, list_features, make_kept_column
from synthia_batch.inputs.readers.parquet_batches import (
    LIBRARY_ERRORS,
    LocatedBatch,
    convert_batch,
    describe_error,
    iterate_batches,
    make_rows,
    open_parquet,
)
from synthia_batch.inputs.readers.parquet_limits import find_long_group, refuse_long
from synthia_batch.inputs.readers.scan import InputScan
from synthia_batch.inputs.records.columns import require_columns
from synthia_batch.inputs.records.faults import FaultList, RowFault, describe_long_row
from synthia_batch.inputs.records.messages import has_messages, has_other_fields
from synthia_batch.inputs.records.record import RecordParser
from synthia_batch.inputs.records.shapes import TURNS_OF_MESSAGES


class ParquetSource(FileSource):
    """A Parquet file. Only the columns that are used are read."""

    def read_names(self, limit: int | None) -> FirstNames:
        """Return the columns in the file's footer; see `FileSource.read_names`."""
        with self._refuse_damage():
            file = open_parquet(self._path)
            rows = file.metadata.num_rows
            places = dict.fromkeys(file.schema_arrow.names, str(self._shown)) if rows else {}
        return FirstNames(places=places, rows=rows, is_whole=True)

    def refine(self, columns: Columns) -> Columns:
        """Return `columns`, if the file has them with suitable types, with the kind of the turns."""
        with self._refuse_damage():
            schema = open_parquet(self._path).schema_arrow
            if columns.turns is not None and columns.shape is None:
                require_columns([columns.turns], schema.names, self._shown)
                if has_messages(next(iter(self._peek_values(columns.turns)), None)):
                    columns = dataclasses.replace(columns, shape=TURNS_OF_MESSAGES)
            self._check_columns(columns, schema)
            if columns.message_fields is None and columns.messages is not None:
                found = any(map(has_other_fields, self._peek_values(columns.messages)))
                columns = dataclasses.replace(columns, message_fields=found)
        return columns

    def _peek_values(self, column: str) -> list[Any]:
        """Return the values of `column` in the first rows."""
        batches = iterate_batches(self._path, open_parquet(self._path), [column], 0, DETECT_ROWS)
        located = next(batches, None)
        try:
            return [] if located is None else list_decoded(located.batch.column(0))
        except (ValueError, OverflowError):  # The scan names the row.
            return []

    def peek(self, count: int) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        with self._refuse_damage():
            # A batch may end before, where texts are too long for one.
            for batch in open_parquet(self._path).iter_batches(batch_size=min(count, DETECT_ROWS)):
                values = [list_decoded(column) for column in batch.columns]
                records += (
                    dict(zip(batch.schema.names, row, strict=True)) for row in zip(*values, strict=True)
                )
                if len(records) >= count:
                    break
        return records[:count]

    def read_column(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield number and value of each row; see `FileSource.read_column`."""
        self._watched.begin_scan()
        with self._refuse_damage():
            file = open_parquet(self._path)
            for located in iterate_batches(self._path, file, (name,), 0, file.metadata.num_rows):
                values = list_decoded(located.batch.column(0)) if located.batch.num_columns else ()
                yield from enumerate(values, start=located.first + 1)
        self._watched.end_scan()

    def scan_into(self, input_scan: InputScan) -> FileScan:
        size = self._watched.begin_scan()
        with self._refuse_damage():
            file = open_parquet(self._path)
            kept = self._check_columns(input_scan.columns, file.schema_arrow)
            input_scan.note_names(dict.fromkeys(file.schema_arrow.names), self._shown)
            input_scan.note_types(kept, self._shown)
            used = input_scan.columns.used
            scanner = _Scanner(self._shown, input_scan, self._max_row_bytes)
            wanted = file.metadata.num_rows
            if input_scan.wanted is not None:
                wanted = min(wanted, input_scan.wanted)
            long = find_long_group(file.metadata, used, self._max_row_bytes)
            if long is not None and long < wanted:
                fault = describe_long_row(self._max_row_bytes)
                raise InputRefused([f"{self._shown}: row {long + 1} or one behind it: {fault}"])
            for batch in iterate_batches(self._path, file, used, 0, wanted):
                scanner.take(batch)
            if scanner.rows != wanted:
                raise InputRefused(
                    [f"{self._shown}: expected {wanted} rows as in its footer, got {scanner.rows}"]
                )
        self._watched.end_scan()
        return FileScan(rows=scanner.rows, size=size)

    def check_kept(self, input_scan: InputScan, kept: Sequence[KeptColumn], rows: int) -> None:
        """Check kept values against the types of all files together; see `FileReader.check_kept`."""
        if not kept or not rows:
            return
        with self._refuse_damage():
            file = open_parquet(self._path)
            for own, column in zip(
                self._make_kept(tuple(column.name for column in kept), file.schema_arrow), kept, strict=True
            ):
                if own.type == column.type:
                    continue
                for located in iterate_batches(self._path, file, (column.name,), 0, rows):
                    if not can_cast(located.batch.column(0), column):
                        raise input_scan.refuse_types(own, self._shown)

    def locate_pair(self, row: Row, other: FileSource, earlier: Row) -> tuple[str, str]:
        place = f"{self._shown}: row {row.line}"
        return place, f"in row {earlier.line}" if other is self else f"at {other.locate(earlier)}"

    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on, starting with its row group."""
        parser = RecordParser(scan.columns)
        following = first
        try:
            file = open_parquet(self._path)
            for located in iterate_batches(self._path, file, scan.columns.used, first, scan.rows):
                yield from make_rows(located, scan, parser, self._max_row_bytes)
                following = located.first + located.batch.num_rows
        except (RowFault, *LIBRARY_ERRORS) as exc:
            raise changed(self._shown, describe_error(exc)) from exc
        if following != scan.rows:
            raise changed(self._shown, f"{following} rows instead of {scan.rows}")

    def _check_columns(self, columns: Columns, schema: pa.Schema) -> tuple[KeptColumn, ...]:
        """Return the kept columns. Every used column must exist, once, and have a suitable type."""
        names = schema.names
        if columns.shape == "openai-batch":
            raise UsageError(f"{self._shown}: OpenAI batch files are JSONL; convert it to JSONL")
        wanted = [name for name in (columns.text, columns.system, columns.id) if name is not None]
        require_columns([*wanted, *columns.keep], names, self._shown)
        for name in columns.used:
            if names.count(name) > 1:
                raise UsageError(f"{self._shown}: several columns are named {name!r}; rename all but one")
        faults, optional = FaultList(), (columns.system, columns.sampling, columns.tools)
        conversation = "a list of structs with role and content, or from and value, or JSON text"
        checks = (
            (columns.prompt, is_text, "a string"),
            (
                columns.messages,
                is_turns if columns.shape == "ultrachat" else is_messages,
                "a list of texts" if columns.shape == "ultrachat" else conversation,
            ),
            (columns.turns, is_messages if columns.shape else is_turns, "a list of strings, or of messages"),
            (columns.system, is_text, "a string"),
            (columns.id, is_id, "a string or an integer"),
            (columns.sampling, is_object, "a struct, a map with text as keys, or JSON text"),
            (columns.tools, is_objects, "a list of structs, or JSON text"),
        )
        for column, is_fit, wanted_type in checks:
            found = schema.field(column).type if column is not None else None
            is_empty = column in optional and found == pa.null()
            if column is not None and not is_empty and not is_fit(found):
                faults.add(str(self._shown), f"column {column!r} must be {wanted_type}, not {found}")
        faults.raise_if_any()
        return self._make_kept(columns.keep, schema)

    def _make_kept(self, names: Sequence[str], schema: pa.Schema) -> tuple[KeptColumn, ...]:
        kept, features = [], list_features(schema)
        for name in names:
            column = make_kept_column(schema.field(name), features.get(name))
            if column is None:
                raise UsageError(
                    f"{self._shown}: column {name!r} cannot be kept: its type {schema.field(name).type} "
                    "has no exact Python values; cast it in the input, or leave it out of --keep-columns"
                )
            kept.append(column)
        return tuple(kept)

    @contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        try:
            yield
        except LIBRARY_ERRORS as exc:
            raise InputRefused(
                [f"{self._shown}: not a readable Parquet file, or damaged: {describe_error(exc)}"]
            ) from exc


class _Scanner:
    def __init__(self, shown: Path | str, input_scan: InputScan, max_row_bytes: int) -> None:
        self.rows = 0
        self._max_row_bytes = max_row_bytes
        self._shown = shown
        self._columns = input_scan.columns
        self._input_scan = input_scan
        self._parser = input_scan.parser

    def take(self, located: LocatedBatch) -> None:
        """Check the rows of one batch and add their hashes."""
        self._check(located.batch, located.first)
        self.rows = located.first + located.batch.num_rows
        self._input_scan.count(located.batch.num_rows)

    def _check(self, batch: pa.RecordBatch, first: int) -> None:
        try:
            refuse_long(batch, self._max_row_bytes)
            values = convert_batch(batch, first, self._columns)
        except ValueError as exc:
            # A row is too long, or a value has no Python counterpart: check row by row to find it.
            if batch.num_rows == 1:
                self._input_scan.index.add(self._add_fault(first, RowFault(describe_error(exc))))
            else:
                self._check_each(batch, first)
            return
        hash_record = self._parser.hash_record
        hashes = []
        for index, record in enumerate(values.iterate_values(), start=first):
            try:
                hashes.append(hash_record(record))
            except RowFault as fault:
                hashes.append(self._add_fault(index, fault, record.identifier))
        self._input_scan.index.add(b"".join(hashes))

    def _check_each(self, batch: pa.RecordBatch, first: int) -> None:
        for offset in range(batch.num_rows):
            self._check(batch.slice(offset, 1), first + offset)

    def _add_fault(self, index: int, fault: RowFault, identifier: Any = None) -> bytes:
        """Record a fault; return the hash of its row, if that row fails."""
        fails = self._input_scan.add_fault(f"{self._shown}: row {index + 1}", fault)
        return self._parser.hash_bad(identifier, index + 1) if fails else b""
