"""OpenAI's batch files: a request per line, with an id, and a body as the chat endpoint takes it."""

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
"""Keys of a body that are read elsewhere, or change nothing about the tokens of one whole answer."""
_NEUTRAL: Mapping[str, Any] = {
    "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "functions": [],
    "modalities": ["text"], "response_format": {"type": "text"}, "reasoning_effort": "none", "best_of": 1,
}  # fmt: skip
"""Keys that cannot be honoured, each with the value that asks for nothing."""
_OF_THE_JOB = ("structured", "logprobs")
"""Keys of a row's sampling that mean something else in a body, or nothing."""
_STRUCTURES = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_HINTS = {
    "n": "leave it out, and say -n/--num-samples of the whole job",
    "logprobs": "leave it out, and say --logprobs K of the whole job",
    "top_logprobs": "leave it out, and say --logprobs K of the whole job",
    "tools": "write rows of messages and tools, and say --tools-column",
}


def parse_request(values: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """Return the conversation of a request, its method, url and body being `values`.

    Raises:
        RowFault: It is no chat request, or names another model than the first.
    """
    for name, wanted in (("method", METHOD), ("url", ENDPOINT)):
        value = values.get(name)
        if value is not None and value != wanted:
            raise RowFault(
                f"the {name} must be {wanted}, not {str(value)[:80]!r}: only chat is generated here"
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
    """Return what a request's body says of its sampling, by the names that a row has for it.

    Raises:
        RowFault: It asks for what cannot be honoured.
    """
    said: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT or value == _NEUTRAL.get(name, _NOTHING):
            continue
        if name == "max_completion_tokens":
            said["max_tokens"] = value  # OpenAI's newer name; it goes before the older one.
        elif name == "max_tokens":
            said.setdefault("max_tokens", value)
        elif name == "top_k" and value == -1:
            said["top_k"] = 0  # vLLM's word for every token.
        elif name in RowKeys.model_fields and name not in _OF_THE_JOB:
            said[name] = value
        else:
            said["structured"] = _read_structure(name, value)
    return said


def read_model(record: Mapping[str, Any], column: str) -> str | None:
    """Return the model that a request names, or None."""
    body = record.get(column)
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


_NOTHING = object()


def _read_structure(name: str, value: Any) -> dict[str, Any]:
    """Return what the body's key `name` says that an answer must be."""
    if name in _STRUCTURES:
        return {_STRUCTURES[name]: value}
    if name == "structured_outputs" and isinstance(value, dict):
        names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
        said = {key: entry for key, entry in value.items() if entry is not None}
        if said and said.keys() <= names.keys():
            return {names[key]: entry for key, entry in said.items()}
    if name == "response_format" and isinstance(value, dict):
        if value.get("type") == "json_object":
            return {"json_schema": {"type": "object"}}
        schema = value.get("json_schema")
        if value.get("type") == "json_schema" and isinstance(schema, dict) and "schema" in schema:
            return {"json_schema": schema["schema"]}
    hint = _HINTS.get(name, "leave it out, or say it of the whole job")
    raise RowFault(f"the body asks for {name}, which cannot be honoured of a request; {hint}")


def _check_model(body: Mapping[str, Any], columns: Columns) -> None:
    model = body.get("model")
    if model is not None and model != columns.model:
        raise RowFault(
            f"the body names the model {str(model)[:200]!r}, the first request {columns.model!r}: a run has "
            "one model; put the requests of each into a file of their own"
        )
