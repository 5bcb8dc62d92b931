"""vLLM's reasoning parsers and tools in prompts, on the real engine.

The embedded model does not reason. A copy of it has two tokens that it never saw in training named
<think> and </think>, a template that opens the reasoning, and a budget after which vLLM closes it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, read_bytes_of_data, write_jsonl
from test_tools import TEMPLATE, WEATHER

from synthia_batch.models.demo import prepare_demo_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
SMALL = ("--max-tokens", "40", "--set", "model.max_model_len=512", "--pool", "local", "-s", "none")
RENAMED = {"<issue_start>": "<think>", "<issue_comment>": "</think>"}


def make_thinking_model(target: Path) -> Path:
    shutil.copytree(prepare_demo_model(), target, ignore=shutil.ignore_patterns("digests.json"))
    tokenizer: dict[str, Any] = json.loads((target / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        if token["content"] in RENAMED:
            token.update(content=RENAMED[token["content"]], special=False)
    vocabulary = tokenizer["model"]["vocab"]
    for before, now in RENAMED.items():
        if before in vocabulary:
            vocabulary[now] = vocabulary.pop(before)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = target / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    )
    assert template.read_text().count("<think>") == 1
    return target


def test_what_was_thought_stands_apart_from_what_was_said(synthia: Command, tmp_path: Path) -> None:
    model = make_thinking_model(tmp_path / "thinker")
    records = [
        {"id": "free", "question": "Tell me about the sea.", "how": {}},
        {"id": "choice", "question": "Is it deep?", "how": {"structured": {"choice": ["yes", "no"]}}},
        {"id": "cut", "question": "Tell me about bread.", "how": {"max_tokens": 5}},
    ]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = (
        "run", source, "-m", model, *SMALL, "--id-column", "id", "--sampling-column", "how",
        "--temperature", 0, "--reasoning-parser", "deepseek_r1", "-n", 2,
        "--set", "sampling.thinking_token_budget=12",
        "--set", "sampling.logit_bias={2: -100}",  # or the model ends its turn at once
    )  # fmt: skip
    for out, batch in (("wide", 16), ("narrow", 1)):
        done = synthia(*job, "--set", f"engine.max_num_seqs={batch}", "-o", out, timeout=300)
        assert done.returncode == 0, done.stderr
    assert read_bytes_of_data(tmp_path / "wide") == read_bytes_of_data(tmp_path / "narrow")
    table = pq.read_table(tmp_path / "wide" / "data").to_pylist()
    assert len(table) == 6
    rows = {row["id"]: row for row in table}
    for row in table:
        assert "think>" not in row["response"] + row["reasoning"]
        assert row["reasoning"]
        assert row["messages"][-1]["content"] == row["response"]
    assert rows["free"]["response"]
    assert rows["choice"]["response"] in ("yes", "no"), "the structure is the answer's, not the reasoning's"
    assert rows["choice"]["reasoning"] not in ("yes", "no")
    assert (rows["cut"]["response"], rows["cut"]["finish_reason"]) == ("", "length")


def test_a_parser_of_another_model_is_refused_before_weights_are_loaded(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    done = synthia("run", source, *SMALL, "--reasoning-parser", "deepseek_r1", "-o", "out", timeout=300)
    assert done.returncode == 2, done.stderr
    assert (
        "--reasoning-parser: DeepSeekR1ReasoningParser reasoning parser could not locate think" in done.stderr
    )
    assert "it is for a different model; use this model's parser, or leave it out" in done.stderr


def test_tools_of_a_row_are_in_the_prompt_that_the_model_reads(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "tools.jinja").write_text(TEMPLATE)
    records = [{"question": "Is it raining?", "tools": tools} for tools in ([WEATHER], [], None)]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = (
        source, *SMALL, "--chat-template", "tools.jinja", "--tools-column", "tools", "--temperature", 0,
        "--keep-columns", "tools",
    )  # fmt: skip
    shown = json.loads(synthia("preview", *job, "--json").stdout)
    prompts = [row["samples"][0] for row in shown["rows"]]
    assert ["get_weather" in prompt["prompt"] for prompt in prompts] == [True, False, False]
    done = synthia("run", *job, "-o", "out", timeout=300)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["prompt_tokens"] for row in rows] == [prompt["prompt_tokens"] for prompt in prompts]
    assert rows[0]["response"] != rows[1]["response"] == rows[2]["response"]
    assert json.loads(rows[0]["tools"]) == [WEATHER]
