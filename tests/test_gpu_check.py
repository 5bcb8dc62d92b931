"""The check of a GPU, without one: its verdict, its time limits, its file after each step, its models."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import STEPS, Step, describe, list_broken, run_step, run_steps
from benchmarks.gpu_steps import jobs
from benchmarks.gpu_steps.base import Setting, digest_data, make_run, run
from benchmarks.gpu_steps.batches import generate, make_requests
from benchmarks.gpu_steps.models import LLAMA_2_7B, SMOLLM2_135M, make_shape
from synthia_batch.core.types import Finished
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.locate import choose_weights
from synthia_batch.models.prompts.tokenizer import FastTokenizer
from synthia_batch.models.weights import count_kv_values


def make_setting(tmp_path: Path, **changes: Any) -> Setting:
    (tmp_path / "logs").mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "device": "cpu", "work": str(tmp_path), "small": "small", "large": "large", "is_dummy": False,
        "rows": 4, "new_tokens": 4, "kill_after": 1, "batches": (1, 2), "batch_prompts": 6,
        "longest_prompt": 32, "large_prompts": 2, "large_tokens": 4, **changes,
    }  # fmt: skip
    return Setting(**values)


def fake_step(monkeypatch: pytest.MonkeyPatch, program: str) -> Step:
    """Make each step's process run `program` in its stead."""
    popen = gpu_check.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen(["sh", "-c", program], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", start)
    return Step(number=1, title="one", limit_seconds=1, check=jobs.run_strict)


def test_the_steps_are_those_of_the_table() -> None:
    assert [step.number for step in STEPS] == list(range(10))
    assert sum(step.limit_seconds for step in STEPS) < 3600


@pytest.mark.parametrize(
    ("program", "broken"), [("exit 3", "ends with 0, not 3"), ("sleep 60", "ends within 1 s")]
)
def test_a_step_that_fails_or_takes_too_long_does_not_hold(
    program: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = run_step(fake_step(monkeypatch, program), make_setting(tmp_path, device="cuda"))
    assert (line["holds"], list_broken(line)) == (False, [broken])


def test_the_file_has_every_step_so_far_and_the_verdict_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{"a": True}, {"b": True, "c": False}])
    lines_seen = []
    path = tmp_path / "result.jsonl"

    def check(step: Step, setting: Setting) -> dict[str, Any]:
        lines_seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
        must = next(found)
        numbers = {"n": 1.5}
        line = {"step": step.number, "title": step.title, "seconds": 1.0, "must": must, "numbers": numbers}
        return {**line, "holds": all(must.values()), "skipped": ["x"]}

    monkeypatch.setattr(gpu_check, "run_step", check)
    lines = run_steps(STEPS[:2], make_setting(tmp_path), path)
    assert lines_seen == [0, 1]
    assert [json.loads(line)["holds"] for line in path.read_text().splitlines()] == [True, False]
    text = describe(lines, make_setting(tmp_path))
    assert "NOT every must holds" in text
    for part in ("- FAILS: c", "- holds: a", "- left out: x", "- n: 1.5", "rehearsal on CPUs"):
        assert part in text


@pytest.mark.parametrize("shape", [SMOLLM2_135M, LLAMA_2_7B])
def test_a_shape_is_a_model_that_a_job_can_be_resolved_with(tmp_path: Path, shape: dict[str, Any]) -> None:
    path = make_shape(tmp_path / "m", shape)
    facts = read_model_facts(path)
    assert facts.vocabulary == 32000
    assert facts.chat_template
    assert choose_weights(file.name for file in path.iterdir()) == ".safetensors"
    assert count_kv_values(shape)
    ids = FastTokenizer(facts.tokenizer_path).encode("Wie geht's?", adds_start=True, reads_special=False)
    assert 0 < len(ids) < 30
    assert max(ids) < 32000
    assert make_shape(path, {}) == path, "what is there is not made again"


def test_a_job_of_random_weights_has_stop_tokens_that_vary_lengths(tmp_path: Path) -> None:
    dummy = make_run(make_setting(tmp_path, is_dummy=True), tmp_path / "out")
    assert "engine.load_format=dummy" in dummy
    assert any(flag.startswith("sampling.stop_token_ids=[0, 300,") for flag in dummy)
    assert "engine.load_format=dummy" not in make_run(make_setting(tmp_path), tmp_path / "out")
    assert "engine.load_format=dummy" in make_run(make_setting(tmp_path), tmp_path / "out", model="large")


def test_a_command_is_watched_and_limited(tmp_path: Path) -> None:
    core = "[sys.executable, '-c', 'import time; time.sleep(1.5)', 'EngineCore']"
    child = f"import subprocess, sys; subprocess.run({core})"
    ended = run([sys.executable, "-c", f"{child}; print('done')"], tmp_path / "log", 60)
    assert (ended.code, ended.output) == (0, "done\n")
    assert len(ended.pids) == 1, "its engine was seen"
    assert run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", 1).code == 124


class EchoEngine:
    """Answers each request with the largest batch that it was in."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.largest = 0

    def add(self, request: Any) -> None:
        self.running.append(request)
        self.largest = max(self.largest, len(self.running))

    def step(self) -> list[Finished]:
        request = self.running.pop(0)
        values: dict[str, Any] = {"reasoning": None, "finish_reason": "stop", "prompt_tokens": 1}
        return [Finished(ordinal=request.ordinal, response="x", completion_tokens=1, logprob=None, **values)]


@pytest.mark.parametrize("batch", [1, 3])
def test_every_request_is_generated_in_batches_of_the_size_wanted(batch: int) -> None:
    engine = EchoEngine()
    requests = make_requests(7, 100)
    assert sorted(generate(engine, requests, batch)) == list(range(7))
    assert engine.largest == batch
    kinds = [request.sampling or {} for request in requests[:3]]
    assert [kind.get("top_k") for kind in kinds] == [None, 0, 50]


def test_data_has_one_digest_whatever_else_is_in_the_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-00000.parquet").write_bytes(b"a")
    before = digest_data(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert digest_data(tmp_path) == before
    (data / "train-00000.parquet").write_bytes(b"b")
    assert digest_data(tmp_path) != before
