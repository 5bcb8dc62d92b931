"""Conversations on the real vLLM engine: killed in the third turn, and the prefix cache between turns."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, command_of, make_environment, read_bytes_of_data, write_jsonl

from synthia_batch.storage.journal.frames import scan_frames

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
TURNS = [
    "Tell me a long story about a lighthouse keeper.",
    "Go on: what does she see on the water, in detail?",
    "Describe the storm that follows, at length.",
    "And how does the crew get ashore? Tell everything.",
    "Write the letter that she sends afterwards.",
]
FLAGS = ("--max-tokens", "64", "--set", "model.max_model_len=1024", "--temperature", "0.9")


def list_journaled(run_directory: Path) -> list[dict[str, Any]]:
    frames = []
    for journal in (run_directory / ".synthia" / "journal").glob("*.wal"):
        with journal.open("rb") as file:
            frames += [frame.value for frame in scan_frames(file) if frame.value is not None]
    return [value for value in frames if "turn" in value or "finished" in value]


def read_progress(run_directory: Path) -> dict[str, Any]:
    """Return the last word of the latest attempt on what its engines made."""
    lines = (run_directory / ".synthia" / "events.jsonl").read_text().splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [event for event in events if event["kind"] == "progress"][-1]


def test_a_conversation_killed_in_its_third_turn_goes_on_there_to_the_same_bytes(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"turns": TURNS}])
    # Two conversations side by side; the one that is never disturbed has each alone in the engine.
    job = ("run", source, "-s", "synthia", "-s", "none", "--pool", "local", *FLAGS)
    driver = subprocess.Popen(
        command_of(*job, "-o", "killed"), cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while sum(value.get("of") == 0 for value in list_journaled(tmp_path / "killed")) < 2:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no two turns in four minutes"
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    kept = list_journaled(tmp_path / "killed")
    assert [value["turn"] for value in kept if value.get("of") == 0] == [0, 1]
    assert not any("finished" in value for value in kept)

    resumed = synthia(*job, "-o", "killed", timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    rows = pq.read_table(tmp_path / "killed" / "data").to_pylist()
    assert [len(row["messages"]) for row in rows] == [11, 10]
    progress = read_progress(tmp_path / "killed")
    for made, count in (("tokens", "completion_tokens"), ("prompt_tokens", "prompt_tokens")):
        total = sum(row[count] for row in rows)
        assert progress[made] == total - sum(value[count] for value in kept), (
            "finished turns are not made again"
        )

    alone = synthia(*job, "--set", "engine.max_num_seqs=1", "-o", "alone", timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert read_progress(tmp_path / "alone")["tokens"] == sum(row["completion_tokens"] for row in rows)
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "alone")


@pytest.mark.parametrize("determinism", ["strict", "fast"])
def test_the_turns_before_come_from_the_prefix_cache(
    synthia: Command, tmp_path: Path, determinism: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"turns": TURNS}])
    done = synthia(
        "run", source, "--pool", "local", "--determinism", determinism, *FLAGS, "-o", "out", timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = pq.read_table(tmp_path / "out" / "data").to_pylist()
    progress = read_progress(tmp_path / "out")
    assert progress["prompt_tokens"] == row["prompt_tokens"]
    # vLLM caches whole blocks, of 128 tokens on CPUs, or of 32 in strict.
    assert progress["cached_prompt_tokens"] > row["prompt_tokens"] / 4
