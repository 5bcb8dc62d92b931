"""Parses conversations in OpenAI's shape, for every format."""

from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.strict_json import parse_json_text

ROLES = ("system", "user", "assistant")
CALL_KEYS = ("tool_calls", "function_call", "tool_call_id")
PART_SEPARATOR = "\n"
"""Between the text parts of one message, as vLLM joins them."""


def parse_messages(value: Any) -> tuple[Message, ...]:
    """Return the conversation in `value`: a list of objects with role and content, or its JSON text.

    The first message may be a system message; the last is the user's. Roles need not alternate.
    Content is a string that is not blank, or a list of parts of type text. Other keys of a message are
    ignored, except tool calls, which no prompt format here can represent.

    Raises:
        RowFault: It is anything else.
    """
    if isinstance(value, str):
        value = parse_json_text(value, "messages")
    if not isinstance(value, list):
        raise RowFault(f"messages must be a list of objects with role and content, not {describe(value)}")
    if not value:
        raise RowFault("messages is an empty list; it needs at least one message, from the user")
    messages = tuple(_parse_message(item, number) for number, item in enumerate(value, start=1))
    check_order(messages)
    return messages


def parse_turns(value: Any) -> tuple[Message, ...]:
    """Return the user's messages in `value`: a list of strings, at least one and none of them blank.

    Raises:
        RowFault: It is anything else.
    """
    if not isinstance(value, list):
        raise RowFault(f"turns must be a list of strings, not {describe(value)}")
    if not value:
        raise RowFault("turns is an empty list; it needs at least one message")
    for number, turn in enumerate(value, start=1):
        if type(turn) is not str:
            raise RowFault(f"turn {number} must be a string, not {describe(turn)}")
        if not turn or turn.isspace():
            raise RowFault(f"turn {number} is blank")
    return tuple(Message("user", turn) for turn in value)


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


def _parse_message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise RowFault(f"message {number} must be an object with role and content, not {describe(item)}")
    if "role" not in item and "from" in item and "value" in item:
        raise RowFault(f"message {number} has from and value; set --input-format sharegpt")
    role = item.get("role")
    if role not in ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else describe(role)
        raise RowFault(f"message {number} has the role {shown}; it must be one of {', '.join(ROLES)}")
    for key in CALL_KEYS:
        if item.get(key):
            raise RowFault(f"message {number} has {key}; tool calls are not supported")
    return Message(role, _parse_content(item.get("content"), number))


def _parse_content(content: Any, number: int) -> str:
    if isinstance(content, list):
        content = PART_SEPARATOR.join(_parse_part(part, number) for part in content)
    if not isinstance(content, str):
        raise RowFault(f"the content of message {number} must be a string, not {describe(content)}")
    if not content or content.isspace():
        raise RowFault(f"the content of message {number} is blank")
    return content


def _parse_part(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        shown = repr(kind[:40]) if isinstance(kind, str) else describe(part)
        raise RowFault(f"the content of message {number} has a part that is not text ({shown})")
    return text


def check_order(messages: tuple[Message, ...]) -> None:
    """Raise RowFault unless only the first message is a system message, and the last is the user's."""
    if any(message.role == "system" for message in messages[1:]):
        raise RowFault("only the first message may be a system message, and only one")
    if messages[-1].role != "user":
        raise RowFault(f"the last message must be from the user, not the {messages[-1].role}")
