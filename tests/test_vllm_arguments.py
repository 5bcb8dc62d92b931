"""What vLLM is made with, before and after an engine has run out of memory."""

import dataclasses
from typing import Any

from test_engine_environment import SPEC

from synthia_batch.engine.placement import Placement
from synthia_batch.engine.vllm_arguments import BATCH_HALVINGS, CPU_MAX_NUM_SEQS, engine_arguments

GPU = dataclasses.replace(SPEC, device="cuda")


def after(halvings: int, engine: Any = SPEC) -> dict[str, Any]:
    return engine_arguments(engine, Placement(halvings=halvings))


def test_a_cpu_engine_gives_up_half_the_batch_and_half_the_cache_each_time() -> None:
    caches = [after(halvings)["kv_cache_memory_bytes"] for halvings in range(3)]
    assert caches == [caches[0], caches[0] // 2, caches[0] // 4]
    assert [after(halvings)["max_num_seqs"] for halvings in range(2)] == [
        CPU_MAX_NUM_SEQS,
        CPU_MAX_NUM_SEQS // 2,
    ]


def test_a_gpu_engine_gives_up_batch_first_and_then_its_share_of_the_memory() -> None:
    assert "gpu_memory_utilization" not in after(BATCH_HALVINGS, GPU)
    last = after(BATCH_HALVINGS + 1, GPU)
    assert last["max_num_seqs"] == after(BATCH_HALVINGS, GPU)["max_num_seqs"]
    assert 0 < last["gpu_memory_utilization"] < 0.9
