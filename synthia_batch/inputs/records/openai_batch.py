"""OpenAI batch files: one request per line, with an id and a body for the chat endpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.base import DETECT_ROWS, Columns
from synthia_batch.inputs.records.faults import OtherRequest, RowFault
from synthia_batch.inputs.records.message_parts import describe
from synthia_batch.inputs.records.messages import has_other_fields
from synthia_batch.inputs.records.row_options import parse_tools
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
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,), "functions": ([],),
    "modalities": (["text"],), "response_format": ({"type": "text"},), "reasoning_effort": ("none",),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "add_special_tokens": (False,),
    "echo": (False,), "priority": (0,), "use_beam_search": (False,), "length_penalty": (1.0,),
    "prompt_logprobs": (0,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    "include_reasoning": (True,), "documents": ([],), "chat_template_kwargs": ({},), "bad_words": ([],),
}  # fmt: skip
"""Keys that are not supported per request, each with the values that have no effect."""
_OF_THE_JOB = ("structured",)
"""Keys of a row's sampling that have another meaning in a body, or none."""
_READ_APART = frozenset({"n", "logprobs", "top_logprobs", "tools", "tool_choice"})
MAX_TOP_LOGPROBS = 20
"""The most that OpenAI takes, and vLLM unless it is told otherwise."""
_STRUCTURES = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_HINTS = {"functions": "write them as tools"}


def parse_request(
    values: Mapping[str, Any], columns: Columns, parse: Callable[[Any], tuple[Message, ...]]
) -> tuple[Message, ...]:
    """Return the conversation of a request with the method, url and body in `values`, by `parse`.

    Raises:
        RowFault: It is not a chat request, or names another model or `n` than the first request.
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
    _check_choices(body, columns)
    if "messages" not in body:
        raise RowFault("the body has no messages")
    try:
        return parse(body["messages"])
    except RowFault as exc:
        raise RowFault(f"the body's messages: {exc}") from exc


def read_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings of a request's body, by the names that a row has for them."""
    settings: dict[str, Any] = {}
    if (structure := require_call(body)) is not None:
        settings["structured"] = structure
    faults = []
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT or name in _READ_APART or _is_neutral(name, value):
            continue
        if name == "max_completion_tokens":
            settings["max_tokens"] = value  # OpenAI's newer name takes precedence.
        elif name == "max_tokens":
            settings.setdefault("max_tokens", value)
        elif name in RowKeys.model_fields and name not in _OF_THE_JOB:
            settings[name] = value
        else:
            try:
                settings["structured"] = _read_structure(name, value)
            except RowFault as fault:
                faults.append(str(fault))
    if faults:
        raise RowFault("; ".join(faults))
    return settings


def read_logprobs(body: Mapping[str, Any], columns: Columns) -> int | None:
    """Return how many of the likeliest tokens a request wants at each position, None without logprobs.

    Raises:
        RowFault: The values are none of OpenAI's, or the output has no column for them.
    """
    wants, top = body.get("logprobs"), body.get("top_logprobs")
    if wants not in (None, False, True) or type(wants) is int:
        raise RowFault(f"the body's logprobs must be true or false, not {describe(wants)}")
    if top is not None and (type(top) is not int or not 0 <= top <= MAX_TOP_LOGPROBS):
        raise RowFault(f"the body's top_logprobs must be a number from 0 to {MAX_TOP_LOGPROBS}")
    if not wants:
        if top:
            raise RowFault("the body sets top_logprobs, which needs logprobs: true")
        return None
    if not columns.logprobs:
        raise RowFault(
            f"the body sets logprobs, which none of the first {DETECT_ROWS:,} requests sets, so the output "
            "has no column for them; put one such request first"
        )
    return top or 0


def read_tool_choice(body: Mapping[str, Any], columns: Columns) -> tuple[str, str | None]:
    """Return the kind of a request's tool_choice, and the tool that it names.

    Raises:
        RowFault: The answer must be a call, for which the output has no column.
    """
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return choice or "auto", None
    if not columns.message_fields:
        raise RowFault(
            f"the body sets tool_choice, and none of the first {DETECT_ROWS:,} requests has such a choice or "
            "tool calls; --set input.message_fields=true keeps calls in the output"
        )
    return ("required", None) if choice == "required" else ("named", choice["function"]["name"])


def has_calls(record: Mapping[str, Any], column: str) -> bool:
    """Return whether a request has tool calls, or its answer must be one."""
    body = _find_body(record, column)
    return body.get("tool_choice") not in (None, "auto", "none") or has_other_fields(body.get("messages"))


def require_call(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the structure of an answer that must call a tool, None if it need not: vLLM's of tool_choice.

    A named tool is answered by its arguments, `required` by a list of calls.
    """
    choice = body.get("tool_choice")
    if choice in (None, "none", "auto"):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in parse_tools(body.get("tools"))}
    if choice == "required" and functions:
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "parameters": function.get("parameters") or {}},
                "required": ["name", "parameters"],
            }
            for name, function in functions.items()
        ]
        return {"json_schema": {"type": "array", "minItems": 1, "items": {"anyOf": calls}}}
    function = choice.get("function") if isinstance(choice, dict) else None
    named = function.get("name") if isinstance(function, dict) else None
    if isinstance(named, str) and named in functions:
        return {"json_schema": functions[named].get("parameters") or {"type": "object"}}
    raise RowFault(
        f"the body's tool_choice must be none, auto, required or the name of one of its tools "
        f"({', '.join(functions) or 'it has none'})"
    )


def _is_neutral(name: str, value: Any) -> bool:
    return any(value == neutral and type(value) is type(neutral) for neutral in _NEUTRAL.get(name, ()))


def wants_logprobs(record: Mapping[str, Any], column: str) -> bool:
    """Return whether a request wants log-probabilities."""
    return _find_body(record, column).get("logprobs") is True


def read_choices(record: Mapping[str, Any], column: str) -> int | None:
    """Return how many answers a request wants, None for one."""
    wanted = _find_body(record, column).get("n")
    return wanted if type(wanted) is int and wanted > 1 else None


def read_model(record: Mapping[str, Any], column: str) -> str | None:
    """Return the model that a request names, or None."""
    model = _find_body(record, column).get("model")
    return model if isinstance(model, str) else None


def _find_body(record: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """Return the body of a request, empty if it is none."""
    body = record.get(column)
    return body if isinstance(body, dict) else {}


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
        raise OtherRequest(
            f"expected the model of the first request, {columns.model!r}, got {str(model)[:200]!r}: a run "
            "has one model; put the requests for each model into a file of their own"
        )


def _check_choices(body: Mapping[str, Any], columns: Columns) -> None:
    wanted, first = body.get("n"), columns.choices or 1
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise RowFault(f"the body's n must be a whole number from 1, not {str(wanted)[:80]}")
    if (wanted or 1) != first:
        raise OtherRequest(
            f"expected n: {first} as in the first request, got n: {wanted or 1}: a run makes equally many "
            "answers for each row; put the requests with each n into a file of their own"
        )
