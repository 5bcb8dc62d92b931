"""The real torch and the real engine in processes that may have only so much memory."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, write_jsonl
from test_ray_faults import read_events

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
LIMITED = """
import resource
import torch
from synthia_batch.workers.vllm.errors import memory_errors
from synthia_batch.errors import EngineOutOfMemory

in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28,) * 2)

def tell(function):
    try:
        with memory_errors():
            function()
    except EngineOutOfMemory:
        return "short"
    except RuntimeError:
        return "other"

def raise_as_somebody_else():
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory, says a log that is quoted here")

print(
    tell(lambda: torch.zeros(2**30, dtype=torch.uint8)),
    tell(lambda: [torch.zeros(2**24, dtype=torch.uint8) for _ in range(100)]),
    tell(lambda: bytearray(2**30)),
    tell(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)),
    tell(raise_as_somebody_else),
)
"""
LIMIT_WORKERS = """
import resource, sys
if any("default_worker.py" in word for word in sys.orig_argv):
    resource.setrlimit(resource.RLIMIT_AS, ({limit},) * 2)
"""
KV_CACHE_BYTES = 4 * 2**30
LIMIT_BYTES = 7 * 2**30
"""Beside its KV cache an engine of the embedded model maps some 3.8 GiB: there is room for half of it."""


def test_torchs_shortage_of_memory_on_cpus_is_told_from_its_other_errors() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["short", "short", "short", "other", "other"], done.stderr


def test_an_engine_that_gets_no_memory_starts_again_with_less_and_says_so(
    synthia: Command, tmp_path: Path
) -> None:
    (tmp_path / "limit").mkdir()
    (tmp_path / "limit" / "sitecustomize.py").write_text(LIMIT_WORKERS.format(limit=LIMIT_BYTES))
    path = os.pathsep.join(filter(None, [str(tmp_path / "limit"), os.environ.get("PYTHONPATH")]))
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(4)])
    done = synthia(
        "run", source, "--workers", "1", "--max-tokens", "8", "--set", "model.max_model_len=512",
        "--set", f"engine.kv_cache_memory_bytes={KV_CACHE_BYTES}", "-o", "out",
        timeout=400, PYTHONPATH=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "worker 0 ran out of memory and starts again in 0.2 s with less memory" in done.stderr
    assert [event["cause"] for event in read_events(tmp_path, "worker_lost")] == ["out_of_memory"]
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 4
