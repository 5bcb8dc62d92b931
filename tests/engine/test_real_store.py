"""The real engine with its output in an S3 store: the driver killed half-way, then the same command."""

import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from harness import read_ended
from s3 import URL, serve_s3

pytestmark = [
    pytest.mark.engine,
    NEEDS_VLLM,
]
ROWS = 24
JOB = ("run", "q.jsonl", "-s", "none", "--max-tokens", "48", "--set", "model.max_model_len=512",
       "--workers", "1", "--set", "engine.max_num_seqs=4", "-o", URL, "--state", "state")  # fmt: skip


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_and_the_store_has_every_answer(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    with serve_s3(tmp_path) as s3:
        process = subprocess.Popen(
            command_of(*JOB),
            cwd=tmp_path,
            env=make_environment(**s3.environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while len(read_ended(tmp_path / "state")) < 6:
                assert process.poll() is None, "it ended by itself"
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        before = read_ended(tmp_path / "state")
        assert 6 <= len(before) < ROWS
        assert "manifest.json" not in s3.list()
        done = synthia(*JOB, "--json", timeout=600, **s3.environment)
        assert done.returncode == 0, done.stderr
        assert f'"made_now": {ROWS - len(before)}' in done.stdout
        assert s3.read_dataset() == read_bytes_of_data(tmp_path / "state")
        verified = synthia("verify", URL, "--rows", "-q", **s3.environment)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert len(pq.read_table(tmp_path / "state/data")) == ROWS
