"""Where strict determinism can be had: judged before any weight is loaded. Imports nothing of vLLM.

CPU: what was measured here (benchmarks/results/2026-11-21-determinism.md). GPU: what vLLM 0.32.0 documents,
https://docs.vllm.ai/en/v0.32.0/features/batch_invariance/; none of it was measured on a card yet.
"""

from collections.abc import Mapping

from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import Device, EngineSpec

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
