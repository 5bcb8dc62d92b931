"""vLLM's own processes die: its core, its tensor-parallel processes, and the worker above them.

On CPUs the core is in the worker's process. Fast determinism leaves the user the choice, and with
VLLM_ENABLE_V1_MULTIPROCESSING=1 the processes are those that there are on GPUs: a worker, below it
the core, below that one process for each part of the model.
"""

import os
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, command_of, make_environment, write_jsonl
from test_ray_faults import (
    list_descendants,
    list_engines,
    list_processes,
    read_events,
    wait_until,
    wait_until_gone,
)
from test_real_engine import count_journaled

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    NEEDS_VLLM,
]
ROWS = 40
MADE_BETWEEN = 8
"""More than were in flight at a death: those are tried alone, and a second death would convict one."""
NOTICED_SECONDS = 30
"""Far below the watchdog's 300: it is the death that is noticed, not the silence."""


def start_run_of_processes(directory: Path) -> subprocess.Popen[bytes]:
    source = write_jsonl(directory / "q.jsonl", [{"question": f"Tell me about {n}."} for n in range(ROWS)])
    command = command_of(
        "run", source, "--determinism", "fast", "--workers", "1", "--max-tokens", "48",
        "--set", "model.max_model_len=512", "--set", "engine.max_num_seqs=2",
        "--set", f"engine.kv_cache_memory_bytes={2**28}", "-o", "out",
    )  # fmt: skip
    with (directory / "stderr").open("w") as errors:
        return subprocess.Popen(
            command, cwd=directory, env=make_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1"), stderr=errors
        )


def find_below_worker(driver: int, name: str) -> int:
    """Return the process of that name below the driver's one worker; vLLM names its own."""
    processes = list_processes()
    (found,) = [pid for pid in list_descendants(driver) if processes[pid][1].startswith(name)]
    return found


def test_the_death_of_any_of_vllms_processes_is_noticed_and_leaves_none_behind(tmp_path: Path) -> None:
    child = start_run_of_processes(tmp_path)
    seen: set[int] = set()
    try:
        for deaths, name in enumerate(("VLLM::EngineCor", "VLLM::Worker", "ray::Engine")):
            wait_until(
                lambda count=deaths + 1: len(read_events(tmp_path, "worker_ready")) == count,
                child, f"worker number {deaths + 1}", seconds=240,
            )  # fmt: skip
            (worker,) = list_engines(list_descendants(child.pid))
            family = {worker, *list_descendants(worker)}
            seen |= family
            made = count_journaled(tmp_path / "out")
            wait_until(
                lambda enough=made + MADE_BETWEEN: count_journaled(tmp_path / "out") >= enough,
                child, "samples", seconds=120,
            )  # fmt: skip
            os.kill(find_below_worker(child.pid, name), signal.SIGKILL)
            wait_until(
                lambda count=deaths + 1: len(read_events(tmp_path, "worker_lost")) == count,
                child, f"the death of {name}", seconds=NOTICED_SECONDS,
            )  # fmt: skip
            wait_until_gone(family)
        assert child.wait(300) == 0, (tmp_path / "stderr").read_text()
        wait_until_gone(seen)
    finally:
        child.kill()
        child.wait()
    lost = read_events(tmp_path, "worker_lost")
    assert [event["cause"] for event in lost] == ["died"] * 3
    assert all("EngineDeadError" in str(event["reason"]) for event in lost[:2])
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["row_index"] for row in rows] == list(range(ROWS))
    assert not list((tmp_path / "out").glob("failed/*.parquet"))
