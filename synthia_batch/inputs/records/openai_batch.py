"""OpenAI batch files: one request per line, with an id and a body for the chat endpoint."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.base import Columns
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.messages import describe, parse_messages
from synthia_batch.job.sampling import RowKeys

METHOD = "POST"
ENDPOINT = "/v1/chat/completions"
WITHOUT_EFFECT = frozenset(
    {
        "metadata", "model", "messages", "parallel_tool_calls", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream", "stream_options",
        "user",
    }
)  # fmt: skip
"""Keys of a body that are read elsewhere, or do not affect the tokens of an answer."""
_NEUTRAL: Mapping[str, Any] = {
    "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "functions": [],
    "modalities": ["text"], "response_format": {"type": "text"}, "reasoning_effort": "none", "best_of": 1,
}  # fmt: skip
"""Unsupported keys, each with the value that has no effect."""
_OF_THE_JOB = ("structured", "logprobs")
"""Keys of a row's sampling that have another meaning in a body, or none."""
_STRUCTURES = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_HINTS = {
    "n": "omit it, and set -n/--num-samples for the whole job",
    "logprobs": "omit it, and set --logprobs K for the whole job",
    "top_logprobs": "omit it, and set --logprobs K for the whole job",
    "tools": "write rows of messages and tools, and set --tools-column",
}


def parse_request(values: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """Return the conversation of a request with the method, url and body in `values`.

    Raises:
        RowFault: It is not a chat request, or names another model than the first request.
    """
    for name, wanted in (("method", METHOD), ("url", ENDPOINT)):
        value = values.get(name)
        if value is not None and value != wanted:
            raise RowFault(
                f"the {name} must be {wanted}, not {str(value)[:80]!r}: only chat requests are supported"
            )
    body = values.get(columns.text or "")
    if not isinstance(body, dict):
        raise RowFault(f"column {columns.text!r} must be an object, not {describe(body)}")
    _check_model(body, columns)
    if "messages" not in body:
        raise RowFault("the body has no messages")
    try:
        return parse_messages(body["messages"])
    except RowFault as exc:
        raise RowFault(f"the body's messages: {exc}") from exc


def read_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings of a request's body, by the names that a row has for them."""
    settings: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT or value == _NEUTRAL.get(name, _NOTHING):
            continue
        if name == "max_completion_tokens":
            settings["max_tokens"] = value  # OpenAI's newer name takes precedence.
        elif name == "max_tokens":
            settings.setdefault("max_tokens", value)
        elif name == "top_k" and value == -1:
            settings["top_k"] = 0  # In vLLM, -1 means every token.
        elif name in RowKeys.model_fields and name not in _OF_THE_JOB:
            settings[name] = value
        else:
            settings["structured"] = _read_structure(name, value)
    return settings


def read_model(record: Mapping[str, Any], column: str) -> str | None:
    """Return the model that a request names, or None."""
    body = record.get(column)
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


_NOTHING = object()


def _read_structure(name: str, value: Any) -> dict[str, Any]:
    """Return the structure that the body's key `name` requires of an answer."""
    if name in _STRUCTURES:
        return {_STRUCTURES[name]: value}
    if name == "structured_outputs" and isinstance(value, dict):
        names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
        given = {key: entry for key, entry in value.items() if entry is not None}
        if given and given.keys() <= names.keys():
            return {names[key]: entry for key, entry in given.items()}
    if name == "response_format" and isinstance(value, dict):
        if value.get("type") == "json_object":
            return {"json_schema": {"type": "object"}}
        schema = value.get("json_schema")
        if value.get("type") == "json_schema" and isinstance(schema, dict) and "schema" in schema:
            return {"json_schema": schema["schema"]}
    hint = _HINTS.get(name, "omit it, or set it for the whole job")
    raise RowFault(f"the body sets {name}, which is not supported per request; {hint}")


def _check_model(body: Mapping[str, Any], columns: Columns) -> None:
    model = body.get("model")
    if model is not None and model != columns.model:
        raise RowFault(
            f"expected the model of the first request, {columns.model!r}, got {str(model)[:200]!r}: a run "
            "has one model; put the requests for each model into a file of their own"
        )
