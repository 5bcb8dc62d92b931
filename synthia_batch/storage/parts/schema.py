"""The output's columns, written once: everything that lists columns derives from the tables here.

A new column is a line in DATA_COLUMNS or FAILED_COLUMNS and a new `job.identity.OUTPUT_FORMAT`; one of
data/ also gets a field of the public FinishedSample. tests/storage/test_schema_golden.py checks all three.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import pyarrow as pa

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Failed, Finished, KeptColumn, Message, Sample
from synthia_batch.storage.parts.logprobs import LOGPROBS

_TEXT, _INT, _LONG = pa.string(), pa.int32(), pa.int64()
MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_ROLES = "messages.list.element.role"
_KEPT_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
}


@dataclass(frozen=True, slots=True)
class DataRecord:
    """A row of data/: a sample and its result."""

    sample: Sample
    finished: Finished


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A row of failed/: a sample and the reason of its failure."""

    sample: Sample
    failed: Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a run have in common.

    `model` fills data's column of that name, `source_file` failed's; where the input is several files,
    `source_files` has the names of all. `optional` names the optional columns that data/ has. `metadata`
    is written into every file's schema: it must not depend on time, host, worker or attempt.
    """

    model: str
    source_file: str
    source_files: tuple[str, ...] = ()
    kept: tuple[KeptColumn, ...] = ()
    optional: tuple[str, ...] = ()
    metadata: Mapping[str, str]

    def name_source(self, sample: Sample) -> str:
        """Return the name of the input file that has the sample's row."""
        return self.source_files[sample.row.file] if self.source_files else self.source_file


def _join_messages(record: DataRecord) -> tuple[Message, ...]:
    finished = record.finished
    return record.sample.complete(finished.earlier, finished.response)


def _encode_messages(record: DataRecord) -> str:
    messages, called = _join_messages(record), record.finished.called
    if called is not None:
        messages = (*messages[:-1], called)
    return json.dumps([message.to_dict() for message in messages], ensure_ascii=False)


RecordT = TypeVar("RecordT", DataRecord, FailedRecord)


@dataclass(frozen=True, slots=True)
class OutputColumn(Generic[RecordT]):
    """One column. `get` returns a row's value; `meaning` is the column's text in the dataset card.

    `present_if` is the job's setting, as a dotted key, without which there is no such column; `or_if` is
    another one that suffices.
    `dictionary` is the path of the column's values that repeat, which are dictionary-encoded.
    """

    name: str
    type: pa.DataType
    get: Callable[[RecordT, PartFormat], object]
    meaning: str
    present_if: str | None = None
    or_if: str | None = None
    dictionary: str | None = None


# fmt: off
DATA_COLUMNS: tuple[OutputColumn[DataRecord], ...] = (
    OutputColumn("id", _TEXT, lambda record, _: record.sample.row.id,
                 "the row's id: the input's own, or a hash of its content"),
    OutputColumn("row_index", _LONG, lambda record, _: record.sample.row.index,
                 "which row of the input, counted from 0"),
    OutputColumn("sample_index", _INT, lambda record, _: record.sample.index,
                 "which of the samples of a row and system message, counted from 0"),
    OutputColumn("system", _TEXT, lambda record, _: record.sample.system,
                 "the system message, by name", dictionary="system"),
    OutputColumn("messages", MESSAGES, lambda record, _: _join_messages(record),
                 "the whole conversation, the answer last", dictionary=_ROLES),
    OutputColumn("response", _TEXT, lambda record, _: record.finished.response,
                 "the answer alone"),
    OutputColumn("reasoning", _TEXT, lambda record, _: record.finished.reasoning,
                 "what the model thought before it answered, where it marks that"),
    OutputColumn("finish_reason", _TEXT, lambda record, _: record.finished.finish_reason,
                 "`stop`: ended by itself; `length`: cut off", dictionary="finish_reason"),
    OutputColumn("prompt_tokens", _INT, lambda record, _: record.finished.prompt_tokens,
                 "tokens of the prompt; of a conversation, of all its turns"),
    OutputColumn("completion_tokens", _INT, lambda record, _: record.finished.completion_tokens,
                 "tokens generated; of a conversation, in all its turns"),
    OutputColumn("seed", _LONG, lambda record, _: record.sample.seed,
                 "of the sample, from the job's seed and its place"),
    OutputColumn("model", _TEXT, lambda _, part_format: part_format.model,
                 "what answered", dictionary="model"),
    OutputColumn("flags", pa.list_(_TEXT), lambda record, _: record.finished.flags,
                 "what was found of those that were looked for; empty where nothing was", present_if="flags"),
    OutputColumn("logprobs", LOGPROBS, lambda record, _: record.finished.logprobs,
                 "log-probabilities of the last answer's tokens, and of the likeliest in their places",
                 present_if="sampling.logprobs", or_if="input.columns.logprobs"),
    OutputColumn("messages_json", _TEXT, lambda record, _: _encode_messages(record),
                 "`messages` as JSON, with their other fields, such as tool calls",
                 present_if="input.columns.message_fields", or_if="engine.tool_call_parser"),
    OutputColumn("prefill", _TEXT, lambda record, _: record.sample.prefill,
                 "the start of the answer that the row gave; `response` follows it",
                 present_if="input.columns.final"),
    OutputColumn("candidates", _INT, lambda record, _: record.finished.candidates,
                 "how many answers were generated until this one was accepted", present_if="accept"),
)
"""Our columns of data/, in order. Columns kept from the input follow them."""

FAILED_COLUMNS: tuple[OutputColumn[FailedRecord], ...] = (
    OutputColumn("id", _TEXT, lambda record, _: record.sample.row.id, "as in data/"),
    OutputColumn("row_index", _LONG, lambda record, _: record.sample.row.index, "as in data/"),
    OutputColumn("sample_index", _INT, lambda record, _: record.sample.index, "as in data/"),
    OutputColumn("code", _TEXT, lambda record, _: record.failed.code,
                 "the reason, by name", dictionary="code"),
    OutputColumn("message", _TEXT, lambda record, _: record.failed.message, "the reason, in words"),
    OutputColumn("messages", MESSAGES, lambda record, _: record.sample.join(record.failed.earlier),
                 "the conversation up to the question without an answer", dictionary=_ROLES),
    OutputColumn("source_file", _TEXT, lambda record, part_format: part_format.name_source(record.sample),
                 "the input file that has the row"),
    OutputColumn("source_line", _LONG, lambda record, _: record.sample.row.line,
                 "the row's line in that file, counted from 1"),
)
"""The columns of failed/, in order."""
# fmt: on

DATA_NAMES = tuple(column.name for column in DATA_COLUMNS if column.present_if is None)
"""Those of data/ that every run has."""
FAILED_NAMES = tuple(column.name for column in FAILED_COLUMNS)
RESULT_NAMES = tuple(name for name in DATA_NAMES if name in {field.name for field in fields(Finished)})
"""Those of data/ that hold a field of Finished unchanged."""
DICTIONARY_PATHS = sorted(
    {column.dictionary for column in DATA_COLUMNS if column.dictionary is not None}
    | {column.dictionary for column in FAILED_COLUMNS if column.dictionary is not None}
)


def list_optional(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the optional columns that data/ has, given a job's values or its identity."""
    return tuple(
        column.name
        for column in DATA_COLUMNS
        if any(key is not None and _is_set(settings, key) for key in (column.present_if, column.or_if))
    )


def list_data_columns(optional: Sequence[str]) -> list[OutputColumn[DataRecord]]:
    """Return our columns of data/, in order: those that every run has, and the `optional` ones."""
    return [column for column in DATA_COLUMNS if column.present_if is None or column.name in optional]


def data_schema(kept: Sequence[KeptColumn], optional: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of data/, in order, without metadata.

    Raises:
        UsageError: A kept column has the name of one of ours or of another, or an unknown type.
    """
    columns = [pa.field(column.name, column.type) for column in list_data_columns(optional)]
    columns += [pa.field(column.name, kept_type(column)) for column in kept]
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the output would have two columns {name!r}; rename that column of the input")
    return pa.schema(columns)


def failed_schema() -> pa.Schema:
    """Return the columns of failed/, in order, without metadata."""
    return pa.schema([pa.field(column.name, column.type) for column in FAILED_COLUMNS])


def kept_type(column: KeptColumn) -> pa.DataType:
    """Return the Arrow type of a kept column. Raises UsageError if it is unknown."""
    return _list_kept_types(column)[0]


def kept_storage(column: KeptColumn) -> pa.DataType:
    """Return the Arrow type that the values of a kept column have: of extension types, that of their storage.

    Raises UsageError if it is unknown.
    """
    return _list_kept_types(column)[-1]


def describe_features(kept: Sequence[KeptColumn]) -> dict[str, str]:
    """Return metadata with the datasets library's features of kept columns, empty if none has any."""
    features = {column.name: json.loads(column.feature) for column in kept if column.feature is not None}
    if not features:
        return {}
    return {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}


def _list_kept_types(column: KeptColumn) -> list[pa.DataType]:
    kind, _, serialized = column.type.partition(":")
    try:
        if kind == "arrow":
            return list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(serialized, validate=True))).types)
        return [_KEPT_TYPES[column.type]]
    except (KeyError, ValueError, IndexError, OSError, pa.ArrowException) as exc:
        raise UsageError(f"the kept column {column.name!r} has an unknown type, {column.type}") from exc


def _is_set(settings: Mapping[str, Any], key: str) -> bool:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value is not None and value != () and value != []
