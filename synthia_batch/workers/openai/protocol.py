"""What an endpoint is asked, and how its answer is read. Pure: no network, nothing of openai."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synthia_batch.core.types import Failed, Finished, Outcome, Request, Structure
from synthia_batch.errors import SampleRefused
from synthia_batch.job.engine_settings import EndpointSettings
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.openai.settings import NEUTRAL, list_extra

SEED_BITS = 31
"""Of a sample's 63: some servers keep seeds in 32 bits, JSON readers in 53, and llama.cpp takes 2**32 - 1 for
any. Two samples of one prompt meet by chance once in 2,000,000,000 pairs."""
_VLLM_NAMES = {"extra_args": "vllm_xargs"}
"""What vLLM's server calls otherwise than its SamplingParams do."""
CONTENT_FILTER = "content_filter"
"""A finish_reason, and the code of a sample whose answer, or prompt, the server would not have."""


Shape = TypeVar("Shape", bound=BaseModel)


class BrokenAnswer(Exception):
    """What came back is no answer of the API's shape."""


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
    """What vLLM calls it since 0.11."""
    refusal: str | None = None


class _Choice(_Lenient):
    finish_reason: str | None
    message: _Message | None = None
    text: str | None = None


class Answer(_Lenient):
    """An answer of either API, as far as it is of use."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage

    @property
    def cached_tokens(self) -> int:
        """The prompt tokens that came from the server's prefix cache, as far as it tells."""
        details = self.usage.prompt_tokens_details
        return (details.cached_tokens if details else None) or 0


class ServedModel(_Lenient):
    """What a server says of a model: a line of its /models. vLLM tells more than others."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None

    def describe(self) -> str:
        """Return it in words."""
        facts = {"of": self.owned_by, "root": self.root, "max_model_len": self.max_model_len}
        return ", ".join([self.id, *(f"{name} {value}" for name, value in facts.items() if value)])


class ServedModels(_Lenient):
    """What a server lists."""

    data: tuple[ServedModel, ...]


def build_body(spec: EngineSpec, settings: EndpointSettings, request: Request) -> dict[str, Any]:
    """Return the JSON of `request` for the API that `settings` name.

    Raises:
        SampleRefused: Its row says what OpenAI's API has no field for, and no others may be sent.
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
        body["top_k"] = sampling.top_k or -1  # All tokens: 0 is refused by some.
    elif extra:  # Of the job itself it was refused before anything began.
        names = ", ".join(f"sampling.{name}" for name in extra)
        raise SampleRefused(
            "refused_by_engine", f"{names}: OpenAI's API has no such field (engine.extra_sampling is false)"
        )
    structure = request.structure or spec.structure
    if structure is not None:
        body |= _say_structure(structure, settings)
    return {**body, **_say_prompt(settings, request), **settings.extra_body}


def read_answer(content: bytes, request: Request) -> tuple[Outcome, int]:
    """Return what the answer `content` makes of `request`, and its cached prompt tokens.

    Raises:
        BrokenAnswer: It is no answer, or does not say how many tokens it has.
    """
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
    """Return the JSON `content` in that shape.

    Raises:
        BrokenAnswer: It is not of it.
    """
    try:
        return shape.model_validate_json(content)
    except ValidationError as exc:
        fault = exc.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BrokenAnswer(f"{where}: {fault['msg']}" if where else fault["msg"]) from exc


def _say_structure(structure: Structure, settings: EndpointSettings) -> Mapping[str, Any]:
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


def _say_prompt(settings: EndpointSettings, request: Request) -> Mapping[str, Any]:
    if settings.api == "completions":
        return {"prompt": bytes(request.token_ids).decode()}
    return {"messages": [{"role": one.role, "content": one.content} for one in request.messages]}
