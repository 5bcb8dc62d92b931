"""Parses conversations, for every format: messages of role and content, or of ShareGPT's from and value."""

import json
from collections.abc import Mapping
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.conversation_forms import join_turns, list_items
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.message_parts import (
    PART_SEPARATOR,
    describe,
    is_field,
    parse_part,
    read_fields,
)
from synthia_batch.inputs.records.strict_json import is_blank, parse_json_text
from synthia_batch.job.input_section import FinalAssistant

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""The values of `role`; the chat template decides which it takes, and where."""
SPEAKERS: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
"""The roles of ShareGPT's values of `from`."""
CALL_SPEAKER = "function_call"
_ASKING = ("user", "tool", "function")
"""Roles whose message the model answers."""
_EXTRA_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Other keys of a message that chat templates read; vLLM passes these on."""
_READ_KEYS = frozenset({"role", "content", "from", "value", "function_call", *_EXTRA_KEYS})


def drop_final_answers(value: Any) -> tuple[Any, bool]:
    """Return the conversation in `value` without the answers at its end, and whether there were any.

    Such answers need not be readable.
    """
    value = list_items(value)
    stop = len(value) if isinstance(value, list) else 0
    while stop and _is_answer(value[stop - 1]):
        stop -= 1
    return (value[:stop], stop < len(value)) if stop else (value, False)


def _is_answer(item: Any) -> bool:
    speaker = item.get("role", item.get("from")) if isinstance(item, dict) else None
    return isinstance(speaker, str) and SPEAKERS.get(speaker) == "assistant"


def parse_messages(value: Any, unread: set[str] | None = None) -> tuple[Message, ...]:
    """Return the conversation in `value`: a list of messages, or its JSON text.

    The keys of messages that are not read are added to `unread`.

    A message has role and content, or from and value; `list_items` has other forms. Content is a string, or a
    list of parts. It may be blank only beside tool calls and as a tool's result. Roles may follow each other
    in any order. Raises RowFault.
    """
    value = list_items(value)
    if not isinstance(value, list):
        raise RowFault(f"messages must be a list of objects with role and content, not {describe(value)}")
    if not value:
        raise RowFault("messages is an empty list; it needs at least one message, from the user")
    if unread is not None:
        for item in value:
            if isinstance(item, dict) and not item.keys() <= _READ_KEYS:
                unread.update(key for key in item.keys() - _READ_KEYS if item[key] is not None)
    return tuple(_parse_message(item, number) for number, item in enumerate(value, start=1))


def check_question(messages: tuple[Message, ...], final: FinalAssistant) -> None:
    """Return if the model has something to answer, or an answer to continue.

    Answers at the end that are generated anew have been dropped before, by `drop_final_answers`.

    Raises:
        RowFault: There is nothing to answer, or an answer that `final` refuses.
    """
    stop = len(messages)
    while stop and messages[stop - 1].role == "assistant":
        stop -= 1
    if not stop:
        raise RowFault("there is no message to answer: every message is the assistant's")
    if messages[stop - 1].role not in _ASKING:
        raise RowFault(f"there is no message to answer: the last one is from {messages[stop - 1].role}")
    if stop == len(messages):
        return
    if final == "refuse":
        raise RowFault(
            "the last message is the assistant's, so there is nothing to answer; "
            "--final-assistant regenerate drops it and generates it anew"
        )
    if not messages[-1].content.strip() or messages[-1].extra:
        raise RowFault("the last message is an answer without text, or with tool calls; it has no end")


def pick_questions(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a leading system message and the user's messages; all answers are regenerated.

    Raises:
        RowFault: There is no question, or a message that is neither question nor answer.
    """
    questions = tuple(message for message in messages if message.role != "assistant")
    for number, message in enumerate(questions):
        if message.role != "user" and (number or message.role != "system"):
            raise RowFault(f"a conversation that is played turn by turn cannot have a {message.role} message")
    if not questions or questions[-1].role != "user":
        raise RowFault("the conversation has no message from the user, so there is nothing to answer")
    return questions


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
        if is_blank(turn):
            raise RowFault(f"turn {number} is blank")
    return tuple(Message("user", turn) for turn in value)


def has_messages(value: Any) -> bool:
    """Whether `value`, of a column of turns, is a conversation instead: a list of objects, or JSON text.

    Each turn may be a list of its own.
    """
    if isinstance(value, str):
        return value.lstrip()[:1] == "[" and value.lstrip(" \t\r\n[")[:1] == "{"
    value = join_turns(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def has_other_fields(value: Any) -> bool:
    """Whether a message of the conversation `value` has a field that `Message.extra` holds."""
    if isinstance(value, str):
        return any(key in value for key in (*_EXTRA_KEYS[:2], CALL_SPEAKER))
    messages = join_turns(value) if isinstance(value, list) else []
    return any(
        isinstance(message, dict)
        and (
            message.get("from") == CALL_SPEAKER
            or any(message.get(key) for key in (*_EXTRA_KEYS, CALL_SPEAKER))
            or (isinstance(message.get("content"), list) and any(map(is_field, message["content"])))
        )
        for message in messages
    )


def _parse_message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise RowFault(f"message {number} must be an object with role and content, not {describe(item)}")
    if "role" not in item and "from" in item:
        return _parse_spoken(item, number)
    role = item.get("role")
    if role not in ROLES:
        raise RowFault(f"message {number} has the role {_show(role)}; it must be one of {', '.join(ROLES)}")
    extra = {key: item[key] for key in _EXTRA_KEYS if item.get(key)} | read_fields(item, number)
    if item.get("function_call"):  # The predecessor of tool_calls in OpenAI's API.
        extra["tool_calls"] = [{"type": "function", "function": item["function_call"]}]
    if "tool_calls" in extra:
        extra["tool_calls"] = _parse_calls(extra["tool_calls"], number)
    may_be_blank = "tool_calls" in extra or role in ("tool", "function")
    content = _parse_content(item.get("content"), "content", number, may_be_blank=may_be_blank)
    return Message(role, content, extra or None)


def _parse_spoken(item: Mapping[str, Any], number: int) -> Message:
    """Return the message in an object of ShareGPT's, with from and value."""
    speaker = item["from"]
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        names = ", ".join(SPEAKERS)
        raise RowFault(f"message {number} is from {_show(speaker)}; it must be one of {names}")
    content = _parse_content(item.get("value"), "value", number, may_be_blank=role == "tool")
    if speaker != CALL_SPEAKER:
        return Message(role, content)
    found = parse_json_text(content, f"the function call of message {number}")
    calls = found if isinstance(found, list) else [found]
    return Message(role, "", {"tool_calls": _parse_calls([{"function": call} for call in calls], number)})


def _parse_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    """Return the tool calls of a message with their arguments as objects, as vLLM passes them on."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowFault(f"the tool_calls of message {number} must be a list of objects")
    parsed = []
    for call in calls:
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(f"a tool call of message {number} has no function with a name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = parse_json_text(arguments, f"the arguments of a tool call of message {number}")
        if not isinstance(arguments, dict):
            raise RowFault(
                f"the arguments of a tool call of message {number} must be an object, not "
                f"{describe(arguments)}"
            )
        parsed.append({"type": "function", **call, "function": {**function, "arguments": arguments}})
    return parsed


def _parse_content(content: Any, key: str, number: int, *, may_be_blank: bool) -> str:
    if isinstance(content, list):
        parts = [part for part in content if key != "content" or not is_field(part)]
        content = PART_SEPARATOR.join(parse_part(part, number) for part in parts)
    if content is None and may_be_blank:
        return ""
    if isinstance(content, dict) and may_be_blank:  # A tool's result that was not written as text.
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise RowFault(f"the {key} of message {number} must be a string, not {describe(content)}")
    if is_blank(content) and not may_be_blank:
        raise RowFault(f"the {key} of message {number} is blank")
    return content


def _show(name: Any) -> str:
    return repr(name[:40]) if isinstance(name, str) else describe(name)
