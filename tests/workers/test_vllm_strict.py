"""Where strict determinism can be had, and what GPUs are set to for it. No GPU is needed."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import NEEDS_VLLM, write_jsonl
from test_engine_environment import SPEC

from synthia_batch.core.console import Display
from synthia_batch.core.hardware import list_capabilities
from synthia_batch.core.types import Request
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.presets import read_preset
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.sampling import Sampling
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.runner import run as running
from synthia_batch.runner.resolve import engine_spec, resolve_job
from synthia_batch.runner.resolve.engine_spec import describe_job_cost
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.environment import required_environment
from synthia_batch.workers.vllm.arguments import engine_arguments, limit_top_k
from synthia_batch.workers.vllm.policy import check_capability, check_quantization

GPU = dataclasses.replace(SPEC, device="cuda")


def test_a_strict_gpu_engine_has_all_that_batch_invariance_takes() -> None:
    arguments = engine_arguments(GPU, Placement())
    assert required_environment(GPU)["VLLM_BATCH_INVARIANT"] == "1"
    assert arguments["attention_backend"] == "TRITON_ATTN"
    assert arguments["enable_prefix_caching"] is False
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["disable_hybrid_kv_cache_manager"] is True


def test_the_tokens_of_a_step_are_vllms_own_default_for_the_card() -> None:
    """Without chunks vLLM enlarges it to the longest prompt: EngineArgs._set_default_... in arg_utils.py."""
    long = dataclasses.replace(GPU, max_model_len=131_072)
    assert "max_num_batched_tokens" not in engine_arguments(long, Placement())
    own = dataclasses.replace(GPU, settings={"max_num_batched_tokens": 4096})
    assert engine_arguments(own, Placement())["max_num_batched_tokens"] == 4096


def test_latent_attention_has_a_backend_of_its_own_in_strict(tmp_path: Path) -> None:
    config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert read_model_facts(make_model(tmp_path / "mla", **config)).uses_mla
    assert read_model_facts(make_model(tmp_path / "inner", text_config=config)).uses_mla
    assert not read_model_facts(make_model(tmp_path / "m")).uses_mla
    latent = dataclasses.replace(GPU, uses_mla=True)
    assert engine_arguments(latent, Placement())["attention_backend"] == "TRITON_MLA"
    fast = dataclasses.replace(latent, determinism="fast")
    assert "attention_backend" not in engine_arguments(fast, Placement())


@pytest.mark.parametrize(
    ("top_p", "top_k", "expected"),
    [(0.9, 0, 31_999), (0.9, -1, 31_999), (0.9, 32_000, 31_999), (0.9, 50, 50), (1.0, 0, 0), (1.0, -1, -1)],
)
def test_a_top_p_never_reaches_the_kernel_that_divides_rows_by_the_batch(
    top_p: float, top_k: int, expected: int
) -> None:
    sampling = Sampling(top_p=top_p).model_copy(update={"top_k": top_k})
    assert limit_top_k(sampling, 32_000).top_k == expected


@NEEDS_VLLM
def test_a_rows_own_top_p_is_limited_like_the_jobs() -> None:
    from synthia_batch.workers.vllm.params import make_params

    request = Request(ordinal=0, token_ids=(1, 2), seed=7, sampling={"top_p": 0.5, "top_k": 0})
    job = dataclasses.replace(GPU, sampling=Sampling(top_k=40))
    assert make_params(job, request, 8, 1000).top_k == 999
    plain = dataclasses.replace(request, sampling=None)
    assert make_params(job, plain, 8, 1000).top_k == 40
    for other in (dataclasses.replace(job, determinism="fast"), dataclasses.replace(job, device="cpu")):
        assert make_params(other, request, 8, 1000).top_k in (0, -1)


def test_gpus_of_other_makers_are_refused_in_strict() -> None:
    with pytest.raises(UsageError, match=r"AMD Instinct MI300X is no NVIDIA GPU.*(?s:.*)--determinism fast"):
        check_capability(None, "AMD Instinct MI300X")


@NEEDS_VLLM
def test_a_gpu_is_asked_without_initializing_cuda_in_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from synthia_batch.workers.vllm import engine

    class Platform:
        capability: Any = SimpleNamespace(major=9, minor=0)
        nvidia = True

        def is_cuda(self) -> bool:
            return self.nvidia

        def get_device_name(self, device: int) -> str:
            return "a card"

        def get_device_capability(self, device: int) -> Any:
            return self.capability

    def fail(*_: Any) -> None:
        raise AssertionError("CUDA would be initialized")

    platform = Platform()
    monkeypatch.setattr(engine, "current_platform", platform)
    for name in ("get_device_capability", "get_device_name", "init", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, fail)
    engine._check_gpu()
    platform.capability = SimpleNamespace(major=7, minor=5)
    with pytest.raises(UsageError, match=r"a card has compute capability 7\.5"):
        engine._check_gpu()
    platform.nvidia = False
    with pytest.raises(UsageError, match="a card is no NVIDIA GPU"):
        engine._check_gpu()


def test_a_fast_gpu_engine_is_vllms_own() -> None:
    arguments = engine_arguments(dataclasses.replace(GPU, determinism="fast"), Placement())
    strict_only = {
        "attention_backend",
        "disable_hybrid_kv_cache_manager",
        "enable_prefix_caching",
        "enable_chunked_prefill",
    }
    assert not strict_only & arguments.keys()


@pytest.mark.parametrize(
    ("capability", "is_enough"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)]
)
def test_cards_before_ampere_are_refused(capability: tuple[int, int], is_enough: bool) -> None:
    if is_enough:
        check_capability(capability, "a card")
        return
    with pytest.raises(UsageError, match=r"(?s)Tesla T4 has .* 7\.5; .* 8\.0 .*--determinism fast"):
        check_capability(capability, "Tesla T4")


@pytest.mark.parametrize(
    ("device", "method", "is_known"),
    [
        ("cpu", None, True), ("cpu", "awq", True), ("cpu", "fp8", False), ("cpu", "gptq", False),
        ("cuda", None, True), ("cuda", "AWQ", True), ("cuda", "fp8", True), ("cuda", "mxfp4", True),
        ("cuda", "gptq", False), ("cuda", "bitsandbytes", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_explicit", [True, False])
def test_a_quantization_that_is_not_known_to_be_batch_invariant_is_refused(
    device: Any, method: str | None, is_known: bool, is_explicit: bool
) -> None:
    spec = dataclasses.replace(SPEC, device=device, quantization=method if is_explicit else None)
    of_model = None if is_explicit else method
    check_quantization(dataclasses.replace(spec, determinism="fast"), of_model)
    if is_known:
        check_quantization(spec, of_model)
        return
    with pytest.raises(UsageError, match=rf"quantized with {method}.*--determinism fast"):
        check_quantization(spec, of_model)


def make_model(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, **config}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"bits": 4}}, "unknown"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "FP8"}}}, "fp8"),
    ],
)
def test_a_models_quantization_is_what_its_config_says(
    tmp_path: Path, config: dict[str, Any], method: str | None
) -> None:
    found = read_model_facts(make_model(tmp_path / "m", **config)).quantization
    assert (found.method if found else None) == method


def resolve_on(tmp_path: Path, **values: Any) -> ResolvedJob:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "x"}])
    # A format of its own: the models made here have no chat template.
    said = {"input": {"path": source}, "prompt_format": "synthia", **values}
    return resolve_job([Layer(origin="flag", values=said)], uses_tuned=False)


@pytest.fixture
def old_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_spec, "list_capabilities", lambda: ((7, 0),))
    monkeypatch.setattr(engine_spec, "name_gpus", lambda: ("Tesla V100",))


@NEEDS_VLLM
@pytest.mark.usefixtures("old_card")
def test_what_cannot_be_strict_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    model = {"name": str(make_model(tmp_path / "m"))}
    quantized = {"name": str(make_model(tmp_path / "g", quantization_config={"quant_method": "gptq"}))}
    on_gpu = {"device": "cuda"}
    with pytest.raises(UsageError, match=r"Tesla V100 has compute capability 7\.0"):
        resolve_on(tmp_path, model=model, engine=on_gpu)
    with pytest.raises(UsageError, match="quantized with gptq"):
        resolve_on(tmp_path, model=quantized, engine=on_gpu)
    fast = resolve_on(tmp_path, model=quantized, engine=on_gpu, determinism="fast")
    assert fast.engine.determinism == "fast"
    elsewhere = resolve_on(tmp_path, model=model, engine=on_gpu, pool={"ray_address": "head:6379"})
    assert elsewhere.engine.device == "cuda", "the cards are other machines'"


def test_without_nvidia_smi_no_capability_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_capabilities() == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 8.0\necho '[N/A]'\necho 9.0\n")
    tool.chmod(0o755)
    assert list_capabilities() == ((8, 0), (9, 0))


@NEEDS_VLLM
def test_the_price_of_strict_is_in_the_plan_and_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_spec, "list_capabilities", lambda: ())
    model = {"name": str(make_model(tmp_path / "m"))}
    job = resolve_on(tmp_path, model=model, engine={"device": "cuda"}, output=tmp_path / "out")
    said = describe_job_cost(job.engine)
    assert said is not None
    assert said.startswith("strict costs about 2 to 4 times the time of fast: not measured on this card")
    for other in ({"determinism": "fast"}, {"device": "cpu"}, {"kind": "scripted"}):
        assert describe_job_cost(dataclasses.replace(job.engine, **other)) is None  # type: ignore[arg-type]
    monkeypatch.setattr(running, "refuse_other_identity", stop)
    caplog.set_level("INFO", "synthia_batch")
    with pytest.raises(InterruptedError):
        running.run_resolved_job(job, Display(quiet=True))
    assert caplog.messages[-1] == said


def stop(*_: Any) -> None:
    raise InterruptedError


@NEEDS_VLLM
def test_a_presets_gguf_file_is_fast_on_gpus_and_strict_on_cpus() -> None:
    preset = read_preset("synthia-70b-gguf")
    assert preset.make_layer(None, on_gpu=True).values["determinism"] == "fast"
    assert "determinism" not in preset.make_layer(None, on_gpu=False).values
    spec = dataclasses.replace(GPU, quantization="gguf")
    with pytest.raises(UsageError, match=r"quantized with gguf.*--determinism fast"):
        check_quantization(spec, None)
