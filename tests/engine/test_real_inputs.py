"""A batch file with the keys of vLLM's example through the real engine: in as it is, out as OpenAI has it."""

import json
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, ROOT, Command

pytestmark = [
    pytest.mark.engine,
    NEEDS_VLLM,
]
EXAMPLE = ROOT / "tests" / "inputs" / "openai_batch.jsonl"
MAX_MODEL_LEN = 160


@pytest.mark.timeout(600)
def test_a_batch_file_runs_unchanged_and_openais_types_parse_what_comes_back(
    synthia: Command, tmp_path: Path
) -> None:
    from openai.types.chat import ChatCompletion

    # It asks for 1,000 tokens: a short context keeps a small model from using them all.
    settings = ("--set", f"model.max_model_len={MAX_MODEL_LEN}", "--workers", "1")
    done = synthia("run", EXAMPLE, "-o", "out", *settings, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "its requests name the model 'somebody/another-model'" in done.stderr
    exported = synthia("export", "out", "--to", "openai-batch", "-o", "answers.jsonl")
    assert exported.returncode == 0, exported.stderr
    asked = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]
    answered = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in answered] == [line["custom_id"] for line in asked]
    for line in answered:
        completion = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert line["error"] is None
        assert completion.usage is not None
        assert completion.choices[0].message.content
        assert completion.choices[0].finish_reason in ("stop", "length")
        assert completion.usage.total_tokens <= MAX_MODEL_LEN
