"""The main job on the real vLLM engine: real Ray workers, real kills, the embedded model."""

import json
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, command_of, make_environment, read_bytes_of_data, write_jsonl

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
ROWS = 24
TOO_LONG = 7
FLAGS = ("--max-tokens", "24", "--set", "model.max_model_len=512", "--temperature", "0.9")


def write_questions(path: Path) -> Path:
    """Prompts of very different lengths; one of them is too long for the model."""
    topics = ["the sea", "a clock", "bread", "winter", "copper", "a bridge"]
    records = []
    for n in range(ROWS):
        filler = "Take your time and think it through. " * (n % 5 * 6 if n != TOO_LONG else 200)
        records.append({"id": f"q{n}", "question": f"{filler}Tell me about {topics[n % 6]}, part {n}."})
    return write_jsonl(path, records)


def count_journaled(run_directory: Path) -> int:
    journals = (run_directory / ".synthia" / "journal").glob("*.wal")
    return sum(line.count(b'{"finished":') for journal in journals for line in journal.open("rb"))


def test_a_killed_driver_resumes_on_other_workers_to_the_same_bytes(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    job = ("run", source, "--id-column", "id", *FLAGS)

    # Two workers with small batches, so that there is a half-way; killed there.
    two_workers = ("--workers", "2", "--set", "engine.max_num_seqs=4", "-o", "killed")
    driver = subprocess.Popen(
        command_of(*job, *two_workers), cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while count_journaled(tmp_path / "killed") < ROWS // 3:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no samples in four minutes"
        time.sleep(0.05)
    libraries = Path(f"/proc/{driver.pid}/maps").read_text()
    driver.kill()
    driver.wait()
    assert "libarrow" in libraries
    assert "libtorch" not in libraries, "what workers report must not make the driver import torch"
    finished = count_journaled(tmp_path / "killed")
    assert ROWS // 3 <= finished < ROWS - 1
    assert not (tmp_path / "killed" / "manifest.json").exists()

    resumed = synthia(*job, *two_workers, "--json", timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["made_now"] in (ROWS - finished, ROWS - finished - 1)
    rows = pq.read_table(tmp_path / "killed" / "data").to_pylist()
    assert [row["row_index"] for row in rows] == [n for n in range(ROWS) if n != TOO_LONG]
    assert all(row["response"] and row["completion_tokens"] > 0 for row in rows)
    (failed,) = pq.read_table(tmp_path / "killed" / "failed").to_pylist()
    assert (failed["id"], failed["code"]) == (f"q{TOO_LONG}", "prompt_too_long")

    # One worker, large batches, never disturbed, no Ray: the same bytes.
    alone = synthia(*job, "--pool", "local", "--set", "engine.max_num_seqs=32", "-o", "alone", timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "alone")

    again = time.monotonic()
    done = synthia(*job, "-o", "killed")
    assert done.returncode == 0
    assert "already complete" in done.stderr
    assert time.monotonic() - again < 60, "a finished run must not load an engine"


def test_the_cards_format_ends_an_answer_where_the_user_would_speak(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Name a colour."}, {"prompt": "Name a fruit."}])
    done = synthia(
        "run", source, "--preset", "synthia-7b", "-m", "demo", "--max-tokens", "48", "--pool", "local",
        "-o", "out", "--set", "model.max_model_len=1024", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert row["system"] == "synthia"
        assert "USER:" not in row["response"]
        assert row["response"] == row["response"].strip()
        assert 0 < row["completion_tokens"] <= 48
