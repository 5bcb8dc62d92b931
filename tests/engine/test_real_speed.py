"""What the real vLLM engine tells of its speed: its prefix cache, and `tune`."""

import json
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, Command, write_jsonl

from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.storage.events import read_events

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    NEEDS_VLLM,
]
SYSTEM = "You answer in one short sentence, plainly, and never repeat the question. " * 16
"""More tokens than the 128 of a block of the CPU's KV cache: only whole blocks are shared."""


def test_a_shared_system_message_comes_from_the_prefix_cache_in_fast_determinism(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"What is {n}?"} for n in range(8)])
    done = synthia(
        "run", source, "--system", SYSTEM, "--determinism", "fast", "--max-tokens", "8", "-o", "out",
        "--pool", "local", "--set", "model.max_model_len=1024", "--set", "engine.max_num_seqs=4",
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, last = (e for e in read_events(tmp_path / "out/.synthia/events.jsonl") if e["kind"] == "progress")
    # The second four at least come after the first four, whose prompts are computed by then.
    assert last["prompt_tokens"] > last["cached_prompt_tokens"] >= 4 * 128
    (worker,) = last["workers"]
    assert 0 < worker["busy_seconds"] <= last["elapsed_seconds"]
    status = json.loads(synthia("status", "out", "--json").stdout)
    assert status["cached_prompt_share"] > 0
    assert status["tokens_per_second"] > 0


def test_tune_measures_a_real_engine_in_processes_of_its_own(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"What is {n}?"} for n in range(8)])
    done = synthia(
        "tune", source, "--model", prepare_demo_model(), "--prompts", "8", "--max-tokens", "8", "--json",
        # One setting is left to vary: the batch of 8, then of 4, and of 2 only where 4 are faster.
        "--set", "model.max_model_len=512", "--set", "engine.max_num_batched_tokens=2048",
        "--budget", "14m", timeout=880, XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [trial["settings"] for trial in found["trials"][:2]] == [{}, {"max_num_seqs": 4}]
    assert all(trial["tokens_per_second"] > 0 for trial in found["trials"])
    assert found["remembered"] == found["best"]
    assert "it breaks strict determinism" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "q.jsonl"], "no run directory"
