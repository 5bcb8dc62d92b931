"""Rows that other programs write in forms of their own: each is read, or refused with the way on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
CALL = {"name": "add", "arguments": {"a": 1}}
REASONED = [
    {"role": "user", "content": [{"type": "text", "value": "2 + 2?"}], "loss_weight": 0.0},
    {
        "role": "assistant",
        "content": [
            {"type": "reasoning", "value": "Two and two."},
            {"type": "text", "value": "I add."},
            {"type": "tool_call", "value": json.dumps(CALL)},
        ],
    },
    {"role": "tool", "content": [{"type": "text", "value": "4"}]},
]
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...], list[tuple[str, str]]]] = {
    "texts in turn": (
        {"data": ["Hi", "Yes", "And?", "No"]},
        (),
        [("user", "Hi"), ("assistant", "Yes"), ("user", "And?")],
    ),
    "a single text": ({"data": ["Hi"]}, (), [("user", "Hi")]),
    "pairs": (
        {"conversation": [{"human": "Hi", "assistant": "Yes"}, {"human": "And?", "assistant": "No"}]},
        ("--messages-column", "conversation"),
        [("user", "Hi"), ("assistant", "Yes"), ("user", "And?")],
    ),
    "pairs under the name of ShareGPT": (
        {"conversations": [{"human": "Hi", "assistant": ""}]},
        (),
        [("user", "Hi")],
    ),
    "pairs with a system message": (
        {"messages": [{"system": "Be brief.", "input": "Hi", "output": "Yes"}]},
        (),
        [("system", "Be brief."), ("user", "Hi")],
    ),
    "nested messages": (
        {"question": [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]]},
        ("--messages-column", "question"),
        [("system", "Be brief."), ("user", "Hi")],
    ),
    "parts of LLaMA-Factory": (
        {"messages": REASONED},
        (),
        [("user", "2 + 2?"), ("assistant", "I add."), ("tool", "4")],
    ),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_data() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table("out/data").to_pylist()
    return rows


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_read_in_the_form_that_it_has(capsys: Any, form: str, suffix: str) -> None:
    row, flags, expected = FORMS[form]
    if suffix == "parquet" and form == "parts of LLaMA-Factory":
        row = {"messages": json.dumps(row["messages"])}
        flags = ("--set", "input.message_fields=true")
    write_jsonl(Path("t.jsonl"), [row])
    pq.write_table(pa.Table.from_pylist([row]), "t.parquet")
    answer = call(capsys, "run", f"t.{suffix}", "-o", "out", *flags, *ENGINE)
    assert answer.code == 0, answer.err
    (made,) = read_data()
    assert [(turn["role"], turn["content"]) for turn in made["messages"][:-1]] == expected


def test_reasoning_and_calls_in_parts_are_fields_of_the_message(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"messages": REASONED}])
    answer = call(capsys, "run", "t.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    assert "keys of messages that are not used: loss_weight" in answer.err
    assert json.loads(read_data()[0]["messages_json"])[1] == {
        "role": "assistant",
        "content": "I add.",
        "reasoning_content": "Two and two.",
        "tool_calls": [{"type": "function", "function": CALL}],
    }


@pytest.mark.parametrize(("suffix", "is_text"), [("jsonl", False), ("jsonl", True), ("parquet", False)])
def test_nested_turns_are_asked_one_by_one(capsys: Any, suffix: str, is_text: bool) -> None:
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = {"question": [first, [{"role": "user", "content": "And?"}]]}
    write_jsonl(Path("t.jsonl"), [row])
    if suffix == "jsonl" and is_text:
        write_jsonl(Path("t.jsonl"), [{"question": json.dumps(row["question"])}])
    pq.write_table(pa.Table.from_pylist([row]), "t.parquet")
    refused = call(capsys, "run", f"t.{suffix}", "--messages-column", "question", *ENGINE)
    assert refused.code == 2
    assert "messages are 2 lists, each of one turn; --turns-column asks them one by one" in refused.err
    answer = call(capsys, "run", f"t.{suffix}", "-o", "out", "--turns-column", "question", *ENGINE)
    assert answer.code == 0, answer.err
    roles = [turn["role"] for turn in read_data()[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


BATCH = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "?"}]}, "tools": []}
REFUSED: list[tuple[str, str, tuple[str, ...], str]] = [
    (
        "rows.json",
        '{"version": 1, "the rows": [{"prompt": "a"}, {"prompt": "b"}]}',
        (),
        "if the rows are the entries of 'the rows', write each on a line: `jq -c '.[\"the rows\"][]' OLD",
    ),
    (
        "rows.json",
        '{"data": [{"prompt": "a"}]}',
        (),
        "write each on a line: `jq -c '.data[]' OLD > NEW.jsonl`",
    ),
    ("rows.json", '{\n"data": [\n{"prompt": "a"}]}', (), "`jq -c '.data[]' OLD > NEW.jsonl`"),
    ("rows.json", '{\n"version": 1}', (), "`jq -c '.NAME[]' OLD > NEW.jsonl` for rows under a name"),
    (
        "rows.json",
        '{"a": {"prompt": "x"}, "b": {"prompt": "y"}}',
        (),
        "by their ids, write each on a line: `jq -c 'to_entries[] | {id: .key} + .value' OLD > NEW.jsonl`",
    ),
    ("rows.json", '{\n"a": {"prompt": "x"}}', (), "for rows by their ids `jq -c 'to_entries[] | "),
    (
        "lists.jsonl",
        '[{"role": "user", "content": "a"}]\n[{"role": "user", "content": "b"}]\n',
        (),
        "If each line is the messages of one row, name them: `jq -c '{messages: .}' OLD > NEW.jsonl`",
    ),
    ("list.jsonl", '[{"role": "user", "content": "a"}]\n', (), "`jq -c '{messages: .}' OLD > NEW.jsonl`"),
    (
        "late.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}\n[{"role": "user", "content": "b"}]\n',
        (),
        "late.jsonl:2: a line must be a JSON object, not an array. If each line is the messages of one row",
    ),
    (
        "t.csv",
        "What is a fox?,animals\nWhy?,odd\n",
        (),
        "(columns: What is a fox?, animals) If its first line is a row, write a line with the columns' names",
    ),
    (
        "t.jsonl",
        '{"conversation": [{"human": "a", "assistant": "b"}]}\n',
        (),
        "--messages-column conversation",
    ),
    ("t.jsonl", '{"question": [[{"role": "user", "content": "a"}]]}\n', (), "(--messages-column question)"),
    (
        "b.jsonl",
        json.dumps(BATCH) + "\n",
        ("--tools-column", "tools"),
        "b.jsonl: the request bodies have their tools; omit --tools-column",
    ),
    (
        "t.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "reasoning", "value": "x"}]}]}\n',
        (),
        "message 1 has a part of type 'reasoning', and is not the assistant's",
    ),
]


@pytest.mark.parametrize(("name", "content", "flags", "message"), REFUSED)
def test_what_is_refused_says_how_to_go_on(
    capsys: Any, name: str, content: str, flags: tuple[str, ...], message: str
) -> None:
    Path(name).write_text(content)
    answer = call(capsys, "run", name, *flags, *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err, answer.err


def test_columns_that_look_like_settings_are_named_with_their_flag(capsys: Any) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.1, "n": 2, "sampling_params": {}}
    write_jsonl(Path("t.jsonl"), [{**row, "function": [], "topic": "x"}])
    answer = call(capsys, "run", "t.jsonl", *ENGINE)
    assert answer.code == 0, answer.err
    named = next(line for line in answer.err.splitlines() if "columns not used" in line)
    assert "temperature (a setting; --sampling-column takes an object of them)" in named
    assert "n (a setting; " in named
    assert "sampling_params (--sampling-column sampling_params)" in named
    assert "function (--tools-column function)" in named
    assert named.endswith(", topic")


def test_a_column_named_data_beside_a_prompt_changes_nothing(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"text": "Why?", "data": ["a", "b"]}])
    answer = call(capsys, "run", "t.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    assert read_data()[0]["messages"][0]["content"] == "Why?"
    assert "columns not used: data" in answer.err
