"""Columns kept from the input beside those of the output: two of one name are refused before any work."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call

from synthia_batch import open_run
from synthia_batch.inputs import Selection, open_source
from synthia_batch.inputs.readers.json_shape import JsonShape
from synthia_batch.storage.parts.schema import DATA_COLUMNS, FAILED_NAMES

ENGINE = ("--engine", "scripted", "--pool", "local")
SETTINGS = {
    "messages_json": ("--set", "input.message_fields=true"),
    "prefill": ("--final-assistant", "continue"),
    "flags": ("--flag", "empty"),
    "logprobs": ("--logprobs", "2"),
    "candidates": ("--accept", "response"),
}
BESIDE = tuple(name for name in FAILED_NAMES if name not in {column.name for column in DATA_COLUMNS})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_input(**values: Any) -> None:
    write_jsonl(Path("q.jsonl"), [{"prompt": "Why?", **values}, {"prompt": "How?", **values}])


@pytest.mark.parametrize("command", ["plan", "validate", "preview", "run", "doctor"])
def test_a_clash_is_refused_before_an_engine_starts(command: str, capsys: Any, here: Path) -> None:
    write_input(flags="x")
    output = () if command == "doctor" else ("-o", "out")
    job = ("q.jsonl", "--keep-columns", "flags", *SETTINGS["flags"], *ENGINE, *output)
    done = call(capsys, command, *job)
    said = done.out if command == "doctor" else done.err
    assert "q.jsonl: column 'flags' cannot be kept: the output has one of that name" in said
    assert (
        "(the job sets flags); rename it in the input, or in the output: --rename-column flags=NEW_NAME"
        in said
    )
    assert done.code == 2
    assert [path.name for path in here.iterdir()] == ["q.jsonl"]


@pytest.mark.parametrize("column", DATA_COLUMNS, ids=lambda column: column.name)
def test_no_column_of_the_output_can_be_kept(column: Any, capsys: Any) -> None:
    write_input(**{column.name: "x"})
    setting = SETTINGS[column.name] if column.present_if is not None else ()
    done = call(
        capsys,
        "plan",
        "q.jsonl",
        "--prompt-column",
        "prompt",
        "--keep-columns",
        column.name,
        *setting,
        *ENGINE,
    )
    assert done.code == 2
    assert f"column {column.name!r} cannot be kept" in done.err


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        ("openai-batch", {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Why?"}]}}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}]}),
        ("alpaca", {"instruction": "Why?", "input": ""}),
        ("plain", {"turns": ["Why?", "And then?"]}),
    ],
)
def test_a_clash_is_refused_in_every_shape_of_records(shape: str, record: Any, capsys: Any) -> None:
    write_jsonl(Path("q.jsonl"), [{**record, "flags": "x", "seed": 1}])
    flags = ("--input-format", shape, "--keep-columns", "seed,flags", *SETTINGS["flags"])
    done = call(capsys, "plan", "q.jsonl", *flags, *ENGINE)
    assert done.code == 2
    assert "column 'seed' cannot be kept" in done.err
    assert "column 'flags' cannot be kept" in done.err


def test_the_column_of_adapters_is_kept_by_itself_and_clashes_as_well(capsys: Any) -> None:
    write_input(model="style")
    done = call(capsys, "plan", "q.jsonl", "--lora", "style=here", "--lora-column", "model", *ENGINE)
    assert done.code == 2
    assert "column 'model' cannot be kept" in done.err
    assert "rename it in the input (--lora-column keeps it, to record each sample's adapter)" in done.err


def test_names_that_only_failed_has_can_be_kept(capsys: Any) -> None:
    write_input(**dict.fromkeys(BESIDE, "x"))
    kept = ("--keep-columns", ",".join(BESIDE), "--set", "engine.fail_every=2")
    assert call(capsys, "run", "q.jsonl", "-o", "out", *kept, *ENGINE).code == 0
    (row,) = pq.read_table("out/data").to_pylist()
    assert {name: row[name] for name in BESIDE} == dict.fromkeys(BESIDE, "x")
    (failed,) = open_run("out").failed()
    assert failed.code == "scripted_failure"
    assert failed.file == "q.jsonl"


def test_a_name_in_other_capitals_is_another_name(capsys: Any) -> None:
    write_input(Response="kept", Flags="kept")
    job = ("q.jsonl", "-o", "out", "--keep-columns", "Response,Flags", *SETTINGS["flags"], *ENGINE)
    assert call(capsys, "run", *job).code == 0
    assert call(capsys, "verify", "out").code == 0
    samples = list(open_run("out").samples())
    assert [sample.kept for sample in samples] == [{"Response": "kept", "Flags": "kept"}] * 2
    assert "kept" not in {sample.response for sample in samples}


@pytest.mark.parametrize("value", ["abc", None, 7])
def test_a_kept_column_with_the_name_of_an_absent_one_is_the_inputs(value: Any, capsys: Any) -> None:
    write_input(flags=value, logprobs=value)
    kept = ("--keep-columns", "flags,logprobs")
    assert call(capsys, "run", "q.jsonl", "-o", "out", *kept, *ENGINE).code == 0
    assert call(capsys, "verify", "out").code == 0
    for sample in open_run("out").samples():
        assert (sample.flags, sample.logprobs) == ((), None)
        assert sample.kept == {"flags": value, "logprobs": value}
    (first, _) = open_run("out").samples(["flags"], with_logprobs=False)
    assert first.kept == {"flags": value}
    done = call(capsys, "export", "out", "--to", "messages", *kept)
    assert [json.loads(line)["logprobs"] for line in done.out.splitlines()] == [value] * 2
    assert call(capsys, "export", "out", "--to", "csv").code == 0


def test_a_kept_name_with_a_dot_is_no_part_of_another_column(capsys: Any) -> None:
    write_input(**{"response.x": "kept"})
    assert call(capsys, "run", "q.jsonl", "-o", "out", "--keep-columns", "response.x", *ENGINE).code == 0
    done = call(capsys, "export", "out", "--to", "csv")
    assert done.code == 0, done.err
    assert "kept" not in done.out


def test_init_proposes_no_column_that_would_clash(capsys: Any) -> None:
    write_input(topic="a", flags="b", seed=1)
    assert call(capsys, "init", "q.jsonl", "-o", "job.yaml").code == 0
    text = Path("job.yaml").read_text()
    assert "keep_columns: [topic]" in text
    assert ": [flags, seed]" in text
    assert call(capsys, "plan", "job.yaml", *ENGINE).code == 0


NESTED = [{"tags": ["a", None], "about": {"n": 1, "at": [0.5]}}, {"tags": [], "about": {"n": None, "at": []}}]


def write_nested() -> None:
    write_jsonl(Path("q.jsonl"), [{"prompt": f"{n}?", **values} for n, values in enumerate(NESTED * 2)])


def test_lists_and_objects_keep_their_types(capsys: Any) -> None:
    write_nested()
    done = call(capsys, "run", "q.jsonl", "-o", "out", "--keep-columns", "tags,about", *ENGINE, "-q")
    assert done.code == 0, done.err
    table = pq.read_table("out/data")
    assert table.schema.field("tags").type == pa.list_(pa.string())
    about = pa.struct([("n", pa.int64()), ("at", pa.list_(pa.float64()))])
    assert table.schema.field("about").type == about
    assert [{name: row[name] for name in NESTED[0]} for row in table.to_pylist()] == NESTED * 2
    exported = call(capsys, "export", "out", "--to", "messages", "--keep-columns", "tags,about").out
    assert [json.loads(line)["about"] for line in exported.splitlines()] == [
        row["about"] for row in NESTED * 2
    ]
    assert call(capsys, "verify", "out", "-q").code == 0


def test_a_run_begun_before_lists_had_types_goes_on_with_json_text(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nested()
    fails = ("--set", "engine.fail_every=2", "--set", "engine.fail_while_missing=fixed")
    job = ("run", "q.jsonl", "--keep-columns", "tags,about", *fails, *ENGINE, "-q", "-o")
    with monkeypatch.context() as patched:
        patched.setattr(JsonShape, "take", lambda shape, _: setattr(shape, "root", None))
        assert call(capsys, *job, "out").code == 0
    plan = Path("out/.synthia/plan.json").read_bytes()
    Path("fixed").touch()
    assert call(capsys, "retry", "out", "-q").code == 0
    table = pq.read_table("out/data")
    assert table["about"].to_pylist() == [
        json.dumps(row["about"], separators=(",", ":")) for row in NESTED * 2
    ]
    assert Path("out/.synthia/plan.json").read_bytes() == plan


def test_a_rescan_for_an_old_plan_has_its_types(tmp_path: Path) -> None:
    write_nested()
    source = open_source(Path("q.jsonl"))
    scan = source.scan(Selection(keep_columns=("tags", "about")), tmp_path)
    old = scan.keep_types({"kept": [{"name": "tags", "type": "json"}]})
    assert [column.type.partition(":")[0] for column in old.kept] == ["json", "arrow"]
    assert scan.keep_types(scan.to_dict()) == scan
