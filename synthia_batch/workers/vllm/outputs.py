"""vLLM's reasoning parsers: what of an answer was thought, and what was said.

Structured outputs as vLLM takes them, and its own judgement of one before any weight is loaded.

vLLM's log-probabilities of an answer, packed.
"""

import dataclasses
import json
import re
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.logprobs import Logprob
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import get_tokenizer

from synthia_batch.core.types import Failed, Finished, Logprobs, Structure
from synthia_batch.errors import UsageError
from synthia_batch.workers.vllm.arguments import structures_config

NOT_PARSED = "reasoning_not_parsed"
"""The code of an answer that the parser could not read."""


class Reasoning:
    """Splits answers with a parser that is made anew for each: some keep what they have seen."""

    def __init__(self, kind: type[ReasoningParser], tokenizer: Any) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._open()

    def split(self, made: Finished) -> Finished | Failed:
        """Return `made` with its reasoning apart from its response, both stripped; as it is without any."""
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], seed=None)
        try:
            reasoning, response = self._open().extract_reasoning(made.response, request)
        except Exception as exc:  # A parser is a plugin: what one cannot read is this answer's failure alone.
            return Failed(ordinal=made.ordinal, code=NOT_PARSED, message=f"{type(exc).__name__}: {exc}")
        if reasoning is None:
            return dataclasses.replace(made, response=response or "")
        return dataclasses.replace(made, reasoning=reasoning.strip(), response=(response or "").strip())

    def _open(self) -> ReasoningParser:
        try:
            return self._kind(self._tokenizer)
        except RuntimeError as exc:  # As they say that the tokenizer lacks their marks.
            raise UsageError(
                f"--reasoning-parser: {exc}\nit is for another model; name this one's, or leave it out"
            ) from exc


def open_reasoning(arguments: Mapping[str, Any]) -> Reasoning | None:
    """Return what tells reasoning from answers, by the arguments of `vllm.LLM`; None where nothing is to.

    Raises:
        UsageError: The parser does not fit the model's tokenizer.
    """
    name = arguments.get("reasoning_parser")
    if not name:
        return None
    if arguments.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(arguments["reasoning_parser_plugin"])
    tokenizer: Any = get_tokenizer(
        arguments.get("tokenizer") or arguments["model"],
        trust_remote_code=arguments["trust_remote_code"],
        revision=arguments["revision"],
    )
    return Reasoning(ReasoningParserManager.get_reasoning_parser(name), tokenizer)


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


def read_logprobs(token_ids: Sequence[int], places: Sequence[Mapping[int, Logprob]], count: int) -> Logprobs:
    """Return those of each of `token_ids` and of the `count` likeliest tokens in its place."""
    entries = [
        entry for token, place in zip(token_ids, places, strict=True) for entry in _sort(token, place, count)
    ]
    return Logprobs(
        width=len(entries) // max(1, len(token_ids)),
        ids=array("i", [token for token, _ in entries]),
        # A vocabulary's texts come again and again.
        tokens=tuple(sys.intern(said.decoded_token or "") for _, said in entries),
        values=array("f", [said.logprob for _, said in entries]),
    )


def _sort(token: int, place: Mapping[int, Logprob], count: int) -> Iterator[tuple[int, Logprob]]:
    """Yield the token's own entry, and those of the likeliest by their rank, which counts from 1."""
    yield token, place[token]
    ranked = {said.rank: (other, said) for other, said in place.items()}
    yield from (ranked[rank] for rank in range(1, count + 1))
