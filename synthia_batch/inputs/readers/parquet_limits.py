"""How much of a Parquet file is decoded at a time, and which of its rows are too long."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from synthia_batch.inputs.records.faults import describe_long_row

BATCH_ROWS = 1024
"""Maximum number of rows decoded at a time."""
BATCH_BYTES = 8 * 1024 * 1024
"""Fewer than BATCH_ROWS rows are decoded where their average would exceed this size."""
REPEATED_BYTES = 64 * 1024 * 1024
"""Fewer rows are decoded where each could hold the longest repeated value, and together exceed this size."""
READ_BUFFER_BYTES = 1024 * 1024
PAGE_HEADER_BYTES = 64 * 1024
"""More than the headers of all pages that one row can need."""


def choose_batch_rows(
    path: Path, group: parquet.RowGroupMetaData, columns: Sequence[str], number: int
) -> int:
    """Return the number of rows of a batch of the row group `number` of the file at `path`.

    A long value that repeats is once in the file, in a dictionary, but in memory in each of its rows.
    """
    width = group.total_byte_size // max(1, group.num_rows)
    rows: int = max(1, min(BATCH_ROWS, group.num_rows, BATCH_BYTES // max(1, width)))
    if rows < min(BATCH_ROWS, group.num_rows):
        return rows  # Its average row is long in the file, too: few repeat another.
    lengths = [
        _measure_dictionary(path, chunk.path_in_schema, number)
        for chunk in _list_chunks(group, columns)
        if chunk.has_dictionary_page and chunk.total_uncompressed_size * rows > REPEATED_BYTES
    ]
    return max(1, min(rows, REPEATED_BYTES // max(1, *lengths))) if lengths else rows


def find_long_group(metadata: parquet.FileMetaData, columns: Sequence[str], max_bytes: int) -> int | None:
    """Return the first row of a row group whose average row has over `max_bytes`, None if there is none."""
    start = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(chunk.total_uncompressed_size for chunk in _list_chunks(group, columns))
        if size > (max_bytes + PAGE_HEADER_BYTES) * group.num_rows:
            return start
        start += group.num_rows
    return None


def measure_row(batch: pa.RecordBatch) -> int:
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return sum(int(column.nbytes) for column in columns)


def refuse_long(batch: pa.RecordBatch, max_bytes: int) -> None:
    """Raise ValueError if a batch of over `max_bytes` has a long row, or several, to be looked at alone."""
    if batch.nbytes > max_bytes and (batch.num_rows > 1 or measure_row(batch) > max_bytes):
        raise ValueError(describe_long_row(max_bytes))


def _list_chunks(group: parquet.RowGroupMetaData, columns: Sequence[str]) -> Iterator[Any]:
    wanted = tuple(f"{name}." for name in columns)
    chunks = (group.column(number) for number in range(group.num_columns))
    return (chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(wanted))


def _measure_dictionary(path: Path, column: str, number: int) -> int:
    """Return the bytes of the longest text in the dictionary of a column chunk, 0 if it has other values."""
    with parquet.ParquetFile(
        path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, read_dictionary=[column]
    ) as file:
        batch = next(file.iter_batches(1, row_groups=[number], columns=[column], use_threads=False), None)
    values = batch.column(0) if batch is not None else None
    if values is None or not pa.types.is_dictionary(values.type) or not len(values.dictionary):
        return 0
    return int(pc.max(pc.binary_length(values.dictionary)).as_py() or 0)
