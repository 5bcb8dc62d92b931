"""Settings of vLLM that a job may not have, on which device and in which determinism. No engine is needed."""

from typing import Any

import pytest
from conftest import NEEDS_VLLM

from synthia_batch.errors import UsageError
from synthia_batch.workers.vllm import policy as vllm_refused
from synthia_batch.workers.vllm.policy import check_not_refused
from synthia_batch.workers.vllm.settings import check_settings, list_fields

NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
ON_BOTH = [
    ("disable_hybrid_kv_cache_manager", False, True),
    ("disable_hybrid_kv_cache_manager", None, True),
    ("kv_transfer_config", {"kv_connector": "OffloadingConnector"}, None),
    ("kv_offloading_size", 1.0, None),
    ("speculative_config", NGRAM, None),
    ("spec_method", "ngram", None),
    ("spec_model", "draft", None),
    ("spec_tokens", 3, None),
    ("scheduler_cls", "mine.Scheduler", None),
    ("worker_cls", "mine.Worker", "auto"),
    ("quantization_config", {"linear": "fp8"}, None),
    ("diffusion_config", {"steps": 4}, None),
    ("attention_backend", "FLASH_ATTN", "TRITON_ATTN"),
    ("attention_backend", None, "triton_attn"),
    ("hf_overrides", {"text_config": {"quantization_config": {}}}, {"rope_theta": 1e6}),
    ("hf_overrides", {"compression_config": {}}, {}),
]
"""A setting, a value that strict determinism cannot be kept with, and one that it can."""
ON_CPUS = [("enforce_eager", False, True)]
ON_GPUS = [
    ("enable_prefix_caching", True, False),
    ("enable_prefix_caching", None, False),
    ("enable_chunked_prefill", True, False),
    ("enable_chunked_prefill", None, False),
    ("long_prefill_token_threshold", 512, 0),
    ("attention_config", {"backend_per_kind": {"full_attention": "FLASH_ATTN"}}, None),
    ("compilation_config", {"pass_config": {"fuse_allreduce_rms": True}}, None),
    ("kernel_config", {"linear_backend": "marlin"}, None),
    ("ir_op_priority", {"rms_norm": ["native"]}, None),
    ("linear_backend", "marlin", "auto"),
    ("enable_eplb", True, False),
    ("distributed_executor_backend", "mine.Executor", "ray"),
]


def list_cases() -> list[Any]:
    devices = [("cpu", [*ON_BOTH, *ON_CPUS]), ("cuda", [*ON_BOTH, *ON_GPUS])]
    return [(device, *case) for device, cases in devices for case in cases]


@pytest.mark.parametrize(("device", "name", "refused", "allowed"), list_cases(), ids=str)
def test_what_undoes_strict_determinism_is_refused_there_and_only_there(
    device: Any, name: str, refused: Any, allowed: Any
) -> None:
    check_not_refused(name, refused, device, "fast")
    check_not_refused(name, allowed, device, "strict")
    with pytest.raises(UsageError, match=rf"engine\.{name}: ") as caught:
        check_not_refused(name, refused, device, "strict")
    assert ("--determinism fast" in str(caught.value)) == (name != "hf_overrides")


@pytest.mark.parametrize(
    ("name", "refused", "allowed"),
    [
        ("enable_chunked_prefill", True, False),
        ("enable_chunked_prefill", None, False),
        ("long_prefill_token_threshold", 512, 0),
        ("max_num_scheduled_tokens", 64, None),
    ],
)
def test_what_ends_or_stops_vllms_cpu_engine_is_refused_in_fast_as_well(
    name: str, refused: Any, allowed: Any
) -> None:
    for determinism in ("fast", "strict"):
        check_not_refused(name, allowed, "cpu", determinism)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"engine\.{name}: .*leave it out$"):
            check_not_refused(name, refused, "cpu", determinism)  # type: ignore[arg-type]
    check_not_refused(name, refused, "cuda", "fast")


def test_compiling_a_gpu_engine_is_left_to_vllm() -> None:
    check_not_refused("enforce_eager", False, "cuda", "strict")


@NEEDS_VLLM
def test_every_refused_setting_is_one_that_the_installed_vllm_has() -> None:
    tables = [vllm_refused._ON_CPUS, vllm_refused._IN_STRICT, *vllm_refused._IN_STRICT_ON.values()]
    assert not {name for table in tables for name in table} - list_fields().keys()


@NEEDS_VLLM
def test_a_jobs_settings_are_checked_for_it() -> None:
    check_settings({"enforce_eager": False}, "cpu", "fast")
    with pytest.raises(UsageError, match=r"engine\.enforce_eager: a compiled model"):
        check_settings({"enforce_eager": False}, "cpu", "strict")
