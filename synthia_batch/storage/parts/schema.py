"""Parts: Parquet files that hold the same bytes for the same rows.

One explicit schema for every file of a run, since a column that is all null in one file must not
get another type there. The writer's options are in parquet_options; the only other thing in the bytes
is the version of pyarrow, which the format itself records.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthia_batch.core.types import Failed, Finished, KeptColumn, Message, Sample
from synthia_batch.errors import IntegrityError, UsageError
from synthia_batch.storage.parts.logprobs import LOGPROBS, encode_logprobs
from synthia_batch.storage.parts.options import WRITE_OPTIONS
from synthia_batch.storage.parts.row_digest import digest_rows
from synthia_batch.storage.publish import EncodedPart

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FLAGS = pa.list_(pa.string())
_KEPT_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
}


@dataclass(frozen=True, slots=True)
class DataRecord:
    """A row of data/: a sample and what was made of it."""

    sample: Sample
    finished: Finished


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A row of failed/: a sample and why there is nothing of it."""

    sample: Sample
    failed: Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a run have in common.

    `model` fills data's column of that name, `source_file` failed's; where the input is several files,
    `source_files` has the names of all. `metadata` goes into every file's schema: it must not depend on
    time, host, worker or attempt. `has_flags`, `has_logprobs`: data/ has such a column.
    """

    model: str
    source_file: str
    source_files: tuple[str, ...] = ()
    kept: tuple[KeptColumn, ...] = ()
    has_flags: bool = False
    metadata: Mapping[str, str]
    has_logprobs: bool = False


def data_schema(
    kept: Sequence[KeptColumn], *, has_flags: bool = False, has_logprobs: bool = False
) -> pa.Schema:
    """Return the columns of data/, in order, without metadata.

    Raises:
        UsageError: A kept column has the name of one of ours or of another, or an unknown type.
    """
    fields = [
        pa.field("id", pa.string()),
        pa.field("row_index", pa.int64()),
        pa.field("sample_index", pa.int32()),
        pa.field("system", pa.string()),
        pa.field("messages", _MESSAGES),
        pa.field("response", pa.string()),
        pa.field("reasoning", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("model", pa.string()),
        *([pa.field("flags", _FLAGS)] if has_flags else []),
        *([pa.field("logprobs", LOGPROBS)] if has_logprobs else []),
        *(pa.field(column.name, _kept_type(column)) for column in kept),
    ]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the output would have two columns {name!r}: rename that column of the input")
    return pa.schema(fields)


def failed_schema() -> pa.Schema:
    """Return the columns of failed/, in order, without metadata."""
    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("row_index", pa.int64()),
            pa.field("sample_index", pa.int32()),
            pa.field("code", pa.string()),
            pa.field("message", pa.string()),
            pa.field("messages", _MESSAGES),
            pa.field("source_file", pa.string()),
            pa.field("source_line", pa.int64()),
        ]
    )


def encode_data_part(records: Sequence[DataRecord], part_format: PartFormat) -> EncodedPart:
    """Return the Parquet file of these finished samples, in their order.

    All text of one column together may have up to 2 GiB, Arrow's limit for a string column.

    Raises:
        UsageError: A kept value is not of its column's type.
        ValueError: There are no records: a file without rows breaks readers of datasets.
    """
    samples = [record.sample for record in records]
    finished = [record.finished for record in records]
    answers = [
        (*sample.join(made.earlier), Message("assistant", made.response))
        for sample, made in zip(samples, finished, strict=True)
    ]
    schema = data_schema(
        part_format.kept, has_flags=part_format.has_flags, has_logprobs=part_format.has_logprobs
    )
    logprobs = [made.logprobs for made in finished]
    columns = [
        *_identify(samples),
        _column(samples, "system", pa.string()),
        _encode_messages(answers),
        _column(finished, "response", pa.string()),
        _column(finished, "reasoning", pa.string()),
        _column(finished, "finish_reason", pa.string()),
        _column(finished, "prompt_tokens", pa.int32()),
        _column(finished, "completion_tokens", pa.int32()),
        _column(samples, "seed", pa.int64()),
        pa.repeat(pa.scalar(part_format.model, pa.string()), len(records)),
        *([_column(finished, "flags", _FLAGS)] if part_format.has_flags else []),
        *([encode_logprobs(logprobs)] if part_format.has_logprobs else []),
        *(_encode_kept(samples, column) for column in part_format.kept),
    ]
    return _encode(columns, schema, part_format)


def _name_sources(samples: Sequence[Sample], part_format: PartFormat) -> pa.Array:
    names = part_format.source_files
    if not names:
        return pa.repeat(pa.scalar(part_format.source_file, pa.string()), len(samples))
    return pa.array([names[sample.row.file] for sample in samples], pa.string())


def encode_failed_part(records: Sequence[FailedRecord], part_format: PartFormat) -> EncodedPart:
    """Return the Parquet file of these failed samples, in their order.

    Raises:
        ValueError: There are no records.
    """
    samples = [record.sample for record in records]
    failed = [record.failed for record in records]
    columns = [
        *_identify(samples),
        _column(failed, "code", pa.string()),
        _column(failed, "message", pa.string()),
        _encode_messages([record.sample.join(record.failed.earlier) for record in records]),
        _name_sources(samples, part_format),
        _column(samples, "row.line", pa.int64()),
    ]
    return _encode(columns, failed_schema(), part_format)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the file's rows, of all columns or of those named, with every page's checksum verified.

    The footer has no checksum of its own: only the SHA-256 in the ledger speaks for the whole file.

    Raises:
        IntegrityError: The file is missing, no Parquet, or a page was altered.
    """
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def holds_rows(path: Path, rows_digest: str) -> bool:
    """Whether the file can be read and holds the rows of that digest, in whatever bytes."""
    try:
        return digest_rows(read_part(path)) == rows_digest
    except (IntegrityError, pa.ArrowException, ValueError):  # Damage may be in a name, or in text.
        return False


def _encode(columns: Sequence[Any], schema: pa.Schema, part_format: PartFormat) -> EncodedPart:
    table = pa.Table.from_arrays(
        columns, schema=schema.with_metadata(dict(sorted(part_format.metadata.items())))
    )
    if table.num_rows == 0:
        raise ValueError("a part needs at least one row")
    sink = pa.BufferOutputStream()
    # One chunk, one call: how rows come in must not show in row groups and pages.
    pq.write_table(table.combine_chunks(), sink, **WRITE_OPTIONS)
    return EncodedPart(
        content=sink.getvalue().to_pybytes(), rows=table.num_rows, rows_digest=digest_rows(table)
    )


def _identify(samples: Sequence[Sample]) -> tuple[pa.Array, pa.Array, pa.Array]:
    return (
        _column(samples, "row.id", pa.string()),
        _column(samples, "row.index", pa.int64()),
        _column(samples, "index", pa.int32()),
    )


def _column(values: Iterable[object], attribute: str, kind: pa.DataType) -> pa.Array:
    get: Callable[[object], object] = attrgetter(attribute)
    return pa.array(list(map(get, values)), kind)


def _encode_messages(conversations: Sequence[Sequence[Message]]) -> pa.Array:
    # Flat arrays and offsets: ten times as fast as a list of lists of dicts.
    offsets = [0]
    for conversation in conversations:
        offsets.append(offsets[-1] + len(conversation))
    turns = [turn for conversation in conversations for turn in conversation]
    fields = [_column(turns, "role", pa.string()), _column(turns, "content", pa.string())]
    structs = pa.StructArray.from_arrays(fields, names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=_MESSAGES)


def _encode_kept(samples: Sequence[Sample], column: KeptColumn) -> pa.Array:
    values = [sample.row.kept.get(column.name) for sample in samples]
    if column.type == "json":
        values = [None if value is None else _encode_json(value) for value in values]
    try:
        return pa.array(values, _kept_type(column))
    except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as exc:
        raise UsageError(
            f"the kept column {column.name!r} has a value that is no {column.type}: {exc}\n"
            "  mend the input, or leave the column out of --keep-columns"
        ) from exc


def _encode_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _kept_type(column: KeptColumn) -> pa.DataType:
    kind, _, serialized = column.type.partition(":")
    try:
        if kind == "arrow":
            return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(serialized, validate=True))).field(0).type
        return _KEPT_TYPES[column.type]
    except (KeyError, ValueError, IndexError, OSError, pa.ArrowException) as exc:
        raise UsageError(f"the kept column {column.name!r} has an unknown type, {column.type}") from exc


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        raise IntegrityError(
            f"{path} cannot be read as a part: {exc}\n"
            "  `synthia-batch verify DIR --repair` drops a damaged part; the next run makes it again"
        ) from exc
