"""The settings of an endpoint, and the checks of what it cannot do. Imports nothing of openai."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Structure
from synthia_batch.job.dotted import drop_numbers
from synthia_batch.job.engine_settings import Api, EndpointSettings
from synthia_batch.job.loading.layer import walk_texts
from synthia_batch.job.loading.merge import Merged
from synthia_batch.job.loading.secrets import is_reference, is_secret_key
from synthia_batch.job.resolved import FormatName
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.schema import TEMPLATE_DATE, Determinism, Job
from synthia_batch.workers.engine import read_settings

DEFAULTS: Mapping[str, Any] = {"sampling": {"top_k": 0}, "pool": {"kind": "local"}, "determinism": "fast"}
"""Defaults of a job with an endpoint: only what OpenAI's API supports, no processes just to wait for answers,
and no equal texts, which nobody can promise for a server."""
_SERVER_COMPUTES = "the server decides how it computes"
_ADAPTER_MODEL = "a server lists an adapter as a model: set its name with --model"
SERVER_KEYS = {
    "model.dtype": _SERVER_COMPUTES,
    "model.quantization": _SERVER_COMPUTES,
    "model.max_model_len": "the server limits the length of sequences itself",
    "model.trust_remote_code": "no code of a model runs here",
    "lora.adapters": _ADAPTER_MODEL,
    "lora.column": _ADAPTER_MODEL,
    "pool.tensor_parallel_size": _SERVER_COMPUTES,
    "pool.pipeline_parallel_size": _SERVER_COMPUTES,
    "engine.device": _SERVER_COMPUTES,
}
"""Keys of a job that only affect an engine on this machine, and why."""
OPENAI_SAMPLING = (
    "temperature", "top_p", "max_tokens", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip
"""Sampling with a field in OpenAI's API. Only vLLM's server has fields for the rest."""
NEUTRAL: Mapping[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values without effect, for sampling that a server may otherwise default to its model's recommendation."""
_FIELDS = Sampling.model_fields
_OWN_FIELDS = frozenset(
    {"model", "messages", "prompt", "n", "stream", "seed", "max_completion_tokens"}
    | {"response_format", "structured_outputs", *_FIELDS}
)
"""Fields of a request that other keys of the job set."""


def check_job(merged: Merged) -> None:
    """Check that an endpoint can run this job, before anything is looked up for it.

    Raises:
        UsageError: It cannot; the message says what to change.
    """
    job = merged.job
    if find_spec("openai") is None:
        raise UsageError(
            "--engine openai: its client is not installed; run: pip install 'synthia-batch[openai]'"
        )
    _check_determinism(job.determinism)
    _refuse_written_keys(job.engine.settings)
    parse_settings(job.engine.settings)
    if not merged.is_explicit("model.name") and not merged.is_explicit("preset"):
        raise UsageError("--engine openai: set one of the server's models with --model")
    for key, reason in SERVER_KEYS.items():
        if any(found == key or found.startswith(f"{key}.") for found in merged.explicit_keys):
            raise UsageError(f"{key} does nothing with --engine openai: {reason}; leave it out")
    if job.on_overflow == "truncate-oldest":
        raise UsageError(
            "--on-overflow truncate-oldest: only the server knows the length of a prompt; use fail or stop"
        )


def choose_api(settings: EndpointSettings, prompt_format: FormatName) -> Api:
    """Return the API to use: `chat` unless the job itself builds the prompts.

    Raises:
        UsageError: The API set by the user does not match `prompt_format`.
    """
    matching: Api = "chat" if prompt_format == "plain" else "completions"
    if settings.api in (None, matching):
        return matching
    if matching == "chat":
        raise UsageError(
            "engine.api=completions: the job sets no prompt format; add --chat-template FILE or --set "
            "prompt_format=synthia, or leave engine.api out to let the server build the prompts"
        )
    raise UsageError(
        "engine.api=chat: the server builds the prompts, so the job's prompt format or template would have "
        "no effect; leave engine.api out, or add --set prompt_format=chat"
    )


def check_answers(job: Job, api: Api) -> None:
    """Check that a server can provide everything the job needs in an answer besides its text.

    Raises:
        UsageError: It cannot, or only in the server's own format.
    """
    if job.sampling.logprobs is not None:
        raise UsageError(
            "--logprobs: they are not read from a server, which has its own format; leave it out"
        )
    for key, is_set in (
        ("chat_template_kwargs", bool(job.chat_template_kwargs)),
        ("template_date", job.template_date != TEMPLATE_DATE),
    ):
        if api == "chat" and is_set:
            raise UsageError(
                f"{key}: the server writes the prompts; set it there, or name a --chat-template FILE"
            )
    if api == "chat" and job.input.final_assistant == "continue":
        raise UsageError(
            "--final-assistant continue: a chat server begins a new answer; name a --chat-template FILE, so "
            "that prompts are written here"
        )
    if api == "chat" and job.input.generate_role == "user":
        raise UsageError(
            "generate_role user: a chat server writes answers; name a --chat-template FILE, so that prompts "
            "are written here"
        )
    if api == "chat" and job.input.tools_column is not None:
        raise UsageError(
            "--tools-column: a server that receives tools answers with calls, for which the dataset has no "
            "column; use a --chat-template FILE that puts tools into the prompt, so that calls are text"
        )


def parse_settings(settings: Mapping[str, Any]) -> EndpointSettings:
    """Return the settings of an endpoint.

    Raises:
        UsageError: The URL is missing or invalid, or a setting is unknown or has an invalid value.
    """
    if not settings.get("base_url"):
        raise UsageError(
            "--engine openai: set the server's address, such as --base-url http://127.0.0.1:8000/v1"
        )
    parsed = read_settings(EndpointSettings, settings, "the endpoint")
    _check_url(parsed.base_url)
    taken = sorted(_OWN_FIELDS & parsed.extra_body.keys())
    if taken:
        raise UsageError(f"engine.extra_body: {taken[0]} is set by the job's own keys; leave it out there")
    return parsed


def list_non_defaults(settings: EndpointSettings, api: Api) -> dict[str, Any]:
    """Return the non-default `settings`, plus `api`: setting a default explicitly changes nothing."""
    return {**settings.model_dump(exclude_defaults=True), "api": api}


def list_extra(sampling: Sampling) -> dict[str, Any]:
    """Return the non-default values of `sampling` without a field in OpenAI's API."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in _FIELDS.items()}
    neutral = {**defaults, **NEUTRAL}
    values = sampling.model_dump(mode="json", warnings=False)  # A row's values were checked before.
    return {
        name: values[name]
        for name in _FIELDS
        if name not in OPENAI_SAMPLING and getattr(sampling, name) != neutral[name]
    }


def check_sampling(sampling: Sampling, settings: EndpointSettings, origins: Mapping[str, str]) -> None:
    """Check that every value of `sampling` can be sent; `origins` maps dotted keys to their sources.

    Raises:
        UsageError: One has no field in OpenAI's API, and extra_sampling is false.
    """
    if not settings.extra_sampling:
        for name, value in list_extra(sampling).items():
            neutral = NEUTRAL.get(name, _FIELDS[name].get_default(call_default_factory=True))
            origin = origins.get(f"sampling.{name}", "default")
            raise UsageError(
                f"sampling.{name}={value} ({origin}): OpenAI's API has no such field; disable it with --set "
                f"sampling.{name}={neutral}, or send it with --set engine.extra_sampling=true to a server "
                "that accepts vLLM's fields"
            )


def check_structure(structure: Structure | None, settings: EndpointSettings) -> None:
    """Check that a request can set `structure`: OpenAI's API has JSON Schemas, vLLM's server all kinds.

    Raises:
        UsageError: It cannot, and extra_sampling is false.
    """
    if structure is not None and structure.kind != "json_schema" and not settings.extra_sampling:
        raise UsageError(
            f"structured.{structure.kind}: OpenAI's API has no such field; use --json-schema, or --set "
            "engine.extra_sampling=true if the server accepts vLLM's fields"
        )


def _check_determinism(determinism: Determinism) -> None:
    if determinism == "strict":
        raise UsageError(
            "--engine openai: strict determinism cannot be guaranteed for an external server; use "
            "--determinism fast, which guarantees everything except equal texts"
        )


def _refuse_written_keys(settings: Mapping[str, Any]) -> None:
    """Refuse keys that are not references to an environment variable."""
    key = settings.get("api_key")
    if key is not None and not (isinstance(key, str) and is_reference(key)):
        raise UsageError(
            "engine.api_key: a key is not written out; put it into an environment variable and use "
            "'${NAME}', or leave it out if that is OPENAI_API_KEY"
        )
    body = settings.get("extra_body")
    for name, text in walk_texts(body, "engine.extra_body") if isinstance(body, Mapping) else ():
        if is_secret_key(drop_numbers(name)) and not is_reference(text):
            raise UsageError(
                f"{name}: a key is not written out; put it into an environment variable and use '${{NAME}}'"
            )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in ("http", "https") and parts.hostname is not None
    except ValueError:
        has_host = False
    if not has_host:
        raise UsageError(f"--base-url {url}: expected an address such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            "--base-url: expected an address without user name, password or ?query, which would be stored "
            "with the run; put a key into OPENAI_API_KEY"
        )
