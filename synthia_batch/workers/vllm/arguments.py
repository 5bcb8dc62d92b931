"""The arguments of vLLM's engine and of its SamplingParams. Imports nothing of vLLM."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.hardware import list_gpu_memory, total_memory_bytes
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import CPU_BLOCK_SIZE, EngineSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.engine import Placement, Reduction

CPU_MAX_NUM_SEQS = 256
"""vLLM's own default for batches on CPUs, set here because halving starts from it."""
CPU_KV_CACHE_BYTES = 4 * 2**30
"""Default upper limit of a CPU engine's KV cache."""
BATCH_HALVINGS = 3
"""The first halvings apply to the batch: down to an eighth this costs little speed."""
GPU_MAX_NUM_SEQS = 256
"""Where halving starts if the engine's own batch is unknown; vLLM's default depends on the GPU."""
CLEAN_ATTENTION_BACKENDS = ("TRITON_ATTN",)
"""On GPUs: those without reports of broken batch invariance. vLLM 0.32.0 claims more of them."""
MLA_ATTENTION_BACKEND = "TRITON_MLA"
"""The same for models with latent attention (DeepSeek's and others), which TRITON_ATTN cannot compute."""
GPU_MEMORY_SHARE = 0.92
"""vLLM's default gpu_memory_utilization: weights, activations and KV cache together."""
GPU_OVERHEAD_BYTES = 3 * 10**9
"""Rough memory of a GPU engine besides weights and KV cache: 0.6 GB CUDA context, 1 GB graphs, and
activations of a step. Not measured on a GPU yet."""
GPU_SHARE_KEPT = 0.85
"""Factor per further halving; not half, since the weights keep their size."""
GPU_SHARE_KEPT_AT_LOAD = 0.7
"""Factor for each time that the memory did not suffice to load: other programs may use half of the card, and
each try takes minutes."""

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
    if spec.device == "cuda" and placement.engines_per_gpu > 1:
        arguments |= _shared_gpu_arguments(spec, placement.engines_per_gpu)
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
    shrink = _shrink_on_cpu if spec.device == "cpu" else _shrink_on_gpu
    return shrink(arguments | settings, placement.reduction)


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


def _shrink_on_cpu(arguments: dict[str, Any], reduction: Reduction) -> dict[str, Any]:
    """Return `arguments` for a CPU engine that has run out of memory as often as `reduction` says.

    The KV cache, most of its memory apart from the weights, is halved each time, the batch BATCH_HALVINGS
    times.
    """
    times = reduction.total
    if not times:
        return arguments
    sequences = arguments.get("max_num_seqs") or CPU_MAX_NUM_SEQS
    smaller = {**arguments, "max_num_seqs": max(1, sequences >> min(times, BATCH_HALVINGS))}
    if arguments.get("kv_cache_memory_bytes"):
        smaller["kv_cache_memory_bytes"] = arguments["kv_cache_memory_bytes"] >> times
    return smaller


def _shrink_on_gpu(arguments: dict[str, Any], reduction: Reduction) -> dict[str, Any]:
    """Return `arguments` for a GPU engine that has run out of memory as often as `reduction` says.

    While loading, the memory did not suffice for weights and KV cache: it claims less. While generating,
    it did not suffice for a step: its batch is halved, and only after BATCH_HALVINGS does it claim less
    memory.
    """
    smaller = dict(arguments)
    of_batch = min(reduction.batch_halvings, BATCH_HALVINGS)
    of_memory = reduction.batch_halvings - of_batch
    if of_batch:
        sequences = arguments.get("max_num_seqs") or reduction.max_num_seqs or GPU_MAX_NUM_SEQS
        smaller["max_num_seqs"] = max(1, sequences >> of_batch)
    times = of_memory + reduction.load_failures
    if arguments.get("kv_cache_memory_bytes"):
        smaller["kv_cache_memory_bytes"] = arguments["kv_cache_memory_bytes"] >> times
    # Also with a KV cache of explicit size: vLLM starts only if as much memory is free as the share claims.
    if times:
        share = arguments.get("gpu_memory_utilization") or GPU_MEMORY_SHARE
        kept = GPU_SHARE_KEPT**of_memory * GPU_SHARE_KEPT_AT_LOAD**reduction.load_failures
        smaller["gpu_memory_utilization"] = share * kept
    return smaller


def _strict_gpu_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Return what batch invariance on GPUs needs besides VLLM_BATCH_INVARIANT. Not measured on a GPU yet."""
    return {
        # FlashAttention 3 breaks batch invariance on H100 (vllm#51902, #47069).
        "attention_backend": MLA_ATTENTION_BACKEND if spec.uses_mla else CLEAN_ATTENTION_BACKENDS[0],
        # Chunks of a prompt depend on the rest of the batch. Without them vLLM enlarges its own default for
        # the tokens of a step, which depends on the card, to the longest prompt (engine/arg_utils.py).
        "enable_chunked_prefill": False,
    }


def _shared_gpu_arguments(spec: EngineSpec, engines: int) -> dict[str, Any]:
    """Return the memory of one of `engines` on a GPU.

    vLLM would measure how much is free while its neighbours use theirs (vllm#55827), so the KV cache has an
    explicit size.

    Raises:
        UsageError: It does not fit, or its size is unknown and not set by the user.
    """
    arguments: dict[str, Any] = {"gpu_memory_utilization": GPU_MEMORY_SHARE / engines}
    if spec.settings.get("kv_cache_memory_bytes"):
        return arguments
    memory = list_gpu_memory()
    if not memory or spec.weights_bytes is None:
        raise UsageError(
            f"pool.engines_per_gpu={engines}: the size of the GPU's memory or of the weights is unknown; set "
            "the KV cache of each engine with --set engine.kv_cache_memory_bytes=BYTES"
        )
    share = int(memory[0] * GPU_MEMORY_SHARE / engines)
    cache = share - spec.weights_bytes - GPU_OVERHEAD_BYTES
    if cache <= 0:
        weights, working = (f"{size / 1e9:.1f} GB" for size in (spec.weights_bytes, GPU_OVERHEAD_BYTES))
        raise UsageError(
            f"pool.engines_per_gpu={engines}: each engine has {share / 1e9:.1f} GB of the GPU, and weights "
            f"({weights}) and working memory ({working}) leave no KV cache; use fewer engines"
        )
    return {**arguments, "kv_cache_memory_bytes": cache}


def limit_top_k(sampling: Sampling, vocabulary: int) -> Sampling:
    """Return `sampling` such that vLLM's kernel for a top-p alone is not used on GPUs.

    That kernel divides a row among several programs if the batch is small, and then sums in another order
    (vLLM 0.32.0, v1/sample/ops/topk_topp_triton.py, _topp_split_count). A top-k that leaves out only the
    least likely token selects the other kernel, one program a row, and keeps what the top-p keeps.
    """
    if sampling.top_p >= 1.0 or 0 < sampling.top_k < vocabulary:
        return sampling
    return sampling.model_copy(update={"top_k": vocabulary - 1})


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
