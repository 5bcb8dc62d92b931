"""OpenAI's batch files: a request per line, with an id, and a body as the chat endpoint takes it."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.rows import Message
from synthia_batch.source.base import Columns
from synthia_batch.source.faults import RowFault
from synthia_batch.source.messages import describe, parse_messages

METHOD = "POST"
ENDPOINT = "/v1/chat/completions"
WITHOUT_EFFECT = frozenset(
    {
        "metadata", "model", "messages", "parallel_tool_calls", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream", "stream_options",
        "user", "verbosity",
    }
)  # fmt: skip
"""Keys of a body that are read here, or change nothing about the tokens of one whole answer."""


def parse_request(values: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """Return the conversation of a request, its method, url and body being `values`.

    Raises:
        RowFault: It is no chat request, or asks for what cannot be given.
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
    refused = sorted(name for name, value in body.items() if value is not None and name not in WITHOUT_EFFECT)
    if refused:
        raise RowFault(
            f"the body asks for {', '.join(refused)}, which cannot be honoured; say it of the whole job"
        )
    if "messages" not in body:
        raise RowFault("the body has no messages")
    try:
        return parse_messages(body["messages"])
    except RowFault as exc:
        raise RowFault(f"the body's {exc}") from exc


def read_model(record: Mapping[str, Any], column: str) -> str | None:
    """Return the model that a request names, or None."""
    body = record.get(column)
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


def _check_model(body: Mapping[str, Any], columns: Columns) -> None:
    model = body.get("model")
    if model is not None and model != columns.model:
        raise RowFault(
            f"the body names the model {str(model)[:200]!r}, the first request {columns.model!r}: a run has "
            "one model; put the requests of each into a file of their own"
        )
