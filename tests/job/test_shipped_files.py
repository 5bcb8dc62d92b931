"""What lies in inputs/ and jobs/ works as it stands."""

import importlib.util
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, ROOT, Command, read_bytes_of_data
from test_doctor import LLAMA_70B
from test_models import make_model

from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.merge import Layer, merge_layers
from synthia_batch.job.presets import read_preset
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.vllm.arguments import engine_arguments

INPUTS = ROOT / "inputs"
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
PIPELINES = sorted((ROOT / "jobs" / "pipelines").glob("*.yaml"))
SCRIPTED = ("--engine", "scripted", "--pool", "local")


def test_questions_are_the_same_rows_in_both_formats() -> None:
    by_jsonl = [json.loads(line) for line in (INPUTS / "questions.jsonl").read_text().splitlines()]
    assert pq.read_table(INPUTS / "questions.parquet").to_pylist() == by_jsonl
    assert len(by_jsonl) >= 24
    assert sum(len(row["question"].split()) >= 200 for row in by_jsonl) >= 3


def test_the_script_writes_the_parquet_that_is_there(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_inputs", INPUTS / "make_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copy(INPUTS / "questions.jsonl", tmp_path)
    module.write_questions(tmp_path)
    assert pq.read_table(tmp_path / "questions.parquet").equals(pq.read_table(INPUTS / "questions.parquet"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_is_a_valid_job_whose_input_is_there(path: Path) -> None:
    layer = read_job_file(path)
    presets = (
        [read_preset(layer.values["preset"]).make_layer(None, on_gpu=False)]
        if "preset" in layer.values
        else []
    )
    paths = merge_layers([layer, *presets]).job.input.paths
    assert all(Path(name).is_file() for name in paths)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_every_pipeline_runs_as_it_stands_but_for_its_engine(
    synthia: Command, tmp_path: Path, path: Path
) -> None:
    done = synthia("run", path, *SCRIPTED, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(Path(done.stdout.strip()) / "data").num_rows >= 4


def test_conversations_keep_their_own_system_messages(synthia: Command, tmp_path: Path) -> None:
    scripted = ("--engine", "scripted", "--pool", "local", "-o", tmp_path / "out")
    done = synthia("run", ROOT / "jobs" / "messages.yaml", *scripted)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    conversations = [json.loads(line) for line in (INPUTS / "messages.jsonl").read_text().splitlines()]
    for row, conversation in zip(rows, conversations, strict=True):
        own = conversation["messages"][0]["role"] == "system"
        assert row["system"] == ("row" if own else "none")
        assert row["messages"][:-1] == conversation["messages"]
    assert {row["system"] for row in rows} == {"row", "none"}


def test_conversations_are_played_turn_by_turn(synthia: Command, tmp_path: Path) -> None:
    scripted = ("--engine", "scripted", "--pool", "local", "-o", tmp_path / "out")
    done = synthia("run", ROOT / "jobs" / "conversations.yaml", *scripted)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    inputs = [json.loads(line) for line in (INPUTS / "conversations.jsonl").read_text().splitlines()]
    for row, conversation in zip(rows, inputs, strict=True):
        assert [turn["content"] for turn in row["messages"][1::2]] == conversation["turns"]
        assert [turn["role"] for turn in row["messages"]] == [
            "system", *("user", "assistant") * len(conversation["turns"]),
        ]  # fmt: skip
        assert row["messages"][-1]["content"] == row["response"]
    assert sorted(len(conversation["turns"]) for conversation in inputs) == [1, 5, 6, 7]


def test_both_formats_of_the_questions_give_the_same_dataset(synthia: Command, tmp_path: Path) -> None:
    scripted = ("--engine", "scripted", "--pool", "local")
    for suffix in ("jsonl", "parquet"):
        done = synthia("run", INPUTS / f"questions.{suffix}", *scripted, "-o", suffix)
        assert done.returncode == 0, done.stderr
    # Not byte for byte: the fingerprint, of the input's bytes, stands in the files' metadata.
    by_jsonl, by_parquet = (pq.read_table(tmp_path / suffix / "data") for suffix in ("jsonl", "parquet"))
    assert by_jsonl.to_pylist() == by_parquet.to_pylist()


def test_the_rehearsal_job_runs(synthia: Command, tmp_path: Path) -> None:
    done = synthia("run", ROOT / "jobs" / "rehearsal.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 28 * 2 * 2
    assert set(read_bytes_of_data(tmp_path / "out")) == {
        "data/train-00000-of-00001.parquet", "README.md", "manifest.json",
    }  # fmt: skip


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_says_first_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_passes_validate_and_plan(synthia: Command, path: Path) -> None:
    for command in ("validate", "plan"):
        done = synthia(command, path, *SCRIPTED)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_file_runs(synthia: Command, tmp_path: Path, path: Path) -> None:
    # In a copy, since paths are relative to the file.
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    shutil.copytree(INPUTS, tmp_path / "inputs")
    done = synthia("run", Path("jobs") / path.name, *SCRIPTED)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / done.stdout.strip() / "data").num_rows > 0


def test_a_question_is_answered_in_each_of_several_voices(synthia: Command, tmp_path: Path) -> None:
    done = synthia("run", ROOT / "jobs" / "personas.yaml", *SCRIPTED, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    voices = {row["system"]: [t for t in row["messages"] if t["role"] == "system"] for row in rows}
    assert list(voices)[:3] == ["synthia", "none", "teacher"]
    assert (len(rows), len(voices), voices["none"]) == (8 * 4 * 2, 4, [])
    assert [turn["content"] for turn in list(voices.values())[3]] == ["Answer in one short sentence."]


@NEEDS_VLLM
def test_the_70b_asks_vllm_for_two_cards(tmp_path: Path) -> None:
    config = {**LLAMA_70B, "max_position_embeddings": 4096}
    model = make_model(tmp_path / "m", **{"config.json": config})
    here = {"model": {"name": str(model)}, "engine": {"device": "cuda"}}
    layers = [Layer(origin="flag", values=here), read_job_file(ROOT / "jobs" / "synthia-70b.yaml")]
    job = resolve_job(layers, uses_tuned=False)
    asked = engine_arguments(job.engine, Placement())
    assert (asked["tensor_parallel_size"], asked["max_model_len"]) == (2, 4096)
    assert (job.preset, job.prompt.format, job.engine.sampling.stop) == (
        "synthia-70b-v1.1",
        "synthia",
        ("USER:",),
    )
    assert job.plan.samples_per_row == 4
