"""What vLLM is made with, before and after an engine has run out of memory."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_engine_environment import SPEC

from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import LoraAdapter
from synthia_batch.workers.engine import Placement, Reduction
from synthia_batch.workers.vllm import arguments as arguments_module
from synthia_batch.workers.vllm.arguments import (
    BATCH_HALVINGS,
    CPU_MAX_NUM_SEQS,
    GPU_MAX_NUM_SEQS,
    GPU_OVERHEAD_BYTES,
    engine_arguments,
)

GPU = dataclasses.replace(SPEC, device="cuda")


def after(halvings: int, engine: Any = SPEC, loads: int = 0, batch: int | None = None) -> dict[str, Any]:
    reduction = Reduction(batch_halvings=halvings, load_failures=loads, max_num_seqs=batch)
    return engine_arguments(engine, Placement(reduction=reduction))


def test_a_cpu_engine_gives_up_half_the_batch_and_half_the_cache_each_time() -> None:
    caches = [after(halvings)["kv_cache_memory_bytes"] for halvings in range(3)]
    assert caches == [caches[0], caches[0] // 2, caches[0] // 4]
    assert [after(halvings)["max_num_seqs"] for halvings in range(2)] == [
        CPU_MAX_NUM_SEQS,
        CPU_MAX_NUM_SEQS // 2,
    ]


def test_a_batch_that_was_left_to_vllm_is_halved_all_the_same() -> None:
    unsaid = dataclasses.replace(GPU, settings={"max_num_seqs": None})
    assert after(1, unsaid)["max_num_seqs"] == after(1, GPU)["max_num_seqs"]


def test_a_gpu_engine_gives_up_batch_first_and_then_its_share_of_the_memory() -> None:
    assert "gpu_memory_utilization" not in after(BATCH_HALVINGS, GPU)
    last = after(BATCH_HALVINGS + 1, GPU)
    assert last["max_num_seqs"] == after(BATCH_HALVINGS, GPU)["max_num_seqs"]
    assert 0 < last["gpu_memory_utilization"] < 0.9


def test_a_gpu_engine_that_did_not_load_claims_less_memory_and_keeps_its_batch() -> None:
    shares = [after(0, GPU, loads=loads).get("gpu_memory_utilization") for loads in range(3)]
    assert shares == [None, pytest.approx(0.92 * 0.7), pytest.approx(0.92 * 0.49)]
    assert "max_num_seqs" not in after(0, GPU, loads=2)
    sized = dataclasses.replace(GPU, settings={"kv_cache_memory_bytes": 64 << 30})
    assert after(0, sized, loads=2)["kv_cache_memory_bytes"] == 16 << 30
    assert after(0, sized, loads=1)["gpu_memory_utilization"] < 0.7, "vLLM compares it with what is free"


def test_a_gpu_engine_halves_the_batch_that_it_had_on_this_card() -> None:
    assert after(1, GPU, batch=1024)["max_num_seqs"] == 512
    assert "gpu_memory_utilization" not in after(1, GPU, batch=1024)
    own = dataclasses.replace(GPU, settings={"max_num_seqs": 64})
    assert after(2, own, batch=64)["max_num_seqs"] == 16
    assert after(1, GPU)["max_num_seqs"] == GPU_MAX_NUM_SEQS // 2


def test_a_cpu_engine_shrinks_alike_wherever_it_ran_out_of_memory() -> None:
    assert after(0, loads=2) == after(2) == after(1, loads=1)


def test_a_gguf_file_is_the_model_for_the_plugin_with_its_config_and_tokenizer_beside_it() -> None:
    model = dataclasses.replace(GPU.model, path=Path("/cache/gguf-1"), gguf=Path("/models/m.Q4_K_M.gguf"))
    arguments = after(0, dataclasses.replace(GPU, model=model))
    assert arguments["model"] == "/models/m.Q4_K_M.gguf"
    assert arguments["tokenizer"] == arguments["hf_config_path"] == "/cache/gguf-1"
    assert arguments["revision"] is None
    assert arguments["quantization"] is None, "the plugin says it"


def share(monkeypatch: pytest.MonkeyPatch, engines: int, **changes: Any) -> dict[str, Any]:
    monkeypatch.setattr(arguments_module, "list_gpu_memory", lambda: (80 * 10**9,))
    spec = dataclasses.replace(GPU, **{"weights_bytes": 14 * 10**9, **changes})
    return engine_arguments(spec, Placement(engines_per_gpu=engines))


def test_engines_that_share_a_gpu_have_a_kv_cache_of_explicit_size(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = share(monkeypatch, 2)
    assert arguments["gpu_memory_utilization"] == pytest.approx(0.46)
    assert arguments["kv_cache_memory_bytes"] == int(36.8e9) - 14 * 10**9 - GPU_OVERHEAD_BYTES
    own = share(monkeypatch, 2, settings={"kv_cache_memory_bytes": 10**9}, weights_bytes=None)
    assert own["kv_cache_memory_bytes"] == 10**9
    assert "kv_cache_memory_bytes" not in share(monkeypatch, 1)
    with pytest.raises(UsageError, match=r"engines_per_gpu=5: each engine has 14\.7 GB .* use fewer engines"):
        share(monkeypatch, 5)
    with pytest.raises(UsageError, match="set the KV cache of each engine"):
        share(monkeypatch, 2, weights_bytes=None)


def with_ranks(*ranks: int) -> Any:
    adapters = [
        LoraAdapter(name=f"a{n}", path=Path("/a"), rank=rank, digest="") for n, rank in enumerate(ranks)
    ]
    return dataclasses.replace(SPEC, adapters=tuple(adapters))


def test_adapters_get_the_rank_that_holds_them_all() -> None:
    assert "enable_lora" not in after(0)
    arguments = after(0, with_ranks(4, 24))
    assert arguments["enable_lora"]
    assert (arguments["max_lora_rank"], arguments["max_loras"], arguments["max_cpu_loras"]) == (32, 2, 2)
    many = after(0, with_ranks(*[8] * 20))
    assert (many["max_loras"], many["max_cpu_loras"]) == (8, 20)
    with pytest.raises(UsageError, match="rank 1024"):
        after(0, with_ranks(1024))
