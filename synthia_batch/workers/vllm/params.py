"""vLLM's SamplingParams for each request, structured outputs included."""

import json
import re
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Request, Structure
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.vllm.arguments import (
    limit_top_k,
    override_sampling,
    sampling_arguments,
    structures_config,
)
from synthia_batch.workers.vllm.compat import client_errors


def check_params(spec: EngineSpec) -> None:
    """Check the sampling of `spec`, and that xgrammar can compile its structure.

    Other backends report a structure that they cannot compile only with the first request.

    Raises:
        UsageError: The structure cannot be compiled.
    """
    params = _build_params(spec.sampling, spec.structure)
    if params.structured_outputs is None or structures_config(spec.settings)["backend"] != "xgrammar":
        return
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    try:
        validate_xgrammar_grammar(params)
    except client_errors() as exc:
        # The library's message begins with the time and a line of its source.
        reason = re.sub(r"^\[[^]]*\] \S+: ", "", str(exc.__cause__ or exc).strip())
        raise UsageError(
            f"structured: the backend xgrammar cannot compile it: {reason}\n"
            "fix it, or use another backend with --set "
            "engine.structured_outputs_config='{backend: guidance}'"
        ) from exc


def make_params(spec: EngineSpec, request: Request, max_tokens: int, vocabulary: int) -> SamplingParams:
    """Return the parameters of `request`, with at most `max_tokens` in its answer, of `vocabulary` kinds."""
    sampling = override_sampling(spec.sampling, request)
    if spec.device == "cuda" and spec.determinism == "strict":
        sampling = limit_top_k(sampling, vocabulary)
    structure = request.structure or spec.structure
    if structure is not None:  # The structure alone determines where the answer ends.
        sampling = sampling.model_copy(update={"min_tokens": 0, "ignore_eos": False})
    return _build_params(
        sampling,
        structure,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
        seed=request.seed,
        logprobs=_count_logprobs(spec, request),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def count_kept_logprobs(spec: EngineSpec, request: Request) -> int | None:
    """Return how many of the likeliest tokens are kept at each position, None for no log-probabilities."""
    return spec.sampling.logprobs if request.logprobs is None else request.logprobs


def _count_logprobs(spec: EngineSpec, request: Request) -> int | None:
    kept = count_kept_logprobs(spec, request)
    if kept is not None:
        return kept
    # On GPUs log-probabilities are not batch invariant even where tokens are (vllm#51187).
    return 0 if request.wants_logprob and spec.device == "cpu" else None


def _build_params(sampling: Sampling, structure: Structure | None, **limits: Any) -> SamplingParams:
    arguments = sampling_arguments(sampling)
    pattern = arguments.pop("repetition_detection")
    return SamplingParams(
        **arguments,
        repetition_detection=RepetitionDetectionParams(**pattern) if pattern is not None else None,
        # A new object each time: vLLM writes to it.
        structured_outputs=_convert_structure(structure) if structure is not None else None,
        **limits,
    )


def _convert_structure(structure: Structure) -> StructuredOutputsParams:
    if structure.kind == "json_schema":
        return StructuredOutputsParams(json=structure.text)
    if structure.kind == "regex":
        return StructuredOutputsParams(regex=structure.text)
    if structure.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(structure.text))
    return StructuredOutputsParams(grammar=structure.text)
