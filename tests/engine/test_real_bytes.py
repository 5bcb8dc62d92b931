"""The fourth guarantee on the real engine: data/ is the same, byte for byte, whatever happened on the way."""

import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from test_ray_faults import list_descendants, list_engines, wait_until_gone
from test_real_engine import count_journaled

from synthia_batch.results.read.status import read_status
from synthia_batch.storage.events import read_events

pytestmark = [
    pytest.mark.engine,
    NEEDS_VLLM,
]
SAMPLES_PER_ROW = 6  # two systems, three samples each
SHORT_TOKENS = 8
"""An answer that ends before so many tokens may well be the same as another: there is little to say."""
SMALL_BATCH = ("--set", "engine.max_num_seqs=8")
"""So that there is a half-way."""
LARGER = pytest.mark.exhaustive("the same bytes of 768 samples with answers of 48 tokens")
POET = (
    "You are a poet. " + "You think of the sea, of a clock and of bread, and you write of none of them. " * 4
)
"""A prefix of some 90 tokens, which engines keep."""


@pytest.mark.parametrize(
    ("rows", "max_tokens", "system"),
    [
        pytest.param(32, 16, POET, marks=pytest.mark.timeout(900)),
        pytest.param(128, 48, POET * 12, marks=[LARGER, pytest.mark.timeout(3600)], id="larger"),
    ],
)
def test_workers_and_kills_do_not_show_in_a_single_byte(
    synthia: Command, tmp_path: Path, rows: int, max_tokens: int, system: str
) -> None:
    job = (
        "run", write_questions(tmp_path / "q.jsonl", rows), "--id-column", "id", "-s", "none",
        "-s", system, "-n", 3, "--temperature", 0.9, "--max-tokens", max_tokens,
        "--set", "model.max_model_len=2048",
    )  # fmt: skip
    samples = rows * SAMPLES_PER_ROW

    one = synthia(*job, "--workers", 1, "-o", "one", timeout=1200)
    assert one.returncode == 0, one.stderr
    wanted = read_bytes_of_data(tmp_path / "one")
    assert any(name.startswith("data/") for name in wanted)
    check_samples(tmp_path / "one", samples)

    two = synthia(*job, "--workers", 2, *SMALL_BATCH, "-o", "two", timeout=1200)
    assert two.returncode == 0, two.stderr
    assert (read_status(tmp_path / "two").cached_prompt_share or 0) > 0.3
    assert read_bytes_of_data(tmp_path / "two") == wanted

    for kill in (1, 2, 3):
        with running(tmp_path, *job, "--workers", 2, *SMALL_BATCH, "-o", "killed") as driver:
            wait_for_samples(driver, tmp_path / "killed", samples * kill // 4)
            left = list_descendants(driver.pid)
            os.kill(driver.pid, signal.SIGKILL)
        wait_until_gone(left)
        assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = synthia(*job, "--workers", 2, *SMALL_BATCH, "-o", "killed", "--json", timeout=1200)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["made_now"] <= samples // 4
    assert read_bytes_of_data(tmp_path / "killed") == wanted

    with running(tmp_path, *job, "--workers", 2, *SMALL_BATCH, "-o", "lost") as driver:
        wait_for_samples(driver, tmp_path / "lost", samples // 4)
        os.kill(list_engines(list_descendants(driver.pid))[0], signal.SIGKILL)
        assert driver.wait(1200) == 0
    lost = [
        e["cause"] for e in read_events(tmp_path / "lost/.synthia/events.jsonl") if e["kind"] == "worker_lost"
    ]
    assert lost == ["died"]
    assert read_bytes_of_data(tmp_path / "lost") == wanted

    again = synthia("verify", "two", "--rerun", 24, timeout=1200)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "24 of" in again.stdout


def write_questions(path: Path, rows: int) -> Path:
    """Prompts of different lengths, for answers that differ from each other."""
    topics = ["the sea", "a clock", "bread", "winter", "copper", "a bridge", "a letter", "the moon"]
    filler = "Take your time. "
    records = [
        {"id": f"q{n}", "question": f"{filler * (n % 4)}Tell a story about {topics[n % 8]} and {n} people."}
        for n in range(rows)
    ]
    return write_jsonl(path, records)


def check_samples(run_directory: Path, samples: int) -> None:
    """Every sample is there once, and no two of a row and system say the same unless they are short."""
    made = pq.read_table(run_directory / "data").to_pylist()
    assert len(made) == samples
    assert len({row["seed"] for row in made}) == samples
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in made:
        groups[row["row_index"], row["system"]].append(row)
    for group in groups.values():
        assert [row["sample_index"] for row in group] == [0, 1, 2]
        long = [row["response"] for row in group if row["completion_tokens"] >= SHORT_TOKENS]
        assert len(set(long)) == len(long), group


@contextmanager
def running(directory: Path, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The command line in a process of its own, which does not outlive the block."""
    driver = subprocess.Popen(
        command_of(*arguments), cwd=directory, env=make_environment(), stderr=subprocess.DEVNULL
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def wait_for_samples(driver: "subprocess.Popen[bytes]", run_directory: Path, wanted: int) -> None:
    deadline = time.monotonic() + 600
    while count_journaled(run_directory) < wanted:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"no {wanted} samples in ten minutes"
        time.sleep(0.02)
