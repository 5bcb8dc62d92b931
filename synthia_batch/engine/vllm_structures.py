"""Structured outputs as vLLM takes them, and its own judgement of one before any weight is loaded."""

import json
from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from synthia_batch.engine.vllm_arguments import structures_config
from synthia_batch.rows import Structure


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
        ValueError: It cannot.
    """
    if params.structured_outputs is None or structures_config(settings)["backend"] != "xgrammar":
        return
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    validate_xgrammar_grammar(params)
