"""Kept columns whose types differ between files: one type without loss, or a refusal that names both."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from inside import call
from pyarrow import parquet

from synthia_batch.core.types import InputFile
from synthia_batch.errors import UsageError
from synthia_batch.inputs import Scan, Selection, Source, open_files
from synthia_batch.storage.parts.schema import data_schema, kept_storage, kept_type

BIG = 2**53 + 1
YEAR_3000 = 32_503_680_000_000_000
CLASSES = {"names": ["good", "bad"], "_type": "ClassLabel"}


def write(folder: Path, number: int, values: Any) -> InputFile:
    """Write a file with the column x: Parquet of an array, JSONL of a list."""
    kind = "jsonl" if isinstance(values, list) else "parquet"
    path = folder / f"{number}.{kind}"
    if isinstance(values, list):
        rows = [{"prompt": f"{number} {at}", "x": value} for at, value in enumerate(values)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        prompts = [f"{number} {at}" for at in range(len(values))]
        parquet.write_table(pa.table({"prompt": prompts, "x": values}), path)
    return InputFile(path=path, kind=kind, shown=path.name, name=path.name)


def open_columns(folder: Path, *columns: Any) -> tuple[Source, Scan]:
    source = open_files([write(folder, number, values) for number, values in enumerate(columns)])
    return source, source.scan(Selection(keep_columns=("x",)), folder)


def read(folder: Path, *columns: Any) -> pa.Array:
    """Return the values of x of all files, as the output has them."""
    source, scan = open_columns(folder, *columns)
    values = [row.kept["x"] for row in source.read_rows(scan, 0, scan.rows)]
    (column,) = scan.kept
    return pa.array(values, kept_storage(column)).cast(kept_type(column))


@pytest.mark.parametrize(
    ("columns", "unified"),
    [
        ((pa.nulls(2), pa.array(["a"])), pa.array([None, None, "a"])),
        ((pa.array(["a"]), pa.array(["b", "c"]).dictionary_encode()), pa.array(["a", "b", "c"])),
        ((pa.array(["a"]), pa.array(["b"], pa.large_string())), pa.array(["a", "b"], pa.large_string())),
        ((pa.array([1, 2**53]), pa.array([0.5])), pa.array([1, 2**53, 0.5], pa.float64())),
        ((pa.array([1], pa.int8()), pa.nulls(1), pa.array([BIG])), pa.array([1, None, BIG])),
        ((pa.array([0.5], pa.float32()), pa.array([0.1])), pa.array([0.5, 0.1])),
        (
            (pa.array([[1]]), pa.array([[0.5]]), pa.array([[]], pa.list_(pa.null()))),
            pa.array([[1.0], [0.5], []]),
        ),
        (
            (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))),
            pa.array([1000, 1], pa.timestamp("ns")),
        ),
        (
            (pa.array([{"a": 1}]), pa.array([{"b": "x"}])),
            pa.array([{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ),
        ((pa.nulls(1), pa.array(["1"]).cast(pa.json_())), pa.array([None, "1"]).cast(pa.json_())),
        (([None], pa.array([1], pa.int8())), pa.array([None, 1], pa.int8())),
        (([1], pa.array([0.5])), pa.array([1.0, 0.5])),
        (([0.5], pa.array([1])), pa.array([0.5, 1.0])),
        (([1], pa.array([1], pa.int8())), pa.array([1, 1])),
        ((["a"], pa.array(["a"]).dictionary_encode()), pa.array(["a", "a"])),
        (([[]], pa.array([[1]])), pa.array([[], [1]])),
        (([[1, None]], pa.array([[0.5]])), pa.array([[1.0, None], [0.5]])),
        (
            ([{"a": 1, "b": None}], pa.array([{"a": 2, "b": "x"}])),
            pa.array([{"a": 1, "b": None}, {"a": 2, "b": "x"}]),
        ),
    ],
)
def test_types_are_unified_where_no_value_changes(
    tmp_path: Path, columns: tuple[Any, ...], unified: pa.Array
) -> None:
    for order in (columns, columns[::-1]):
        found = read(tmp_path, *order)
        assert len(found) == len(unified)
        assert all(value in found.to_pylist() for value in unified.to_pylist())
    assert read(tmp_path, *columns).equals(unified)


@pytest.mark.parametrize(
    ("columns", "types"),
    [
        ((pa.array([1]), pa.array(["a"])), ("int64", "string")),
        ((pa.array([BIG]), pa.array([0.5])), ("int64", "double")),
        ((pa.array([[BIG]]), pa.array([[0.5]])), ("list<", "double")),
        ((pa.array([BIG]), pa.array([0.5], pa.float32())), ("int64", "float")),
        ((pa.array(["a"]), pa.array([b"a"])), ("string", "binary")),
        ((pa.array(["1"]).cast(pa.decimal128(5, 2)), pa.array([0.1])), ("decimal128(5, 2)", "double")),
        (
            (pa.array([YEAR_3000], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))),
            ("[us]", "[ns]"),
        ),
        ((pa.array([2**63], pa.uint64()), pa.array([1])), ("uint64", "int64")),
        (
            (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
            ("[us]", "[us, tz=UTC]"),
        ),
        ((pa.array(["1"]).cast(pa.json_()), pa.array(["1"])), ("arrow.json", "string")),
        (([BIG], pa.array([0.5])), ("int64", "double")),
        (([{"a": 1}, {}], pa.array([{"a": 1}])), ("json", "struct")),
        (([{"a": "x"}], pa.array([{"a": 1}])), ("struct<a: string>", "struct<a: int64>")),
        (([[BIG]], pa.array([[0.5]])), ("list<item: int64>", "list<item: double>")),
        ((["a"], pa.array([1])), ("string", "int64")),
    ],
)
def test_types_that_would_lose_something_are_refused_by_file_column_and_both_types(
    tmp_path: Path, columns: tuple[Any, ...], types: tuple[str, str]
) -> None:
    for order in (columns, columns[::-1]):
        with pytest.raises(UsageError, match=r"column 'x' is .* here and .* no type holds both") as caught:
            open_columns(tmp_path, *order)
        message = str(caught.value)
        assert all(name in message for name in (*types, "0.", "1.")), message


def with_features(values: Any, features: dict[str, Any]) -> pa.Table:
    table = pa.table({"question": [f"Q {value} {features}" for value in values], "x": values})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_features_of_kept_columns_live_on_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    features = {"question": {"dtype": "string", "_type": "Value"}, "x": CLASSES}
    parquet.write_table(with_features(pa.array([1, 0]), features), "a.parquet")
    run = (
        "run",
        "a.parquet",
        "--engine",
        "scripted",
        "--pool",
        "local",
        "-q",
        "--keep-columns",
        "x",
        "-o",
        "out",
    )
    assert call(capsys, *run).code == 0
    (part,) = Path("out/data").iterdir()
    metadata = json.loads(parquet.read_schema(part).metadata[b"huggingface"])
    assert metadata == {"info": {"features": {"x": CLASSES}}}
    assert call(capsys, "verify", "out", "-q").code == 0
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(part), cache_dir=str(tmp_path / "c"), split="train"
    )
    assert loaded.features["x"].int2str(loaded["x"][:]) == ["bad", "good"]


def test_an_output_without_features_has_no_such_metadata(tmp_path: Path) -> None:
    _, scan = open_columns(tmp_path, pa.array([1]))
    assert scan.to_dict()["kept"] == [{"name": "x", "type": "int64"}]
    assert data_schema(scan.kept).metadata is None


def test_files_with_other_class_names_are_refused(tmp_path: Path) -> None:
    files = []
    for number, names in enumerate((["good", "bad"], ["bad", "good"])):
        path = tmp_path / f"{number}.parquet"
        feature = {"x": {"names": names, "_type": "ClassLabel"}}
        parquet.write_table(with_features(pa.array([1, 0]), feature), path)
        files.append(InputFile(path=path, kind="parquet", shown=path.name, name=path.name))
    selection = Selection(prompt_column="question", keep_columns=("x",))
    with pytest.raises(UsageError, match=r"1.parquet: column 'x' is .*\[\"bad\",\"good\"\].* in 0.parquet"):
        open_files(files).scan(selection, tmp_path)
