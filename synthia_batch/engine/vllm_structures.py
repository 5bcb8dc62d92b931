"""Structured outputs as vLLM takes them, and its own judgement of one before any weight is loaded."""

import json
import re
from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import StructuredOutputsParams

from synthia_batch.core.types import Structure
from synthia_batch.engine.vllm_arguments import structures_config
from synthia_batch.errors import UsageError


def make_structured(structure: Structure) -> StructuredOutputsParams:
    """Return what vLLM calls `structure`."""
    if structure.kind == "json_schema":
        return StructuredOutputsParams(json=structure.text)
    if structure.kind == "regex":
        return StructuredOutputsParams(regex=structure.text)
    if structure.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(structure.text))
    return StructuredOutputsParams(grammar=structure.text)


def check_params(params: SamplingParams, settings: Mapping[str, Any]) -> None:
    """Return if the backend can compile the structure of `params`, where they have one.

    Of the other backends than xgrammar, which is the default, the engine tells with the first request.

    Raises:
        UsageError: It cannot.
    """
    if params.structured_outputs is None or structures_config(settings)["backend"] != "xgrammar":
        return
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    try:
        validate_xgrammar_grammar(params)
    except (VLLMClientError, ValueError) as exc:
        # The library's own words begin with the time and a line of its source.
        why = re.sub(r"^\[[^]]*\] \S+: ", "", str(exc.__cause__ or exc).strip())
        raise UsageError(
            f"structured: the backend xgrammar cannot compile it: {why}\n"
            "mend it, or name another backend with --set "
            "engine.structured_outputs_config='{backend: guidance}'"
        ) from exc
