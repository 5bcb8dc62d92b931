"""The parts of a message's content: text, and what OpenAI's shape has in fields of their own."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.strict_json import parse_json_text

_EXTRA_PARTS = {"reasoning": "reasoning_content", "thinking": "reasoning_content", "tool_call": "tool_calls"}
"""Types of parts of LLaMA-Factory and Anthropic, and the fields of OpenAI's shape for them."""
PART_SEPARATOR = "\n"
"""Between the text parts of one message, as vLLM joins them."""


def is_field(part: Any) -> bool:
    """Return whether a part of a message is a field of its own in OpenAI's shape."""
    return isinstance(part, dict) and part.get("type") in _EXTRA_PARTS


def read_fields(item: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the fields that parts of an assistant's message hold: its reasoning and its tool calls."""
    content = item.get("content")
    parts = [part for part in content if is_field(part)] if isinstance(content, list) else []
    if not parts:
        return {}
    if item.get("role") != "assistant":
        raise RowFault(
            f"message {number} has a part of type {parts[0]['type']!r}, and is not the assistant's"
        )
    found: dict[str, list[Any]] = {}
    for part in parts:
        key = _EXTRA_PARTS[part["type"]]
        value = next((part[name] for name in ("value", "text", part["type"]) if part.get(name)), None)
        if key == "tool_calls":
            value = (
                parse_json_text(value, f"a tool call of message {number}")
                if isinstance(value, str)
                else value
            )
            found.setdefault(key, []).append({"function": value})
        elif isinstance(value, str):
            found.setdefault(key, []).append(value)
        else:
            raise RowFault(f"message {number} has a part of type {part['type']!r} without text")
    return {
        key: PART_SEPARATOR.join(values) if key == "reasoning_content" else values
        for key, values in found.items()
    }


def parse_part(part: Any, number: int) -> str:
    """Return the text of a part of the message `number`. Raises RowFault if it is of another kind."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("text", "input_text", "output_text"):
        text = part.get("text") if part.get("text") is not None else part.get("value")
        if isinstance(text, str):
            return text
    shown = f"of type {kind[:40]!r}" if isinstance(kind, str) else f"that is {describe(part)}"
    raise RowFault(
        f"message {number} has a part {shown}; only text is supported: remove the part, or the row"
    )


def describe(value: Any) -> str:
    """Return the kind of the value, in JSON's terms."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    kinds: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value)) or f"a value of type {type(value).__name__}"
