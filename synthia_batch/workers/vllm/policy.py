"""Settings that vLLM has and a job may not use: they end its CPU engine, or undo strict determinism.

A user's settings win over this package's own, so what these rest on must be refused by name. Read in the
source of vLLM 0.32.0, which this module does not import; what was also run is in docs/determinism.md.

Where strict determinism can be had: judged before any weight is loaded. Imports nothing of vLLM.

CPU: what was measured here (benchmarks/results/2026-11-21-determinism.md). GPU: what vLLM 0.32.0 documents,
https://docs.vllm.ai/en/v0.32.0/features/batch_invariance/; none of it was measured on a card yet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import Device, EngineSpec
from synthia_batch.job.schema import Determinism
from synthia_batch.workers.vllm.arguments import CLEAN_ATTENTION_BACKENDS


@dataclass(frozen=True, slots=True)
class _Only:
    """A setting may have only the values `allowed`, and `why` it may not have any other."""

    why: str
    allowed: tuple[Any, ...] = (None,)


_Rules = Mapping[str, _Only]

_SPECULATION = _Only("which tokens are proposed together depends on what else is in the batch")
_FOREIGN_PREFIX = _Only("what others computed may differ in its last bits from what is computed afresh")
_UNKNOWN_KERNELS = "it can bring in kernels that are not known to be batch invariant"
_OVERLONG = _Only("vLLM lets a prompt that is longer wait for ever")

_IN_PIECES = "a seeded sample whose prompt is taken in pieces ends vLLM's CPU engine"

_ON_CPUS: _Rules = {
    "enable_chunked_prefill": _Only(_IN_PIECES, (False,)),
    "long_prefill_token_threshold": _Only(_IN_PIECES, (0,)),
    "max_num_scheduled_tokens": _OVERLONG,
}
_IN_STRICT: _Rules = {
    "enable_prefix_caching": _Only(
        "a prefix from the cache may differ in its last bits from one computed afresh", (False,)
    ),
    "kv_transfer_config": _FOREIGN_PREFIX,
    "kv_offloading_size": _FOREIGN_PREFIX,
    "enable_chunked_prefill": _Only("how a prompt is cut depends on what else is in the batch", (False,)),
    "long_prefill_token_threshold": _Only("it cuts a prompt only where others are in the batch", (0,)),
    "max_num_scheduled_tokens": _OVERLONG,
    "speculative_config": _SPECULATION,
    "spec_method": _SPECULATION,
    "spec_model": _SPECULATION,
    "spec_tokens": _SPECULATION,
    "disable_hybrid_kv_cache_manager": _Only(
        "with several kinds of KV cache, samples that were let in may yet be preempted", (True,)
    ),
    "scheduler_cls": _Only("another scheduler may cut or preempt samples by what else is waiting"),
    "worker_cls": _Only("another worker may compute otherwise", ("auto",)),
    "quantization_config": _Only(
        "it quantizes further layers, in ways that are not known to be batch invariant"
    ),
    "diffusion_config": _Only("it is not known to be batch invariant"),
}
_IN_STRICT_ON: Mapping[Device, _Rules] = {
    "cpu": {
        "enforce_eager": _Only("a compiled model computes small batches otherwise than large ones", (True,)),
    },
    "cuda": {
        "attention_config": _Only("it can choose other attention kernels than those known to be clean"),
        "compilation_config": _Only(_UNKNOWN_KERNELS),
        "kernel_config": _Only(_UNKNOWN_KERNELS),
        "ir_op_priority": _Only(_UNKNOWN_KERNELS),
        "linear_backend": _Only(_UNKNOWN_KERNELS, ("auto",)),
        "enable_eplb": _Only("which GPU has an expert would depend on the requests before", (False,)),
        "distributed_executor_backend": _Only(
            "only vLLM's own are known to keep results apart", (None, "uni", "mp", "ray")
        ),
    },
}
_QUANTIZATIONS = frozenset({"quantization_config", "compression_config"})
"""Where a model's config says how it is quantized."""


def check_not_refused(name: str, value: Any, device: Device, determinism: Determinism) -> None:
    """Return if a job on `device` may give vLLM's setting `name` this value.

    Raises:
        UsageError: It may not, and why.
    """
    if device == "cpu":
        _check(_ON_CPUS, name, value, "leave it out")
    if determinism == "fast":
        return
    way_out = "leave it out, or use --determinism fast"
    _check(_IN_STRICT, name, value, way_out)
    _check(_IN_STRICT_ON[device], name, value, way_out)
    if name == "attention_backend" and str(value).upper() not in CLEAN_ATTENTION_BACKENDS:
        known = ", ".join(CLEAN_ATTENTION_BACKENDS)
        raise UsageError(
            f"engine.{name}: {value} is not known to be batch invariant (known: {known}); {way_out}"
        )
    if name == "hf_overrides" and _QUANTIZATIONS & set(_list_keys(value)):
        raise UsageError(
            f"engine.{name}: how the model is quantized must be known; say it with --set "
            "model.quantization=METHOD"
        )


def _check(rules: _Rules, name: str, value: Any, way_out: str) -> None:
    rule = rules.get(name)
    if rule is not None and value not in rule.allowed:
        raise UsageError(f"engine.{name}: {rule.why}; {way_out}")


def _list_keys(value: Any) -> Iterator[str]:
    """Yield the keys of a mapping and of all mappings in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _list_keys(inner)


LEAST_CAPABILITY = (8, 0)
"""Compute capability, from Ampere on: below it vLLM has no batch-invariant kernels."""
KNOWN_QUANTIZATIONS: Mapping[Device, frozenset[str]] = {
    # Of CPU kernels, those for 4-bit weights with 16-bit activations.
    "cpu": frozenset({"awq", "auto_awq"}),
    # Those of the models that vLLM lists as validated.
    "cuda": frozenset({"awq", "auto_awq", "fp8", "mxfp4"}),
}
"""Methods whose kernels give a row the same bits in a batch of any size."""
_FAST = "use --determinism fast, which promises everything but equal tokens"


def check_quantization(spec: EngineSpec, of_model: str | None) -> None:
    """Return if strict determinism covers the model's quantization, or is not asked for.

    `of_model` is the method that the model's own config names.

    Raises:
        UsageError: It does not.
    """
    method = (spec.quantization or of_model or "").lower()
    known = KNOWN_QUANTIZATIONS[spec.device]
    if spec.determinism == "fast" or not method or method in known:
        return
    where = "CPUs" if spec.device == "cpu" else "GPUs"
    raise UsageError(
        f"{spec.model.name} is quantized with {method}, which is not known to be batch invariant on {where} "
        f"(known: none at all, {', '.join(sorted(known))}); take another form of the model, or {_FAST}"
    )


def check_capability(capability: tuple[int, int], name: str) -> None:
    """Return if a GPU of this compute capability can be strictly deterministic.

    Raises:
        UsageError: It cannot.
    """
    if capability < LEAST_CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        raise UsageError(
            f"{name} has compute capability {have}; strict determinism takes {need} or higher\n  {_FAST}"
        )
