"""What a job must not use: settings that crash vLLM's CPU engine or break strict determinism, and models and
GPUs that cannot be strictly deterministic. Checked before any weight is loaded; imports nothing of vLLM.

A user's settings override this package's, so settings that break its assumptions are refused by name.
Sources: the code of vLLM 0.32.0 (docs/explanation/determinism.md lists what was also run); for CPUs,
measurements in benchmarks/results/2026-11-21-determinism.md; for GPUs, vLLM's documentation,
https://docs.vllm.ai/en/v0.32.0/features/batch_invariance/, not measured on a GPU yet.
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.job.resolved import Device, EngineSpec
from synthia_batch.job.schema import Determinism
from synthia_batch.workers.vllm.arguments import CLEAN_ATTENTION_BACKENDS, MLA_ATTENTION_BACKEND


@dataclass(frozen=True, slots=True)
class _Only:
    """The values allowed for a setting, and why no others are."""

    reason: str
    allowed: tuple[Any, ...] = (None,)


_Rules = Mapping[str, _Only]

_SPECULATION = _Only("which tokens are proposed together depends on the rest of the batch")
_FOREIGN_PREFIX = _Only("a prefix computed elsewhere may differ in its last bits from one computed here")
_UNKNOWN_KERNELS = "it can enable kernels that are not known to be batch invariant"
_OVERLONG = _Only("in vLLM a longer prompt waits forever")

_CHUNKED = "a seeded sample with a chunked prompt crashes vLLM's CPU engine"

_ON_CPUS: _Rules = {
    "enable_chunked_prefill": _Only(_CHUNKED, (False,)),
    "long_prefill_token_threshold": _Only(_CHUNKED, (0,)),
    "max_num_scheduled_tokens": _OVERLONG,
}
_IN_STRICT: _Rules = {
    "kv_transfer_config": _FOREIGN_PREFIX,
    "kv_offloading_size": _FOREIGN_PREFIX,
    "enable_chunked_prefill": _Only("how a prompt is split depends on the rest of the batch", (False,)),
    "long_prefill_token_threshold": _Only("it splits a prompt only if others are in the batch", (0,)),
    "max_num_scheduled_tokens": _OVERLONG,
    "speculative_config": _SPECULATION,
    "spec_method": _SPECULATION,
    "spec_model": _SPECULATION,
    "spec_tokens": _SPECULATION,
    "disable_hybrid_kv_cache_manager": _Only(
        "with several kinds of KV cache, running samples may be preempted", (True,)
    ),
    "scheduler_cls": _Only("another scheduler may split or preempt samples depending on the queue"),
    "worker_cls": _Only("another worker may compute differently", ("auto",)),
    "quantization_config": _Only("it quantizes more layers, in ways not known to be batch invariant"),
    "diffusion_config": _Only("it is not known to be batch invariant"),
}
_IN_STRICT_ON: Mapping[Device, _Rules] = {
    "cpu": {
        "enforce_eager": _Only("a compiled model computes small batches differently from large ones", (True,))
    },
    "cuda": {
        "enable_prefix_caching": _Only(
            "on GPUs a cached prefix is not known to have the bits of a newly computed one", (False,)
        ),
        "attention_config": _Only("it can choose attention kernels that are not known to be batch invariant"),
        "compilation_config": _Only(_UNKNOWN_KERNELS),
        "kernel_config": _Only(_UNKNOWN_KERNELS),
        "ir_op_priority": _Only(_UNKNOWN_KERNELS),
        "linear_backend": _Only(_UNKNOWN_KERNELS, ("auto",)),
        "enable_eplb": _Only("the placement of experts would depend on earlier requests", (False,)),
        "distributed_executor_backend": _Only(
            "only vLLM's own executors are known to keep results separate", (None, "uni", "mp", "ray")
        ),
    },
}
_QUANTIZATIONS = frozenset({"quantization_config", "compression_config"})
"""Keys of a model's config that define its quantization."""
MIN_CAPABILITY = (8, 0)
"""Compute capability of Ampere: below it vLLM has no batch-invariant kernels."""
KNOWN_QUANTIZATIONS: Mapping[Device, frozenset[str]] = {
    # Of CPU kernels, those for 4-bit weights with 16-bit activations.
    "cpu": frozenset({"awq", "auto_awq"}),
    # The methods of the models that vLLM lists as validated.
    "cuda": frozenset({"awq", "auto_awq", "fp8", "mxfp4"}),
}
"""Methods whose kernels give a row the same bits in a batch of any size."""
_FAST = "use --determinism fast, which guarantees everything except equal tokens"


def check_not_refused(name: str, value: Any, device: Device, determinism: Determinism) -> None:
    """Check that a job on `device` may set vLLM's `name` to `value`. Raises UsageError otherwise."""
    if device == "cpu":
        _check(_ON_CPUS, name, value, "leave it out")
    if determinism == "fast":
        return
    remedy = "leave it out, or use --determinism fast"
    _check(_IN_STRICT, name, value, remedy)
    _check(_IN_STRICT_ON[device], name, value, remedy)
    known_backends = (*CLEAN_ATTENTION_BACKENDS, MLA_ATTENTION_BACKEND)
    if name == "attention_backend" and str(value).upper() not in known_backends:
        known = ", ".join(known_backends)
        raise UsageError(
            f"engine.{name}: {value} is not known to be batch invariant (known: {known}); {remedy}"
        )
    if name == "hf_overrides" and _QUANTIZATIONS & set(_list_keys(value)):
        raise UsageError(
            f"engine.{name}: the job must know the quantization; use --set model.quantization=METHOD"
        )


def check_quantization(spec: EngineSpec, configured: str | None) -> None:
    """Check that strict determinism, if required, supports the model's quantization.

    `configured` is the method in the model's own config.

    Raises:
        UsageError: It does not.
    """
    method = (spec.quantization or configured or "").lower()
    known = KNOWN_QUANTIZATIONS[spec.device]
    if spec.determinism == "fast" or not method or method in known:
        return
    where = "CPUs" if spec.device == "cpu" else "GPUs"
    raise UsageError(
        f"{spec.model.name} is quantized with {method}, which is not known to be batch invariant on {where} "
        f"(known: no quantization, {', '.join(sorted(known))}); use another form of the model, or {_FAST}"
    )


def check_capability(capability: tuple[int, int] | None, name: str) -> None:
    """Check that a GPU of this compute capability, None if it is not NVIDIA's, can be strictly deterministic.

    Raises:
        UsageError: It cannot.
    """
    if capability is None:
        raise UsageError(f"{name} is no NVIDIA GPU; strict determinism is known only for those\n  {_FAST}")
    if capability < MIN_CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (capability, MIN_CAPABILITY))
        raise UsageError(
            f"{name} has compute capability {have}; strict determinism needs {need} or higher\n  {_FAST}"
        )


def check_files(spec: EngineSpec) -> None:
    """Check that this machine has the files that only a path names: GGUF files, adapters, local models.

    Other models are downloaded on a machine that lacks them.

    Raises:
        UsageError: It lacks one, as a cluster's machines do whose disks are not shared.
    """
    model = spec.model
    needed = [adapter.path for adapter in spec.adapters]
    if model.gguf is not None:
        needed += [model.gguf, *([model.path] if model.path is not None else [])]
    elif model.repo_id is None and model.path is not None:
        needed.append(model.path)
    missing = next((path for path in needed if not path.exists()), None)
    if missing is not None:
        raise UsageError(
            f"{missing}: not found on {socket.gethostname()}, where the engine was started; put it on a "
            "disk that all machines of the cluster see under this path, or name a model on the Hub"
        )


def _check(rules: _Rules, name: str, value: Any, remedy: str) -> None:
    rule = rules.get(name)
    if rule is not None and value not in rule.allowed:
        raise UsageError(f"engine.{name}: {rule.reason}; {remedy}")


def _list_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _list_keys(inner)
