"""A pipeline on the real engine: one load for its stages, and the same bytes whatever happened on the way."""

import os
import signal
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, Command, write_jsonl
from test_ray_faults import list_descendants, wait_until_gone
from test_real_bytes import running

from synthia_batch.storage.events import read_events

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800), NEEDS_VLLM]
FILE = """\
name: rated
model: {name: demo, max_model_len: 1024}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id}
    num_samples: 3
    sampling: {max_tokens: 24, temperature: 1.0}
    accept: response | words | length >= 12
    max_candidates: 3
  - name: rate
    input: {prompt_template: rate.j2}
    sampling: {max_tokens: 16}
    structured: {choice: [good, fair, bad]}
  - name: keep
    select: {where: rate.response != 'bad', best: answer.completion_tokens}
"""
ROWS = 10


def test_a_pipeline_loads_its_engines_once_and_kills_do_not_show(
    synthia: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    topics = ("the sea", "a clock", "bread", "winter", "copper")
    rows = [{"id": f"q{n}", "question": f"Say {n} words about {topics[n % 5]}."} for n in range(ROWS)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    Path("rate.j2").write_text("Rate this text: {{ answer.response }}")
    Path("rated.yaml").write_text(FILE)

    whole = synthia("run", "rated.yaml", "--workers", 1, "-o", "whole", timeout=900)
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr.count("the engines stay loaded") == 1
    loads = [path.read_text().count("Starting to load model") for path in list_logs(Path("whole"))]
    assert loads == [1, 0], "the log of the second stage has no load of the model"

    for kill in (1, 2, 3):
        with running(tmp_path, "run", "rated.yaml", "--workers", 2 - kill % 2, "-o", "killed") as driver:
            wanted = count_events(Path("killed")) + 8
            while count_events(Path("killed")) < wanted:
                assert driver.poll() is None, "the pipeline ended before it could be killed"
            left = list_descendants(driver.pid)
            os.kill(driver.pid, signal.SIGKILL)
        wait_until_gone(left)
    done = synthia("run", "rated.yaml", "--workers", 2, "-o", "killed", timeout=900)
    assert done.returncode == 0, done.stderr
    assert read_stages(Path("killed")) == read_stages(Path("whole"))
    assert synthia("verify", "killed", "--rows").returncode == 0


def list_logs(root: Path) -> list[Path]:
    """Return the first worker's log of each stage that generates, in order."""
    stages = ("answer", "rate")
    return [log for name in stages for log in root.glob(f"stages/{name}-*/.synthia/logs/worker-0.log")]


def count_events(root: Path) -> int:
    """Return how many answers are in the journals and parts of all stages, candidates included."""
    journals = root.glob("stages/*/.synthia/journal/*")
    journaled = sum(path.read_bytes().count(b'"response":') for path in journals)
    published = [
        event["finished"]
        for path in root.glob("stages/*/.synthia/events.jsonl")
        for event in read_events(path)
        if event["kind"] == "shard_published"
    ]
    return journaled + sum(published)


def read_stages(root: Path) -> dict[str, bytes]:
    """Return the files of every stage that are part of a dataset, by their paths."""
    patterns = ("data/*", "failed/*", "manifest.json")
    found = [path for pattern in patterns for path in root.glob(f"stages/*/{pattern}")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}
