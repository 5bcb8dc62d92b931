"""A worker of the real vLLM engine is killed while the run goes on."""

import os
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, command_of, make_environment, write_jsonl
from test_ray_faults import list_descendants, list_engines, read_events, wait_until, wait_until_gone

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
ROWS = 24


def test_a_killed_vllm_worker_is_replaced_and_every_sample_is_made(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"Tell me about {n}."} for n in range(ROWS)])
    command = command_of(
        "run", source, "--max-tokens", "32", "--set", "model.max_model_len=512", "--workers", "2",
        "--set", "engine.max_num_seqs=2", "-o", "out",
    )  # fmt: skip
    with (tmp_path / "stderr").open("w") as errors:
        child = subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=errors)
    try:
        wait_until(lambda: len(read_events(tmp_path, "worker_ready")) == 2, child, "two workers", seconds=240)
        descendants = list_descendants(child.pid)
        os.kill(list_engines(descendants)[0], signal.SIGKILL)
        assert child.wait(240) == 0, (tmp_path / "stderr").read_text()
        wait_until_gone(descendants)
    finally:
        child.kill()
        child.wait()
    assert pq.read_table(tmp_path / "out" / "data").num_rows == ROWS
    assert not list((tmp_path / "out").glob("failed/*.parquet"))
    assert [event["cause"] for event in read_events(tmp_path, "worker_lost")] == ["died"]
