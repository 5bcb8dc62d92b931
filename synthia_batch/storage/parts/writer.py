"""Parts: Parquet files that hold the same bytes for the same rows.

Every file of a run has the same explicit schema: inferred, a column that is all null in one file would
get another type there. Beside the rows, only the writer's options (see options) and the version of
pyarrow, which the format records, decide about the bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthia_batch.core.types import KeptColumn, Message
from synthia_batch.errors import UsageError
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


def encode_data_part(records: Sequence[DataRecord], part_format: PartFormat) -> EncodedPart:
    """Return the Parquet file of these finished samples, in their order.

    The text of one column may have up to 2 GiB in total, Arrow's limit for a string column.
    """
    arrays = [
        *_encode_columns(list_data_columns(part_format.optional), records, part_format),
        *(_encode_kept(records, column) for column in part_format.kept),
    ]
    features = describe_features(part_format.kept)
    return _encode(arrays, data_schema(part_format.kept, part_format.optional), part_format, features)


def encode_failed_part(records: Sequence[FailedRecord], part_format: PartFormat) -> EncodedPart:
    """Return the Parquet file of these failed samples, in their order."""
    return _encode(_encode_columns(FAILED_COLUMNS, records, part_format), failed_schema(), part_format)


def _encode(
    arrays: Sequence[pa.Array],
    schema: pa.Schema,
    part_format: PartFormat,
    features: Mapping[str, str] | None = None,
) -> EncodedPart:
    metadata = dict(sorted({**part_format.metadata, **(features or {})}.items()))
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))
    if table.num_rows == 0:
        raise ValueError("a part needs at least one row")
    sink = pa.BufferOutputStream()
    # One chunk, one call: row groups and pages must not depend on how the rows arrived.
    pq.write_table(table.combine_chunks(), sink, **WRITE_OPTIONS)
    return EncodedPart(
        content=sink.getvalue().to_pybytes(), rows=table.num_rows, rows_digest=digest_rows(table)
    )


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
