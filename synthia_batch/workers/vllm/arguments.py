"""The arguments that vLLM is made and asked with. Imports nothing of vLLM."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.hardware import total_memory_bytes
from synthia_batch.core.types import Request
from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.engine import Placement

CPU_MAX_NUM_SEQS = 256
"""vLLM's own for batches on CPUs, said here since halving starts from it."""
CPU_KV_CACHE_BYTES = 4 * 2**30
"""The most that a CPU engine takes for its KV cache unless told otherwise."""
BATCH_HALVINGS = 3
"""The first halvings are the batch's: down to an eighth it costs little speed."""
GPU_MAX_NUM_SEQS = 256
"""Where halving starts if nobody has said how many; vLLM's own choice depends on the GPU."""
GPU_STEP_TOKENS = 16384
"""What vLLM itself lets one step of an H100 hold."""
CLEAN_ATTENTION_BACKENDS = ("TRITON_ATTN",)
"""On GPUs: those in which nobody has reported a batch to show. vLLM 0.32.0 claims more of them."""
GPU_MEMORY_SHARE = 0.92
"""vLLM's default gpu_memory_utilization: weights, activations and KV cache together."""
GPU_SHARE_KEPT = 0.85
"""Per further halving: the weights stay as large as they are."""

NO_TEMPLATE = "{{ messages[0].content }}"

STRUCTURES = "structured_outputs_config"
STRUCTURES_BACKEND = "xgrammar"
"""What vLLM's `auto` takes first; without another to fall back on."""
_AS_SAID = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
    "thinking_token_budget",
)  # fmt: skip
_LISTS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids")

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be (config/lora.py of 0.32.0)."""
MAX_LORAS = 8
"""Adapters in one batch: each has its own room in the engine's memory."""


def engine_arguments(spec: EngineSpec, placement: Placement) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`: defaults, then what determinism needs, then the user's own."""
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
        # Prompts arrive as token ids. Left to itself, vLLM looks for a template and tries it.
        "chat_template": NO_TEMPLATE,
    }
    settings = dict(spec.settings) | {STRUCTURES: structures_config(spec.settings)}
    if model.gguf is not None:
        # As vllm-gguf-plugin takes it: the file as the model, its config and tokenizer beside it.
        arguments |= {
            "model": str(model.gguf),
            "tokenizer": str(model.path),
            "hf_config_path": str(model.path),
        }
        arguments["revision"] = None
    if spec.adapters:
        arguments |= _adapter_arguments(spec)
    if spec.device == "cpu":
        arguments |= _cpu_arguments(spec, placement)
    elif spec.tensor_parallel_size * spec.pipeline_parallel_size > 1:
        # Left to itself, vLLM takes the placement group that it finds itself in for one whose
        # bundles have a GPU each, and refuses that of an engine on one machine.
        arguments["distributed_executor_backend"] = "ray" if placement.spans_nodes else "mp"
    if spec.determinism == "strict":
        # A prefix taken from the cache was computed in another batch shape than one that was not.
        arguments["enable_prefix_caching"] = False
        # Of a model with several kinds of KV cache (sliding windows, for one) all are kept as the largest:
        # what a sample may come to need can be counted then, so that none is preempted.
        arguments["disable_hybrid_kv_cache_manager"] = True
        if spec.device == "cuda":
            arguments |= _strict_gpu_arguments(spec)
    return _shrink(arguments | settings, placement.halvings, on_cpu=spec.device == "cpu")


def structures_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's structured_outputs_config, the user's own over what determinism needs.

    vLLM's own default, `auto`, chooses a backend for each request, and an engine has one only: that of
    the first request that needs any. Which one that is would depend on the order of requests.
    """
    return {"backend": STRUCTURES_BACKEND, **dict(settings.get(STRUCTURES) or {})}


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of `SamplingParams` but the limits of length and the seed.

    `repetition_detection` is a mapping: the class for it is vLLM's.
    """
    pattern = sampling.repetition_detection
    return {
        **{name: getattr(sampling, name) for name in _AS_SAID},
        **{name: list(getattr(sampling, name)) or None for name in _LISTS},
        "logit_bias": dict(sampling.logit_bias) or None,
        "extra_args": dict(sampling.extra_args) or None,
        "repetition_detection": pattern.model_dump() if pattern is not None else None,
    }


def override_sampling(sampling: Sampling, request: Request) -> Sampling:
    """Return `sampling` as `request` has it."""
    return sampling if request.sampling is None else sampling.model_copy(update=dict(request.sampling))


def _adapter_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Return what vLLM needs to know of the adapters: how many at once, and the highest rank of them."""
    highest = max(adapter.rank for adapter in spec.adapters)
    rank = next((rank for rank in LORA_RANKS if rank >= highest), None)
    if rank is None:
        raise UsageError(f"--lora: an adapter of rank {highest}; vLLM takes up to {LORA_RANKS[-1]}")
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": min(len(spec.adapters), MAX_LORAS),
        "max_cpu_loras": len(spec.adapters),
    }


def _shrink(arguments: dict[str, Any], halvings: int, *, on_cpu: bool) -> dict[str, Any]:
    """Return `arguments` for an engine that has run out of memory `halvings` times.

    First the batch is halved; what is still too much then comes from the KV cache. A CPU engine's
    cache, which is most of what it takes beside its weights, is halved each time.
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
    """Return what batch invariance on GPUs takes beside VLLM_BATCH_INVARIANT. Not measured on a card yet."""
    return {
        # FlashAttention 3 was seen to break batch invariance on H100 (vllm#51902, #47069).
        "attention_backend": CLEAN_ATTENTION_BACKENDS[0],
        # How a prompt is cut depends on what else is in the batch; whole, it must fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, GPU_STEP_TOKENS),
    }


def _cpu_arguments(spec: EngineSpec, placement: Placement) -> dict[str, Any]:
    share = total_memory_bytes() // (4 * placement.neighbours)
    return {
        "max_num_seqs": CPU_MAX_NUM_SEQS,
        # Compiling gains 7% of speed and costs 40 s of start (shared measurements of 2026-11-21).
        "enforce_eager": True,
        # Seeded sampling with a chunked prefill kills vLLM's CPU engine; a prefill that is not
        # chunked must fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, 2048),
        "kv_cache_memory_bytes": min(CPU_KV_CACHE_BYTES, share),
    }
