"""What may be said of an endpoint, and what of a job an endpoint cannot do. Imports nothing of openai."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from synthia_batch.core.types import Structure
from synthia_batch.errors import UsageError
from synthia_batch.job.engine_settings import Api, EndpointSettings
from synthia_batch.job.loading.merge import Merged
from synthia_batch.job.loading.secrets import is_reference
from synthia_batch.job.resolved import FormatName
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.schema import Determinism, Job
from synthia_batch.workers.engine import read_settings

DEFAULTS: Mapping[str, Any] = {"sampling": {"top_k": 0}, "pool": {"kind": "local"}}
"""What a job has by default where an endpoint makes its text: nothing that OpenAI's API cannot say, and
no processes for what waits for answers only."""
OF_THE_SERVER = {
    "model.dtype": "how the server computes is the server's",
    "model.quantization": "how the server computes is the server's",
    "model.max_model_len": "the server knows how long a sequence may be, and refuses longer ones",
    "model.trust_remote_code": "no code of a model runs here",
    "lora.adapters": "a server gives an adapter a model's name: say that with --model",
    "lora.column": "a server gives an adapter a model's name: say that with --model",
    "pool.tensor_parallel_size": "how the server computes is the server's",
    "pool.pipeline_parallel_size": "how the server computes is the server's",
    "engine.device": "how the server computes is the server's",
}
"""Keys of a job that only an engine on this machine can do anything about."""
OF_OPENAI = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)
"""Sampling that OpenAI's API has fields for. Others have a field of the same name in vLLM's server alone."""
NEUTRAL: Mapping[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What says nothing, of sampling whose absence a server may take for its model's recommendation."""
_FIELDS = Sampling.model_fields
_OWN_FIELDS = frozenset(
    {"model", "messages", "prompt", "n", "stream", "seed", "max_completion_tokens"}
    | {"response_format", "structured_outputs", *_FIELDS}
)
"""Fields of a request that the job says elsewhere."""


def check_job(merged: Merged) -> None:
    """Return if an endpoint can make this job at all, before anything is looked up for it.

    Raises:
        UsageError: It cannot; says what to do.
    """
    job = merged.job
    if find_spec("openai") is None:
        raise UsageError(
            "--engine openai: its client is not installed; run: pip install 'synthia-batch[openai]'"
        )
    _check_determinism(job.determinism)
    _refuse_written_key(job.engine.settings.get("api_key"))
    parse_settings(job.engine.settings)
    if not merged.is_explicit("model.name") and not merged.is_explicit("preset"):
        raise UsageError("--engine openai: say with --model which of the server's models is to answer")
    for key, reason in OF_THE_SERVER.items():
        if any(found == key or found.startswith(f"{key}.") for found in merged.explicit_keys):
            raise UsageError(f"{key} does nothing with --engine openai: {reason}; leave it out")
    if job.on_overflow == "truncate-oldest":
        raise UsageError(
            "--on-overflow truncate-oldest: how long a prompt is only the server knows; say fail or stop"
        )


def choose_api(settings: EndpointSettings, prompt_format: FormatName) -> Api:
    """Return which API is asked: `chat` unless the job itself writes the prompts.

    Raises:
        UsageError: The one that was said does not go with `prompt_format`.
    """
    fitting: Api = "chat" if prompt_format == "plain" else "completions"
    if settings.api in (None, fitting):
        return fitting
    if fitting == "chat":
        raise UsageError(
            "engine.api=completions: nothing says how prompts are written; name a --chat-template FILE or "
            "--set prompt_format=synthia, or leave engine.api out: the server then writes them"
        )
    raise UsageError(
        "engine.api=chat: the server writes the prompts, so the job's prompt format or template would do "
        "nothing; leave engine.api out, or add --set prompt_format=chat"
    )


def check_answers(job: Job, api: Api) -> None:
    """Return if all that the job asks of an answer beside its text can be had of a server.

    Raises:
        UsageError: It cannot: it would come in a shape of the server's own, or not at all.
    """
    if job.sampling.logprobs is not None:
        raise UsageError(
            "--logprobs: they are not read from a server, which has a way of its own: leave it out"
        )
    if api == "chat" and job.input.tools_column is not None:
        raise UsageError(
            "--tools-column: a server that is told of tools answers with calls, for which the dataset has no "
            "column; name a --chat-template FILE that writes them into the prompt, and calls come as text"
        )


def parse_settings(settings: Mapping[str, Any]) -> EndpointSettings:
    """Return the settings of an endpoint.

    Raises:
        UsageError: The URL is missing or cannot be used, a setting is unknown or a value does not fit.
    """
    if not settings.get("base_url"):
        raise UsageError(
            "--engine openai: say where the server is, such as --base-url http://127.0.0.1:8000/v1"
        )
    parsed = read_settings(EndpointSettings, settings, "the endpoint's")
    _check_url(parsed.base_url)
    taken = sorted(_OWN_FIELDS & parsed.extra_body.keys())
    if taken:
        raise UsageError(f"engine.extra_body: {taken[0]} is said by the job's own keys; leave it out there")
    return parsed


def list_telling(settings: EndpointSettings, api: Api) -> dict[str, Any]:
    """Return `settings` without the defaults, so that one said aloud changes nothing, and with its `api`."""
    return {**settings.model_dump(exclude_defaults=True), "api": api}


def list_extra(sampling: Sampling) -> dict[str, Any]:
    """Return what of `sampling` OpenAI's API has no field for, and is not what goes without saying."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in _FIELDS.items()}
    neutral = {**defaults, **NEUTRAL}
    values = sampling.model_dump(mode="json", warnings=False)  # What a row says was checked before.
    return {
        name: values[name]
        for name in _FIELDS
        if name not in OF_OPENAI and getattr(sampling, name) != neutral[name]
    }


def check_sampling(sampling: Sampling, settings: EndpointSettings, origins: Mapping[str, str]) -> None:
    """Return if every value of `sampling` can be sent. `origins` tells by dotted key who said a value.

    Raises:
        UsageError: One has no field in OpenAI's API, and the server was not said to take it.
    """
    if not settings.extra_sampling:
        for name, value in list_extra(sampling).items():
            neutral = NEUTRAL.get(name, _FIELDS[name].get_default(call_default_factory=True))
            origin = origins.get(f"sampling.{name}", "default")
            raise UsageError(
                f"sampling.{name}={value} ({origin}): OpenAI's API has no such field, and nothing is left "
                f"out in silence: --set sampling.{name}={neutral} does without, --set "
                "engine.extra_sampling=true sends it to a server that takes vLLM's fields"
            )


def check_structure(structure: Structure | None, settings: EndpointSettings) -> None:
    """Return if a request can ask for `structure`: OpenAI's API knows JSON Schemas, vLLM's server all.

    Raises:
        UsageError: It cannot, and the server was not said to take vLLM's fields.
    """
    if structure is not None and structure.kind != "json_schema" and not settings.extra_sampling:
        raise UsageError(
            f"structured.{structure.kind}: OpenAI's API has no such field; say a --json-schema, or --set "
            "engine.extra_sampling=true where the server takes vLLM's fields"
        )


def _check_determinism(determinism: Determinism) -> None:
    """Return if an endpoint can keep it.

    Raises:
        UsageError: It is strict.
    """
    if determinism == "strict":
        raise UsageError(
            "--engine openai: equal texts cannot be promised for a server that is not ours, so strict "
            "determinism is refused; say --determinism fast: everything else is kept"
        )


def _refuse_written_key(key: Any) -> None:
    """Return if the job names its key and does not hold it.

    Raises:
        UsageError: It holds it.
    """
    if key is not None and not (isinstance(key, str) and is_reference(key)):
        raise UsageError(
            "engine.api_key: a key is not written out; put it into the environment, and say '${NAME}', or "
            "nothing where that is OPENAI_API_KEY"
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in ("http", "https") and parts.hostname is not None
    except ValueError:
        has_host = False
    if not has_host:
        raise UsageError(
            f"--base-url {url}: no http:// or https:// address, such as http://127.0.0.1:8000/v1"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            "--base-url: an address alone, without a name, a password or a ?query, which would be kept with "
            "the run; put a key into OPENAI_API_KEY"
        )
