"""Decodes ranges of rows of a Parquet file to Python values and rows, in small batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from synthia_batch.core.types import KeptColumn, Row
from synthia_batch.inputs.base import Columns, Scan
from synthia_batch.inputs.readers.arrow_types import (
    has_nested_fields,
    leave_out_nulls,
    list_decoded,
    list_values,
)
from synthia_batch.inputs.readers.kept_types import cast_kept
from synthia_batch.inputs.readers.parquet_limits import READ_BUFFER_BYTES, choose_batch_rows, refuse_long
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.record import RecordParser, Values

LIBRARY_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""Raised by pyarrow on damaged files, as tests/inputs/test_fuzz.py shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedBatch:
    """A record batch, and the index of its first row."""

    first: int
    batch: pa.RecordBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The Python values of consecutive rows, by column. `first` is the index of the first row."""

    first: int
    rows: int
    texts: list[Any]
    systems: list[Any]
    ids: list[Any]
    samplings: list[Any]
    tools: list[Any]
    kept: list[list[Any]]

    def iterate_values(self) -> Iterator[Values]:
        """Yield the values of each row, without the kept columns."""
        columns = (self.texts, self.systems, self.ids, self.samplings, self.tools)
        return map(Values._make, zip(*columns, strict=True))


def open_parquet(path: Path) -> parquet.ParquetFile:
    """Open the file, which verifies page checksums. Raises LIBRARY_ERRORS if its footer is damaged."""
    # Without pre-buffering a column chunk is read by pages, which bounds memory for huge row groups.
    file = parquet.ParquetFile(
        path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )
    groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    # pyarrow does not validate these numbers; they can be negative.
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise ValueError(f"its footer counts {file.metadata.num_rows} rows, its row groups {sum(groups)}")
    return file


def iterate_batches(
    path: Path, file: parquet.ParquetFile, used: Sequence[str], first: int, stop: int
) -> Iterator[LocatedBatch]:
    """Yield the columns `used` of the rows `first` to `stop` (excluded), from the row group of `first` on."""
    groups = file.metadata.num_row_groups
    group, start = 0, 0
    while group < groups and start + file.metadata.row_group(group).num_rows <= first:
        start += file.metadata.row_group(group).num_rows
        group += 1
    # Columns that only a template asks about may be missing.
    columns = [name for name in used if name in file.schema_arrow.names]
    for number in range(group, groups):
        rows = choose_batch_rows(path, file.metadata.row_group(number), columns, number)
        for batch in file.iter_batches(
            batch_size=rows, row_groups=[number], columns=columns, use_threads=False
        ):
            end = start + batch.num_rows
            if end > first:
                from_, to = max(first, start), min(stop, end)
                yield LocatedBatch(first=from_, batch=batch.slice(from_ - start, to - from_))
            start = end
            if start >= stop:
                return


def convert_batch(
    batch: pa.RecordBatch, first: int, columns: Columns, kept: Sequence[KeptColumn] = ()
) -> Batch:
    """Return the Python values of `batch`, those of `kept` columns in the types of all files together.

    Raises ValueError if a value has no Python counterpart.
    """
    unified = dict(zip(columns.keep, kept, strict=False))

    def get(name: str) -> pa.Array:
        return batch.column(batch.schema.get_field_index(name))

    def values(name: str | None, list_all: Callable[[pa.Array], list[Any]] = list_decoded) -> list[Any]:
        if name is None:
            return [None] * batch.num_rows
        try:
            return list_all(get(name))
        except (ValueError, OverflowError) as exc:
            raise ValueError(f"column {name!r}: {describe_error(exc)}") from exc

    def texts(name: str | None) -> list[Any]:
        found = values(name)
        # A struct of tool calls has the names of all tools' arguments.
        is_nested = name is not None and has_nested_fields(batch.schema.field(name).type)
        return [leave_out_nulls(value) for value in found] if is_nested else found

    def list_kept(name: str) -> list[Any]:
        column = unified.get(name)
        return values(name, lambda array: list_values(array if column is None else cast_kept(array, column)))

    reads = [name for name in columns.reads if name in batch.schema.names]
    return Batch(
        first=first,
        rows=batch.num_rows,
        texts=_join(texts, reads, batch.num_rows) if columns.reads else texts(columns.text),
        systems=values(columns.system),
        ids=values(columns.id),
        samplings=values(columns.sampling),
        tools=[leave_out_nulls(value) for value in values(columns.tools)],
        kept=[list_kept(name) for name in columns.keep],
    )


def _join(values: Callable[[str], list[Any]], names: list[str], rows: int) -> list[Any]:
    """Return a mapping of the named columns' values for each row."""
    if not names:
        return [{} for _ in range(rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*map(values, names), strict=True)]


def make_rows(located: LocatedBatch, scan: Scan, parser: RecordParser, max_row_bytes: int) -> Iterator[Row]:
    """Yield the rows of a batch that a scan has checked.

    Raises RowFault or ValueError if a value has changed; bad rows that fail are yielded.
    """
    start, size = located.first, located.batch.num_rows
    fails = scan.columns.bad_rows == "fail"
    numbers = scan.duplicates.list_numbers(start, start + size)
    try:
        if fails:
            refuse_long(located.batch, max_row_bytes)
        batch = convert_batch(located.batch, start, scan.columns, scan.kept)
    except ValueError as exc:
        if not fails:
            raise
        if size == 1:
            yield parser.make_bad_row(
                describe_error(exc), None, index=start, occurrence=numbers[0], line=start + 1
            )
        else:
            for offset in range(size):
                alone = LocatedBatch(first=start + offset, batch=located.batch.slice(offset, 1))
                yield from make_rows(alone, scan, parser, max_row_bytes)
        return
    names = [column.name for column in scan.kept]
    kept = zip(*batch.kept, strict=True) if names else repeat((), size)
    for index, values, occurrence, own in zip(
        range(start, start + size), batch.iterate_values(), numbers, kept, strict=True
    ):
        try:
            yield parser.make_row(
                values,
                index=index,
                occurrence=occurrence,
                kept=dict(zip(names, own, strict=True)) if names else {},
                line=index + 1,
            )
        except RowFault as fault:
            if not fails:
                raise
            yield parser.make_bad_row(
                str(fault), values.identifier, index=index, occurrence=occurrence, line=index + 1
            )


def describe_error(exc: BaseException) -> str:
    """Return the first line of an error's text: pyarrow appends its own stack."""
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
