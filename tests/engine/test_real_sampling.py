"""What can be asked for a sample, on the real vLLM engine: each does what it says, whatever the batch."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, read_bytes_of_data, write_jsonl
from test_ray_faults import list_descendants, wait_until_gone
from test_real_bytes import running, wait_for_samples

from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.prompts.tokenizer import FastTokenizer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
SMALL = (
    "--max-tokens", "24", "--set", "model.max_model_len=512", "--pool", "local", "-s", "none",
)  # fmt: skip
QUESTION = "Tell me about the sea."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


def encode(text: str) -> list[int]:
    tokenizer = FastTokenizer(read_model_facts(prepare_demo_model()).tokenizer_path)
    return list(tokenizer.encode(text, adds_start=False, reads_special=False))


def read_failed(directory: Path) -> list[dict[str, Any]]:
    folder = directory / "failed"
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist() if folder.exists() else []
    return rows


def test_every_row_is_made_as_it_says_whatever_the_batch(synthia: Command, tmp_path: Path) -> None:
    sea = encode(" sea")
    assert len(sea) == 1
    greedy: dict[str, Any] = {"temperature": 0}
    says: dict[str, dict[str, Any]] = {
        "plain": {},
        "greedy": greedy,
        "greedy again": greedy,
        "seed 1": {"seed": 1, "temperature": 1.5},
        "seed 1 again": {"seed": 1, "temperature": 1.5},
        "seed 2": {"seed": 2, "temperature": 1.5},
        "short": {**greedy, "max_tokens": 3},
        "long": {**greedy, "max_tokens": 60, "min_tokens": 60},
        "beyond the job": {**greedy, "max_tokens": 90, "ignore_eos": True},
        "stop": {**greedy, "stop": " is"},
        "stop kept": {**greedy, "stop": [" is"], "include_stop_str_in_output": True},
        "stop token": {**greedy, "stop_token_ids": sea},
        "bias": {**greedy, "logit_bias": {str(sea[0]): -100}},
        "bad words": {**greedy, "bad_words": ["sea"]},
        "allowed": {**greedy, "allowed_token_ids": encode(" yes no"), "max_tokens": 5},
        "penalties": {**greedy, "presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 1.8},
        "narrow": {"top_k": 1, "temperature": 2},
        "share": {"seed": 5, "top_p": 0.8, "top_k": 0, "temperature": 1.5},
        "share of few": {"seed": 5, "top_p": 0.8, "top_k": 20, "temperature": 1.5},
        "least share": {"top_p": 0.01, "top_k": 0, "temperature": 2},
        "min_p": {"min_p": 1.0, "temperature": 2},
        "repeats": {
            **greedy, "logit_bias": {str(sea[0]): 100}, "max_tokens": 60,
            "repetition_detection": {"max_pattern_size": 3, "min_count": 5},
        },
        "unknown token": {**greedy, "stop_token_ids": [10**6]},
        "json": {**greedy, "structured": {"json_schema": SCHEMA}, "max_tokens": 60},
        "grammar": {"structured": {"grammar": 'root ::= "in the " ("north" | "south") "."'}},
        "lark": {"structured": {"grammar": 'start: "in the " ("east" | "west") "!"'}},
        "choice": {"temperature": 1.5, "structured": {"choice": ["the north", "the south"]}},
    }  # fmt: skip
    records = [{"id": name, "question": QUESTION, "how": said} for name, said in says.items()]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = ("run", source, *SMALL, "--id-column", "id", "--sampling-column", "how", "-n", 2)
    for out, batch in (("wide", 64), ("narrow", 1)):
        # Little room: 512 tokens each at their longest, so that the limits of the rows decide who goes in.
        done = synthia(
            *job, "--set", f"engine.max_num_seqs={batch}", "--set", "engine.kv_cache_memory_bytes=48000000",
            "-o", out, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert read_bytes_of_data(tmp_path / "wide") == read_bytes_of_data(tmp_path / "narrow")

    table = pq.read_table(tmp_path / "wide" / "data").to_pylist()
    rows = {row["id"]: row for row in table if row["sample_index"] == 0}
    others = {row["id"]: row for row in table if row["sample_index"] == 1}
    text = {name: row["response"] for name, row in rows.items()}
    count = {name: row["completion_tokens"] for name, row in rows.items()}
    reason = {name: row["finish_reason"] for name, row in rows.items()}
    assert text["greedy"] == text["greedy again"] == others["greedy"]["response"]
    # At the likeliest token there may be two: a draw between them is all that is left.
    assert text["narrow"][:40] == text["least share"][:40] == text["min_p"][:40] == text["greedy"][:40]
    assert text["share"] != text["share of few"]
    assert text["plain"] != others["plain"]["response"]
    assert text["seed 1"] == text["seed 1 again"] != text["seed 2"]
    assert (rows["seed 1"]["seed"], rows["seed 2"]["seed"]) == (1, 2)
    assert others["seed 1"]["response"] == others["seed 1 again"]["response"] != text["seed 1"]
    assert (count["short"], reason["short"]) == (3, "length")
    assert text["greedy"].startswith(text["short"])
    assert (count["long"], count["beyond the job"]) == (60, 90)
    assert text["beyond the job"].startswith(text["greedy"])
    assert reason["stop"] == "stop"
    assert text["greedy"].startswith(text["stop"] + " is")
    assert text["stop kept"] == text["stop"] + " is"
    assert reason["stop token"] == "stop"
    assert text["stop token"] == text["greedy"][: len(text["stop token"])]
    assert " sea" in text["greedy"]
    assert " sea" not in text["bias"]
    assert "sea" not in text["bad words"]
    assert set(text["allowed"].split()) <= {"yes", "no"}
    assert text["penalties"] != text["greedy"]
    assert reason["repeats"] == "repetition"
    assert count["repeats"] < 60
    assert json.loads(text["json"])["city"] in ("Paris", "Rome")
    assert text["choice"] in ("the north", "the south")
    assert text["grammar"] in ("in the north.", "in the south.")
    assert text["lark"] in ("in the east!", "in the west!")
    one, other = read_failed(tmp_path / "wide")
    assert {one["id"], other["id"]} == {"unknown token"}
    assert one["code"] == "refused_by_engine"
    assert "stop_token_ids" in one["message"]


def test_what_the_job_says_holds_for_every_row(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": QUESTION}, {"question": "Name a colour."}])
    sea = encode(" sea")[0]
    done = synthia(
        "run", source, *SMALL, "--temperature", "0", "--set", f"sampling.logit_bias={{{sea}: 100}}",
        "--set", "sampling.min_tokens=9", "-o", "out",
        "--set", "sampling.repetition_detection={max_pattern_size: 2, min_count: 12}", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["response"].split() for row in rows] == [["sea"] * row["completion_tokens"] for row in rows]
    assert [row["finish_reason"] for row in rows] == ["repetition", "repetition"]
    assert all(9 <= row["completion_tokens"] < 24 for row in rows)
    refused = synthia("plan", source, *SMALL, "--set", "sampling.stop_token_ids=[49152]")
    assert refused.returncode == 2
    assert "the model has no token 49152: it has 49152, counted from 0" in refused.stderr


def test_kills_workers_and_batches_do_not_show_in_structures_or_log_probabilities(
    synthia: Command, tmp_path: Path
) -> None:
    topics = ["Paris", "Rome", "the sea", "bread", "a clock", "winter"]
    records = [
        {
            "id": f"q{n}",
            "question": f"{'Think it through. ' * (n % 4)}Tell me of {topics[n % 6]}, part {n}.",
            "how": {"structured": {"regex": "[a-z ]{5,60}[.]"}} if n % 3 == 0 else {"max_tokens": 12 + n},
        }
        for n in range(16)
    ]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    (tmp_path / "city.json").write_text(json.dumps(SCHEMA))
    job = (
        "run", source, "--id-column", "id", "--sampling-column", "how", "-n", 2, "--json-schema", "city.json",
        "--logprobs", 3, "--max-tokens", 48, "--set", "model.max_model_len=512", "-s", "none",
        "--temperature", 0.9,
    )  # fmt: skip
    alone = synthia(*job, "--pool", "local", "--set", "engine.max_num_seqs=1", "-o", "alone", timeout=400)
    assert alone.returncode == 0, alone.stderr
    two = (*job, "--workers", 2, "--set", "engine.max_num_seqs=5", "-o", "killed")
    with running(tmp_path, *two) as driver:
        wait_for_samples(driver, tmp_path / "killed", 8)
        left = list_descendants(driver.pid)
        driver.kill()
    wait_until_gone(left)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = synthia(*two, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "alone")

    rows = pq.read_table(tmp_path / "alone" / "data").to_pylist()
    for row in rows:
        places = row["logprobs"]
        assert len(places) == row["completion_tokens"]
        assert all(place["logprob"] <= 0 for place in places)
        assert all([e["logprob"] for e in p["top"]] == sorted((e["logprob"] for e in p["top"]), reverse=True)
                   and len(p["top"]) == 3 for p in places)  # fmt: skip
        if row["finish_reason"] == "stop":  # Behind the text comes the end's own token.
            assert "".join(place["token"] for place in places).startswith(row["response"])
        if row["row_index"] % 3:
            assert set(json.loads(row["response"])) == {"city", "big"}
        else:
            assert re.fullmatch("[a-z ]{5,60}[.]", row["response"])
    codes = {row["code"] for row in read_failed(tmp_path / "alone")}
    assert codes <= {"structured_output_cut_off"}
    again = synthia("verify", "killed", "--rerun", 8, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_grammar_that_cannot_be_compiled_is_refused_before_weights_are_loaded(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": QUESTION}])
    (tmp_path / "bad.gbnf").write_text('root ::= "in the')
    done = synthia("run", source, *SMALL, "--grammar", "bad.gbnf", "-o", "out", timeout=300)
    assert done.returncode == 2, done.stderr
    assert "structured: the backend xgrammar cannot compile it: EBNF lexer error at line 1" in done.stderr
    assert "use another backend" in done.stderr
    assert not list((tmp_path / "out").glob("data/*"))
