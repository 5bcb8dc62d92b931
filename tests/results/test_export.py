"""A finished dataset in other programs' shapes, read by those programs' own code."""

import csv
import gzip
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Command, command_of, write_jsonl
from openai.types.chat import ChatCompletion

from synthia_batch.errors import UsageError
from synthia_batch.results.export.formats import FORMATS
from synthia_batch.results.export.kept import name_kept_columns
from synthia_batch.results.export.recipes import list_for_axolotl, list_for_llama_factory

ODD = 'Quoted "text", commas,\nlines, emoji 🦊 and \\backslashes\\'
QUESTIONS = [
    {"id": "a", "question": "What is a fox?", "topic": "animals"},
    {"id": "b", "question": ODD, "topic": "odd"},
    {"id": "c", "question": "far too long " * 500, "topic": None},
]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello to you"},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two system messages and two samples each, in which the row `c` fails."""
    flags = ["--id-column", "id", "--keep-columns", "topic", "--set", "model.max_model_len=2048"]
    flags += ["-s", "synthia", "-s", "Answer as a pirate.", "-n", "2"]
    return make_run(tmp_path_factory.mktemp("finished"), QUESTIONS, *flags)


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over one conversation that brought its own beginning."""
    return make_run(tmp_path_factory.mktemp("talked"), [{"messages": CONVERSATION}])


def make_run(directory: Path, rows: Sequence[dict[str, Any]], *flags: str) -> Path:
    source = write_jsonl(directory / "rows.jsonl", rows)
    where = ("-o", directory / "out", "--engine", "scripted", "--pool", "local")
    command = command_of("run", source, *where, *flags)
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "out"


def export(synthia: Command, directory: Path, name: str, *flags: str) -> list[dict[str, Any]]:
    done = synthia("export", directory, "--to", name, *flags)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_column(directory: Path, name: str) -> list[Any]:
    return pq.read_table(directory / "data")[name].to_pylist()


@pytest.mark.parametrize("name", FORMATS)
def test_datasets_loads_every_format(synthia: Command, finished: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / ("out.csv" if name == "csv" else "out.jsonl")
    scored = ("--score", "rows.completion_tokens") if FORMATS[name].takes_pairs else ()
    done = synthia("export", finished, "--to", name, "-o", path, *scored)
    assert done.returncode == 0, done.stderr
    kind = "csv" if name == "csv" else "json"
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "c"))
    assert set(loaded.column_names) == set(FORMATS[name].columns)
    made = read_column(finished, "id")
    failed = set(pq.read_table(finished / "failed")["id"].to_pylist())
    requests = {*zip(made, read_column(finished, "system"), strict=True), *(failed - set(made))}
    # Pairs: tests/results/test_preference.py.
    assert scored or len(loaded) == len(requests if name == "openai-batch" else made)


def test_messages_are_the_dataset_s_own(synthia: Command, finished: Path) -> None:
    records = export(synthia, finished, "messages")
    assert [record["messages"] for record in records] == read_column(finished, "messages")


def test_prompt_and_completion_come_to_the_whole_conversation(synthia: Command, finished: Path) -> None:
    whole = export(synthia, finished, "messages")
    for record, messages in zip(export(synthia, finished, "prompt-completion"), whole, strict=True):
        assert record["prompt"] + record["completion"] == messages["messages"]
        assert [message["role"] for message in record["completion"]] == ["assistant"]


@pytest.mark.parametrize("name", ["messages", "prompt-completion"])
def test_trl_takes_a_record_for_a_conversation_and_renders_it(
    synthia: Command, talked: Path, name: str
) -> None:
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    from synthia_batch.models.locate import locate_model

    record = export(synthia, talked, name)[0]
    assert is_conversational(record)
    tokenizer = AutoTokenizer.from_pretrained(locate_model("demo", None).path)
    rendered = "".join(apply_chat_template(record, tokenizer).values())
    for message in CONVERSATION:
        assert message["content"] in rendered


def test_sharegpt_names_the_speakers_as_it_does(synthia: Command, talked: Path) -> None:
    turns = export(synthia, talked, "sharegpt")[0]["conversations"]
    assert [turn["from"] for turn in turns] == ["system", "human", "gpt", "human", "gpt"]
    assert [turn["value"] for turn in turns[:-1]] == [message["content"] for message in CONVERSATION]


def test_alpaca_holds_the_last_question_and_the_earlier_ones_as_history(
    synthia: Command, talked: Path
) -> None:
    record = export(synthia, talked, "alpaca")[0]
    assert record["instruction"] == "And now?"
    assert record["history"] == [["Hello", "Hello to you"]]
    assert record["system"] == "Be brief."
    assert record["output"] == read_column(talked, "response")[0]


def test_the_cards_own_shape_has_a_line_for_every_question(synthia: Command, talked: Path) -> None:
    records = export(synthia, talked, "synthia-jsonl")
    assert records[0] == {"prompt": "Hello", "answer": "Hello to you"}
    assert records[1]["prompt"] == "And now?"
    assert len(records) == 2


def test_openai_s_own_types_read_the_batch_and_every_row_has_its_line(
    synthia: Command, finished: Path
) -> None:
    lines = export(synthia, finished, "openai-batch")
    made = [line for line in lines if line["error"] is None]
    systems = list(dict.fromkeys(read_column(finished, "system")))
    expected = [name for row in "ab" for name in (row, f"{row}:{systems[1]}")]
    assert [line["custom_id"] for line in made] == expected
    answers = read_column(finished, "response")
    for number, line in enumerate(made):
        completion = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert [choice.message.content for choice in completion.choices] == answers[2 * number :][:2]
        assert completion.usage is not None
    failed = [line for line in lines if line["error"] is not None]
    assert {(line["custom_id"], line["error"]["code"]) for line in failed} == {("c", "prompt_too_long")}
    assert len({line["id"] for line in lines}) == len(lines)


def test_a_table_keeps_odd_text_and_kept_columns(synthia: Command, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    done = synthia("export", finished, "--to", "csv", "-o", path, "--keep-columns", "topic")
    assert done.returncode == 0, done.stderr
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["prompt"] for row in rows} == {"What is a fox?", ODD}
    assert [row["topic"] for row in rows] == ["animals"] * 4 + ["odd"] * 4
    assert [row["response"] for row in rows] == read_column(finished, "response")


def test_a_compressed_file_holds_the_same_and_is_the_same_twice(
    synthia: Command, finished: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("one.jsonl.gz", "two.jsonl.gz")]
    for path in paths:
        assert synthia("export", finished, "--to", "messages", "-o", path).returncode == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    records = [json.loads(line) for line in gzip.decompress(paths[0].read_bytes()).splitlines()]
    assert records == export(synthia, finished, "messages")


def test_truncated_answers_are_left_out_where_that_is_asked_for(synthia: Command, tmp_path: Path) -> None:
    rows = [{"question": f"Tell me of {n}"} for n in range(30)]
    short = make_run(tmp_path, rows, "--max-tokens", "12")
    reasons = read_column(short, "finish_reason")
    assert set(reasons) == {"stop", "length"}
    kept = export(synthia, short, "messages", "--drop-truncated")
    assert len(kept) == reasons.count("stop")


def test_a_file_that_is_there_is_not_replaced_unasked(synthia: Command, talked: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("mine\n")
    refused = synthia("export", talked, "--to", "messages", "-o", path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert path.read_text() == "mine\n"
    assert synthia("export", talked, "--to", "messages", "-o", path, "--force").returncode == 0
    assert json.loads(path.read_text())["messages"]


def test_what_cannot_be_exported_is_refused_with_what_to_do(
    synthia: Command, talked: Path, tmp_path: Path
) -> None:
    no_format = synthia("export", talked, "--to", "xml")
    assert no_format.returncode == 2
    assert "sharegpt" in no_format.stderr
    nothing = synthia("export", tmp_path, "--to", "csv")
    assert nothing.returncode == 2
    assert "not a run directory" in nothing.stderr
    no_column = synthia("export", talked, "--to", "csv", "--keep-columns", "topic")
    assert no_column.returncode == 2
    assert "--keep-columns topic" in no_column.stderr
    copy = shutil.copytree(talked, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    incomplete = synthia("export", copy, "--to", "csv", "-o", tmp_path / "x.csv")
    assert incomplete.returncode == 2
    assert "is not complete" in incomplete.stderr
    assert not list(tmp_path.glob("*x.csv*"))


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca"])
def test_the_recipes_name_what_the_file_holds(
    synthia: Command, talked: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "train.jsonl"
    said = synthia("export", talked, "--to", name, "-o", path).stderr
    assert list_for_axolotl(name, path) in said
    assert list_for_llama_factory(name, path) in said
    record = json.loads(path.read_text())
    entry = yaml.safe_load(list_for_axolotl(name, path))["datasets"][0]
    assert Path(entry["path"]) == path
    if "field_messages" in entry:
        turn = record[entry["field_messages"]][0]
        assert set(entry["message_property_mappings"].values()) == set(turn)
    listed = json.loads(list_for_llama_factory(name, path))["train"]
    assert set(listed["columns"].values()) <= set(record)


CLASHES = [
    (name, column)
    for name, chosen in FORMATS.items()
    for column in ("prompt", "answer", "output", "history", "conversations", "messages", "system", "id")
    if column in chosen.columns and chosen.takes_columns
]


@pytest.mark.parametrize(("name", "column"), CLASHES)
def test_a_kept_column_never_replaces_a_field_of_the_format(name: str, column: str) -> None:
    with pytest.raises(UsageError, match=rf"--keep-columns {column}: .* --rename-column {column}=NEW_NAME"):
        name_kept_columns(FORMATS[name], [column], {})
    assert name_kept_columns(FORMATS[name], [column], {column: "x"}) == {column: "x"}


@pytest.mark.parametrize(
    ("name", "names", "renamed", "message"),
    [
        ("openai-batch", ["topic"], {}, "openai-batch has no place for other columns"),
        ("csv", ["topic"], {"tpic": "x"}, "--rename-column tpic: it is not exported"),
        ("csv", ["a", "b"], {"a": "b"}, "two columns would be named 'b'"),
        ("csv", ["a"], {"a": "response"}, "has a field 'response' of its own"),
    ],
)
def test_names_that_an_export_cannot_have(
    name: str, names: list[str], renamed: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        name_kept_columns(FORMATS[name], names, renamed)


def test_a_kept_column_is_exported_under_another_name(synthia: Command, tmp_path: Path) -> None:
    rows = [{"question": "Why?", "prompt_id": 7, "answer": "Because."}]
    run = make_run(tmp_path, rows, "--keep-columns", "prompt_id,answer")
    refused = synthia("export", run, "--to", "synthia-jsonl", "--keep-columns", "prompt_id,answer")
    assert refused.returncode == 2
    assert "the format synthia-jsonl has a field 'answer' of its own" in refused.stderr
    flags = ("--keep-columns", "prompt_id,answer,answer", "--rename-column", "answer=gold")
    (line,) = export(synthia, run, "synthia-jsonl", *flags)
    assert list(line) == ["prompt", "answer", "prompt_id", "gold"]
    assert (line["prompt_id"], line["gold"]) == (7, "Because.")
    table = synthia("export", run, "--to", "csv", *flags).stdout.splitlines()
    assert table[0].endswith("completion_tokens,prompt_id,gold")
