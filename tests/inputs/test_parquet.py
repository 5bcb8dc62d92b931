"""Parquet: its types, its damage, its row groups."""

import datetime
import decimal
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from reading import list_faults, read_all, scan

from synthia_batch.core.types import KeptColumn, Message, RowSampling
from synthia_batch.errors import UsageError
from synthia_batch.inputs.readers.kept_types import make_kept_column
from synthia_batch.inputs.readers.parquet import ParquetSource
from synthia_batch.inputs.readers.parquet_limits import choose_batch_rows
from synthia_batch.storage.parts.schema import data_schema, kept_storage, kept_type

DAY = datetime.datetime(2026, 11, 21, 6, 36, 1, 123456)


def encode_kept(column: KeptColumn, values: list[Any]) -> pa.Array:
    """As the output does."""
    return pa.array(values, kept_storage(column)).cast(kept_type(column))


def write(tmp_path: Path, table: pa.Table, **options: Any) -> Path:
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_a_prompt_can_be_of_any_text_type(tmp_path: Path, type_: pa.DataType) -> None:
    texts = ["é", "b", "é"]
    path = write(tmp_path, pa.table({"prompt": pa.array(texts).cast(type_)}))
    assert [row.messages[0].content for row in read_all(path)] == texts


@pytest.mark.parametrize("type_", [pa.int64(), pa.binary(), pa.list_(pa.string()), pa.null()], ids=str)
def test_a_prompt_of_another_type_is_refused_by_the_schema(tmp_path: Path, type_: pa.DataType) -> None:
    path = write(tmp_path, pa.table({"prompt": pa.array([None], type_)}))
    (fault,) = list_faults(path)
    assert fault == f"{path}: column 'prompt' must be a string, not {_read_back(type_)}"


def _read_back(type_: pa.DataType) -> str:
    return str(type_).replace("item", "element")


@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list, lambda item: pa.list_(item, 1)])
def test_messages_can_be_of_any_list_type(tmp_path: Path, make_list: Any) -> None:
    item = pa.struct([("content", pa.large_string()), ("role", pa.string()), ("name", pa.string())])
    rows = [[{"role": "user", "content": "Why?"}], [{"role": "user", "content": "How?"}]]
    path = write(tmp_path, pa.table({"messages": pa.array(rows, make_list(item))}))
    assert [row.messages[0].content for row in read_all(path)] == ["Why?", "How?"]


def test_messages_can_have_text_parts(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "Why"}, {"type": "text", "text": "not?"}]
    path = write(tmp_path, pa.table({"messages": [[{"role": "user", "content": content}]]}))
    assert read_all(path)[0].messages[0].content == "Why\nnot?"


def test_messages_of_another_type_are_refused_by_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"messages": [[{"role": "user"}]]}))
    assert "must be a list of structs with role and content" in list_faults(path)[0]


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint64(), pa.int64()], ids=str)
def test_integer_ids_become_text(tmp_path: Path, type_: pa.DataType) -> None:
    path = write(tmp_path, pa.table({"prompt": ["a", "b"], "qid": pa.array([7, 8], type_)}))
    assert [row.id for row in read_all(path, id_column="qid")] == ["7", "8"]


KEPT: list[tuple[pa.DataType, Any]] = [
    (pa.null(), None),
    (pa.bool_(), True),
    (pa.int8(), -5),
    (pa.uint64(), 2**64 - 1),
    (pa.float32(), 0.1),
    (pa.float64(), 0.1),
    (pa.decimal128(10, 2), decimal.Decimal("1.25")),
    (pa.string(), "é"),
    (pa.large_string(), "é"),
    (pa.binary(), b"\xff"),
    (pa.binary(2), b"\xff\x00"),
    (pa.date32(), DAY.date()),
    (pa.time32("ms"), datetime.time(1, 2, 3, 4000)),
    (pa.time64("us"), datetime.time(1, 2, 3, 4)),
    (pa.timestamp("us"), DAY),
    (pa.timestamp("us", "Europe/Berlin"), DAY.replace(tzinfo=datetime.UTC)),
    (pa.duration("us"), datetime.timedelta(microseconds=5)),
    (pa.list_(pa.int16()), [1, None]),
    (pa.large_list(pa.string()), ["a"]),
    (pa.struct([("a", pa.int8()), ("b", pa.list_(pa.string()))]), {"a": 1, "b": ["x"]}),
    (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    (pa.decimal256(50, 2), decimal.Decimal("1.25")),
    (pa.float16(), 1.5),
    (pa.timestamp("ns"), 1_795_000_000_123_456_789),
    (pa.timestamp("ns", "Europe/Berlin"), 1_795_000_000_123_456_789),
    (pa.timestamp("us", "Mars/Olympus"), 5),
    (pa.time64("ns"), 86_399_999_999_999),
    (pa.duration("ns"), -7),
    (pa.list_(pa.timestamp("ns")), [-1, None]),
    (pa.struct([("a", pa.struct([("b", pa.duration("ns"))]))]), {"a": {"b": 3}}),
    (pa.map_(pa.string(), pa.time64("ns")), [("a", 1)]),
    (pa.uuid(), bytes(range(16))),
    (pa.json_(), '{"a": [1, null]}'),
]


@pytest.mark.parametrize(("type_", "value"), KEPT, ids=lambda value: str(value)[:30])
def test_a_kept_column_keeps_its_type_and_its_values(tmp_path: Path, type_: pa.DataType, value: Any) -> None:
    column = pa.array([value, None], type_)
    path = write(tmp_path, pa.table({"prompt": ["a", "b"], "x": column}))
    found = scan(path, keep_columns=("x",))
    kept_type = data_schema(found.kept).field("x").type
    values = [row.kept["x"] for row in read_all(path, keep_columns=("x",))]
    assert pa.array(values, kept_type).cast(type_).equals(column)
    assert kept_type == type_
    assert encode_kept(found.kept[0], values).equals(column)


def test_a_kept_dictionary_is_kept_as_its_values(tmp_path: Path) -> None:
    column = pa.array(["x", None, "x"]).dictionary_encode()
    path = write(tmp_path, pa.table({"prompt": ["a", "b", "c"], "x": column}))
    assert [column.type for column in scan(path, keep_columns=("x",)).kept] == ["string"]
    assert [row.kept["x"] for row in read_all(path, keep_columns=("x",))] == ["x", None, "x"]


@pytest.mark.parametrize(
    ("type_", "kept_type", "value"),
    [
        (pa.list_view(pa.int64()), pa.list_(pa.int64()), [1, None]),
        (pa.large_list_view(pa.string()), pa.large_list(pa.string()), ["a"]),
        (pa.list_(pa.string_view()), pa.list_(pa.string()), ["a"]),
        (pa.bool8(), pa.int8(), 1),
        (pa.fixed_shape_tensor(pa.int32(), [2]), pa.list_(pa.int32()), [1, 2]),
    ],
    ids=str,
)
def test_other_types_are_kept_as_plain_ones(
    tmp_path: Path, type_: pa.DataType, kept_type: pa.DataType, value: Any
) -> None:
    storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    path = write(tmp_path, pa.table({"prompt": ["a"], "x": pa.array([value], storage).cast(type_)}))
    assert data_schema(scan(path, keep_columns=("x",)).kept).field("x").type == kept_type
    assert read_all(path, keep_columns=("x",))[0].kept["x"] == value


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda item: pa.struct([("a", item)])])
def test_json_within_lists_and_structs_is_kept(tmp_path: Path, make: Any) -> None:
    value: Any = {"a": '{"b": 1}'} if pa.types.is_struct(make(pa.string())) else ['{"b": 1}', None]
    column = pa.array([value, None], make(pa.string())).cast(make(pa.json_()))
    path = write(tmp_path, pa.table({"prompt": ["a", "b"], "x": column}))
    found = scan(path, keep_columns=("x",))
    values = [row.kept["x"] for row in read_all(path, keep_columns=("x",))]
    assert encode_kept(found.kept[0], values).type == make(pa.json_())
    assert values == [value, None]


def test_a_column_without_exact_python_values_cannot_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": ["a"], "x": pa.array([{"a": 1}])}))
    # Parquet itself has none of the types that cannot be kept but this one.
    twice = pa.struct([("a", pa.int8()), ("a", pa.int8())])
    assert make_kept_column(pa.field("x", twice)) is None
    assert make_kept_column(pa.field("x", pa.month_day_nano_interval())) is None
    assert scan(path, keep_columns=("x",)).rows == 1


def make_json(values: list[Any]) -> pa.Array:
    return pa.array([json.dumps(value) for value in values]).cast(pa.json_())


def make_json_lists(values: list[list[Any]]) -> pa.Array:
    texts = [[json.dumps(item) for item in value] for value in values]
    return pa.array(texts).cast(pa.list_(pa.json_()))


def test_read_columns_of_json_are_decoded(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    talk += [{"role": "user", "content": "How?"}]
    wanted = [Message(turn["role"], turn["content"]) for turn in talk]
    for column in (make_json([talk]), make_json_lists([talk])):
        path = write(tmp_path, pa.table({"messages": column}))
        assert list(read_all(path)[0].messages) == wanted
    path = write(tmp_path, pa.table({"prompt": make_json(["Why?"]), "tone": make_json([None])}))
    (row,) = read_all(path, system_column="tone")
    assert (row.messages[0].content, row.system) == ("Why?", None)
    path = write(tmp_path, pa.table({"turns": make_json_lists([["Why?", "How?"]])}))
    assert read_all(path)[0].follow_ups == ("How?",)
    broken = pa.array(["{"]).cast(pa.json_())
    assert (
        "row 1: column 'prompt': not valid JSON"
        in list_faults(write(tmp_path, pa.table({"prompt": broken})))[0]
    )


def test_optional_columns_may_be_null_in_a_whole_file(tmp_path: Path) -> None:
    empty = pa.nulls(1)
    path = write(tmp_path, pa.table({"prompt": ["a"], "tone": empty, "draw": empty, "tools": empty}))
    (row,) = read_all(path, system_column="tone", sampling_column="draw", tools_column="tools")
    assert (row.system, row.sampling, row.tools) == (None, RowSampling(values={}), ())


def test_invalid_utf_8_is_refused_by_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"b\xff", b"c", b"\xed\xa0\x80"], pa.binary()).view(pa.string())
    path = write(tmp_path, pa.table({"prompt": texts}))
    faults = list_faults(path)
    assert [fault.removeprefix(f"{path}: ").split(":")[0] for fault in faults] == ["row 2", "row 4"]
    assert "UTF8" in faults[0]


def test_a_date_beyond_pythons_is_refused_by_its_row(tmp_path: Path) -> None:
    days = pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32())
    path = write(tmp_path, pa.table({"prompt": ["a", "b"], "x": days}))
    assert list_faults(path, keep_columns=("x",))[0].startswith(f"{path}: row 2: column 'x'")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": pa.array([], pa.string())}))
    assert list_faults(path) == [f"{path}: there are no rows"]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": [f"Question {number}" for number in range(500)]}))
    content = path.read_bytes()
    for size in (1, 4, 12, len(content) // 2, len(content) - 9, len(content) - 1):
        path.write_bytes(content[:size])
        assert "not a readable Parquet file, or damaged" in list_faults(path)[0]


def test_a_footer_that_counts_less_than_no_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": ["a"] * 60}))
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    place = content.index(b"\x16\x78", footer)  # Thrift's i64, zigzag: 60, first of all in num_rows.
    path.write_bytes(content[:place] + b"\x16\x77" + content[place + 2 :])
    assert "its footer counts -60 rows, its row groups 60" in list_faults(path)[0]


def test_a_flipped_bit_is_found_by_the_page_checksum(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"Question {number}" for number in range(500)]})
    path = write(tmp_path, table, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[content.index(b"Question 250") + 2] ^= 1
    path.write_bytes(content)
    assert "damaged" in list_faults(path)[0]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    with pytest.raises(UsageError, match="several columns are named 'prompt'"):
        scan(write(tmp_path, table))


def test_a_name_with_a_dot_is_a_name(tmp_path: Path) -> None:
    table = pa.table({"a": [{"b": 1}], "a.b": ["x"], "prompt": ["p"]})
    path = write(tmp_path, table)
    (row,) = read_all(path, keep_columns=("a.b", "a"))
    assert row.kept == {"a.b": "x", "a": {"b": 1}}


def test_only_the_row_groups_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, pa.table({"prompt": [f"q{number}" for number in range(1000)]}), row_group_size=100)
    found = scan(path)
    asked: list[list[int]] = []
    original = parquet.ParquetFile.iter_batches

    def iter_batches(self: Any, *, row_groups: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        asked.append(list(row_groups))
        return original(self, row_groups=row_groups, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    source = ParquetSource(path)
    rows = [*source.read_rows(found, 730, 790), *source.read_rows(found, 790, 900)]
    assert [row.messages[0].content for row in rows] == [f"q{number}" for number in range(730, 900)]
    assert asked == [[7], [8]]


def test_long_rows_are_read_few_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": ["x" * 2**20 + str(number) for number in range(20)]}))
    assert choose_batch_rows(path, parquet.read_metadata(path).row_group(0), ["prompt"], 0) <= 8
    assert len(read_all(path)) == 20
