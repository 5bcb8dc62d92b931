"""Previews and probes on the real engine: what they make is what the run would have made, byte for byte."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, read_bytes_of_data, write_jsonl

pytestmark = [
    pytest.mark.engine,
    NEEDS_VLLM,
]
MAX_TOKENS = 24


@pytest.mark.timeout(900)
def test_a_preview_and_a_probe_show_in_no_byte_of_the_run(synthia: Command, tmp_path: Path) -> None:
    questions = [{"question": f"What is {n} squared, and who first said so?"} for n in range(10)]
    job = (
        write_jsonl(tmp_path / "q.jsonl", questions), "-s", "none", "-s", "You are a poet.",
        "--max-tokens", MAX_TOKENS, "--set", "model.max_model_len=512",
    )  # fmt: skip

    whole = synthia("run", *job, "--workers", 1, "-o", "whole", timeout=600)
    assert whole.returncode == 0, whole.stderr

    plain = synthia("preview", *job, "-n", 2, "-o", "out")
    assert plain.returncode == 0, plain.stderr
    assert "  | <|im_start|>system\n  | You are a poet.<|im_end|>\n" in plain.stdout
    assert plain.stdout.count("<|im_start|>assistant\n  | \n") == 4
    assert not (tmp_path / "out").exists()

    early = synthia("preview", *job, "-n", 2, "--answers", "--json", "--workers", 1, "-o", "out", timeout=600)
    assert early.returncode == 0, early.stderr
    shown = [sample for row in json.loads(early.stdout)["rows"] for sample in row["samples"]]

    probed = synthia("plan", *job, "--probe", 8, "--json", "--workers", 2, "-o", "out", timeout=600)
    assert probed.returncode == 0, probed.stderr
    probe = json.loads(probed.stdout)["probe"]
    assert probe["known"] == 8
    assert probe["speed"]["tokens_per_second"] > 0
    assert probe["speed"]["startup_seconds"] > 1
    assert 1 <= probe["speed"]["engines"] <= 2
    assert probe["left"]["samples"] == 20 - 4 - probe["made"]

    done = synthia("run", *job, "--workers", 2, "--json", "-o", "out", timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["made_now"] == 20 - 4 - probe["made"]
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")

    rows = pq.read_table(tmp_path / "whole" / "data").to_pylist()
    assert [sample["answer"]["response"] for sample in shown] == [row["response"] for row in rows[:4]]
    assert [sample["prompt_tokens"] for sample in shown] == [row["prompt_tokens"] for row in rows[:4]]
