"""Which column gives what."""

from pathlib import Path

import pyarrow as pa
import pytest

from synthia_batch.errors import UsageError
from synthia_batch.inputs.base import Columns, Selection
from synthia_batch.inputs.readers.json_types import KindTracker, convert_kept
from synthia_batch.inputs.readers.kept_types import parse_kept_type
from synthia_batch.inputs.records.columns import resolve_columns
from synthia_batch.storage.parts.schema import kept_type

PATH = Path("rows.jsonl")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["text", "input", "instruction", "question", "prompt"], "prompt"),
        (["text", "input", "instruction", "question"], "question"),
        (["text", "input", "instruction"], "instruction"),
        (["text", "input"], "input"),
        (["other", "text"], "text"),
    ],
)
def test_the_prompt_column_is_detected_in_a_fixed_order(names: list[str], found: str) -> None:
    assert resolve_columns(Selection(), names, PATH).prompt == found


def test_messages_come_before_any_prompt() -> None:
    columns = resolve_columns(Selection(), ["prompt", "messages"], PATH)
    assert (columns.messages, columns.prompt) == ("messages", None)
    named = resolve_columns(Selection(prompt_column="prompt"), ["prompt", "messages"], PATH)
    assert (named.messages, named.prompt) == (None, "prompt")


def test_a_column_is_read_once_however_often_it_is_used() -> None:
    columns = Columns(prompt="a", messages=None, system="b", id="a", keep=("c", "a"))
    assert columns.used == ("a", "b", "c")


def test_keeping_the_id_column_called_id_is_no_more_than_having_it() -> None:
    selection = Selection(id_column="id", keep_columns=("id", "prompt"))
    assert resolve_columns(selection, ["prompt", "id"], PATH).keep == ("prompt",)


def test_the_names_shown_are_few_and_printable() -> None:
    names = [f"column-{number}" for number in range(100)]
    with pytest.raises(UsageError, match="and 71 more"):
        resolve_columns(Selection(), ["\ud800\n", *names], PATH)
    with pytest.raises(UsageError) as caught:
        resolve_columns(Selection(prompt_column="\udc80"), ["\ud800\n"], PATH)
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        (["a", None], "string", ["a", None]),
        ([1, None, -(2**63)], "int64", [1, None, -(2**63)]),
        ([1, 0.5], "double", [1.0, 0.5]),
        ([True, None], "bool", [True, None]),
        ([True, 1], "json", [True, 1]),
        ([2**53 + 1, 0.5], "json", [2**53 + 1, 0.5]),
        (["a", 1], "json", ["a", 1]),
        ([{"a": 1}, [2]], "json", [{"a": 1}, [2]]),
        ([{"a": 1}, {}], "json", [{"a": 1}, {}]),
        ([[], {}], "json", [[], {}]),
        ([[1], ["a"]], "json", [[1], ["a"]]),
        ([[2**53 + 1], [0.5]], "json", [[2**53 + 1], [0.5]]),
        ([[2**63]], "json", [[2**63]]),
        ([{}], "json", [{}]),
        ([{str(number): 1 for number in range(1001)}], "json", [{str(number): 1 for number in range(1001)}]),
        ([["a"], 1], "json", [["a"], 1]),
        ([None, None], "string", [None, None]),
    ],
)
def test_the_type_of_a_kept_column_is_that_of_all_its_values(
    values: list[object], kind: str, kept: list[object]
) -> None:
    tracker = KindTracker(["x"])
    for value in values:
        tracker.take({"x": value})
    (column,) = tracker.resolve()
    assert column.type == kind
    converted = [convert_kept({"x": value}, ["x"], [column])["x"] for value in values]
    assert [(type(value), value) for value in converted] == [(type(value), value) for value in kept]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([["a"], None, []], pa.list_(pa.string())),
        ([[]], pa.list_(pa.string())),
        ([[1], [0.5, None]], pa.list_(pa.float64())),
        ([[2**53 + 1], [-1]], pa.list_(pa.int64())),
        ([[[True]], [[]]], pa.list_(pa.list_(pa.bool_()))),
        (
            [{"a": 1, "b": None}, {"b": "x", "a": None}],
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
        ),
        (
            [[{"n": {"x": 0.5}}], [{"n": None}, {"n": {"x": 2}}]],
            pa.list_(pa.struct([("n", pa.struct([("x", pa.float64())]))])),
        ),
    ],
)
def test_lists_and_objects_that_agree_have_an_arrow_type(values: list[object], type_: pa.DataType) -> None:
    tracker = KindTracker(["x"])
    for value in values:
        tracker.take({"x": value})
    (column,) = tracker.resolve()
    assert parse_kept_type(column) == type_
    assert kept_type(column) == type_
    converted = [convert_kept({"x": value}, ["x"], [column])["x"] for value in values]
    assert pa.array(converted, type_).to_pylist() == values
