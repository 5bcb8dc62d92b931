"""The arguments of vLLM's engine and of its SamplingParams. Imports nothing of vLLM."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.hardware import total_memory_bytes
from synthia_batch.core.types import Request
from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import CPU_BLOCK_SIZE, EngineSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.engine import Placement

CPU_MAX_NUM_SEQS = 256
"""vLLM's own default for batches on CPUs, set here because halving starts from it."""
CPU_KV_CACHE_BYTES = 4 * 2**30
"""Default upper limit of a CPU engine's KV cache."""
BATCH_HALVINGS = 3
"""The first halvings apply to the batch: down to an eighth this costs little speed."""
GPU_MAX_NUM_SEQS = 256
"""Where halving starts by default; vLLM's own default depends on the GPU."""
GPU_STEP_TOKENS = 16384
"""vLLM's own default for one step on an H100."""
CLEAN_ATTENTION_BACKENDS = ("TRITON_ATTN",)
"""On GPUs: those without reports of broken batch invariance. vLLM 0.32.0 claims more of them."""
GPU_MEMORY_SHARE = 0.92
"""vLLM's default gpu_memory_utilization: weights, activations and KV cache together."""
GPU_SHARE_KEPT = 0.85
"""Factor per further halving; not half, since the weights keep their size."""

NO_TEMPLATE = "{{ messages[0].content }}"

STRUCTURES = "structured_outputs_config"
STRUCTURES_BACKEND = "xgrammar"
"""The first choice of vLLM's `auto`, without its fallbacks."""
_UNCHANGED = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
    "thinking_token_budget",
)  # fmt: skip
_LISTS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids")

SERVER_SETTINGS: Mapping[str, str] = {"tool_call_parser": "str", "tool_parser_plugin": "str"}
"""Settings of vLLM's server, not of its engine, that answers.py applies; with the types of their values."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values allowed for vLLM's max_lora_rank (config/lora.py of 0.32.0)."""
MAX_LORAS = 8
"""Adapters in one batch: each takes memory of the engine."""


def engine_arguments(spec: EngineSpec, placement: Placement) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`: defaults, then those for determinism, then the user's."""
    model = spec.model
    local = model.path is not None and model.path.is_dir()
    arguments: dict[str, Any] = {
        "model": str(model.path) if local else model.repo_id,
        "revision": None if local else model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # Prompts arrive as token ids. By default vLLM looks for a template and tries it.
        "chat_template": NO_TEMPLATE,
    }
    settings = dict(spec.settings) | {STRUCTURES: structures_config(spec.settings)}
    if isinstance(settings.get("hf_token"), str):
        del settings["hf_token"]  # See `prepare_environment`.
    if model.gguf is not None:
        # As vllm-gguf-plugin expects: the file as the model, its config and tokenizer beside it.
        arguments |= {
            "model": str(model.gguf),
            "tokenizer": str(model.path),
            "hf_config_path": str(model.path),
            "revision": None,
        }
    if spec.adapters:
        arguments |= _adapter_arguments(spec)
    if spec.device == "cpu":
        arguments |= _cpu_arguments(spec, placement)
    elif spec.tensor_parallel_size * spec.pipeline_parallel_size > 1:
        # By default vLLM expects one GPU per bundle in the placement group around it, and refuses the
        # group of an engine on one machine.
        arguments["distributed_executor_backend"] = "ray" if placement.spans_nodes else "mp"
    if spec.determinism == "strict":
        # On GPUs a cached prefix is not known to have the bits of a newly computed one.
        arguments["enable_prefix_caching"] = spec.cuts_prefixes
        if spec.cuts_prefixes:
            arguments["block_size"] = CPU_BLOCK_SIZE
        # For models with several kinds of KV cache (such as sliding windows), store all like the largest:
        # then the maximum size of a sample is known, and none is preempted.
        arguments["disable_hybrid_kv_cache_manager"] = True
        if spec.device == "cuda":
            arguments |= _strict_gpu_arguments(spec)
    settings = {name: value for name, value in settings.items() if name not in SERVER_SETTINGS}
    return _shrink(arguments | settings, placement.halvings, on_cpu=spec.device == "cpu")


def structures_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's structured_outputs_config: a fixed backend unless the user sets one.

    vLLM's default, `auto`, chooses a backend for each request, but an engine has only one: that of the first
    request that needs it. The choice would depend on the order of requests.
    """
    return {"backend": STRUCTURES_BACKEND, **dict(settings.get(STRUCTURES) or {})}


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of `SamplingParams`, without length limits and seed.

    `repetition_detection` is a mapping; vLLM has its own class for it.
    """
    pattern = sampling.repetition_detection
    return {
        **{name: getattr(sampling, name) for name in _UNCHANGED},
        **{name: list(getattr(sampling, name)) or None for name in _LISTS},
        "logit_bias": dict(sampling.logit_bias) or None,
        "extra_args": dict(sampling.extra_args) or None,
        "repetition_detection": pattern.model_dump() if pattern is not None else None,
    }


def override_sampling(sampling: Sampling, request: Request) -> Sampling:
    """Return `sampling` with the overrides of `request`."""
    return sampling if request.sampling is None else sampling.model_copy(update=dict(request.sampling))


def _adapter_arguments(spec: EngineSpec) -> dict[str, Any]:
    highest = max(adapter.rank for adapter in spec.adapters)
    rank = next((rank for rank in LORA_RANKS if rank >= highest), None)
    if rank is None:
        raise UsageError(f"--lora: an adapter has rank {highest}; vLLM supports up to {LORA_RANKS[-1]}")
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": min(len(spec.adapters), MAX_LORAS),
        "max_cpu_loras": len(spec.adapters),
    }


def _shrink(arguments: dict[str, Any], halvings: int, *, on_cpu: bool) -> dict[str, Any]:
    """Return `arguments` for an engine that has run out of memory `halvings` times.

    The batch is halved first, then the KV cache. A CPU engine's cache, most of its memory apart from the
    weights, is halved each time.
    """
    if not halvings:
        return arguments
    of_batch = min(halvings, BATCH_HALVINGS)
    of_cache = halvings if on_cpu else halvings - of_batch
    sequences = arguments.get("max_num_seqs") or GPU_MAX_NUM_SEQS
    smaller = {**arguments, "max_num_seqs": max(1, sequences >> of_batch)}
    if arguments.get("kv_cache_memory_bytes"):
        smaller["kv_cache_memory_bytes"] = arguments["kv_cache_memory_bytes"] >> of_cache
    elif of_cache:
        share = arguments.get("gpu_memory_utilization", GPU_MEMORY_SHARE)
        smaller["gpu_memory_utilization"] = share * GPU_SHARE_KEPT**of_cache
    return smaller


def _strict_gpu_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Return what batch invariance on GPUs needs besides VLLM_BATCH_INVARIANT. Not measured on a GPU yet."""
    return {
        # FlashAttention 3 breaks batch invariance on H100 (vllm#51902, #47069).
        "attention_backend": CLEAN_ATTENTION_BACKENDS[0],
        # Chunks of a prompt depend on the rest of the batch. Without them it must fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, GPU_STEP_TOKENS),
    }


def _cpu_arguments(spec: EngineSpec, placement: Placement) -> dict[str, Any]:
    share = total_memory_bytes() // (4 * placement.neighbours)
    return {
        "max_num_seqs": CPU_MAX_NUM_SEQS,
        # Compiling gains 7% of speed and adds 40 s to the start (measured on 2026-11-21).
        "enforce_eager": True,
        # Seeded sampling with a chunked prefill kills vLLM's CPU engine. Without chunks a prompt must
        # fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, 2048),
        "kv_cache_memory_bytes": min(CPU_KV_CACHE_BYTES, share),
    }
