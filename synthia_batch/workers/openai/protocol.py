"""The JSON sent to an endpoint and read from it, without network access or the openai client."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.types import Failed, Finished, Outcome, Request, Structure
from synthia_batch.job.engine_settings import EndpointSettings
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.openai.settings import NEUTRAL, list_extra

SEED_BITS = 31
"""Sent of a sample's 63 bits: some servers store seeds in 32 bits, JSON parsers in 53, and llama.cpp reads
2**32 - 1 as any seed. Two samples of one prompt share a seed once in 2,000,000,000 pairs."""
_VLLM_NAMES = {"extra_args": "vllm_xargs"}
"""Fields of SamplingParams with another name in vLLM's server."""
CONTENT_FILTER = "content_filter"
"""A finish_reason, and the failure code of a sample whose prompt or answer the server filters."""

Shape = TypeVar("Shape", bound=BaseModel)


class BrokenAnswer(Exception):
    """The response does not match the API."""


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _CachedTokens(_Lenient):
    cached_tokens: int | None = None


class _Usage(_Lenient):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _CachedTokens | None = None


class _Message(_Lenient):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's name of it since 0.11."""
    refusal: str | None = None


class _Choice(_Lenient):
    finish_reason: str | None
    message: _Message | None = None
    text: str | None = None


class Answer(_Lenient):
    """The fields used of an answer of either API."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server's prefix cache served; 0 if not reported."""
        details = self.usage.prompt_tokens_details
        return (details.cached_tokens if details else None) or 0


class ServedModel(_Lenient):
    """A server's entry of a model in /models. vLLM reports more than others."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None

    def describe(self) -> str:
        facts = {"of": self.owned_by, "root": self.root, "max_model_len": self.max_model_len}
        return ", ".join([self.id, *(f"{name} {value}" for name, value in facts.items() if value)])


class ServedModels(_Lenient):
    """The models that a server lists."""

    data: tuple[ServedModel, ...]


def build_body(spec: EngineSpec, settings: EndpointSettings, request: Request) -> dict[str, Any]:
    """Return the JSON body of `request` for the API in `settings`.

    Raises:
        SampleRefused: Its row has sampling or a structure without a field in OpenAI's API.
    """
    sampling = spec.sampling.model_copy(update=dict(request.sampling or {}))
    body: dict[str, Any] = {
        "model": spec.model.name,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        settings.max_tokens_field: request.max_tokens or sampling.max_tokens,
        "seed": request.seed & ((1 << SEED_BITS) - 1),
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            body[name] = getattr(sampling, name)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    extra = list_extra(sampling)
    if settings.extra_sampling:
        body |= {name: getattr(sampling, name) for name in NEUTRAL}
        body |= {_VLLM_NAMES.get(name, name): value for name, value in extra.items()}
        body["top_k"] = sampling.top_k or -1  # -1 is all tokens; some servers refuse 0.
    elif extra:  # The job's own was checked before the run.
        names = ", ".join(f"sampling.{name}" for name in extra)
        raise SampleRefused(
            "refused_by_engine", f"{names}: OpenAI's API has no such field (engine.extra_sampling is false)"
        )
    structure = request.structure or spec.structure
    if structure is not None:
        body |= _build_structure(structure, settings)
    return {**body, **_build_prompt(settings, request), **settings.extra_body}


def read_answer(content: bytes, request: Request) -> tuple[Outcome, int]:
    """Return the outcome of `request` from the response `content`, and its cached prompt tokens."""
    answer = parse(Answer, content)
    choice = answer.choices[0]
    if choice.finish_reason == CONTENT_FILTER:
        message = "the server's content filter ended the answer"
        return Failed(ordinal=request.ordinal, code=CONTENT_FILTER, message=message), answer.cached_tokens
    text, reasoning = choice.text, None
    if choice.message is not None:
        text = choice.message.content or choice.message.refusal
        reasoning = choice.message.reasoning_content or choice.message.reasoning or None
    finished = Finished(
        ordinal=request.ordinal,
        response=text or "",
        reasoning=reasoning,
        finish_reason=choice.finish_reason or "unknown",
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        turn=request.turn,
    )
    return finished, answer.cached_tokens


def parse(shape: type[Shape], content: bytes) -> Shape:
    """Return the JSON `content` as `shape`. Raises BrokenAnswer if it does not match."""
    try:
        return shape.model_validate_json(content)
    except ValidationError as exc:
        fault = exc.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BrokenAnswer(f"{where}: {fault['msg']}" if where else fault["msg"]) from exc


def _build_structure(structure: Structure, settings: EndpointSettings) -> Mapping[str, Any]:
    is_json = structure.kind in ("json_schema", "choice")
    value = json.loads(structure.text) if is_json else structure.text
    if settings.extra_sampling:
        name = "json" if structure.kind == "json_schema" else structure.kind
        return {"structured_outputs": {name: value}}
    if structure.kind != "json_schema":
        raise SampleRefused(
            "refused_by_engine",
            f"structured.{structure.kind}: OpenAI's API has no such field (engine.extra_sampling is false)",
        )
    schema = {"name": "answer", "schema": value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _build_prompt(settings: EndpointSettings, request: Request) -> Mapping[str, Any]:
    if settings.api == "completions":
        return {"prompt": bytes(request.token_ids).decode()}
    return {"messages": [message.to_dict() for message in request.messages]}
