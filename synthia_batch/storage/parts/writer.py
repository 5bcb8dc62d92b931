"""Parts: Parquet files that hold the same bytes for the same rows.

Every file of a run has the same explicit schema: inferred, a column that is all null in one file would
get another type there. Beside the rows, only the writer's options (see options) and the version of
pyarrow, which the format records, decide about the bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import pyarrow as pa
import pyarrow.parquet as pq

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import KeptColumn, Message
from synthia_batch.storage.layout import ROW_GROUP_ROWS
from synthia_batch.storage.parts.columns import digest_file
from synthia_batch.storage.parts.logprobs import LOGPROBS, encode_logprobs
from synthia_batch.storage.parts.options import WRITE_OPTIONS
from synthia_batch.storage.parts.row_digest import digest_rows
from synthia_batch.storage.parts.schema import (
    FAILED_COLUMNS,
    MESSAGES,
    DataRecord,
    FailedRecord,
    OutputColumn,
    PartFormat,
    RecordT,
    data_schema,
    describe_features,
    failed_schema,
    kept_storage,
    kept_type,
    list_data_columns,
)
from synthia_batch.storage.publish import EncodedPart


class PartEncoder(Generic[RecordT]):
    """Encodes a part from records in their order, a row group at a time.

    Memory: the encoded file, and the records of one row group a few times over. The text of one column
    may have up to 2 GiB in each row group, Arrow's limit for a string column.
    """

    def __init__(self, layout: "_Layout[RecordT]") -> None:
        self.rows = 0
        self._layout: _Layout[RecordT] = layout
        self._waiting: list[RecordT] = []
        self._table: Any = None
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None

    def add(self, record: RecordT) -> None:
        self.rows += 1
        self._waiting.append(record)
        if len(self._waiting) == ROW_GROUP_ROWS:
            self._write_group()

    def finish(self) -> EncodedPart | None:
        """Return the part, None if it has no rows."""
        if self._waiting:
            self._write_group()
        if self._writer is None:
            return None
        self._writer.close()
        content = self._sink.getvalue()
        last, self._table = self._table, None
        if last.num_rows == self.rows:
            digest = digest_rows(last)
        else:
            del last
            pa.default_memory_pool().release_unused()
            digest = digest_file(pa.BufferReader(content))
        return EncodedPart(content=memoryview(content).cast("B"), rows=self.rows, rows_digest=digest)

    def _write_group(self) -> None:
        layout = self._layout
        if self._writer is None:
            self._writer = open_writer(self._sink, layout.schema)
        # One chunk: pages must not depend on how the rows arrived.
        table = pa.Table.from_arrays(layout.encode(self._waiting), schema=layout.schema)
        self._table, self._waiting = table.combine_chunks(), []
        self._writer.write_table(self._table, ROW_GROUP_ROWS)


@dataclass(frozen=True, slots=True)
class _Layout(Generic[RecordT]):
    """The columns of a part, and the function that encodes them."""

    schema: pa.Schema
    encode: Callable[[Sequence[RecordT]], list[pa.Array]]


def open_data_part(part_format: PartFormat) -> PartEncoder[DataRecord]:
    columns = list_data_columns(part_format.optional)

    def encode(records: Sequence[DataRecord]) -> list[pa.Array]:
        kept = (_encode_kept(records, column) for column in part_format.kept)
        return [*_encode_columns(columns, records, part_format), *kept]

    schema = describe_data(part_format.kept, part_format.optional, part_format.metadata)
    return PartEncoder(_Layout(schema, encode))


def open_failed_part(part_format: PartFormat) -> PartEncoder[FailedRecord]:
    def encode(records: Sequence[FailedRecord]) -> list[pa.Array]:
        return _encode_columns(FAILED_COLUMNS, records, part_format)

    return PartEncoder(_Layout(describe_failed(part_format.metadata), encode))


def encode_part(encoder: PartEncoder[RecordT], records: Iterable[RecordT]) -> EncodedPart:
    """Return the Parquet file of these samples, at least one, in their order."""
    for record in records:
        encoder.add(record)
    part = encoder.finish()
    if part is None:
        raise ValueError("a part needs at least one row")
    return part


def open_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a part in `sink`, to be written a row group at a time."""
    options = {name: value for name, value in WRITE_OPTIONS.items() if name != "row_group_size"}
    return pq.ParquetWriter(sink, schema, **options)


def describe_data(
    kept: Sequence[KeptColumn], optional: Sequence[str], metadata: Mapping[str, str]
) -> pa.Schema:
    """Return the schema of data/ with `metadata` and the features of the `kept` columns."""
    described = {**metadata, **describe_features(kept)}
    return data_schema(kept, optional).with_metadata(dict(sorted(described.items())))


def describe_failed(metadata: Mapping[str, str]) -> pa.Schema:
    return failed_schema().with_metadata(dict(sorted(metadata.items())))


def _encode_columns(
    columns: Sequence[OutputColumn[RecordT]], records: Sequence[RecordT], part_format: PartFormat
) -> list[pa.Array]:
    return [
        _encode_values([column.get(record, part_format) for record in records], column.type)
        for column in columns
    ]


def _encode_values(values: list[Any], kind: pa.DataType) -> pa.Array:
    encode = _ENCODERS.get(kind)
    return pa.array(values, kind) if encode is None else encode(values)


def _encode_messages(conversations: Sequence[Sequence[Message]]) -> pa.Array:
    # Flat arrays and offsets: ten times as fast as a list of lists of dicts.
    offsets = [0]
    for conversation in conversations:
        offsets.append(offsets[-1] + len(conversation))
    turns = [turn for conversation in conversations for turn in conversation]
    structs = pa.StructArray.from_arrays(
        [
            pa.array([turn.role for turn in turns], pa.string()),
            pa.array([turn.content for turn in turns], pa.string()),
        ],
        names=["role", "content"],
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=MESSAGES)


_ENCODERS: dict[pa.DataType, Callable[[list[Any]], pa.Array]] = {
    MESSAGES: _encode_messages,
    LOGPROBS: encode_logprobs,
}


def _encode_kept(records: Sequence[DataRecord], column: KeptColumn) -> pa.Array:
    values = [record.sample.row.kept.get(column.name) for record in records]
    if column.type == "json":
        values = [None if value is None else _encode_json(value) for value in values]
    try:
        array = pa.array(values, kept_storage(column))
        return array if array.type == kept_type(column) else array.cast(kept_type(column))
    except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as exc:
        raise UsageError(
            f"the kept column {column.name!r} has a value that is no {column.type}: {exc}\n"
            "  fix the input, or leave the column out of --keep-columns"
        ) from exc


def _encode_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
